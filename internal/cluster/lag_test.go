package cluster

import (
	"testing"
	"time"
)

// The age of what a broker lacks is counted from when this node knew it to be
// committed, is never too great, and is known for as long as one likes with a
// bounded number of marks.
func TestAgeOfWhatTheBrokerLacks(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	at := func(s float64) time.Time { return begin.Add(time.Duration(s * float64(time.Second))) }
	var m commitMarks
	if age := m.age(at(0), 0); age != 0 {
		t.Errorf("nothing is committed, and its age is %s", age)
	}
	m.note(at(0), 0) // the group has not applied anything yet
	m.note(at(1), 10)
	m.note(at(2), 10)
	m.note(at(3), 20)
	for _, c := range []struct {
		held uint64
		want time.Duration
	}{{0, 9 * time.Second}, {9, 9 * time.Second}, {10, 7 * time.Second}, {19, 7 * time.Second}, {20, 0}, {25, 0}} {
		if age := m.age(at(10), c.held); age != c.want {
			t.Errorf("a broker that holds everything up to %d: behind by %s, want %s", c.held, age, c.want)
		}
	}
	const hours = 2 // four entries a second
	m = commitMarks{}
	for i := range hours * 3600 * 4 {
		m.note(at(float64(i)/4), uint64(i+1))
		if len(m.marks) > maxCommitMarks {
			t.Fatalf("%d marks", len(m.marks))
		}
	}
	now := at(hours * 3600)
	for _, back := range []float64{10, 600, 3600, 6000} { // seconds
		held := uint64(hours*3600*4 - back*4)
		age := m.age(now, held).Seconds()
		if age > back || age < back*.8 {
			t.Errorf("a broker that stopped %.0f s ago is behind by %.1f s", back, age)
		}
	}
}

// A node says how far its broker is behind, in bytes and in seconds, and every
// node's status has it; it ends when the broker has everything.
func TestStatusTellsLag(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	asked := r.members[1]
	topic := r.create(asked, "late", 1)
	group := topicGroup(topic, 0)
	lead := r.leaderOf(group)
	behind := r.members[lead.id%3+1]
	of := func(s Status) MemberStatus {
		for _, m := range s.Groups[group].Members {
			if m.Node == behind.id {
				return m
			}
		}
		return MemberStatus{}
	}
	r.reports(asked, "no lag", func(s Status) bool {
		m := of(s)
		return m.Applied > 0 && m.Lag == 0 && m.LagBytes == 0 && m.LagSeconds == 0
	})
	at := behind.node.Group(group).Log().Applied().Get()
	behind.applier.edit(func() { behind.applier.stuck = map[uint32]uint64{group: at} })
	raw := batch(-1, -1, "what the broker lacks")
	begin := time.Now()
	r.produce(lead, topic, 0, raw)
	r.reports(asked, "the lag", func(s Status) bool { m := of(s); return m.LagBytes >= int64(len(raw)) && m.LagSeconds >= .5 })
	if took := time.Since(begin).Seconds(); took < .5 {
		t.Errorf("half a second of lag after %.2f s", took)
	}
	behind.applier.edit(func() { behind.applier.stuck = nil })
	r.reports(asked, "no lag any more", func(s Status) bool { m := of(s); return m.Lag == 0 && m.LagBytes == 0 && m.LagSeconds == 0 })
}
