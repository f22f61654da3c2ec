package node

import (
	"testing"
	"time"

	"lockstep/fsm"
)

// With a heartbeat timeout far beyond the test's patience, only the notice that
// a leader's process is gone can bring the next leader. A Close says goodbye on
// the connections, so the notice itself is given here.
func TestDeadLeaderIsReplacedInHaste(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2, 3)
	c.settled()
	normal := 10 * testWait
	for _, n := range c.nodes {
		for _, g := range n.Groups() {
			rc := g.Raft().ReloadableConfig()
			rc.HeartbeatTimeout, rc.ElectionTimeout = normal, normal
			if err := g.Raft().ReloadConfig(rc); err != nil {
				t.Fatal(err)
			}
		}
	}
	dead := c.leader(fsm.CatalogGroup).cfg.NodeID
	c.stop(dead)
	for _, n := range c.nodes {
		n.peerDied(n.ctx, dead)
	}
	next := c.leader(fsm.CatalogGroup)
	if next.cfg.NodeID == dead {
		t.Fatalf("node %d leads after it was stopped", dead)
	}
	// Whoever hurried goes back to the normal timeouts.
	back := time.NewTicker(10 * time.Millisecond)
	defer back.Stop()
	patience := time.After(testWait)
	for _, n := range c.nodes {
		for n.Catalog().Raft().ReloadableConfig().HeartbeatTimeout != normal {
			select {
			case <-back.C:
			case <-patience:
				t.Fatalf("node %d stays at a heartbeat timeout of %s", n.cfg.NodeID, n.Catalog().Raft().ReloadableConfig().HeartbeatTimeout)
			}
		}
	}
}
