package cluster

import (
	"cmp"
	"context"
	"slices"

	"lockstep/fsm"
)

// Complete names the other nodes that may hold all of a partition: those that
// are well and do not say that it is in trouble there. Who does not lead comes
// first, because it has less to do. Any goroutine may call it; it makes this
// node's applier find its peers (apply.Peers).
func (c *Cluster) Complete(tp fsm.TP) []int32 {
	g := c.groupOf(tp.Topic, tp.Partition)
	if g == nil {
		return nil
	}
	news, _ := c.roster.fresh()
	var ids []int32
	for id, a := range news {
		if id == c.cfg.Self || !well(a) || int(g.ID) >= len(a.Groups) || a.Groups[g.ID].Role == roleAway || troubled(&a.Groups[g.ID], tp) {
			continue
		}
		ids = append(ids, id)
	}
	leads := func(id int32) int {
		if news[id].Groups[g.ID].Leading {
			return 1
		}
		return 0
	}
	slices.SortFunc(ids, func(a, b int32) int { return cmp.Or(cmp.Compare(leads(a), leads(b)), cmp.Compare(a, b)) })
	return ids
}

func troubled(r *GroupReport, tp fsm.TP) bool {
	for _, t := range r.Troubled {
		if t.TopicID == tp.Topic && t.Partition == tp.Partition {
			return true
		}
	}
	return slices.Contains(r.NotReady, tp)
}

// Call calls a peer; see node.Node.Call.
func (c *Cluster) Call(ctx context.Context, id int32, method uint8, payload []byte) ([]byte, error) {
	return c.node.Call(ctx, id, method, payload)
}
