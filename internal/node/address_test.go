package node

import (
	"net"
	"testing"

	"lockstep/fsm"
)

// mapped is the same address by another name.
func mapped(t *testing.T, addr string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("::ffff:"+host, port)
}

// The address that raft.peers has for a node holds, whatever the node calls
// itself: it may lie behind another one from here. When a node announces a new
// address, that is dialed, and after a restart too, until raft.peers of this
// node says something new.
func TestListedAddressHoldsUntilTheNodeMoves(t *testing.T) {
	t.Parallel()
	listed := make(map[int32]string) // node 1's raft.peers, beyond itself
	c := newTestCluster(t, 3, func(cfg *Config) {
		cfg.Self.Raft = cfg.Peers[cfg.NodeID]
		if cfg.NodeID == 1 {
			cfg.Peers = map[int32]string{1: cfg.Peers[1], 2: listed[2], 3: listed[3]}
		}
	})
	listed[2], listed[3] = mapped(t, c.peers[2]), mapped(t, c.peers[3])
	dials := func(want string) {
		t.Helper()
		c.until(c.nodes[1].Catalog(), "the catalog knows node 2's address", func(s *fsm.Group) bool {
			return s.Catalog.Nodes[2] != nil && s.Catalog.Nodes[2].Raft == c.peers[2]
		})
		c.eventually("node 1 has written it down", func() (bool, string) {
			id, err := loadIdentity(c.dataDir(1), "test", 1, 2)
			return err == nil && id.Peers[2] == c.peers[2], ""
		})
		if got := c.nodes[1].Address(2); got != want {
			t.Errorf("node 1 dials node 2 at %s, want %s", got, want)
		}
	}
	c.start(1, 2, 3)
	c.settled()
	dials(listed[2])

	// Node 2 moves.
	c.stop(2)
	old := c.peers[2]
	c.peers[2] = newTestCluster(t, 1, nil).peers[1]
	c.start(2)
	c.leader(0)
	dials(c.peers[2])
	if got := c.nodes[1].Address(3); got != listed[3] {
		t.Errorf("node 1 dials node 3 at %s, want %s: it did not move", got, listed[3])
	}

	// What raft.peers of node 1 says is outdated, after a restart too.
	for _, next := range []struct{ says, want string }{
		{mapped(t, old), c.peers[2]},
		{mapped(t, c.peers[2]), mapped(t, c.peers[2])},
	} {
		c.stop(1)
		listed[2] = next.says
		c.start(1)
		dials(next.want)
		c.leader(0)
	}
}
