package cluster

import (
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/internal/node"
)

// A leader whose broker is away hands over to a node that is well, and the
// group goes home when its home was well for long enough.
func TestLeadershipFollowsTheBroker(t *testing.T) {
	t.Parallel()
	r := running(t, func(c *Config) { c.RebalanceDelay = time.Second })
	r.create(r.members[1], "t", 3)
	sick := r.members[2] // home of group 1
	away := time.Now()
	sick.broker.Set(BrokerReport{Up: false, Since: away, Error: "connection refused"})
	for _, m := range r.members {
		r.sees(m, "another leader of group 1", func(s *snapshot) bool {
			return s.leaders[1] > 0 && s.leaders[1] != 2 && s.leaders[0] == 1 && s.leaders[2] == 3
		})
		r.reports(m, "the broker that is away", func(s Status) bool { return s.Nodes[1].Broker.State == "down" && !s.Healthy })
	}
	if took := time.Since(away); took < 100*time.Millisecond {
		t.Errorf("handed over after %s: a broker may be away for unreachable_after", took)
	}
	back := time.Now()
	sick.broker.Set(BrokerReport{Up: true, Since: back})
	for _, m := range r.members {
		r.sees(m, "group 1 at home", func(s *snapshot) bool { return s.leaders[1] == 2 })
	}
	if took := time.Since(back); took < time.Second {
		t.Errorf("home again after %s: the delay is a second", took)
	}
}

// With no broker anywhere nobody hands over, and who is handed leadership keeps it.
func TestNobodyIsWellNobodyMoves(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	r.create(r.members[1], "t", 3)
	long := time.Now().Add(-time.Hour)
	for _, m := range r.members {
		m.broker.Set(BrokerReport{Up: false, Since: long})
	}
	for _, m := range r.members {
		r.reports(m, "three dead brokers", func(s Status) bool {
			for _, n := range s.Nodes {
				if n.Broker.State != "down" {
					return false
				}
			}
			return true
		})
	}
	for _, m := range r.members {
		for _, g := range m.node.Groups() {
			l := g.Leading.Get()
			if l == nil {
				continue
			}
			if to, why := m.cluster.betterPlace(g, l, map[int32]time.Time{1: long, 2: long, 3: long}); to != 0 {
				t.Errorf("group %d would go from node %d to %d: %s", g.ID, m.id, to, why)
			}
		}
	}
}

// betterPlace on words that the test puts into nodes' mouths.
func TestBetterPlace(t *testing.T) {
	t.Parallel()
	r := running(t, func(c *Config) { c.RebalanceDelay = time.Minute })
	r.create(r.members[1], "t", 3) // groups hold something: nobody moves at once
	m := r.members[1]
	g := m.node.Group(0)
	c := m.cluster
	c.cancel() // no announcements but the test's from here on
	c.wg.Wait()
	var number uint64 = 1 << 32
	say := func(id int32, edit func(*Announcement, *GroupReport)) {
		number++
		a := &Announcement{Node: id, Boot: "test", Number: number, Broker: BrokerReport{Up: true}}
		for i := range uint32(testGroups) {
			a.Groups = append(a.Groups, GroupReport{Group: i, Role: "follower", Broker: g.Log().Applied().Get()})
		}
		if edit != nil {
			edit(a, &a.Groups[0])
		}
		c.roster.put(a)
	}
	lacking := func(n int) func(*Announcement, *GroupReport) {
		return func(_ *Announcement, rep *GroupReport) {
			for i := range n {
				rep.tellTrouble([]apply.PartitionStatus{{Topic: "t", Partition: int32(i), State: string(apply.StateQuarantined), Reason: "other bytes"}})
			}
		}
	}
	quarantines := lacking(1)
	copies := func(_ *Announcement, rep *GroupReport) {
		rep.tellTrouble([]apply.PartitionStatus{{Topic: "t", State: string(apply.StateCopying)}})
	}
	attaches := func(_ *Announcement, rep *GroupReport) {
		rep.tellTrouble([]apply.PartitionStatus{{Topic: "t", State: string(apply.StateAttaching)}})
	}
	lags := func(_ *Announcement, rep *GroupReport) { rep.Broker = 0 }
	long := time.Now().Add(-time.Hour)
	l := &node.Leadership{Term: 1, Since: long}
	well := map[int32]time.Time{1: long, 2: long, 3: long}
	down := BrokerReport{Up: false, Since: long}
	up := BrokerReport{Up: true, Since: long}

	for _, tc := range []struct {
		name     string
		own      BrokerReport
		self     func(*Announcement, *GroupReport)
		two      func(*Announcement, *GroupReport)
		three    func(*Announcement, *GroupReport)
		want     int32
		wellOnly map[int32]time.Time
	}{
		{"all is well at home", up, nil, nil, nil, 0, well},
		{"own broker just gone", BrokerReport{Up: false, Since: time.Now().Add(time.Minute)}, nil, nil, nil, 0, well},
		{"own broker gone", down, nil, lags, nil, 3, well},
		{"own broker gone, 3 quarantines", down, nil, lags, quarantines, 2, well},
		{"own broker gone, others stop", down, nil, func(a *Announcement, _ *GroupReport) { a.Stopping = true },
			func(a *Announcement, _ *GroupReport) { a.Problem = "wiped" }, 0, well},
		{"quarantine here", up, quarantines, nil, quarantines, 2, well},
		{"quarantine everywhere", up, quarantines, quarantines, quarantines, 0, well},
		{"quarantine here, others lag", up, quarantines, lags, lags, 0, well},
		{"quarantine here, the other just came", up, quarantines, nil, lags, 0, map[int32]time.Time{2: time.Now().Add(time.Minute)}},
		{"two here, one there", up, lacking(2), quarantines, lacking(3), 2, well},
		{"one here, two there", up, quarantines, lacking(2), lacking(2), 0, well},
		{"copying here", up, copies, nil, quarantines, 2, well},
		{"attaching here", up, attaches, nil, nil, 0, well},
		{"others are not in the group", down, nil, func(_ *Announcement, rep *GroupReport) { rep.Role = "none" },
			func(_ *Announcement, rep *GroupReport) { rep.Role = "candidate" }, 0, well},
	} {
		// The lag must exceed what a transfer makes good for.
		for g.Log().Applied().Get() <= closeBehind {
			r.submit(m.node, 0, fsm.KindAllocateProducers, fsm.AllocateProducers{Count: 1})
		}
		say(1, tc.self)
		say(2, tc.two)
		say(3, tc.three)
		m.broker.Set(tc.own)
		if to, why := c.betterPlace(g, l, tc.wellOnly); to != tc.want {
			t.Errorf("%s: to node %d (%s), want %d", tc.name, to, why, tc.want)
		}
	}

	// Home, seen from a node that is not it: group 1's is node 2.
	m.broker.Set(up)
	g = m.node.Group(1)
	for holds := false; !holds; { // what others show already may still be on its way here
		_, changed := g.ShapeChanged().Changed()
		if g.Read(func(s *fsm.Group) { holds = len(s.Partitions) > 0 }); holds {
			break
		}
		select {
		case <-changed:
		case <-r.ctx().Done():
			t.Fatal("group 1 has no partition")
		}
	}
	say(2, nil)
	for _, tc := range []struct {
		name  string
		since time.Time // in office
		well  map[int32]time.Time
		want  int32
	}{
		{"home is well for long", long, well, 2},
		{"home is well since just now", long, map[int32]time.Time{2: time.Now()}, 0},
		{"home is not well", long, nil, 0},
		{"in office since just now", time.Now(), well, 0},
	} {
		say(2, nil) // anew: words expire
		if to, _ := c.betterPlace(g, &node.Leadership{Term: 1, Since: tc.since}, tc.well); to != tc.want {
			t.Errorf("%s: to node %d, want %d", tc.name, to, tc.want)
		}
	}
	say(2, func(a *Announcement, _ *GroupReport) { quarantines(a, &a.Groups[1]) })
	if to, _ := c.betterPlace(g, &node.Leadership{Term: 1, Since: long}, well); to != 0 {
		t.Errorf("home lacks a partition, and is given the group")
	}
}

