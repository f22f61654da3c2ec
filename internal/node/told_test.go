package node

import (
	"strings"
	"testing"

	"lockstep/fsm"
	"lockstep/transport"
)

// A member that is behind may believe that this node was removed. As soon as it
// knows better, this node is well again. A machine that is no member is not
// believed.
func TestARemovalIsHeardFromMembersOnly(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2, 3)
	c.settled()
	one, three := c.nodes[1], c.nodes[3]
	think := func(n *Node, who *Node, out bool) {
		n.mu.Lock()
		next := *n.identity
		next.Former = nil
		if out {
			next.putOut(who.cfg.NodeID, who.Incarnation())
		}
		n.identity = &next
		n.mu.Unlock()
	}
	think(three, one, true)
	one.transport.DropPeer(3) // it asks again
	c.problem(one, "node 3 says")
	think(three, one, false)
	c.eventually("node 1 is well again", func() (bool, string) { return one.Problem() == "", one.Problem() })

	refusal := &transport.RemoteError{Node: 3, Message: "removed", From: transport.Hello{NodeID: 3, Incarnation: three.Incarnation()}}
	think(one, three, true)
	one.heed(3, refusal)
	if got := one.Problem(); got != "" {
		t.Errorf("a machine that was put out is believed: %s", got)
	}
	think(one, three, false)
	one.heed(3, refusal)
	if got := one.Problem(); !strings.Contains(got, "removed") {
		t.Errorf("a member is not believed: %q", got)
	}
	one.heed(3, nil)
}

// A leader that cannot read a command itself commits it not: it would stop, and
// with it everybody of its build.
func TestALeaderCommitsWhatItCanRead(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2, 3)
	c.settled()
	lead := c.leader(0)
	for id, n := range c.nodes {
		if n == lead {
			continue
		}
		r, err := n.Submit(c.ctx(), fsm.CatalogGroup, fsm.Command{Kind: 99, Body: []byte("{}")})
		if err != nil || r.Verdict != fsm.Rejected || !strings.Contains(r.Message, "upgrade this node") {
			t.Errorf("a command of tomorrow, from node %d: %+v, %v", id, r, err)
		}
	}
	c.createTopic(lead, "t")
	for id, n := range c.nodes {
		if err := n.Err(); err != nil {
			t.Errorf("node %d stops: %v", id, err)
		}
	}
}
