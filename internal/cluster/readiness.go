package cluster

import (
	"maps"
	"slices"
	"sync"

	"lockstep/fsm"
	"lockstep/internal/node"
)

// readiness remembers which partitions of the groups that this node leads it
// could not serve, so that ten thousand partitions need not be looked at again
// and again: what was ready is, until the applier says that something changed.
type readiness struct {
	mu    sync.Mutex
	known map[uint32]*groupReadiness // by group
}

// groupReadiness is what was found under one leadership, when the group's shape
// and the applier's changes were these.
type groupReadiness struct {
	leadership     *node.Leadership
	shape, changes uint64
	bad            []fsm.TP
	lowered        map[fsm.TP]int64 // what is required of partitions that were cut since, in place of what was at first
}

// required is the offset up to which the broker must have a partition. What was
// there when the leader took office may have been cut since: nobody will ever have
// that.
func (r *groupReadiness) required(tp fsm.TP) int64 {
	if end, ok := r.lowered[tp]; ok {
		return end
	}
	return r.leadership.Required[tp]
}

// lower notes where partitions end by now, if that is below what is required.
func (r *groupReadiness) lower(g *node.Group, tps []fsm.TP) {
	g.Read(func(s *fsm.Group) {
		for _, tp := range tps {
			if p := s.Partitions[tp]; p != nil && p.NextOffset < r.required(tp) {
				r.lowered = maps.Clone(r.lowered) // the one before may be another's
				if r.lowered == nil {
					r.lowered = make(map[fsm.TP]int64)
				}
				r.lowered[tp] = p.NextOffset
			}
		}
	})
}

// notReady lists the partitions of a group that this node leads and cannot
// serve yet. Any goroutine may call it; the list is not to be changed.
func (c *Cluster) notReady(g *node.Group, l *node.Leadership) []fsm.TP {
	now := &groupReadiness{leadership: l, shape: g.ShapeChanged().Get(), changes: c.applier.Changes().Get()} // before anything is looked at
	r := &c.readiness
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.known[g.ID]
	if old != nil && old.leadership == l {
		now.lowered = old.lowered
		now.lower(g, old.bad)
	}
	var ask []fsm.TP
	if old != nil && old.leadership == l && old.shape == now.shape && old.changes == now.changes {
		ask = old.bad
	} else {
		g.Read(func(s *fsm.Group) {
			ask = make([]fsm.TP, 0, len(s.Partitions))
			for tp := range s.Partitions {
				ask = append(ask, tp)
			}
		})
	}
	for _, tp := range ask {
		if !c.applier.Ready(tp, now.required(tp)) {
			now.bad = append(now.bad, tp)
		}
	}
	slices.SortFunc(now.bad, compareTP)
	r.known[g.ID] = now
	return now.bad
}
