package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"lockstep/internal/cluster"
)

// leave says what each broker has been told, and fails where one was not, or a
// group has members.
func TestLeaveCommand(t *testing.T) {
	told := map[int32]cluster.LeaveReport{1: {Groups: 2, Offsets: 30, Missing: 4}, 2: {Groups: 2, Offsets: 34}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/leave" {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(told)
	}))
	t.Cleanup(s.Close)
	addr := strings.TrimPrefix(s.URL, "http://")
	out, code, err := runCommand(leaveCommand(), "--admin", addr)
	if code != 0 || !strings.Contains(out, "node 1     2       30       4") || !strings.Contains(out, "node 2     2       34       0") {
		t.Errorf("exit %d, %v:\n%s", code, err, out)
	}
	told[3] = cluster.LeaveReport{Error: "asleep"}
	told[1] = cluster.LeaveReport{Groups: 1, Occupied: []string{"busy"}}
	out, code, err = runCommand(leaveCommand(), "--admin", addr)
	if code != exitFailed || !strings.Contains(out, "! node 3: asleep") || !strings.Contains(out, "! node 1: groups with members, stop their consumers: busy") {
		t.Errorf("exit %d, %v:\n%s", code, err, out)
	}
	var r map[int32]cluster.LeaveReport
	out, code, _ = runCommand(leaveCommand(), "--admin", addr, "-o", "json")
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitFailed || len(r) != 3 {
		t.Errorf("as JSON: exit %d, %v: %s", code, err, out)
	}
}
