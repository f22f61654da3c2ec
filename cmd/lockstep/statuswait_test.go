package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Waiting ends when nothing is copied any more and the cluster is healthy, or
// after its time, with the truth either way.
func TestStatusWait(t *testing.T) {
	asked := 0
	st := sampleStatus() // node 3 copies
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		now := st
		if asked > 2 {
			now.Nodes = append(now.Nodes[:2:2], now.Nodes[2])
			now.Nodes[2].Recovery = nil
		}
		_ = json.NewEncoder(w).Encode(&now)
	}))
	defer s.Close()
	addr := strings.TrimPrefix(s.URL, "http://")
	if out, code, err := runCommand(statusCommand(), "--admin", addr, "--wait", "1m"); code != 0 || strings.Contains(out, "42% of 5") {
		t.Errorf("exit %d, %v\n%s", code, err, out)
	}
	if asked != 4 {
		t.Errorf("asked %d times, not until nothing is copied and once for what is shown", asked)
	}
	sick := sampleStatus()
	sick.Healthy, sick.Problems = false, []string{"node 3 is away"}
	began := time.Now()
	out, code, _ := runCommand(statusCommand(), "--admin", serveStatus(t, &sick), "--wait", "700ms")
	if code != exitFailed || !strings.Contains(out, "node 3 is away") || time.Since(began) < 700*time.Millisecond {
		t.Errorf("exit %d after %s\n%s", code, time.Since(began), out)
	}
	for _, wait := range []string{"-1s", "9999h", "x"} {
		if _, code, err := runCommand(statusCommand(), "--wait", wait); code != exitUsage || err == nil {
			t.Errorf("--wait %s: exit %d, %v", wait, code, err)
		}
	}
	sick.Problems = nil
	if percent, what := unfinished(&sick); percent != 42-1 || !strings.Contains(what, "node 3 copies") {
		t.Errorf("%d, %q", percent, what)
	}
	sick.Nodes = nil
	if _, what := unfinished(&sick); what != "not healthy" {
		t.Errorf("%q", what)
	}
}
