package cluster

import (
	"os"
	"strings"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/proxy"
)

// Clients of every node are shown the same cluster, with leaders spread over
// the nodes, and exactly one node serves each partition.
func TestEveryNodeShowsTheSameCluster(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	r.create(r.members[2], "t", 6)
	for _, m := range r.members {
		r.sees(m, "the topic", func(s *snapshot) bool { return s.view.Topics["t"] != nil })
		v := m.cluster.View()
		topic := v.Topics["t"]
		if len(topic.Partitions) != 6 || v.Controller != 1 {
			t.Errorf("node %d shows %d partitions, controller %d", m.id, len(topic.Partitions), v.Controller)
		}
		for p, part := range topic.Partitions {
			if len(part.Replicas) != 3 || len(part.ISR) != 3 {
				t.Errorf("node %d shows partition %d as %+v", m.id, p, part)
			}
			if want := int32(p%3) + 1; part.Leader != want || v.Leads(topic, int32(p)) != (want == m.id) {
				t.Errorf("node %d shows partition %d led by %d, want %d", m.id, p, part.Leader, want)
			}
		}
		for i, n := range v.Nodes {
			if n.ID != int32(i)+1 || !n.Alive || n.Listeners["PLAINTEXT"].Host != "localhost" {
				t.Errorf("node %d shows %+v", m.id, n)
			}
		}
		r.reports(m, "a healthy cluster", func(s Status) bool { return s.Healthy && s.Topics == 1 })
	}
}

// A partition that its leader's broker cannot serve has no leader, anywhere;
// the others of the group do.
func TestPartitionInTroubleHasNoLeader(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	topic := r.create(r.members[1], "t", 6)
	lead := r.leaderOf(0)
	bad := fsm.TP{Topic: topic.ID, Partition: 3} // of group 0, as partition 0
	lead.applier.edit(func() { lead.applier.unready[bad] = true })
	for _, m := range r.members {
		r.sees(m, "no leader of partition 3", func(s *snapshot) bool {
			return leads(s, "t", 3) == -1 && leads(s, "t", 0) == lead.id
		})
	}
	r.reports(lead, "one partition that is not ready", func(s Status) bool { return !s.Healthy && s.NotReady == 1 })
	lead.applier.edit(func() { delete(lead.applier.unready, bad) })
	for _, m := range r.members {
		r.sees(m, "partition 3 led again", func(s *snapshot) bool { return leads(s, "t", 3) == lead.id })
	}
}

// When a leader dies clients are told so at once or within the lease, and then
// of the next one; the dead one's broker leaves the ISR.
func TestDeadLeaderIsReplacedInTheView(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	r.create(r.members[1], "t", 3)
	dead := r.leaderOf(1)
	r.stop(dead.id)
	for _, m := range r.members {
		r.sees(m, "another leader", func(s *snapshot) bool { return s.leaders[1] > 0 && s.leaders[1] != dead.id })
		r.sees(m, "the dead node gone", func(s *snapshot) bool {
			if leads(s, "t", 1) == 0 {
				return false
			}
			p := s.view.Topics["t"].Partitions[1]
			return len(p.ISR) == 2 && len(p.Replicas) == 3 && !s.view.Nodes[dead.id-1].Alive && s.view.Controller != dead.id
		})
		r.reports(m, "the dead node", func(s Status) bool {
			return !s.Healthy && strings.Contains(strings.Join(s.Problems, "\n"), "is not heard of")
		})
	}
	r.start(dead.id)
	r.sees(r.members[dead.id], "the catalog again", func(s *snapshot) bool { return s.view.CatalogReady && s.view.Topics["t"] != nil })
	r.reports(r.members[dead.id], "a healthy cluster", func(s Status) bool { return s.Healthy })
}

// A node that lost its disk is named by every node, itself included.
func TestStatusNamesTheWipedNode(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	r.stop(3)
	if err := os.RemoveAll(r.dataDir(3)); err != nil {
		t.Fatal(err)
	}
	r.start(3)
	for _, m := range r.members {
		r.reports(m, "node 3 as wiped", func(s Status) bool {
			return !s.Healthy && strings.Contains(s.Nodes[2].Problem, "readmitted")
		})
	}
	if v := r.members[3].cluster.View(); v.CatalogReady {
		t.Error("the wiped node says that it knows the catalog")
	}
}

