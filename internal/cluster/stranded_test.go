package cluster

import (
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/proxy"
)

// A batch that is committed, but whose node lost its broker and then its
// leadership, is sent on to the new leader long before its deadline.
func TestStrandedBatchIsSentOn(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	topic := r.create(r.members[1], "t", 1)
	group := topicGroup(topic, 0)
	lead := r.leaderOf(group)
	lead.applier.mu.Lock()
	lead.applier.held = true
	lead.applier.mu.Unlock()
	got := make(chan proxy.AppendResult, 1)
	lead.cluster.Append(topic, 0, batch(-1, 0, "stranded"), time.Now().Add(time.Hour), func(a proxy.AppendResult) { got <- a })
	r.holds(lead, group, "the batch is committed", func(s *fsm.Group) bool {
		p := s.Partitions[fsm.TP{Topic: topic.ID}]
		return p != nil && p.NextOffset == 1
	})
	lead.broker.Set(BrokerReport{Up: false, Since: time.Now().Add(-time.Hour), Error: "connection refused"})
	select {
	case a := <-got:
		if a.Code != codeNotLeader {
			t.Errorf("told %+v, want to look for the leader", a)
		}
	case <-time.After(testWait):
		t.Fatal("the client waits for a broker that is gone")
	}
}
