package node

import (
	"strings"
	"testing"
	"time"

	"lockstep/fsm"
)

// The ring keeps the newest, newest first, and no more than it may.
func TestLeaderChangesAreBounded(t *testing.T) {
	n := &Node{}
	const total = maxLeaderChanges + 5
	for i := range total {
		n.changes.add(LeaderChange{Term: uint64(i)})
	}
	got := n.LeaderChanges()
	if len(got) != maxLeaderChanges || got[0].Term != total-1 || got[len(got)-1].Term != total-maxLeaderChanges {
		t.Errorf("%d changes, terms %d to %d", len(got), got[0].Term, got[len(got)-1].Term)
	}
	got[0].Why = "changed by a reader"
	if n.LeaderChanges()[0].Why != "" {
		t.Error("a reader changed what the node remembers")
	}
}

// A survivor tells the end of a process from silence, and says who leads now.
func TestLeaderChangeSaysWhy(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2, 3)
	c.settled()
	for _, n := range c.nodes { // nobody is elected for silence
		for _, g := range n.Groups() {
			rc := g.Raft().ReloadableConfig()
			rc.HeartbeatTimeout, rc.ElectionTimeout = 10*testWait, 10*testWait
			if err := g.Raft().ReloadConfig(rc); err != nil {
				t.Fatal(err)
			}
		}
	}
	dead := c.leader(fsm.CatalogGroup)
	deadID := dead.cfg.NodeID
	c.stop(deadID)
	for _, n := range c.nodes {
		n.peerDied(n.ctx, deadID)
	}
	next := c.leader(fsm.CatalogGroup)
	patience := time.After(testWait)
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		for _, l := range next.LeaderChanges() {
			if l.Group != fsm.CatalogGroup || l.From != deadID {
				continue
			}
			if l.To != next.cfg.NodeID || l.Term == 0 || l.Gap <= 0 || !strings.Contains(l.Why, "process") {
				t.Errorf("the change is told as %+v", l)
			}
			return
		}
		select {
		case <-look.C:
		case <-patience:
			t.Fatalf("node %d does not tell of a change from node %d: %+v", next.cfg.NodeID, deadID, next.LeaderChanges())
		}
	}
}
