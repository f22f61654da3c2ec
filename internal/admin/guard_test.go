package admin

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGuard(t *testing.T) {
	const token = "0123456789abcdef-secret"
	bearer := func(v string) map[string]string { return map[string]string{"Authorization": v} }
	tests := []struct {
		name   string
		cfg    Config
		method string
		host   string
		header map[string]string
		want   int
	}{
		{"read on loopback", Config{Listen: "127.0.0.1:1"}, "GET", "127.0.0.1:1", nil, 200},
		{"read as localhost", Config{Listen: "127.0.0.1:1"}, "GET", "localhost:1", nil, 200},
		{"read on ::1", Config{Listen: "[::1]:1"}, "GET", "[::1]:1", nil, 200},
		{"rebinding reads", Config{Listen: "127.0.0.1:1"}, "GET", "evil.example:1", nil, 403},
		{"rebinding changes", Config{Listen: "127.0.0.1:1"}, "POST", "evil.example", nil, 403},
		{"change on loopback", Config{Listen: "127.0.0.1:1"}, "POST", "127.0.0.1:1", nil, 200},
		{"a page changes", Config{Listen: "127.0.0.1:1"}, "POST", "127.0.0.1:1", map[string]string{"Origin": "http://evil.example"}, 403},
		{"a page without origin", Config{Listen: "127.0.0.1:1"}, "PUT", "127.0.0.1:1", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"a page with the token", Config{Listen: "127.0.0.1:1", Token: token}, "POST", "127.0.0.1:1",
			map[string]string{"Origin": "null", "Authorization": "Bearer " + token}, 403},
		{"token missing", Config{Listen: "127.0.0.1:1", Token: token}, "POST", "127.0.0.1:1", nil, 401},
		{"token missing, DELETE", Config{Listen: "127.0.0.1:1", Token: token}, "DELETE", "127.0.0.1:1", nil, 401},
		{"token missing, unknown method", Config{Listen: "127.0.0.1:1", Token: token}, "FROB", "127.0.0.1:1", nil, 401},
		{"token wrong", Config{Listen: "127.0.0.1:1", Token: token}, "POST", "127.0.0.1:1", bearer("Bearer " + token[1:]), 401},
		{"token cut", Config{Listen: "127.0.0.1:1", Token: token}, "POST", "127.0.0.1:1", bearer("Bearer " + token[:16]), 401},
		{"token empty", Config{Listen: "127.0.0.1:1", Token: token}, "POST", "127.0.0.1:1", bearer("Bearer "), 401},
		{"other scheme", Config{Listen: "127.0.0.1:1", Token: token}, "POST", "127.0.0.1:1", bearer("Basic " + token), 401},
		{"token right", Config{Listen: "127.0.0.1:1", Token: token}, "POST", "127.0.0.1:1", bearer("bearer " + token), 200},
		{"reads need no token", Config{Listen: "0.0.0.0:1", Token: token}, "GET", "node-1:1", nil, 200},
		{"open, token right", Config{Listen: "0.0.0.0:1", Token: token}, "POST", "node-1:1", bearer("Bearer " + token), 200},
		{"open, token missing", Config{Listen: "0.0.0.0:1", Token: token, Insecure: true}, "POST", "node-1:1", nil, 401},
		{"open without token", Config{Listen: "0.0.0.0:1"}, "POST", "node-1:1", nil, 403},
		{"open host empty", Config{Listen: ":1"}, "POST", "node-1:1", nil, 403},
		{"open, certificates asked for and none shown", Config{Listen: "0.0.0.0:1", Certificates: true}, "POST", "node-1:1", nil, 401},
		{"certificates asked for and none shown", Config{Listen: "127.0.0.1:1", Certificates: true}, "POST", "127.0.0.1:1", nil, 401},
		{"certificates or token, token right", Config{Listen: "0.0.0.0:1", Token: token, Certificates: true}, "POST", "node-1:1", bearer("Bearer " + token), 200},
		{"certificates or token, a page", Config{Listen: "0.0.0.0:1", Token: token, Certificates: true}, "POST", "node-1:1",
			map[string]string{"Origin": "https://node-1:1", "Authorization": "Bearer " + token}, 403},
		{"open and insecure", Config{Listen: "0.0.0.0:1", Insecure: true}, "POST", "node-1:1", nil, 200},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			reached := false
			s := &Server{cfg: test.cfg}
			h := s.guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
			r := httptest.NewRequest(test.method, "http://x/rebuild", nil)
			r.Host = test.host
			for k, v := range test.header {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != test.want || reached != (test.want == 200) {
				t.Fatalf("HTTP %d, handler reached: %v, want %d: %s", w.Code, reached, test.want, w.Body)
			}
			if strings.Contains(w.Body.String(), token) {
				t.Fatalf("the answer holds the token: %s", w.Body)
			}
		})
	}
}

func TestReadToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	for text, good := range map[string]bool{
		"0123456789abcdef\n": true, "  0123456789abcdef  ": true,
		"": false, "short-secret\n": false, "0123456789abcdef 0123": false, "0123456789abcdef\n0123456789abcdef\n": false,
		strings.Repeat("x", maxToken+1): false,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadToken(file)
		if good && (err != nil || got != "0123456789abcdef") {
			t.Errorf("%.20q: got %q, %v", text, got, err)
		}
		if !good && (err == nil || !strings.Contains(err.Error(), file)) {
			t.Errorf("%.20q: got %v, want an error that names the file", text, err)
		}
		if err != nil && strings.TrimSpace(text) != "" && strings.Contains(err.Error(), strings.TrimSpace(text)) {
			t.Errorf("the error tells what the file holds: %v", err)
		}
	}
	if _, err := ReadToken(file + ".none"); err == nil {
		t.Error("a file that is not there was read")
	}
}

// A client sends its token, and a server that is opened asks for it.
func TestOpenedServerAsksForTheToken(t *testing.T) {
	const token = "0123456789abcdef"
	s := New(Config{Listen: "127.0.0.1:0", Token: token}, nil, nil, nil)
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	c := NewClient()
	defer c.Close()
	// The topic is missing, so that a request which gets through changes nothing.
	if err := c.Rebuild(t.Context(), s.Addr().String(), "", false); err == nil || !strings.Contains(err.Error(), "--token-file") {
		t.Fatalf("without a token: got %v", err)
	}
	c.Token = token
	if err := c.Rebuild(t.Context(), s.Addr().String(), "", false); err == nil || !strings.Contains(err.Error(), "?topic=") {
		t.Fatalf("with the token: got %v, want it to reach the handler", err)
	}
}
