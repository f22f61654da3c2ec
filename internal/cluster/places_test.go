package cluster

import (
	"slices"
	"testing"
	"time"

	"lockstep/fsm"
)

// move orders a group to a node and waits until it is there, and only there.
func (r *rig) move(m *member, group uint32, to int32) {
	r.t.Helper()
	ctx := r.ctx()
	var since uint64
	if p := m.cluster.places()[group]; p != nil {
		since = p.Since
	}
	if err := m.cluster.PlaceGroup(ctx, group, []int32{to}, since); err != nil {
		r.t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, g := range m.cluster.Placement().Groups {
			if g.Group == group && g.Since > since && !g.Moving {
				return
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("group %d does not come to node %d: %+v", group, to, m.cluster.Placement())
		}
	}
}

// A group goes from node to node, back to where it was before, and takes its
// records along. Every node tells clients who holds it; who does not hold it
// serves nothing of it, and is not missed.
func TestPlaceAGroup(t *testing.T) {
	t.Parallel()
	const group, part = 1, 1
	r := running(t, func(c *Config) { c.ReplicationFactor = 1 })
	topic := r.create(r.members[1], "t", 3)
	r.sees(r.members[2], "the topic, led at home", func(s *snapshot) bool { return leads(s, "t", part) == 2 })
	if a := r.produce(r.members[2], topic, part, batch(-1, 0, "v")); a.Code != 0 {
		t.Fatalf("before: %+v", a)
	}
	end := int64(1)
	for _, to := range []int32{3, 1, 2, 3} {
		r.move(r.members[2], group, to)
		for _, m := range r.members {
			r.sees(m, "the partition where it went, and nowhere else", func(s *snapshot) bool {
				p := s.view.Topics["t"].Partitions[part]
				return p.Leader == to && slices.Equal(p.Replicas, []int32{to}) && slices.Equal(p.ISR, []int32{to})
			})
			other := m.cluster.View().Topics["t"].Partitions[0]
			if !slices.Equal(other.Replicas, []int32{1, 2, 3}) {
				t.Errorf("a partition of the catalog's group is on %v", other.Replicas)
			}
			if away := m.cluster.Away(m.node.Group(group)); away != (m.id != to) {
				t.Errorf("node %d is away from a group of node %d: %v", m.id, to, away)
			}
			r.reports(m, "a healthy cluster", func(s Status) bool {
				return s.Healthy && len(s.Groups[group].Members) == 1 && slices.Equal(s.Groups[group].Placed, []int32{to})
			})
			if m.id == to {
				continue
			}
			if a := r.produce(m, topic, part, batch(-1, 0, "v")); a.Code != codeNotLeader {
				t.Errorf("node %d does not hold the partition and answers %+v", m.id, a)
			}
		}
		if a := r.produce(r.members[to], topic, part, batch(-1, 0, "v")); a.Code != 0 || a.BaseOffset != end {
			t.Errorf("on node %d: %+v, want offset %d", to, a, end)
		}
		end++
	}
	// A new topic keeps off the catalog's group, and opens from a catalog's
	// leader that does not hold its groups.
	r.create(r.members[1], "u", 2)
	r.members[1].node.Catalog().Read(func(g *fsm.Group) {
		if groups := g.Catalog.TopicByName("u").Groups; slices.Contains(groups, fsm.CatalogGroup) {
			t.Errorf("the new topic is in groups %v", groups)
		}
	})
}
