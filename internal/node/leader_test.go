package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"lockstep/fsm"
)

// Proposals through every node survive the leader's end: each is either in the
// catalog once, or its outcome was said to be unknown.
func TestProposalsSurviveTheLeader(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2, 3)
	c.settled()
	dead := c.leader(fsm.CatalogGroup)
	deadID := dead.cfg.NodeID
	ctx := c.ctx()

	const each = 40
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids := make(map[string]uint64) // acknowledged topics
	half := make(chan struct{})
	var once sync.Once
	for id, n := range c.nodes {
		if id == deadID {
			continue
		}
		wg.Go(func() {
			for i := range each {
				if i == each/2 {
					once.Do(func() { close(half) })
				}
				name := fmt.Sprintf("t-%d-%d", id, i)
				r, err := n.Submit(ctx, fsm.CatalogGroup, fsm.Control(fsm.KindCreateTopic,
					fsm.CreateTopic{Name: name, Partitions: 1, Groups: 1}))
				switch {
				case errors.Is(err, ErrUnknownOutcome):
				case err != nil:
					t.Errorf("submit at node %d: %v", id, err)
				case r.Verdict != fsm.Done:
					t.Errorf("submit at node %d was proposed twice: %+v", id, r)
				default:
					mu.Lock()
					ids[name] = r.Topic
					mu.Unlock()
				}
			}
		})
	}
	<-half
	c.stop(deadID)
	wg.Wait()
	if len(ids) < each {
		t.Errorf("only %d of %d proposals were acknowledged", len(ids), 2*each)
	}
	c.start(deadID)
	for _, n := range c.nodes {
		for name, id := range ids {
			c.until(n.Catalog(), "acknowledged topic "+name, hasTopic(id, name))
		}
	}
}

// A node proposes nothing after it was told to stop, and says so.
func TestSubmitAfterClose(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2)
	n := c.nodes[1]
	c.settled()
	c.stop(1)
	_, err := n.Submit(c.ctx(), fsm.CatalogGroup, fsm.Control(fsm.KindDeleteTopic, fsm.DeleteTopic{Topic: 1}))
	if !errors.Is(err, ErrStopped) && !errors.Is(err, ErrNotLeader) {
		t.Fatalf("after Close: %v", err)
	}
	if n.Catalog().Leading.Get() != nil {
		t.Error("a closed node still leads")
	}
	// With one of three left there is no leader: the caller's patience decides.
	ctx, cancel := context.WithTimeout(c.ctx(), 100*time.Millisecond)
	defer cancel()
	_, err = c.nodes[2].Submit(ctx, fsm.CatalogGroup, fsm.Control(fsm.KindDeleteTopic, fsm.DeleteTopic{Topic: 1}))
	if !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrUnknownOutcome) {
		t.Fatalf("without a majority: %v", err)
	}
}

// Leadership is handed to the node that was named, and everybody can say why.
func TestTransferNamesTheReason(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2, 3)
	c.settled()
	from := c.leader(1)
	to := from.cfg.NodeID%3 + 1
	ctx := c.ctx()
	// The target must have the log: a transfer is refused or fails otherwise.
	if err := from.Group(1).Transfer(ctx, to, "a test wants it"); err != nil {
		t.Fatal(err)
	}
	g := c.nodes[to].Group(1)
	for {
		l, changed := g.Leading.Changed()
		if l != nil {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("the target does not lead")
		}
	}
	other := c.nodes[6-from.cfg.NodeID-to].Group(1)
	for _, h := range []*Group{from.Group(1), other} {
		c.eventually("the new leader is known", func() (bool, string) { return h.Leader.Get() == to, fmt.Sprint(h.Leader.Get()) })
		c.eventually("the reason is known", func() (bool, string) {
			why := h.why(false, from.cfg.NodeID, to)
			return strings.Contains(why, "a test wants it"), why
		})
		if why := h.why(false, from.cfg.NodeID, h.n.cfg.NodeID%3+10); strings.Contains(why, "a test wants it") {
			t.Error("the note explains a change to another node")
		}
	}
	if from.Group(1).Leading.Get() != nil {
		t.Error("the old leader still leads")
	}
	// Nobody was missed while this node led, however long ago it last followed.
	if begin, lost := time.Now(), g.lostSince(g.Raft(), to); lost.Before(begin) {
		t.Errorf("the leader was lost %s before it was there", begin.Sub(lost))
	}
}

// A leader whose write fails leads nothing from then on; the others elect, and
// it stops in good order.
func TestLeaderWithABrokenDiskLeaves(t *testing.T) { testBrokenLeader(t, false) }

// So does one whose write hangs, though Raft's heartbeats would go on.
func TestLeaderWithAHangingDiskLeaves(t *testing.T) { testBrokenLeader(t, true) }

