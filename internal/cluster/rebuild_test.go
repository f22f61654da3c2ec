package cluster

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
)

// damaged is a running rig with topic t, of which node 3 quarantines partition
// 0 and all others have everything.
func damaged(t *testing.T, edit func(*Config), before func(r *rig, topic uint64)) (r *rig, topic uint64) {
	t.Helper()
	r = running(t, edit)
	topic = r.create(r.members[1], "t", 3).ID
	for _, m := range r.members {
		m.applier.edit(func() { m.applier.proofs = proofsOf(0, 0, 0) })
	}
	if before != nil {
		before(r, topic)
	}
	m := r.members[3]
	m.applier.edit(func() {
		m.applier.damage = []apply.Damage{{Topic: topic, Name: "t", Partitions: []apply.PartitionStatus{{Topic: "t", TopicID: topic}}}}
	})
	return r, topic
}

func proofsOf(ends ...int64) []apply.PartitionProof {
	var out []apply.PartitionProof
	for i, e := range ends {
		out = append(out, apply.PartitionProof{Partition: int32(i), Ready: true, Verified: e})
	}
	return out
}

// stage waits until a node shows a rebuild at that stage.
func (r *rig) stage(m *member, stage string) RebuildStatus {
	r.t.Helper()
	var found RebuildStatus
	r.reports(m, "stage "+stage, func(s Status) bool {
		i := slices.IndexFunc(s.Rebuilds, func(b RebuildStatus) bool { return b.Stage == stage })
		if i >= 0 {
			found = s.Rebuilds[i]
		}
		return i >= 0
	})
	return found
}

func (a *fakeApplier) calls() (asked int, rebuilt []bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked, slices.Clone(a.rebuilt)
}

func leaseOf(topic uint64, node int32) func(*fsm.Group) bool {
	return func(g *fsm.Group) bool { return g.Catalog.Rebuilds[topic] == node }
}

// The lease is taken before the others are asked, held while the copy is made,
// and given back when all of it is there.
func TestRebuild(t *testing.T) {
	t.Parallel()
	r, topic := damaged(t, func(c *Config) { c.AutoRebuild = true }, func(r *rig, topic uint64) {
		a := r.members[3].applier
		tp := fsm.TP{Topic: topic}
		a.edit(func() {
			a.rebuild = func(uint64) error {
				a.damage = nil
				a.unready[tp] = true // it copies
				return nil
			}
		})
	})
	m := r.members[3]
	r.stage(m, StageCopying)
	r.holds(r.members[1], 0, "the lease", leaseOf(topic, 3))
	for id := int32(1); id <= 2; id++ {
		if asked, rebuilt := r.members[id].applier.calls(); asked == 0 || len(rebuilt) > 0 {
			t.Errorf("node %d was asked %d times, and rebuilt %v", id, asked, rebuilt)
		}
	}
	if _, rebuilt := m.applier.calls(); len(rebuilt) != 1 || rebuilt[0] {
		t.Errorf("rebuilt %v", rebuilt)
	}
	m.applier.edit(func() { clear(m.applier.unready) })
	r.holds(r.members[1], 0, "no lease", leaseOf(topic, 0))
	r.reports(m, "no rebuild", func(s Status) bool { return len(s.Rebuilds) == 0 })
}

// Nothing is destroyed unless all others are complete up to what is committed.
func TestRebuildNeedsTheOthers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(r *rig)
		stage string
		words string
	}{
		"one quarantines": {func(r *rig) {
			r.members[2].applier.proofs[1] = apply.PartitionProof{Partition: 1, Reason: "quarantined corrupt"}
		},
			StageFrozen, "node 2: partition 1: its copy is not complete: quarantined corrupt"},
		"one is behind":         {func(r *rig) { r.members[1].applier.proofs[0].Verified = -1 }, StageVerifying, "node 1: partition 0: verified up to offset -1 of 0"},
		"one lacks a partition": {func(r *rig) { r.members[1].applier.proofs = proofsOf(0, 0) }, StageVerifying, "node 1: partition 2: it does not have it yet"},
		"one is away":           {func(r *rig) { r.stop(2) }, StageVerifying, "node 2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, topic := damaged(t, func(c *Config) { c.AutoRebuild = true }, func(r *rig, _ uint64) { c.spoil(r) })
			m := r.members[3]
			r.reports(m, name, func(s Status) bool {
				return len(s.Rebuilds) == 1 && s.Rebuilds[0].Stage == c.stage && strings.Contains(s.Rebuilds[0].Reason, c.words)
			})
			r.holds(m, 0, "the lease was given back", leaseOf(topic, 0))
			if _, rebuilt := m.applier.calls(); len(rebuilt) > 0 {
				t.Fatalf("the copy was destroyed: %v", rebuilt)
			}
			if name == "one is away" {
				return
			}
			// An operator who knows better is content with one.
			if err := m.cluster.Rebuild("t", true); err != nil {
				t.Fatal(err)
			}
			r.reports(m, "the rebuild by force", func(Status) bool { _, rebuilt := m.applier.calls(); return len(rebuilt) == 1 && rebuilt[0] })
		})
	}
}