// A majority of the others must be known, now, to hold an entry through a power
// cut; one that lacks a partition does not count.
func TestOthersTrusted(t *testing.T) {
	t.Parallel()
	c := &Cluster{cfg: Config{Self: 1}, roster: roster{news: make(map[int32]*Announcement)}}
	var number uint64
	say := func(id int32, trusted uint64, edit func(*Announcement)) {
		number++
		a := &Announcement{Node: id, Boot: "b", Number: number, Broker: BrokerReport{Up: true}, Groups: []GroupReport{{}, {Group: 1, Trusted: trusted}}}
		if edit != nil {
			edit(a)
		}
		c.roster.put(a)
	}
	say(1, 1000, nil)
	if c.othersTrusted([]int32{1, 2, 3}, 1, 0) {
		t.Error("nobody else was heard of")
	}
	say(2, 100, nil)
	say(3, 50, nil)
	if !c.othersTrusted([]int32{1, 2, 3}, 1, 50) || c.othersTrusted([]int32{1, 2, 3}, 1, 51) || c.othersTrusted([]int32{1, 2, 3}, 7, 0) {
		t.Error("two others hold 50, one of them 100")
	}
	for what, edit := range map[string]func(*Announcement){
		"its broker is down": func(a *Announcement) { a.Broker.Up = false },
		"it stops":           func(a *Announcement) { a.Stopping = true },
		"it has a problem":   func(a *Announcement) { a.Problem = "a wiped disk" },
		"it lacks a partition": func(a *Announcement) {
			a.Groups[1].tellTrouble([]apply.PartitionStatus{{State: string(apply.StateCopying)}})
		},
	} {
		if say(3, 100, edit); c.othersTrusted([]int32{1, 2, 3}, 1, 50) {
			t.Errorf("%s, and it counts", what)
		}
	}
	if say(3, 100, nil); !c.othersTrusted([]int32{1, 2, 3}, 1, 100) {
		t.Error("both hold it")
	}
	c.roster.news[3].heard = time.Now().Add(-lease)
	if c.othersTrusted([]int32{1, 2, 3}, 1, 50) {
		t.Error("old news count")
	}
}

// A node that stops leads nothing any more when HandOver returns, and clients
// are shown others.
func TestHandOver(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	r.create(r.members[1], "t", 3)
	m := r.members[3]
	m.cluster.HandOver(r.ctx())
	for _, g := range m.node.Groups() {
		if g.Leading.Get() != nil {
			t.Errorf("group %d is still led by the node that stops", g.ID)
		}
	}
	for _, o := range []*member{r.members[1], r.members[2]} {
		r.sees(o, "leaders elsewhere", func(s *snapshot) bool {
			return s.leaders[2] > 0 && s.leaders[2] != 3 && !s.view.Nodes[2].Alive
		})
	}
	r.stop(3)
}
