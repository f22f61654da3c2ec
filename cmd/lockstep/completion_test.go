package main

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"lockstep/internal/admin"
)

// completions is what the shell's script gets for a command line.
func completions(t *testing.T, args ...string) []string {
	t.Helper()
	out, code, err := runCommand(rootCommand(), append([]string{"__completeNoDesc"}, args...)...)
	if code != 0 {
		t.Fatalf("%q: exit %d, %v", args, code, err)
	}
	return strings.Split(strings.TrimSpace(out), "\n")
}

func TestCompletion(t *testing.T) {
	st := sampleStatus()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/status":
			_ = json.NewEncoder(w).Encode(&st)
		case "/partitions":
			_ = json.NewEncoder(w).Encode([]admin.PartitionInfo{{Topic: "orders"}, {Topic: "orders", Partition: 1}, {Topic: "clicks"}})
		}
	}))
	defer s.Close()
	node := strings.TrimPrefix(s.URL, "http://")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"dem"}, "demo :4"},
		{[]string{"demo", "kill"}, "kill-leader :4"},
		{[]string{"status", "-o", ""}, "table json :4"},
		{[]string{"serve", "--config", ""}, "yaml yml :8"},
		{[]string{"demo", "--data-dir", ""}, ":16"},
		{[]string{"verify", "--admin", node, "--topic", ""}, "clicks orders :4"},
		{[]string{"rebuild", "--admin", node, ""}, "clicks orders :4"},
		{[]string{"rebuild", "--admin", node, "orders", ""}, ":4"}, // it takes one
		{[]string{"version", ""}, ":4"},
		{[]string{"transfer", "--admin", node, "--to", ""}, "1 2 3 :4"},
		{[]string{"members", "remove", "--admin", node, ""}, "1 2 3 :4"},
	} {
		if got := strings.Join(completions(t, tt.args...), " "); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.args, got, tt.want)
		}
	}
}

// A node that is not there, or says nothing, costs a key press no more than its time.
func TestCompletionWithoutNode(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // it accepts and never answers
	for _, addr := range []string{"127.0.0.1:1", ln.Addr().String()} {
		began := time.Now()
		if got := strings.Join(completions(t, "rebuild", "--admin", addr, ""), " "); got != ":4" {
			t.Errorf("%s: %q", addr, got)
		}
		if took := time.Since(began); took > 10*completionTimeout {
			t.Errorf("%s: it took %s", addr, took)
		}
	}
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out, code, err := runCommand(rootCommand(), "completion", shell); code != 0 || !strings.Contains(out, "lockstep") {
			t.Errorf("%s: exit %d, %v, %d bytes", shell, code, err, len(out))
		}
	}
}
