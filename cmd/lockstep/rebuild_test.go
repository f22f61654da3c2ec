package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// What is ordered reaches the one node that is named, and its refusal is told.
func TestRebuildCommand(t *testing.T) {
	var got []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Method+" "+r.URL.String())
		if r.URL.Query().Get("topic") == "sound" {
			w.WriteHeader(http.StatusConflict)
			_ = json.NewEncoder(w).Encode(map[string]string{"error": "no damage"})
		}
	}))
	defer s.Close()
	addr := strings.TrimPrefix(s.URL, "http://")
	if out, code, err := runCommand(rebuildCommand(), "orders", "--force", "--admin", addr); code != 0 || !strings.Contains(out, "orders") {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
	if _, code, err := runCommand(rebuildCommand(), "sound", "--admin", addr); code != exitFailed || !strings.Contains(err.Error(), "no damage") {
		t.Errorf("a refusal: exit %d, %v", code, err)
	}
	if want := []string{"POST /rebuild?force=true&topic=orders", "POST /rebuild?force=false&topic=sound"}; strings.Join(got, ",") != strings.Join(want, ",") {
		t.Errorf("asked %q, want %q", got, want)
	}
	for _, args := range [][]string{{}, {"a", "b"}, {"a", "--admin", "nowhere"}, {"a", "--nope"}} {
		if _, code, err := runCommand(rebuildCommand(), args...); code != exitUsage || err == nil {
			t.Errorf("%q: exit %d, %v", args, code, err)
		}
	}
}