// Two nodes with a bad copy each never rebuild at once.
func TestOneRebuildAtATime(t *testing.T) {
	t.Parallel()
	r, topic := damaged(t, func(c *Config) { c.AutoRebuild = true }, func(r *rig, topic uint64) {
		r.submit(r.members[2].node, 0, fsm.KindTakeRebuild, fsm.TakeRebuild{Topic: topic, Node: 2})
	})
	// Node 2 took the lease and does not give it back: to its loop the topic is
	// damaged, and all it does fails.
	two := r.members[2].applier
	two.edit(func() {
		two.damage = []apply.Damage{{Topic: topic, Name: "t", Begun: true}}
		two.rebuild = func(uint64) error { return errors.New("broker is down") }
	})
	m := r.members[3]
	r.submit(r.members[2].node, 0, fsm.KindTakeRebuild, fsm.TakeRebuild{Topic: topic, Node: 2})
	if s := r.stage(m, StageLease); !strings.Contains(s.Reason, "node 2") {
		t.Errorf("%+v", s)
	}
	if _, rebuilt := m.applier.calls(); len(rebuilt) > 0 {
		t.Fatal("rebuilt without the lease")
	}
	two.edit(func() { two.rebuild = nil })
	r.reports(m, "its own turn", func(Status) bool { _, rebuilt := m.applier.calls(); return len(rebuilt) == 1 })
}

// A lease whose node is gone for good is broken by force only.
func TestLeaseOfADeadNode(t *testing.T) {
	t.Parallel()
	r, topic := damaged(t, func(c *Config) { c.AutoRebuild = true }, func(r *rig, topic uint64) {
		r.submit(r.members[2].node, 0, fsm.KindTakeRebuild, fsm.TakeRebuild{Topic: topic, Node: 2})
		two := r.members[2].applier
		two.edit(func() {
			two.damage = []apply.Damage{{Topic: topic, Name: "t", Begun: true}}
			two.rebuild = func(uint64) error { return errors.New("broker is down") }
		})
	})
	m := r.members[3]
	r.stage(m, StageLease)
	if err := m.cluster.Rebuild("t", true); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		<-time.After(rebuildEvery)
	}
	r.holds(m, 0, "the lease of a node that lives", leaseOf(topic, 2))
	if _, rebuilt := m.applier.calls(); len(rebuilt) > 0 {
		t.Fatal("a living node's lease was broken")
	}
	r.stop(2)
	r.reports(m, "the rebuild", func(Status) bool { _, rebuilt := m.applier.calls(); return len(rebuilt) == 1 })
}

// A node that died in the middle goes on: the lease is its own, and where the
// old copy is gone nobody has to be asked.
func TestRebuildGoesOn(t *testing.T) {
	t.Parallel()
	r, topic := damaged(t, nil, func(r *rig, topic uint64) { // by order only
		r.submit(r.members[3].node, 0, fsm.KindTakeRebuild, fsm.TakeRebuild{Topic: topic, Node: 3})
		for _, m := range r.members {
			m.applier.edit(func() { m.applier.proofs = nil })
		}
	})
	m := r.members[3]
	m.applier.edit(func() { m.applier.damage[0].Begun = true })
	r.reports(m, "the rebuild", func(Status) bool { _, rebuilt := m.applier.calls(); return len(rebuilt) == 1 })
	r.holds(m, 0, "no lease", leaseOf(topic, 0))
}

// Without recovery.rebuild: auto an operator gives the order.
func TestRebuildByOrder(t *testing.T) {
	t.Parallel()
	r, _ := damaged(t, nil, nil)
	m := r.members[3]
	r.stage(m, StageOrder)
	if err := r.members[1].cluster.Rebuild("t", false); !errors.Is(err, ErrNoDamage) {
		t.Errorf("a node with nothing to rebuild: %v", err)
	}
	if _, rebuilt := m.applier.calls(); len(rebuilt) > 0 {
		t.Fatal("rebuilt without an order")
	}
	if err := m.cluster.Rebuild("t", false); err != nil {
		t.Fatal(err)
	}
	r.reports(m, "the rebuild", func(s Status) bool { _, rebuilt := m.applier.calls(); return len(rebuilt) == 1 && len(s.Rebuilds) == 0 })
}

// A topic that is not ours is not deleted, and the lease goes back.
func TestRebuildLeavesOthersTopics(t *testing.T) {
	t.Parallel()
	r, topic := damaged(t, func(c *Config) { c.AutoRebuild = true }, func(r *rig, _ uint64) {
		r.members[3].applier.rebuild = func(uint64) error { return apply.ErrNotOurs }
	})
	r.stage(r.members[3], StageFrozen)
	r.holds(r.members[3], 0, "no lease", leaseOf(topic, 0))
}

// refused makes nodes refuse the batch at offset 0 of topic t, partition 0.
func refused(t *testing.T, r *rig, say map[int32]string) (tp fsm.TP, group uint32, index uint64) {
	t.Helper()
	return refusedWith(t, r, 87, say)
}

