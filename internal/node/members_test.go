package node

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/transport"
)

// submit has a command committed that must be done.
func (c *testCluster) submit(via *Node, kind fsm.Kind, body any) {
	c.t.Helper()
	r, err := via.Submit(c.ctx(), fsm.CatalogGroup, fsm.Control(kind, body))
	if err != nil || r.Verdict != fsm.Done {
		c.t.Fatalf("%T: %+v, %v", body, r, err)
	}
}

// admit lets a node in that was started, without a vote, and returns what the
// catalog has of it.
func (c *testCluster) admit(via *Node, id int32) *fsm.CatalogNode {
	c.t.Helper()
	c.until(via.Catalog(), "the node is joining", func(s *fsm.Group) bool {
		n := s.Catalog.Nodes[id]
		return n != nil && n.State == fsm.NodeJoining
	})
	n := via.registered(id)
	for g := range uint32(2) {
		if err := c.leader(g).Group(g).AddNonvoter(n.RaftServer(), c.peers[id]); err != nil {
			c.t.Fatal(err)
		}
	}
	c.until(c.nodes[id].Catalog(), "the node reads of itself", func(s *fsm.Group) bool { return s.Catalog.Nodes[id] != nil })
	return n
}

// let makes a node that was let in a voter.
func (c *testCluster) let(via *Node, n *fsm.CatalogNode) {
	c.t.Helper()
	for g := range uint32(2) {
		if err := c.leader(g).Group(g).Promote(n.RaftServer(), c.peers[n.ID]); err != nil {
			c.t.Fatal(err)
		}
	}
	c.submit(via, fsm.KindNodeJoined, fsm.NodeJoined{ID: n.ID, Since: n.Since})
}

// later starts a node that comes into a cluster which runs.
func (c *testCluster) later(id int32) {
	c.t.Helper()
	cfg := c.config(id)
	cfg.Join, cfg.Peers = true, c.peers
	if _, err := c.openAs(id, cfg); err != nil {
		c.t.Fatal(err)
	}
}

