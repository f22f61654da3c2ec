package cluster

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/internal/apply"
)

// Silence is counted in steps that a suspended process cannot stretch; a word
// from the node, heard by anybody, begins it anew, and so does another office.
func TestSilenceIsCounted(t *testing.T) {
	t.Parallel()
	nodes := map[int32]*fsm.CatalogNode{1: {ID: 1}, 2: {ID: 2}, 3: {ID: 3}, 4: {ID: 4, State: fsm.NodeJoining}, 5: {ID: 5, State: fsm.NodeGone}}
	at := time.Now()
	r := newReaper(3 * time.Second)
	look := func(later time.Duration, want int32, heard ...int32) {
		t.Helper()
		at = at.Add(later)
		set := map[int32]bool{1: true}
		for _, id := range heard {
			set[id] = true
		}
		if got := r.count(at, nodes, set); got != want {
			t.Errorf("the dead is %d, want %d: %v", got, want, r.silent)
		}
	}
	look(0, 0, 2)
	look(time.Second, 0, 2)
	look(time.Hour, 0, 2) // suspended: a second of it counts
	look(500*time.Millisecond, 0, 2)
	look(500*time.Millisecond, 3, 2)
	look(time.Second, 3) // node 2 has not been silent for as long
	look(time.Second, 0, 2, 3)
	for range 2 {
		look(time.Second, 0, 2)
	}
	r.forget()
	for range 3 {
		look(time.Second, 0, 2)
	}
	look(time.Second, 3, 2)
	nodes[3] = &fsm.CatalogNode{ID: 3, State: fsm.NodeLeaving}
	look(time.Second, 0, 2)
	nodes[3] = &fsm.CatalogNode{ID: 3}
	look(time.Second, 0, 2)
}

const reapSoon = 5 * time.Second

// logLines are what was logged.
type logLines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// has says whether one line has all the parts.
func (l *logLines) has(parts ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			return true
		}
	}
	return false
}

// A member that is dead is taken out, if that was asked for, and its machine
// told so when it comes back.
func TestTheDeadAreReaped(t *testing.T) {
	t.Parallel()
	var said logLines
	r := running(t, func(cfg *Config) {
		cfg.ReapAfter, cfg.Logger = reapSoon, hclog.New(&hclog.LoggerOptions{Output: &said, Level: hclog.Warn})
	})
	r.stop(3)
	r.memberIs(r.members[1], 3, "gone")
	if !said.has("is taken out of the cluster", "node=3", "silent=", "members add 3") {
		t.Error("nobody was told")
	}
	r.sees(r.members[1], "two nodes", func(s *snapshot) bool { return len(s.view.Nodes) == 2 })
}

// Nobody is taken out when the others would be left without a majority that is
// well; when they are well again, the dead one is.
func TestNobodyIsReapedFromAMinority(t *testing.T) {
	t.Parallel()
	var said logLines
	r := running(t, func(cfg *Config) {
		cfg.ReapAfter, cfg.Logger = reapSoon, hclog.New(&hclog.LoggerOptions{Output: &said, Level: hclog.Warn})
	})
	r.members[2].broker.Set(BrokerReport{})
	r.stop(3)
	r.logs(&said, "cannot be taken out yet", "node 2 has no broker")
	r.memberIs(r.members[1], 3, "member")
	r.members[2].broker.Set(BrokerReport{Up: true, Since: time.Now()})
	r.memberIs(r.members[1], 3, "gone")
}

