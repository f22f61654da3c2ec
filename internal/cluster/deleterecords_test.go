package cluster

import (
	"errors"
	"testing"

	"lockstep/fsm"
	"lockstep/proxy"
)

func TestDeleteRecords(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	topic := r.create(r.members[1], "a", 1)
	tp := fsm.TP{Topic: topic.ID}
	var group uint32
	r.members[1].node.Catalog().Read(func(g *fsm.Group) { group = g.Catalog.Topics[topic.ID].Groups[0] })
	leader := r.leaderOf(group)
	for range 6 {
		if res := r.produce(leader, topic, 0, batch(-1, -1, "v")); res.Code != 0 {
			t.Fatalf("produce: %+v", res)
		}
	}
	for _, step := range []struct {
		offset, want int64
		code         int16
	}{{2, 2, 0}, {1, 2, 0}, {7, 0, 1}, {-1, 6, 0}} {
		low, err := leader.cluster.DeleteRecords(r.ctx(), topic, 0, step.offset)
		var ke *proxy.KafkaError
		if errors.As(err, &ke) != (step.code != 0) || ke != nil && ke.Code != step.code || low != step.want {
			t.Errorf("delete up to %d: %d, %v; want %d, code %d", step.offset, low, err, step.want, step.code)
		}
	}
	for _, m := range r.members {
		r.holds(m, group, "the log start", func(g *fsm.Group) bool { return g.Partitions[tp].LogStart == 6 })
	}
	if _, err := leader.cluster.DeleteRecords(r.ctx(), topic, 3, 0); err == nil {
		t.Error("a partition that does not exist")
	}
}