// An announcement that an older one of the same process overtakes, or one of
// another shape, changes nothing.
func TestStaleAnnouncements(t *testing.T) {
	r := &roster{news: make(map[int32]*Announcement)}
	if !r.put(&Announcement{Node: 1, Boot: "a", Number: 2, Version: "new"}) {
		t.Fatal("the first is no news")
	}
	for _, n := range []uint64{1, 2} {
		if r.put(&Announcement{Node: 1, Boot: "a", Number: n, Version: "old"}) {
			t.Errorf("number %d after 2 is news", n)
		}
	}
	if news, _ := r.fresh(); news[1].Version != "new" {
		t.Error("the older one is shown")
	}
	if !r.put(&Announcement{Node: 1, Boot: "b", Number: 1}) {
		t.Error("a process that started again is not heard")
	}
	r.news[1].heard = time.Now().Add(-lease)
	if news, _ := r.fresh(); len(news) != 0 {
		t.Error("an announcement outlives its lease")
	}
	for _, a := range []Announcement{
		{Node: 2, Groups: []GroupReport{{Group: 0}, {Group: 1}}},
		{Node: 1, Groups: []GroupReport{{Group: 0}}},
		{Node: 1, Groups: []GroupReport{{Group: 1}, {Group: 0}}},
	} {
		if err := a.check(1, 2); err == nil {
			t.Errorf("%+v is accepted from node 1", a)
		}
	}
}

// A leader of an earlier term, or one that this node's Raft does not know, is
// believed by nobody.
func TestOnlyTheLeaderOfTheTermIsBelieved(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	m := r.members[2]
	g := m.node.Group(0)
	lead := r.leaderOf(0)
	term := g.Raft().CurrentTerm()
	groups := func(term uint64) []GroupReport {
		return []GroupReport{{Group: 0, Leading: true, Term: term, Applied: 1 << 40}, {Group: 1}, {Group: 2}}
	}
	other := 6 - m.id - lead.id
	if lead.id == m.id {
		other = 3
	}
	for _, a := range []*Announcement{
		{Node: other, Boot: "x", Groups: groups(term + 1)},
		{Node: lead.id, Boot: "x", Groups: groups(term - 1)},
	} {
		m.cluster.conclude(a)
		m.applier.mu.Lock()
		if m.applier.concerns[0] == 1<<40 {
			t.Errorf("node %d concludes from node %d in term %d", m.id, a.Node, a.Groups[0].Term)
		}
		m.applier.mu.Unlock()
	}
	news := map[int32]*Announcement{other: {Node: other, Groups: groups(term + 1)}}
	if got, _ := m.cluster.leaderOf(g, news); got != -1 {
		t.Errorf("node %d is shown as leader although Raft knows %d", got, lead.id)
	}
	news = map[int32]*Announcement{lead.id: {Node: lead.id, Stopping: true, Groups: groups(term)}}
	if got, _ := m.cluster.leaderOf(g, news); got != -1 {
		t.Errorf("node %d is shown although it stops", got)
	}
}

// An unknown topic is known to be unknown only when the catalog was followed to
// where its leader was when it was first heard of.
func TestCatalogMark(t *testing.T) {
	var m catalogMark
	at := func(term, applied uint64) *GroupReport { return &GroupReport{Term: term, Applied: applied} }
	for i, step := range []struct {
		leader  int32
		said    *GroupReport
		applied uint64
		want    bool
	}{
		{-1, nil, 100, false},
		{1, at(5, 50), 49, false},
		{1, at(5, 60), 50, true},  // the first word counts: there is always newer
		{1, at(5, 500), 50, true}, // same leader, same term
		{2, at(6, 80), 50, false},
		{2, at(6, 80), 80, true},
		{-1, nil, 80, false},
		{2, at(6, 90), 80, false}, // not heard of for a while: anything may have happened
	} {
		if got := m.reached(step.leader, step.said, step.applied); got != step.want {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
}

var _ proxy.Cluster = (*Cluster)(nil)
