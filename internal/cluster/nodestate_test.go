package cluster

import (
	"slices"
	"testing"
	"time"

	"lockstep/internal/node"
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

// Each node tells of all others: that one is down and up again, what it
// coordinates, and what is made anew on it.
func TestStatusTellsOfOtherNodes(t *testing.T) {
	t.Parallel()
	r, _ := damaged(t, nil, nil)
	asked, other := r.members[1], r.members[3]
	r.reports(asked, "node 3 with its rebuild", func(s Status) bool {
		n := s.Nodes[2]
		return n.State == NodeUp && n.Silent >= 0 && n.Silent < lease && n.Coordinators > 0 &&
			len(n.Rebuilds) == 1 && n.Rebuilds[0].Stage == StageOrder && len(s.Rebuilds) == 0
	})
	r.stop(other.id)
	r.reports(asked, "node 3 not up", func(s Status) bool {
		n := s.Nodes[2]
		return (n.State == NodeSuspect || n.State == NodeDown) && n.Silent > lease && len(n.Rebuilds) == 0
	})
	r.reports(asked, "a leader's reason", func(s Status) bool {
		return slices.ContainsFunc(s.LeaderChanges, func(l node.LeaderChange) bool { return l.From == other.id && l.To != 0 && l.Why != "" })
	})
	r.start(other.id)
	r.reports(asked, "node 3 up again", func(s Status) bool { return s.Nodes[2].State == NodeUp })
}
