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
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx := r.ctx(); !said.has("cannot be taken out yet", "node 2 has no broker"); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("nobody is told why a dead member stays")
		}
	}
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
	if news, _ := one.roster.fresh(); news[2] == nil || !one.heardBySome()[3] {
		t.Errorf("node 2 is heard, %t, and heard are %v", news[2] != nil, one.heardBySome())
	}
	if one.heardBySome()[4] {
		t.Error("a node is heard that is not there")
	}
}
