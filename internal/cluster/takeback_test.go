package cluster

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/internal/node"
)

// votes waits until a node lists another as a member that votes in every group.
func (r *rig) votes(m *member, id int32) {
	r.t.Helper()
	ctx := r.ctx()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		got := r.memberIs(m, id, "member")
		if len(got.Votes) == testGroups { // of a group without a leader nothing is known
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("node %d does not vote in every group: %+v", id, got)
		}
	}
}

// A node is lost for good while another one leaves: the first change cannot go
// on, and the second is refused. The first is taken back, then the lost node is
// replaced.
func TestALossWhileAnotherLeaves(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	order := r.members[1].cluster
	if _, err := order.AddNode(r.ctx(), 3, ""); err == nil || !strings.Contains(err.Error(), "not leaving") {
		t.Errorf("a removal that nobody ordered is taken back: %v", err)
	}
	r.stop(2)
	for r.memberIs(r.members[1], 2, "member").Alive {
	}
	// Ordered a moment before node 2 was lost.
	r.submit(r.members[1].node, fsm.CatalogGroup, fsm.KindRemoveNode, fsm.RemoveNode{ID: 3})
	r.memberIs(r.members[1], 3, "leaving")
	if _, err := order.RemoveNode(r.ctx(), 2, true); err == nil {
		t.Error("two nodes go at a time")
	}
	if _, err := order.AddNode(r.ctx(), 3, r.peers[3]); err == nil || !strings.Contains(err.Error(), "without --address") {
		t.Errorf("a node is let in that is leaving: %v", err)
	}
	if _, err := order.AddNode(r.ctx(), 3, ""); err != nil {
		t.Fatal(err)
	}
	r.votes(r.members[1], 3)
	if err := os.RemoveAll(r.dataDir(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := order.RemoveNode(r.ctx(), 2, true); err != nil {
		t.Fatal(err)
	}
	r.memberIs(r.members[1], 2, "awaited")
	r.start(2)
	r.memberIs(r.members[1], 2, "member")
}

// A node that some groups have given up already comes back to them, without a
// vote first. As long as it leads one, clients are told of it.
func TestANodeThatStaysIsTakenInAgain(t *testing.T) {
	t.Parallel()
	r := running(t, func(cfg *Config) { cfg.UnreachableAfter = time.Hour })
	one, three := r.members[1], r.members[3].applier
	// Nobody is fit to take over what node 3 leads: it does not get away.
	for id := int32(1); id <= 2; id++ {
		r.members[id].broker.Set(BrokerReport{})
		r.sees(r.members[3], "a broker that is down", func(*snapshot) bool {
			news, _ := r.members[3].cluster.roster.fresh()
			return news[id] != nil && !news[id].Broker.Up
		})
	}
	r.submit(one.node, fsm.CatalogGroup, fsm.KindRemoveNode, fsm.RemoveNode{ID: 3})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	in := func(s node.Server) bool { return s.Node == 3 }
	for ctx := r.ctx(); slices.ContainsFunc(r.members[2].node.Group(1).Servers(), in); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("group 1 does not give node 3 up")
		}
	}
	three.edit(func() {
		three.trouble[1] = []apply.PartitionStatus{{Topic: "t", State: string(apply.StateAttaching)}}
	})
	if _, err := one.cluster.AddNode(r.ctx(), 3, ""); err != nil {
		t.Fatal(err)
	}
	for len(r.memberIs(one, 3, "joining").Learns) == 0 {
	}
	r.sees(one, "node 3, which leads", func(s *snapshot) bool { return len(s.view.Nodes) == 3 && s.leaders[2] == 3 })
	three.edit(func() { delete(three.trouble, 1) })
	r.votes(one, 3)
}

// A node comes where another one was: at the address of one that was removed,
// and of one that moved, which the groups' configurations still have there.
func TestAnAddressIsUsedAgain(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	order := r.members[1].cluster
	if _, err := order.AddNode(r.ctx(), 4, r.peers[3]); err == nil || !strings.Contains(err.Error(), "node 3 is at") {
		t.Errorf("node 4 is awaited where node 3 is: %v", err)
	}
	// Node 3 moves; its old address is in the configurations.
	old := r.peers[3]
	r.stop(3)
	r.peers[3] = r.host.Free(t)
	r.start(3)
	r.holds(r.members[1], fsm.CatalogGroup, "node 3's new address", func(g *fsm.Group) bool { return g.Catalog.Nodes[3].Raft == r.peers[3] })
	r.memberIs(r.members[1], 3, "member")
	r.peers[4] = old
	if _, err := order.AddNode(r.ctx(), 4, old); err != nil {
		t.Fatal(err)
	}
	r.start(4)
	r.votes(r.members[1], 4)
	for _, s := range r.members[1].node.Catalog().Servers() {
		if s.Address != r.peers[s.Node] {
			t.Errorf("in the configuration is %+v", s)
		}
	}
	// Node 4 goes, and node 5 comes to the same address.
	if _, err := order.RemoveNode(r.ctx(), 4, false); err != nil {
		t.Fatal(err)
	}
	r.memberIs(r.members[1], 4, "gone")
	r.stop(4)
	r.peers[5] = old
	delete(r.peers, 4)
	if _, err := order.AddNode(r.ctx(), 5, old); err != nil {
		t.Fatal(err)
	}
	r.start(5)
	r.votes(r.members[1], 5)
}

// A node of an older build would stop at the order that takes a removal back: who
// is heard of must be upgraded first, and who is away is warned of.
func TestATakenBackRemovalStopsNobody(t *testing.T) {
	t.Parallel()
	var said logLines
	r := running(t, func(cfg *Config) {
		cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: &said, Level: hclog.Warn})
	})
	one := r.members[1].cluster
	r.stop(2)
	r.reports(r.members[1], "that nobody hears node 2", func(Status) bool {
		news, _ := one.roster.fresh()
		heard, _ := heardBySome(news)
		return !heard[2]
	})
	r.submit(r.members[1].node, fsm.CatalogGroup, fsm.KindRemoveNode, fsm.RemoveNode{ID: 3})
	r.memberIs(r.members[1], 3, "leaving")
	one.roster.put(older(9))
	_, err := one.AddNode(r.ctx(), 3, "")
	if err == nil || !strings.Contains(err.Error(), "node 9 is of an older build (0.1)") || !strings.Contains(err.Error(), "upgrade it first") {
		t.Fatalf("node 9 would stop at the order: %v", err)
	}
	r.memberIs(r.members[1], 3, "leaving")

	// Away, it hinders nothing.
	one.roster.mu.Lock()
	delete(one.roster.news, 9)
	delete(one.roster.news, 2)
	one.roster.mu.Unlock()
	one.began = time.Now() // it may not have heard of node 2 yet
	if _, err := one.AddNode(r.ctx(), 3, ""); err == nil || !strings.Contains(err.Error(), "has just started") {
		t.Fatalf("the node that takes the order has just started: %v", err)
	}
	one.began = time.Now().Add(-time.Hour)
	one.roster.mu.Lock()
	away := older(2)
	away.heard = time.Now().Add(-time.Hour)
	one.roster.news[2] = away
	one.roster.mu.Unlock()
	warnings, err := one.AddNode(r.ctx(), 3, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "node 2 is away") {
		t.Errorf("the operator is told %q", warnings)
	}
	if !said.has("it will stop at that order", "node=2") || said.has("it will stop at that order", "node=3") {
		t.Error("nobody is warned of node 2, or somebody of node 3")
	}
	r.votes(r.members[1], 3)
}