func (c *testCluster) leadsWithin(n *Node, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		l, changed := n.Group(1).Leading.Changed()
		if l != nil {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// grown is a cluster that began with node 1 alone, and has three voters. Node 1
// knows the others from the catalog only.
func grown(t *testing.T) *testCluster {
	t.Helper()
	c := newTestCluster(t, 3, func(cfg *Config) {
		cfg.Self.Raft = cfg.Peers[cfg.NodeID]
		if cfg.NodeID == 1 {
			cfg.Peers = map[int32]string{1: cfg.Peers[1]}
		}
	})
	c.start(1)
	c.leader(0)
	for id := int32(2); id <= 3; id++ {
		c.submit(c.nodes[1], fsm.KindAddNode, fsm.AddNode{ID: id, Raft: c.peers[id]})
		c.later(id)
		c.let(c.nodes[1], c.admit(c.nodes[1], id))
	}
	return c
}

// A founder that was replaced reads, while it catches up, that it is the only
// voter: that was another one. It must not elect itself when the others are
// away. The founder itself, with the same log, does.
func TestLaterServerIsNotTheFounder(t *testing.T) {
	t.Parallel()
	c := grown(t)
	for g := range uint32(2) {
		if lead := c.leader(g); lead == c.nodes[1] {
			if err := lead.Group(g).Transfer(c.ctx(), 2, "test"); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.stop(1)
	c.submit(c.nodes[2], fsm.KindRemoveNode, fsm.RemoveNode{ID: 1, Again: true})
	for g := range uint32(2) {
		if err := c.leader(g).Group(g).Remove("1"); err != nil {
			t.Fatal(err)
		}
	}
	c.submit(c.nodes[2], fsm.KindNodeLeft, fsm.NodeLeft{ID: 1, Since: c.nodes[2].registered(1).Since})

	// With its old disk it is told why it has no place.
	c.start(1)
	c.problem(c.nodes[1], "empty it")
	removed := transport.Hello{NodeID: 1, Incarnation: c.nodes[1].Incarnation(), Recovery: 1}
	c.stop(1)
	// lockstep recover on that disk makes another cluster of it, and leaves nobody behind.
	if err := c.nodes[2].Admit(removed, true); err == nil || !strings.Contains(err.Error(), "empty it") {
		t.Errorf("a node that was removed and then recovered hears %v", err)
	}
	if err := c.nodes[2].Err(); err != nil {
		t.Fatalf("a node that was removed stops one of the cluster: %v", err)
	}
	founder := c.dataDir(1) + "-founder"
	if err := os.Rename(c.dataDir(1), founder); err != nil {
		t.Fatal(err)
	}
	c.later(1)
	c.admit(c.nodes[2], 1)
	if got := string(c.nodes[1].server()); !strings.HasPrefix(got, "1.") {
		t.Fatalf("the new node is called %s", got)
	}
	c.stop(2, 3)
	if c.leadsWithin(c.nodes[1], 3*time.Second) {
		t.Error("a node without a vote elected itself, from a configuration that speaks of its predecessor")
	}
	c.stop(1)

	// The control: in the time above, who is the only voter does lead.
	alone := newTestCluster(t, 1, nil)
	alone.start(1)
	if !alone.leadsWithin(alone.nodes[1], 3*time.Second) {
		t.Error("a node that is alone does not lead within the time of this test")
	}
}

// Nodes that know each other from the catalog only meet after a restart of
// all: the catalog cannot be read before they have.
func TestMembersMeetAfterARestart(t *testing.T) {
	t.Parallel()
	c := grown(t)
	c.eventually("node 1 has written down where the others are", func() (bool, string) {
		id, err := loadIdentity(c.dataDir(1), "test", 1, 2)
		return err == nil && len(id.Peers) == 3, ""
	})
	c.stop(1, 2, 3)
	c.start(1, 2) // with raft.peers of node 1 alone, node 1 is found by nobody else
	c.leader(0)
	c.leader(1)
	if got := c.nodes[1].Group(0).Voters(); len(got) != 3 {
		t.Errorf("the voters are %v", got)
	}
}

// A node that is started and killed again before it has found a leader still
// knows where the others are.
func TestMembersAreKnownAfterAStartInVain(t *testing.T) {
	t.Parallel()
	c := grown(t)
	wrote := func() (bool, string) {
		id, err := loadIdentity(c.dataDir(1), "test", 1, 2)
		return err == nil && len(id.Peers) == 3, ""
	}
	c.eventually("node 1 has written down where the others are", wrote)
	c.stop(1, 2, 3)
	c.start(1)
	if c.leadsWithin(c.nodes[1], time.Second) {
		t.Fatal("a node leads without a majority")
	}
	c.stop(1)
	if ok, _ := wrote(); !ok {
		t.Error("node 1 has forgotten where the others are")
	}
	c.start(1, 2)
	c.leader(0)
	c.leader(1)
}

// A node whose raft.peers leave members out says so, once, unless it could not
// begin a cluster anyway.
func TestPeersLeftOutAreNamed(t *testing.T) {
	t.Parallel()
	nodes := map[int32]*fsm.CatalogNode{1: {ID: 1}, 2: {ID: 2}, 3: {ID: 3}, 4: {ID: 4, State: fsm.NodeGone}, 5: {ID: 5, State: fsm.NodeJoining}}
	said := func(join bool, peers ...int32) string {
		var out strings.Builder
		cfg := Config{NodeID: 1, Groups: 1, Join: join, Peers: map[int32]string{}, Logger: hclog.New(&hclog.LoggerOptions{Output: &out})}
		for _, id := range peers {
			cfg.Peers[id] = "a:1"
		}
		n := New(cfg)
		n.warnOfPeers(nodes)
		n.warnOfPeers(nodes)
		return out.String()
	}
	if got := said(false, 1); strings.Count(got, "leaves members out") != 1 || !strings.Contains(got, "[2 3]") {
		t.Errorf("it said %q", got)
	}
	for _, quiet := range []string{said(false, 1, 2, 3), said(true, 1)} {
		if quiet != "" {
			t.Errorf("it said %q", quiet)
		}
	}
}

// Who is not awaited is not let in, and is told what to do; a node with
// raft.join begins nothing by itself.
func TestNobodyComesUnasked(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2, func(cfg *Config) {
		if cfg.NodeID == 1 {
			cfg.Peers = map[int32]string{1: cfg.Peers[1]}
		}
	})
	c.later(2)
	c.problem(c.nodes[2], "raft.join")
	c.start(1)
	c.leader(0)
	c.submit(c.nodes[1], fsm.KindAddNode, fsm.AddNode{ID: 2, Raft: c.peers[2]})
	c.eventually("node 2 is let in", func() (bool, string) { return c.nodes[2].Member(), c.nodes[2].Problem() })
	if n := c.nodes[1].registered(2); n.State != fsm.NodeJoining || n.Incarnation != c.nodes[2].Incarnation() {
		t.Errorf("the catalog has %+v", n)
	}
}

// A node that waits until another one is in or out is told so, and is not listed
// as one that is kept out.
func TestWhoWaitsItsTurnIsNoStranger(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2, 3)
	c.settled()
	one := c.nodes[1]
	c.submit(one, fsm.KindAddNode, fsm.AddNode{ID: 4, Raft: "127.0.0.1:7"})
	c.submit(one, fsm.KindRemoveNode, fsm.RemoveNode{ID: 3})
	for id := int32(1); id <= 2; id++ {
		c.until(c.nodes[id].Catalog(), "node 3 leaves", func(s *fsm.Group) bool { return s.Catalog.Nodes[3].State == fsm.NodeLeaving })
	}
	ask := func(req joinRequest) (a joinAnswer) {
		raw, err := json.Marshal(req)
		if err == nil {
			raw, err = one.heardJoin(c.ctx(), transport.Hello{NodeID: 4, Incarnation: "later"}, raw)
		}
		if err == nil {
			err = json.Unmarshal(raw, &a)
		}
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	req := joinRequest{Enter: true, Served: true, Node: fsm.CatalogNode{ID: 4, Incarnation: "later"}}
	if a := ask(req); !strings.Contains(a.Problem, "empty it") || !strings.Contains(one.Strangers()[4], "empty it") {
		t.Errorf("it is kept out, and told %q, and listed as %v", a.Problem, one.Strangers())
	}
	req.Served = false
	if a := ask(req); a.Admitted || !strings.Contains(a.Problem, "node 3 is leaving: this one is let in after that") || len(one.Strangers()) > 0 {
		t.Errorf("it waits its turn, and is told %q, and listed as %v", a.Problem, one.Strangers())
	}
}
