package cluster

import (
	"testing"
	"time"
)

func TestNodeState(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, tt := range []struct {
		name            string
		alive, stopping bool
		heard, gone     time.Time
		want            NodeState
	}{
		{"heard of", true, false, ago(time.Second), time.Time{}, NodeUp},
		{"back after its process was gone", true, false, ago(time.Second), ago(time.Minute), NodeUp},
		{"told to stop", true, true, ago(time.Second), time.Time{}, NodeStopping},
		{"silent for a moment", false, false, ago(2 * time.Second), time.Time{}, NodeSuspect},
		{"silent, back before that", false, false, ago(2 * time.Second), ago(3 * time.Second), NodeSuspect},
		{"its process is gone", false, false, ago(2 * time.Second), ago(time.Second), NodeDown},
		{"silent for long", false, false, ago(downAfter + time.Second), time.Time{}, NodeDown},
		{"never heard of", false, false, time.Time{}, time.Time{}, NodeDown},
	} {
		if got := nodeState(tt.alive, tt.stopping, tt.heard, tt.gone, now); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
