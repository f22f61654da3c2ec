package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"lockstep/internal/admin"
)

// What an operator should know of an order that was taken is said by the command,
// apart from its output; nodes of older builds say nothing.
func TestOrdersWarn(t *testing.T) {
	warnings := []string{"node 2 is away", "t/0 is refused"}
	var got []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Method+" "+r.URL.Path+" "+r.URL.Query().Get("order")+" "+r.URL.Query().Get("node"))
		answer := map[string]any{"ordered": true}
		if warnings != nil {
			answer["warnings"] = warnings
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	defer s.Close()
	run := func(args ...string) (out, said string) {
		t.Helper()
		cmd := membersCommand()
		var stderr bytes.Buffer
		cmd.SetErr(&stderr)
		out, code, err := runCommand(cmd, append(args, "--admin", strings.TrimPrefix(s.URL, "http://"))...)
		if code != 0 || err != nil || !strings.Contains(out, "ordered") {
			t.Errorf("%q: exit %d, %v, %s", args, code, err, out)
		}
		return out, stderr.String()
	}
	orders := [][]string{{admin.OrderAdd, "3"}, {admin.OrderAdd, "3", "--address", "c:7400"}, {admin.OrderRemove, "3"}, {admin.OrderReplace, "3"}}
	for _, args := range orders {
		out, said := run(args...)
		if want := "warning: node 2 is away\nwarning: t/0 is refused\n"; said != want || strings.Contains(out, "warning") {
			t.Errorf("%q: on standard error %q, on standard output %q", args, said, out)
		}
	}
	warnings = nil
	if _, said := run(admin.OrderRemove, "3"); said != "" {
		t.Errorf("nothing to be warned of: %q", said)
	}
	if want := "POST /members add 3,POST /members add 3,POST /members remove 3,POST /members replace 3,POST /members remove 3"; strings.Join(got, ",") != want {
		t.Errorf("asked %q", got)
	}
}
