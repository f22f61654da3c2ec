package cluster

import (
	"context"
	"testing"

	"lockstep/proxy"
)

// TestConfirmed: a leader is confirmed by its majority, for all who ask at the
// same time; one that is cut off is not, although it may think that it leads.
func TestConfirmed(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	topic := r.create(r.members[1], "t", 1)
	leader := r.leaderOf(topicGroup(topic, 0))
	here := []proxy.TopicPartition{{Topic: topic.ID}}
	const n = 200
	answers := make(chan bool, n)
	for range n {
		go func() { answers <- leader.cluster.Confirmed(r.ctx(), here)[0] }()
	}
	for range n {
		if !<-answers {
			t.Fatal("a leader is not confirmed")
		}
	}
	other := r.members[leader.id%3+1]
	got := other.cluster.Confirmed(r.ctx(), append(here, proxy.TopicPartition{Topic: topic.ID, Partition: 7}, proxy.TopicPartition{Topic: 99}))
	for i, confirmed := range got {
		if confirmed {
			t.Errorf("partition %d is confirmed on a node that does not lead it", i)
		}
	}
	leader.node.CutRaft()
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	defer cancel()
	for range 100 {
		if leader.cluster.Confirmed(ctx, here)[0] {
			t.Fatal("a leader that is cut off is confirmed")
		}
	}
	if ctx.Err() != nil {
		t.Fatal("who asks a leader that is cut off is not answered")
	}
}