func testBrokenLeader(t *testing.T, hang bool) {
	t.Parallel()
	var mu sync.Mutex
	broken := make(map[int32]*brokenStore) // of group 0, by node
	c := newTestCluster(t, 3, func(cfg *Config) { cfg.StoreTimeout = 2 * time.Second })
	for id := range c.peers {
		n := New(c.config(id))
		n.breakers.log = func(group uint32, inner raft.LogStore) raft.LogStore {
			s := &brokenStore{LogStore: inner, hang: make(chan struct{})}
			if group == 0 {
				mu.Lock()
				broken[id] = s
				mu.Unlock()
			}
			return s
		}
		if err := errors.Join(n.Init(), n.Open()); err != nil {
			t.Fatal(err)
		}
		c.nodes[id] = n
	}
	c.settled()
	sick := c.leader(fsm.CatalogGroup)
	id := sick.cfg.NodeID
	mu.Lock()
	store := broken[id]
	mu.Unlock()
	if hang {
		store.hung.Store(true)
		defer close(store.hang)
	} else {
		eio := errors.New("input/output error")
		store.fail.Store(&eio)
	}
	acked := make(chan error, 1)
	sick.Catalog().Propose(fsm.Control(fsm.KindCreateTopic, fsm.CreateTopic{Name: "lost", Partitions: 1, Groups: 1}),
		func(_ fsm.Result, err error) { acked <- err })
	select {
	case <-sick.Failed():
	case <-c.ctx().Done():
		t.Fatal("the node does not say that its disk failed")
	}
	for _, g := range sick.Groups() {
		c.eventually("the node leads nothing", func() (bool, string) { return g.Leading.Get() == nil, "leading" })
	}
	delete(c.nodes, id)
	next := c.leader(fsm.CatalogGroup)
	c.createTopic(next, "kept")
	begun := time.Now()
	if err := sick.Close(); (err == nil) == hang {
		t.Errorf("close: %v", err)
	}
	if took := time.Since(begun); took > stopGrace+2*time.Second {
		t.Errorf("close took %s", took)
	}
	if err := <-acked; err == nil {
		t.Error("a command whose write failed was acknowledged")
	}
}

// Close stops a node that is half way in: while it asks, while it enters,
// while it starts its groups.
func TestCloseWhileJoining(t *testing.T) {
	t.Parallel()
	for i := range 4 {
		c := newTestCluster(t, 3, func(cfg *Config) { cfg.JoinGrace = time.Millisecond })
		c.start(1, 2)
		// Somewhere between the first question and the last group.
		select {
		case <-time.After(time.Duration(i) * 25 * time.Millisecond):
		case <-c.ctx().Done():
		}
		n := c.nodes[1]
		c.stop(1)
		for _, g := range n.groups {
			if r := g.Raft(); r != nil && r.State() != raft.Shutdown {
				t.Fatalf("after Close a group of the node is %s", r.State())
			}
		}
	}
}

// A barrier that was asked for in one term does not put this node into office
// in another.
func TestOfficeIsOfOneTerm(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2, 3)
	c.settled()
	g := c.leader(0).Catalog()
	l := g.Leading.Get()
	if l == nil || l.Term != g.Raft().CurrentTerm() {
		t.Fatalf("leadership %+v in term %d", l, g.Raft().CurrentTerm())
	}
	ctx, cancel := context.WithCancel(c.ctx())
	cancel()
	g.setLeading(nil)
	g.takeOffice(ctx) // its term is over before the barrier is through
	if got := g.Leading.Get(); got != nil {
		t.Fatalf("an office that was lost is taken: %+v", got)
	}
	g.takeOffice(c.ctx())
	if got := g.Leading.Get(); got == nil || got.Term != l.Term {
		t.Fatalf("the office of this term is not taken: %+v", got)
	}
	g.abdicate()
	g.takeOffice(c.ctx())
	if g.Leading.Get() != nil {
		t.Fatal("a node that failed takes office")
	}
}

// What the others say of a group's leader counts only as long as Raft knows
// none: it may be older. A node that came to a group in the middle of a
// handover showed its clients no leader for good.
func TestHearsayYieldsToRaft(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2, 3)
	lead := c.leader(1)
	var other *Node
	for id, n := range c.nodes {
		if n != lead && other == nil {
			other = c.nodes[id]
		}
	}
	g := other.Group(1)
	leads := func(what string, want int32) {
		t.Helper()
		c.eventually(what, func() (bool, string) { return g.Leader.Get() == want, fmt.Sprint(g.Leader.Get()) })
	}
	leads("Raft's leader", lead.cfg.NodeID)
	g.Hear(other.cfg.NodeID)
	if got := g.Leader.Get(); got != lead.cfg.NodeID {
		t.Errorf("hearsay makes node %d the leader, Raft knows node %d", got, lead.cfg.NodeID)
	}
	c.stop(1, 2, 3)
	g = newGroup(other, 1) // without Raft
	for _, id := range []int32{2, 3, 0} {
		if g.Hear(id); g.Leader.Get() != id {
			t.Errorf("of a group without Raft the leader is %d, heard was %d", g.Leader.Get(), id)
		}
	}
}
