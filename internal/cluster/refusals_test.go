package cluster

import (
	"testing"

	"lockstep/fsm"
	"lockstep/internal/apply"
)

// says makes a node's broker say something of the batch, and refuse it if so.
func (m *member) says(group uint32, b apply.Batch, said string) {
	m.applier.edit(func() {
		m.applier.stands, m.applier.refusals = said, nil
		if said == apply.StandsRefused {
			m.applier.refusals = []apply.Refusal{{Group: group, TP: b.TP, Topic: "t", Index: b.Index, Offset: b.Offset, Code: 87}}
		}
	})
}

// A node that was never given the batch, because a leader's snapshot carried it
// past that, hinders no cut, be it a follower or the leader, who refuses nothing
// itself then and hears of it from the others.
func TestWhoLacksARefusedBatchHindersNoCut(t *testing.T) {
	t.Parallel()
	for name, lacking := range map[string]func(r *rig, group uint32) []int32{
		"a follower": func(r *rig, group uint32) []int32 { return []int32{r.leaderOf(group).id%3 + 1} },
		"the leader": func(r *rig, group uint32) []int32 { return []int32{r.leaderOf(group).id} },
		"two of them": func(r *rig, group uint32) []int32 {
			id := r.leaderOf(group).id
			return []int32{id, id%3 + 1}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := running(t, nil)
			tp, group, index := refused(t, r, nil)
			b := apply.Batch{TP: tp, Index: index}
			lack := make(map[int32]bool)
			for _, id := range lacking(r, group) {
				lack[id] = true
			}
			for id, m := range r.members {
				said := apply.StandsRefused
				if lack[id] {
					said = apply.StandsLacks
				}
				m.says(group, b, said)
			}
			for _, m := range r.members {
				r.holds(m, group, "the cut", func(g *fsm.Group) bool { return g.Partitions[tp].NextOffset == 0 })
				m.applier.edit(func() {
					if m.applier.pledges == 0 || len(m.applier.guilty) > 0 {
						t.Errorf("node %d pledged %d times, quarantined %v", m.id, m.applier.pledges, m.applier.guilty)
					}
				})
			}
		})
	}
}

// A cut that may be on its way rests on what was pledged when it was proposed:
// that is not given back because somebody cannot say the same a moment later.
func TestPledgesOutliveAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	tp, group, index := refused(t, r, nil)
	b := apply.Batch{TP: tp, Index: index}
	lead := r.leaderOf(group)
	waverer := r.members[lead.id%3+1].applier
	waverer.edit(func() { waverer.wavers = true })
	rs := &lead.cluster.refusals
	rs.proposed(b)
	for _, m := range r.members {
		m.says(group, b, apply.StandsRefused)
	}
	asked := func(n int) func(Status) bool {
		return func(Status) bool {
			waverer.mu.Lock()
			defer waverer.mu.Unlock()
			return waverer.pledges >= n
		}
	}
	r.reports(lead, "pledges asked for", asked(3))
	lead.applier.edit(func() {
		if lead.applier.released > 0 {
			t.Errorf("pledges were given back %d times while a cut may be on its way", lead.applier.released)
		}
	})
	rs.settled(b)
	r.reports(lead, "pledges given back", func(Status) bool {
		lead.applier.mu.Lock()
		defer lead.applier.mu.Unlock()
		return lead.applier.released > 0
	})
}

// A leader that took office when the batch stood in the log does not wait for its
// offset once it is cut.
func TestCutUnderALaterLeader(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	tp, group, index := refused(t, r, nil)
	b := apply.Batch{TP: tp, Index: index}
	for _, m := range r.members {
		m.applier.edit(func() { m.applier.ends = map[fsm.TP]int64{tp: 0} })
	}
	next := r.leaderOf(group).id%3 + 1
	if err := r.leaderOf(group).cluster.Transfer(r.ctx(), group, next); err != nil {
		t.Fatal(err)
	}
	lead := r.members[next]
	r.reports(lead, "office", func(Status) bool { return lead.node.Group(group).Leading.Get() != nil })
	office := lead.node.Group(group).Leading.Get()
	if office.Required[tp] != 1 {
		t.Fatalf("the next leader begins at offset %d", office.Required[tp])
	}
	r.sees(lead, "no leader of the partition", func(s *snapshot) bool { return leads(s, "t", 0) <= 0 })
	for _, m := range r.members {
		m.says(group, b, apply.StandsRefused)
	}
	r.holds(lead, group, "the cut", func(g *fsm.Group) bool { return g.Partitions[tp].NextOffset == 0 })
	lead.applier.edit(func() { lead.applier.refusals = nil })
	r.sees(lead, "the leader of the partition", func(s *snapshot) bool { return leads(s, "t", 0) == next })
	if lead.node.Group(group).Leading.Get() != office {
		t.Error("it was elected once more meanwhile")
	}
}

// A node that may have the batch and cannot say is waited for until an operator
// takes it out.
func TestRefusedWithANodeTakenOut(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	tp, group, index := refused(t, r, nil)
	lead := r.leaderOf(group)
	out := lead.id%3 + 1
	b := apply.Batch{TP: tp, Index: index}
	for id, m := range r.members {
		if id != out {
			m.says(group, b, apply.StandsRefused)
		}
	}
	if _, err := lead.cluster.RemoveNode(r.ctx(), out, false); err != nil {
		t.Fatal(err)
	}
	r.holds(lead, group, "the cut", func(g *fsm.Group) bool { return g.Partitions[tp].NextOffset == 0 })
	for _, s := range lead.node.Group(group).Servers() {
		if s.Node == out {
			t.Errorf("cut while node %d, which may hold the batch, is in the group", out)
		}
	}
}

// Who lacks a batch forgets what was said of it when nobody says it any more:
// neither its own questions nor those of others that lack it keep that alive.
func TestHearsayRunsOut(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	tp, group, index := refused(t, r, map[int32]string{1: apply.StandsLacks, 2: apply.StandsLacks, 3: apply.StandsUnknown})
	said := apply.Refusal{Group: group, TP: tp, Topic: "t", Index: index, Code: 87}
	for id := int32(1); id <= 2; id++ {
		r.members[id].cluster.refusals.hear(said)
	}
	for id := int32(1); id <= 2; id++ {
		rs := &r.members[id].cluster.refusals
		if id == 1 && len(rs.hearsay(nil)) != 1 {
			t.Error("what was just said is forgotten")
		}
		r.reports(r.members[id], "nothing that is refused", func(Status) bool { return len(rs.hearsay(nil)) == 0 })
	}
}
