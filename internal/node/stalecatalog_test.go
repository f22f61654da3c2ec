package node

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/transport"
)

// replace puts a node out, as one that lost its disk, and lets it in again
// under another incarnation. Node via takes the orders.
func (c *testCluster) replace(via *Node, id int32) {
	c.t.Helper()
	old := via.registered(id)
	c.stop(id)
	c.putOut(via, old)
	if err := os.RemoveAll(c.dataDir(id)); err != nil {
		c.t.Fatal(err)
	}
	c.later(id)
	c.let(via, c.admit(via, id))
}

// putOut takes a node out of every group; it is awaited after that.
func (c *testCluster) putOut(via *Node, old *fsm.CatalogNode) {
	c.t.Helper()
	c.submit(c.leader(0), fsm.KindRemoveNode, fsm.RemoveNode{ID: old.ID, Again: true})
	for g := range uint32(2) {
		if err := c.leader(g).Group(g).Remove(old.RaftServer()); err != nil {
			c.t.Fatal(err)
		}
	}
	c.until(via.Catalog(), "the node is leaving", func(s *fsm.Group) bool { return s.Catalog.Nodes[old.ID].State == fsm.NodeLeaving })
	c.submit(c.leader(0), fsm.KindNodeLeft, fsm.NodeLeft{ID: old.ID, Since: via.registered(old.ID).Since})
	c.until(via.Catalog(), "the node is awaited", func(s *fsm.Group) bool { return s.Catalog.Nodes[old.ID].State == fsm.NodeAwaited })
}

// wroteDown waits until a node's identity.json says that.
func (c *testCluster) wroteDown(id int32, what string, ok func(*identity) bool) {
	c.t.Helper()
	c.eventually(what, func() (bool, string) {
		read, err := loadIdentity(c.dataDir(id), "test", id, 2)
		return err == nil && ok(read), ""
	})
}

// A snapshot holds the catalog of before a node was replaced. After a restart
// the identity, which was written since, says who belongs: otherwise the two
// that are up refuse each other, and none of them can learn better.
func TestASnapshotIsOlderThanTheIdentity(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, func(cfg *Config) { cfg.Self.Raft = cfg.Peers[cfg.NodeID] })
	c.start(1, 2, 3)
	c.settled()
	if err := c.nodes[1].Catalog().Raft().Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	c.replace(c.nodes[2], 3)
	incarnation := c.nodes[3].Incarnation()
	c.wroteDown(1, "node 1 has written down who node 3 is now", func(id *identity) bool { return id.Known[3] == incarnation })
	c.stop(1, 2, 3)
	c.start(1, 3)
	for g := range uint32(2) {
		c.leader(g)
	}
	c.wroteDown(1, "node 1 still knows who node 3 is", func(id *identity) bool { return id.Known[3] == incarnation })
}

// A node registers by an entry that this one has in its log and has not applied:
// the group's configuration says who it is.
func TestTheConfigurationSaysWhoVotes(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, func(cfg *Config) { cfg.Self.Raft = cfg.Peers[cfg.NodeID] })
	c.start(1, 2, 3)
	c.settled()
	before, err := loadIdentity(c.dataDir(1), "test", 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	c.replace(c.nodes[2], 3)
	newest := c.nodes[3].Catalog().Log().Applied().Get()
	c.until(c.nodes[1].Catalog(), "node 1 has the log", func(s *fsm.Group) bool { return s.Index >= newest })
	c.stop(1, 2, 3)
	if err := before.save(c.dataDir(1)); err != nil { // it was killed before it applied that
		t.Fatal(err)
	}
	c.start(1, 3)
	for g := range uint32(2) {
		c.leader(g)
	}
	incarnation := c.nodes[3].Incarnation()
	c.until(c.nodes[1].Catalog(), "node 1 reads of it", func(s *fsm.Group) bool { n := s.Catalog.Nodes[3]; return n != nil && n.Incarnation == incarnation })
	old := transport.Hello{NodeID: 3, Incarnation: before.Known[3]}
	if err := c.nodes[1].Admit(old, true); err == nil {
		t.Error("the incarnation of before is let in")
	}
}