// refusedWith is refused with another error code.
func refusedWith(t *testing.T, r *rig, code int16, say map[int32]string) (tp fsm.TP, group uint32, index uint64) {
	t.Helper()
	topic := r.create(r.members[1], "t", 3)
	tp = fsm.TP{Topic: topic.ID}
	group = r.members[1].cluster.groupOf(topic.ID, 0).ID
	lead := r.leaderOf(group)
	for _, m := range r.members {
		m.applier.edit(func() { m.applier.held = true })
	}
	lead.node.Group(group).Propose(fsm.AppendCommand(tp, batch(-1, -1, "poison")), func(r fsm.Result, err error) {
		if err != nil || r.Verdict != fsm.Appended {
			t.Errorf("%+v, %v", r, err)
		}
	})
	r.holds(lead, group, "the batch", func(g *fsm.Group) bool { index = g.Index; return g.Partitions[tp].NextOffset == 1 })
	for _, m := range r.members {
		r.holds(m, group, "the batch", func(g *fsm.Group) bool { return g.Partitions[tp] != nil && g.Partitions[tp].NextOffset == 1 })
	}
	for id, m := range r.members {
		m.applier.edit(func() {
			m.applier.stands = say[id]
			if say[id] == apply.StandsRefused {
				m.applier.refusals = []apply.Refusal{{Group: group, TP: tp, Topic: "t", Index: index, Code: code}}
			}
		})
	}
	return tp, group, index
}

func TestRefusedByAllIsCut(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	tp, group, _ := refused(t, r, map[int32]string{1: apply.StandsRefused, 2: apply.StandsRefused, 3: apply.StandsRefused})
	for _, m := range r.members {
		r.holds(m, group, "the cut", func(g *fsm.Group) bool { return g.Partitions[tp].NextOffset == 0 })
		m.applier.mu.Lock()
		if m.applier.pledges == 0 || len(m.applier.guilty) > 0 {
			t.Errorf("node %d pledged %d times, quarantined %v", m.id, m.applier.pledges, m.applier.guilty)
		}
		m.applier.mu.Unlock()
	}
}

// Whoever refuses what another node holds is at fault; as long as one cannot say
// or does not pledge, nothing is cut.
func TestRefusedBySomeIsNotCut(t *testing.T) {
	t.Parallel()
	all := map[int32]string{1: apply.StandsRefused, 2: apply.StandsRefused, 3: apply.StandsRefused}
	with := func(id int32, s string) map[int32]string {
		m := map[int32]string{id: s}
		for o, v := range all {
			if o != id {
				m[o] = v
			}
		}
		return m
	}
	settled := func() { // several rounds of every node's loop
		for range 3 {
			<-time.After(refusalsEvery)
		}
	}
	stays := func(t *testing.T, r *rig, tp fsm.TP, group uint32) {
		t.Helper()
		for _, m := range r.members {
			m.node.Group(group).Read(func(g *fsm.Group) {
				if g.Partitions[tp].NextOffset != 1 {
					t.Errorf("node %d: cut", m.id)
				}
			})
		}
	}
	t.Run("one holds it", func(t *testing.T) {
		t.Parallel()
		r := running(t, nil)
		tp, group, _ := refused(t, r, with(2, apply.StandsHeld))
		for _, id := range []int32{1, 3} {
			a := r.members[id].applier
			r.reports(r.members[id], "its own fault", func(Status) bool {
				a.mu.Lock()
				defer a.mu.Unlock()
				return len(a.guilty) == 1 && strings.Contains(a.guilty[0], "the broker of node 2 holds it")
			})
		}
		stays(t, r, tp, group)
	})
	t.Run("one holds it, the others fail without a reason", func(t *testing.T) {
		t.Parallel()
		r := running(t, nil)
		tp, group, _ := refusedWith(t, r, -1, with(2, apply.StandsHeld))
		settled()
		for id, m := range r.members {
			m.applier.edit(func() {
				if len(m.applier.guilty) > 0 {
					t.Errorf("node %d gives up its copy: %v", id, m.applier.guilty)
				}
			})
		}
		stays(t, r, tp, group)
	})
	t.Run("one cannot say", func(t *testing.T) {
		t.Parallel()
		r := running(t, nil)
		tp, group, _ := refused(t, r, with(2, apply.StandsUnknown))
		settled()
		stays(t, r, tp, group)
		for _, id := range []int32{1, 3} {
			a := r.members[id].applier
			a.mu.Lock()
			if len(a.guilty) > 0 {
				t.Errorf("node %d: quarantined though nobody holds it", id)
			}
			a.mu.Unlock()
		}
	})
	t.Run("one does not pledge", func(t *testing.T) {
		t.Parallel()
		r := running(t, nil)
		r.members[2].applier.edit(func() { r.members[2].applier.wavers = true })
		tp, group, _ := refused(t, r, all)
		lead := r.leaderOf(group).applier
		r.reports(r.leaderOf(group), "pledges given back", func(Status) bool { lead.mu.Lock(); defer lead.mu.Unlock(); return lead.released > 1 })
		stays(t, r, tp, group)
	})
}
