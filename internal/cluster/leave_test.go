package cluster

import (
	"slices"
	"testing"

	"lockstep/internal/broker"
	"lockstep/proxy"
)

// Every broker is told what groups have committed, whoever is asked; groups with
// members and brokers that fail are named.
func TestLeave(t *testing.T) {
	brokers := map[int32]*fakeGroupBroker{1: {}, 2: {}, 3: {}}
	r := running(t, func(c *Config) { c.GroupBroker = brokers[c.Self] })
	if err := r.members[1].cluster.CreateTopic(r.ctx(), proxy.TopicSpec{Name: "t", Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	for group, offsets := range map[string][]int64{"g": {5, 9}, "busy": {3}} {
		m, epoch := r.coordinatorOf(group, 0)
		r.sees(m, "the topic", func(s *snapshot) bool { return s.view.Topics["t"] != nil })
		commit := proxy.OffsetCommit{Group: group, Epoch: epoch}
		for p, o := range offsets {
			commit.Offsets = append(commit.Offsets, proxy.OffsetToCommit{Topic: m.cluster.View().Topics["t"].ID, Partition: int32(p), Offset: o})
		}
		done := make(chan []int16, 1)
		m.cluster.CommitOffsets(commit, func(codes []int16) { done <- codes })
		if codes := <-done; slices.ContainsFunc(codes, func(c int16) bool { return c != 0 }) {
			t.Fatalf("commit of %s: %v", group, codes)
		}
	}
	edit := func(id int32, f func(b *fakeGroupBroker)) {
		brokers[id].mu.Lock()
		defer brokers[id].mu.Unlock()
		f(brokers[id])
	}
	edit(2, func(b *fakeGroupBroker) { b.occupied = []string{"busy"} })
	edit(3, func(b *fakeGroupBroker) { b.err = broker.ErrUnsupported })
	got := r.members[1].cluster.Leave(r.ctx())
	if one := got[1]; one.Groups != 2 || one.Offsets != 3 || one.Error != "" || len(one.Occupied) != 0 {
		t.Errorf("node 1: %+v", one)
	}
	if two := got[2]; two.Groups != 1 || two.Offsets != 2 || !slices.Equal(two.Occupied, []string{"busy"}) {
		t.Errorf("node 2: %+v", two)
	}
	if three := got[3]; three.Error == "" {
		t.Errorf("node 3: %+v", three)
	}
	edit(2, func(b *fakeGroupBroker) {
		if want := []broker.TopicOffset{{Topic: "t", Partition: 0, Offset: 5}, {Topic: "t", Partition: 1, Offset: 9}}; !slices.Equal(b.told["g"], want) || b.told["busy"] != nil {
			t.Errorf("the broker of node 2 was told %v", b.told)
		}
	})
	r.stop(3)
	r.sees(r.members[1], "a node away", func(*snapshot) bool {
		news, _ := r.members[1].cluster.roster.fresh()
		return news[3] == nil
	})
	if got := r.members[1].cluster.Leave(r.ctx()); len(got) != 3 || got[3].Error == "" || got[1].Error != "" {
		t.Errorf("with node 3 away: %+v", got)
	}
}
