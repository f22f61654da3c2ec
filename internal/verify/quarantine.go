package verify

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"lockstep/internal/apply"
)

// noteQuarantines asks each node which partitions it keeps out of service. Such
// a copy is compared all the same, which shows where it differs; a partition
// with one is not identical, even if nothing that differs was found in what can
// be compared from outside.
func (r *run) noteQuarantines(ctx context.Context) error {
	for _, n := range r.nodes {
		st, _, err := r.client.Status(ctx, n.addr)
		if err != nil {
			return fmt.Errorf("node %d: %w", n.id, err)
		}
		for _, g := range st.Groups {
			for _, m := range g.Members {
				if m.Node != n.id {
					continue
				}
				for i := range m.Troubled {
					r.noteQuarantine(n.id, &m.Troubled[i])
				}
			}
		}
	}
	for _, p := range r.sorted() {
		for _, id := range slices.Sorted(maps.Keys(p.Quarantined)) {
			p.problem("node %d quarantines its copy: %s", id, p.Quarantined[id])
		}
	}
	return nil
}

func (r *run) noteQuarantine(node int32, s *apply.PartitionStatus) {
	p := r.parts[key{s.TopicID, s.Partition}]
	if state := apply.State(s.State); p == nil || state != apply.StateQuarantined && state != apply.StateRebuilding {
		return
	}
	if p.Quarantined == nil {
		p.Quarantined = make(map[int32]string)
	}
	p.Quarantined[node] = s.Reason
	if p.Result == Identical || p.Result == Behind {
		p.Result = Quarantined
	}
}
