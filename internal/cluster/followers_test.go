package cluster

import (
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/proxy"
)

// TestPace: a broker keeps up if it soon has what there was a moment ago; it is
// not enough that it moves.
func TestPace(t *testing.T) {
	t.Parallel()
	var old *Announcement
	at := time.Unix(1<<30, 0)
	for i, tc := range []struct {
		boot            string
		broker, applied uint64
		caughtUp        int // of which step, -1 for never
	}{
		{"a", 10, 10, 0},
		{"a", 15, 20, 0}, // has what there was at step 0
		{"a", 20, 30, 1},
		{"a", 25, 40, 1}, // does not have what there was at step 2
		{"a", 39, 50, 1},
		{"a", 50, 60, 4},
		{"a", 60, 60, 6},
		{"b", 60, 70, -1}, // started anew: nothing is known of its broker
		{"b", 70, 80, 7},
	} {
		a := &Announcement{Boot: tc.boot, Groups: []GroupReport{{Broker: tc.broker}}, heard: at.Add(time.Duration(i) * time.Second)}
		a.applied = []uint64{tc.applied}
		a.measure(old)
		want := at.Add(time.Duration(tc.caughtUp) * time.Second)
		if tc.caughtUp < 0 {
			want = time.Time{}
		}
		if !a.caughtUp[0].Equal(want) {
			t.Errorf("step %d: caught up at %v, want %v", i, a.caughtUp[0], want)
		}
		old = a
	}
}

// TestReadReplicas: consumers are sent to a node of their rack for as long as its
// broker serves, has a sound copy and keeps up, and not to this node.
func TestReadReplicas(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	topic := r.create(r.members[1], "t", 2)
	group := topicGroup(topic, 0)
	lead := r.leaderOf(group)
	follower := r.members[lead.id%3+1]
	here := []proxy.TopicPartition{{Topic: topic.ID}, {Topic: topic.ID, Partition: 7}, {Topic: 99}}
	nearest := func() int32 {
		got := lead.cluster.ReadReplicas(rackOf(follower.id), here)
		if got[1] != 0 || got[2] != 0 {
			t.Errorf("partitions that do not exist are read at nodes %d and %d", got[1], got[2])
		}
		return got[0]
	}
	sent := func(why string) {
		t.Helper()
		r.until(why, func() bool { return nearest() == follower.id })
	}
	kept := func(why string) {
		t.Helper()
		r.until(why, func() bool { return nearest() == 0 })
	}
	sent("a healthy follower")
	if got := lead.cluster.ReadReplicas(rackOf(lead.id), here)[0]; got != 0 {
		t.Errorf("the leader sends clients of its own rack to node %d", got)
	}
	if got := lead.cluster.ReadReplicas("", here)[0]; got != 0 {
		t.Errorf("the leader sends clients without a rack to node %d", got)
	}
	if tp := (proxy.TopicPartition{Topic: topic.ID}); !follower.cluster.Follows(tp) {
		t.Error("a healthy follower does not serve")
	}

	follower.broker.Set(BrokerReport{})
	kept("its broker is away")
	if follower.cluster.Follows(here[0]) {
		t.Error("a follower without a broker serves")
	}
	follower.broker.Set(BrokerReport{Up: true, Since: time.Now()})
	sent("its broker is back")

	bad := apply.PartitionStatus{Topic: "t", TopicID: topic.ID, State: string(apply.StateQuarantined)}
	follower.applier.edit(func() {
		follower.applier.trouble[group] = []apply.PartitionStatus{bad}
		follower.applier.unready[fsm.TP{Topic: topic.ID}] = true
	})
	kept("its copy is quarantined")
	if follower.cluster.Follows(here[0]) {
		t.Error("a follower serves a quarantined copy")
	}
	bad.Partition = 1
	follower.applier.edit(func() {
		follower.applier.trouble[group] = []apply.PartitionStatus{bad}
		follower.applier.unready = map[fsm.TP]bool{{Topic: topic.ID, Partition: 1}: true}
	})
	sent("another partition is quarantined")
	if !follower.cluster.Follows(here[0]) || follower.cluster.Follows(proxy.TopicPartition{Topic: topic.ID, Partition: 1}) {
		t.Error("a follower serves the quarantined partition, or not the other")
	}
	many := make([]apply.PartitionStatus, maxTroubled+1)
	for i := range many {
		many[i] = apply.PartitionStatus{TopicID: 1000, Partition: int32(i), State: string(apply.StateCopying)}
	}
	follower.applier.edit(func() { follower.applier.trouble[group] = many })
	kept("more partitions are in trouble than it says")
	follower.applier.edit(func() { follower.applier.trouble[group] = nil })
	sent("none is")

	stuck := follower.node.Group(group).Log().Applied().Get()
	follower.applier.edit(func() { follower.applier.stuck = map[uint32]uint64{group: stuck} })
	r.produce(lead, topic, 0, batch(-1, -1, "a"))
	kept("its broker does not keep up")
	follower.applier.edit(func() { follower.applier.stuck = nil })
	sent("it does again")

	r.stop(follower.id)
	kept("it is gone")
}

// rackOf is the rack of a rig's node.
func rackOf(id int32) string { return string(rune('a' + id - 1)) }