// A machine from two replacements ago is refused, is not let in when its place
// is free again, and, recovered into a cluster of its own, stops nobody.
func TestAMachineFromTwoReplacementsAgo(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, func(cfg *Config) { cfg.Self.Raft = cfg.Peers[cfg.NodeID] })
	c.start(1, 2, 3)
	c.settled()
	oldest := c.nodes[3].Incarnation()
	c.replace(c.nodes[2], 3)
	c.replace(c.nodes[2], 3)
	via := c.nodes[2]
	last := via.registered(3)
	if last.Former == oldest {
		t.Fatal("the test wants the catalog to remember another one")
	}
	c.wroteDown(2, "node 2 has written down who was put out", func(id *identity) bool { return len(id.Former[3]) == 2 })
	if id, err := loadIdentity(c.dataDir(3), "test", 3, 2); err != nil || !id.wasPutOut(3, oldest) || id.Catalog == 0 {
		t.Errorf("the node that came last was told %+v, %v", id, err)
	}
	for _, h := range []transport.Hello{{NodeID: 3, Incarnation: oldest}, {NodeID: 3, Incarnation: oldest, Recovery: 1}} {
		if err := via.Admit(h, true); err == nil || !strings.Contains(err.Error(), "empty it") {
			t.Errorf("%+v hears %v", h, err)
		}
	}
	if err := via.Err(); err != nil {
		t.Fatalf("it stops a member: %v", err)
	}
	c.stop(3)
	c.putOut(via, last)
	from := transport.Hello{NodeID: 3, Incarnation: oldest}
	raw, err := json.Marshal(joinRequest{Enter: true, Node: fsm.CatalogNode{ID: 3, Incarnation: oldest, Raft: c.peers[3]}, Served: true})
	if err != nil {
		t.Fatal(err)
	}
	var answer joinAnswer
	if body, err := via.heardJoin(c.ctx(), from, raw); err != nil || json.Unmarshal(body, &answer) != nil || !answer.Refused {
		t.Errorf("it asks for the place that is kept, and hears %+v, %v", answer, err)
	}
	// Who does not remember it hears that the data_dir is not empty.
	if err := via.expected(3, true); err == nil || !strings.Contains(err.Error(), "empty it") {
		t.Errorf("a data_dir that has served is let in: %v", err)
	}
	if err := via.expected(3, false); err != nil {
		t.Errorf("a new one is not: %v", err)
	}
}

// The newest catalog decides whether a node is let in.
func TestTheNewestWordCounts(t *testing.T) {
	t.Parallel()
	yes := func(catalog uint64) joinAnswer { return joinAnswer{Member: true, Admitted: true, Catalog: catalog} }
	no := func(catalog uint64) joinAnswer {
		return joinAnswer{Member: true, Refused: true, Problem: "no", Catalog: catalog}
	}
	recovered := yes(3)
	recovered.Recovery = 1
	for name, tc := range map[string]struct {
		answers []joinAnswer
		in      bool
		problem string
	}{
		"nobody knows":                     {[]joinAnswer{{Member: true}}, false, ""},
		"a welcome":                        {[]joinAnswer{yes(7), {Member: true, Catalog: 9}}, true, ""},
		"a machine that was put out":       {[]joinAnswer{no(5), yes(7)}, true, ""},
		"of the same age":                  {[]joinAnswer{no(7), yes(7)}, false, "no"},
		"a refusal that is newer":          {[]joinAnswer{yes(7), no(9), no(3)}, false, "no"},
		"a refusal of a build of before":   {[]joinAnswer{yes(7), no(0)}, false, "no"},
		"from before the quorum was lost":  {[]joinAnswer{no(90), recovered}, true, ""},
		"the newest of several welcomes":   {[]joinAnswer{yes(2), no(5), yes(7)}, true, ""},
		"only refusals, and the newest is": {[]joinAnswer{no(2), no(5)}, false, "no"},
	} {
		byID := make(map[int32]joinAnswer)
		for i, a := range tc.answers {
			byID[int32(i)] = a
		}
		if in, problem := welcomed(byID); (in != nil) != tc.in || !strings.HasSuffix(problem, tc.problem) || (problem == "") != (tc.problem == "") {
			t.Errorf("%s: %+v, %q", name, in, problem)
		}
	}
}

// A process that the catalog calls otherwise than it calls itself is told.
func TestAnotherServerIDIsTold(t *testing.T) {
	t.Parallel()
	n := New(Config{NodeID: 3, Groups: 1, Self: fsm.CatalogNode{Incarnation: "aaaabbbbccccdddd"}, Logger: hclog.NewNullLogger()})
	n.identity, n.problem = &identity{NodeID: 3}, ""
	for _, fine := range []*fsm.CatalogNode{nil, {ID: 3, Incarnation: "aaaabbbbccccdddd"}, {ID: 3, Incarnation: "another", Later: true}} {
		if n.tellServer(fine); n.Problem() != "" {
			t.Errorf("%+v: %s", fine, n.Problem())
		}
	}
	n.tellServer(&fsm.CatalogNode{ID: 3, Incarnation: "aaaabbbbccccdddd", Later: true})
	if got := n.Problem(); !strings.Contains(got, "calls itself 3 in the groups") || !strings.Contains(got, "3.aaaabbbbccccdddd") {
		t.Errorf("it says %q", got)
	}
	if n.tellServer(&fsm.CatalogNode{ID: 3, Incarnation: "aaaabbbbccccdddd"}); n.Problem() != "" {
		t.Errorf("it is called what it calls itself, and still says %q", n.Problem())
	}
}

// Only the member that lets a node in says how often the cluster was recovered:
// another machine at an address of raft.peers, which was removed and recovered,
// would otherwise have it stop every member that it meets.
func TestTheRecoveryNumberIsTheHosts(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2)
	c.leader(0)
	n := New(c.config(3))
	if err := n.Init(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	answers := make(map[int32]joinAnswer)
	c.eventually("node 3 is let in", func() (bool, string) {
		answers = n.askAll(c.ctx(), true)
		in, problem := welcomed(answers)
		return in != nil, problem
	})
	answers[9] = joinAnswer{Member: true, Recovery: 4, Incarnation: "of another cluster"}
	if done, err := n.seekEntry(c.ctx(), answers); !done || err != nil {
		t.Fatalf("it does not enter: %v; %s", err, n.Problem())
	}
	if got := n.recovery(); got != 0 {
		t.Errorf("it enters as of recovery %d", got)
	}
}
