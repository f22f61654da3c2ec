package cluster

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
)

// memberIs waits until a node lists another in a state.
func (r *rig) memberIs(m *member, id int32, state string) (out MemberReport) {
	r.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	ctx := r.ctx()
	for {
		for _, got := range m.cluster.Members() {
			if out = got; got.ID == id && got.State == state {
				return got
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("node %d is not %s: %+v", id, state, m.cluster.Members())
		}
	}
}

// A node that lost its disk is put out of every group and let in again as a new
// one, which votes only when its broker has everything.
func TestReplaceANode(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	order := r.members[2].cluster
	r.stop(3)
	if err := os.RemoveAll(r.dataDir(3)); err != nil {
		t.Fatal(err)
	}
	if _, err := order.RemoveNode(r.ctx(), 3, true); err != nil {
		t.Fatal(err)
	}
	r.memberIs(r.members[1], 3, "awaited")

	m := r.join(3, r.newNode(3))
	m.applier.edit(func() {
		m.applier.trouble[1] = []apply.PartitionStatus{{Topic: "t", State: string(apply.StateCopying)}}
	})
	m.cluster.Open()
	if err := m.node.Open(); err != nil {
		t.Fatal(err)
	}
	r.memberIs(r.members[1], 3, "joining")
	var got MemberReport
	for deadline := time.Now().Add(testWait); len(got.Votes) != 2 || len(got.Learns) != 1; got = r.memberIs(r.members[1], 3, "joining") {
		if time.Now().After(deadline) {
			t.Fatalf("it does not vote in the groups that it has, and only those: %+v", got)
		}
	}
	if got.Learns[0] != 1 {
		t.Errorf("it votes in a group that its broker is copying: %+v", got)
	}
	// Unless it came to lead a group that it votes in already: clients must find that.
	r.sees(r.members[1], "two nodes for clients", func(s *snapshot) bool { return len(s.view.Nodes) == 2 || slices.Contains(s.leaders, 3) })
	m.applier.edit(func() { delete(m.applier.trouble, 1) })
	r.memberIs(r.members[1], 3, "member")
	r.sees(r.members[1], "three nodes again", func(s *snapshot) bool { return len(s.view.Nodes) == 3 })
	for _, n := range r.members[1].node.Catalog().Servers() {
		if n.Node == 3 && (!n.Voter || !strings.HasPrefix(n.ID, "3.")) {
			t.Errorf("in the catalog's group it is %+v", n)
		}
	}
}

// A quiet group has few entries, all of them within what a busy broker may be
// behind: a node votes there only when its broker has every one, and no
// partition is still being opened or compared.
func TestNoVoteBeforeTheBrokerHasAll(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	order := r.members[2].cluster
	r.stop(3)
	if err := os.RemoveAll(r.dataDir(3)); err != nil {
		t.Fatal(err)
	}
	if _, err := order.RemoveNode(r.ctx(), 3, true); err != nil {
		t.Fatal(err)
	}
	r.memberIs(r.members[1], 3, "awaited")
	m := r.join(3, r.newNode(3))
	m.applier.edit(func() {
		m.applier.trouble[1] = []apply.PartitionStatus{{Topic: "t", State: string(apply.StateOpening)}}
		m.applier.stuck = map[uint32]uint64{0: 1}
	})
	m.cluster.Open()
	if err := m.node.Open(); err != nil {
		t.Fatal(err)
	}
	for _, g := range []uint32{0, 1} {
		// What the group's leader would do with the node, as far as it is now.
		leader := r.leaderOf(g)
		var next *memberChange
		waiting := func() bool {
			_, nodes, place := leader.cluster.memberLevel(g)
			next = leader.cluster.nextChange(leader.node.Group(g), nodes, place)
			a := func() *Announcement { news, _ := leader.cluster.roster.fresh(); return news[3] }()
			return next != nil && next.what == "let node 3 vote" && well(a) && a.Incarnation == m.node.Incarnation() && a.Groups[g].Role == "follower" && a.Groups[g].Commit > 0
		}
		for deadline := time.Now().Add(testWait); !waiting(); {
			if time.Now().After(deadline) {
				t.Fatalf("group %d is through with %+v", g, next)
			}
		}
		if err := next.may(); err == nil || !strings.Contains(err.Error(), "everything yet") {
			t.Errorf("group %d: may node 3 vote? %v", g, err)
		}
	}
	m.applier.edit(func() { delete(m.applier.trouble, 1) })
	r.memberIs(r.members[1], 3, "joining") // group 0 holds it up
	m.applier.edit(func() { m.applier.stuck = nil })
	r.memberIs(r.members[1], 3, "member")
}

// A broker that takes appends all the time has everything of a while ago, not of
// now: that is enough, if it is nearly there.
func TestABusyBrokerGetsThere(t *testing.T) {
	t.Parallel()
	s := settlements{marks: make(map[uint32]voteMark)}
	for i, step := range []struct {
		incarnation     string
		near            bool
		broker, applied uint64
		want            bool
	}{
		{"a", false, 10, 100, false}, // the first look: 100 it must have
		{"a", true, 99, 103, false},
		{"a", false, 101, 200, false}, // it has, and has fallen behind since
		{"a", true, 190, 210, true},
		{"a", true, 200, 220, false}, // once more from the beginning
		{"b", true, 221, 230, false}, // another one under that id
		{"b", true, 229, 240, false},
		{"b", true, 230, 250, true},
		{"c", true, 0, 7, false}, // quiet: within a few entries of nothing
		{"c", true, 7, 7, true},
	} {
		if got := s.hadAll(1, step.incarnation, step.near, step.broker, step.applied); got != step.want {
			t.Errorf("step %d: %+v", i, step)
		}
	}
}

// Under load a broker is always a few entries behind: its node gets its votes all
// the same.
func TestANodeJoinsUnderLoad(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	one := r.members[1]
	r.stop(3)
	if err := os.RemoveAll(r.dataDir(3)); err != nil {
		t.Fatal(err)
	}
	if _, err := one.cluster.RemoveNode(r.ctx(), 3, true); err != nil {
		t.Fatal(err)
	}
	r.memberIs(one, 3, "awaited")
	m := r.join(3, r.newNode(3))
	m.applier.edit(func() { m.applier.behind = 2 })
	m.cluster.Open()
	if err := m.node.Open(); err != nil {
		t.Fatal(err)
	}
	// Every group takes entries, that are refused or are no news: it is all the same.
	load, done := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for g := range uint32(testGroups) {
		wg.Go(func() {
			for load.Err() == nil {
				_, _ = one.node.Submit(load, g, fsm.Control(fsm.KindClose, fsm.Close{Topic: 1 << 40}))
			}
		})
	}
	defer wg.Wait()
	defer done()
	r.memberIs(one, 3, "member")
}

// A node that goes hands over what it leads first, coordinates no group any
// more, and is told that it was removed.
func TestRemoveANode(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	if _, err := r.members[1].cluster.RemoveNode(r.ctx(), 1, false); err != nil {
		t.Fatal(err)
	}
	r.memberIs(r.members[2], 1, "gone")
	r.sees(r.members[2], "two nodes, leading all", func(s *snapshot) bool {
		for _, l := range s.leaders {
			if l != 2 && l != 3 {
				return false
			}
		}
		for _, c := range s.view.Coordinators {
			if c == 1 {
				return false
			}
		}
		return len(s.view.Nodes) == 2
	})
	var problem string
	for deadline := time.Now().Add(testWait); !strings.Contains(problem, "was removed"); problem = r.members[1].node.Problem() {
		if time.Now().After(deadline) {
			t.Fatalf("the node that was removed says %q", problem)
		}
	}
}

// A node leaves the catalog's group last: it reads there that it is to hand
// over what else it leads.
func TestTheCatalogsGroupIsLeftLast(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	first := r.members[1].cluster
	r.sees(r.members[1], "every group led at home", func(s *snapshot) bool { return slices.Equal(s.leaders, []int32{1, 2, 3}) })
	news, _ := first.roster.fresh()
	catalog := first.node.Group(fsm.CatalogGroup)
	if err := first.catalogLast(catalog, 2, news); err != nil {
		t.Errorf("a member that nobody asked to leave: %v", err)
	}
	if _, err := first.submit(r.ctx(), fsm.CatalogGroup, fsm.KindRemoveNode, fsm.RemoveNode{ID: 2}); err != nil {
		t.Fatal(err)
	}
	if err := first.catalogLast(catalog, 2, news); err == nil || !strings.Contains(err.Error(), "group 1 has it still") {
		t.Errorf("node 2 may leave the catalog's group while it leads group 1: %v", err)
	}
	if err := first.catalogLast(catalog, 2, nil); err == nil || !strings.Contains(err.Error(), "nobody is heard to lead") {
		t.Errorf("node 2 may leave the catalog's group while group 1 is not heard of: %v", err)
	}
	r.memberIs(r.members[1], 2, "gone")
}

// What would leave a group without a majority that is here waits.
func TestNobodyIsRemovedFromAMinority(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	r.stop(2)
	for r.memberIs(r.members[1], 2, "member").Alive {
	}
	if _, err := r.members[1].cluster.RemoveNode(r.ctx(), 3, false); err == nil || !strings.Contains(err.Error(), "node 2 is not heard of") {
		t.Fatalf("node 3 may leave node 1 alone: %v", err)
	}
	// The catalog would take the order: the groups do not carry it out.
	if _, err := r.members[1].cluster.submit(r.ctx(), fsm.CatalogGroup, fsm.KindRemoveNode, fsm.RemoveNode{ID: 3}); err != nil {
		t.Fatal(err)
	}
	g := r.members[1].node.Group(0)
	_, nodes := r.members[1].cluster.catalogNodes()
	if next := r.members[1].cluster.nextChange(g, nodes, nil); next == nil || next.may() == nil {
		t.Errorf("the next change is %+v", next)
	}
}

// An operator moves a group; any node takes the order.
func TestTransfer(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	if err := r.members[3].cluster.Transfer(r.ctx(), 0, 2); err != nil {
		t.Fatal(err)
	}
	r.sees(r.members[3], "group 0 led by node 2", func(s *snapshot) bool { return s.leaders[0] == 2 })
	for _, bad := range []struct {
		group uint32
		to    int32
	}{{9, 1}, {0, 9}} {
		if err := r.members[3].cluster.Transfer(r.ctx(), bad.group, bad.to); err == nil {
			t.Errorf("group %d was handed to node %d", bad.group, bad.to)
		}
	}
}