// Without raft.reap_after the dead stay, and one that comes back in time is as
// it was.
func TestTheDeadStayUnlessAskedFor(t *testing.T) {
	t.Parallel()
	never := newReaper(0)
	r := running(t, nil)
	one := r.members[1].cluster
	r.stop(3)
	for r.memberIs(r.members[1], 3, "member").Alive {
	}
	never.silent[3], never.looked = 1000*time.Hour, time.Now()
	one.reap(r.ctx(), never)
	r.memberIs(r.members[1], 3, "member")
	// The same look with a limit takes it out: the test would see it.
	soon := newReaper(time.Hour)
	soon.silent[3], soon.looked = 59*time.Minute, time.Now()
	one.reap(r.ctx(), soon)
	r.memberIs(r.members[1], 3, "member")
	r.start(3)
	r.sees(r.members[1], "node 3", func(*snapshot) bool { news, _ := one.roster.fresh(); return news[3] != nil })
	one.reap(r.ctx(), soon)
	if soon.silent[3] != 0 {
		t.Errorf("a node that came back has been silent for %s", soon.silent[3])
	}
	r.stop(3)
	for r.memberIs(r.members[1], 3, "member").Alive {
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx := r.ctx(); ; {
		soon.silent[3], soon.looked, soon.tried = 2*time.Hour, time.Now(), time.Time{}
		one.reap(ctx, soon)
		if _, nodes := one.catalogNodes(); nodes[3].State != fsm.NodeMember {
			break
		}
		select {
		case <-tick.C: // on a busy machine node 2 may not be heard of at once
		case <-ctx.Done():
			t.Fatal("node 3 stays")
		}
	}
}

// A node that the catalog's leader alone does not hear is not dead.
func TestWhoIsHeardBySomebodyIsNotDead(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	one := r.members[1].cluster
	one.roster.mu.Lock()
	one.roster.news[3].heard = time.Now().Add(-time.Hour)
	one.roster.mu.Unlock()
	news, _ := one.roster.fresh()
	if heard, _ := heardBySome(news); news[2] == nil || !heard[3] || heard[4] {
		t.Errorf("node 2 is heard, %t, and heard are %v", news[2] != nil, heard)
	}
}

// older is an announcement of a build that does not say whom it hears.
func older(id int32) *Announcement {
	return &Announcement{Node: id, Boot: "older", Number: 1, Version: "0.1", Groups: make([]GroupReport, testGroups)}
}

// As long as somebody is heard whose build does not say whom it hears, nobody
// counts as silent: that one may hear them.
func TestNobodyIsReapedAmongOlderBuilds(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	one := r.members[1].cluster
	r.stop(3)
	for r.memberIs(r.members[1], 3, "member").Alive {
	}
	soon := newReaper(time.Hour)
	soon.silent[3], soon.looked = 2*time.Hour, time.Now()
	one.roster.put(older(9))
	one.reap(r.ctx(), soon)
	if len(soon.silent) > 0 || !soon.looked.IsZero() {
		t.Errorf("silence is counted: %v", soon.silent)
	}
	r.memberIs(r.members[1], 3, "member")
	for _, m := range r.members {
		if a := m.cluster.describe(); !slices.Contains(a.Hears, m.id) {
			t.Errorf("node %d hears %v, not itself", m.id, a.Hears)
		}
	}
	one.roster.mu.Lock()
	clear(one.roster.news) // as in the first moment of a process
	one.roster.mu.Unlock()
	if a := one.describe(); len(a.Hears) == 0 {
		t.Error("a node's first word looks like that of an older build")
	}
}

// A dead member's broker may be the only one that has something: it stays until
// the others have everything, and none of their partitions is in trouble.
func TestNobodyIsReapedWhoMayHaveTheOnlyCopy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		begin, end func(r *rig)
		why        string
	}{
		"another one is attaching": {
			func(r *rig) {
				r.members[2].applier.edit(func() {
					r.members[2].applier.trouble[1] = []apply.PartitionStatus{{Topic: "t", Partition: 4, State: string(apply.StateAttaching)}}
				})
			},
			func(r *rig) { r.members[2].applier.edit(func() { clear(r.members[2].applier.trouble) }) },
			"t/4 is attaching on node 2",
		},
		"another one has not come so far": {
			func(r *rig) {
				r.members[2].applier.edit(func() { r.members[2].applier.stuck = map[uint32]uint64{1: 0} })
			},
			func(r *rig) { r.members[2].applier.edit(func() { r.members[2].applier.stuck = nil }) },
			"the broker of node 2 does not have everything of group 1",
		},
		"this one refuses something": {
			func(r *rig) {
				r.members[1].applier.edit(func() {
					r.members[1].applier.stands = apply.StandsUnknown
					r.members[1].applier.refusals = []apply.Refusal{{Group: 1, Topic: "t", TP: fsm.TP{Partition: 5}, Index: 1}}
				})
			},
			func(r *rig) { r.members[1].applier.edit(func() { r.members[1].applier.refusals = nil }) },
			"t/5 is refused on node 1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var said logLines
			r := running(t, func(cfg *Config) {
				cfg.ReapAfter, cfg.Logger = reapSoon, hclog.New(&hclog.LoggerOptions{Output: &said, Level: hclog.Warn})
			})
			r.create(r.members[1], "filler", 3)
			c.begin(r)
			r.stop(3)
			r.logs(&said, "cannot be taken out yet", "node=3", c.why, "look at its broker", "members remove 3")
			r.memberIs(r.members[1], 3, "member")
			c.end(r)
			r.memberIs(r.members[1], 3, "gone")
		})
	}
}

// What a dead leader's broker alone took, and has acknowledged, is not cut because
// it is dead: an operator says that it may be, and is told what it is about.
func TestWhatTheDeadAcknowledgedIsNotCut(t *testing.T) {
	t.Parallel()
	var said logLines
	r := running(t, func(cfg *Config) {
		cfg.ReapAfter, cfg.Logger = reapSoon, hclog.New(&hclog.LoggerOptions{Output: &said, Level: hclog.Warn})
	})
	tp, group, index := refused(t, r, nil)
	if err := r.leaderOf(group).cluster.Transfer(r.ctx(), group, 3); err != nil {
		t.Fatal(err)
	}
	r.stop(3)
	for _, m := range r.members {
		m.says(group, apply.Batch{TP: tp, Index: index}, apply.StandsRefused)
		m.applier.edit(func() {
			m.applier.trouble[group] = []apply.PartitionStatus{{Topic: "t", TopicID: tp.Topic, State: string(apply.StateRefused)}}
		})
	}
	r.logs(&said, "cannot be taken out yet", "node=3", "t/0 is refused")
	for id, m := range r.members {
		m.node.Group(group).Read(func(g *fsm.Group) {
			if g.Partitions[tp].NextOffset != 1 {
				t.Errorf("cut on node %d", id)
			}
		})
	}
	warnings, err := r.members[2].cluster.RemoveNode(r.ctx(), 3, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "t/0") {
		t.Errorf("the operator is told %q", warnings)
	}
	r.logs(&said, "refused by the brokers of others", "node=3", "t/0")
	r.holds(r.members[1], group, "the cut", func(g *fsm.Group) bool { return g.Partitions[tp].NextOffset == 0 })
}

// logs waits until a line was logged that has all the parts.
func (r *rig) logs(l *logLines, parts ...string) {
	r.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx := r.ctx(); !l.has(parts...); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("nobody said %q", parts)
		}
	}
}
