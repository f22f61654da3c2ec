package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/proxy"
)

// A batch is acknowledged when it is committed and visible, with its offset,
// and a repeat with the first one's.
func TestAppend(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	topic := r.create(r.members[1], "t", 3)
	lead := r.leaderOf(topicGroup(topic, 0))
	pid, err := lead.cluster.ProducerID(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(3) {
		if a := r.produce(lead, topic, 0, batch(pid, int32(i), "v")); a.Code != 0 || a.BaseOffset != i {
			t.Fatalf("batch %d: %+v", i, a)
		}
	}
	if a := r.produce(lead, topic, 0, batch(pid, 1, "v")); a.Code != 0 || a.BaseOffset != 1 {
		t.Errorf("a repeat: %+v, want offset 1", a)
	}
	if a := r.produce(lead, topic, 0, batch(pid, 9, "v")); a.Code != 45 || a.BaseOffset != -1 {
		t.Errorf("a gap: %+v, want code 45", a)
	}
	if a := r.produce(lead, topic, 7, batch(-1, 0, "v")); a.Code != codeUnknownTopic {
		t.Errorf("no such partition: %+v", a)
	}
	if a := r.produce(lead, topic, 0, make([]byte, 2<<20)); a.Code != codeTooLarge {
		t.Errorf("larger than an entry: %+v", a)
	}
	other := r.members[lead.id%3+1]
	r.sees(other, "the topic", func(s *snapshot) bool { return s.view.Topics["t"] != nil })
	if a := r.produce(other, topic, 0, batch(pid, 3, "v")); a.Code != codeNotLeader {
		t.Errorf("at another node: %+v", a)
	}
	if end, err := lead.cluster.EndOffset(r.ctx(), topic, 0, true); err != nil || end != 3 {
		t.Errorf("the end is %d, %v; want 3", end, err)
	}
	if _, err := other.cluster.EndOffset(r.ctx(), topic, 0, true); err == nil {
		t.Error("another node gives a verified end")
	}
}

func topicGroup(t *proxy.Topic, p int32) uint32 { return uint32((t.ID - 1 + uint64(p)) % testGroups) }

// What is committed and not visible is not acknowledged before it is, at the
// deadline the client is told so, and no answer comes twice.
func TestAppendWaitsUntilVisible(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	topic := r.create(r.members[1], "t", 1)
	lead := r.leaderOf(topicGroup(topic, 0))
	lead.applier.mu.Lock()
	lead.applier.held = true
	lead.applier.mu.Unlock()
	var answers atomic.Int32
	got := make(chan proxy.AppendResult, 8)
	take := func(a proxy.AppendResult) { answers.Add(1); got <- a }
	lead.cluster.Append(topic, 0, batch(-1, 0, "late"), time.Now().Add(300*time.Millisecond), take)
	lead.cluster.Append(topic, 0, batch(-1, 0, "never"), time.Now().Add(200*time.Millisecond), take)
	for range 2 {
		if a := <-got; a.Code != codeTimedOut {
			t.Fatalf("not visible: %+v", a)
		}
	}
	lead.cluster.Append(topic, 0, batch(-1, 0, "waits"), time.Now().Add(testWait), take)
	end := func(want int64) {
		r.holds(lead, topicGroup(topic, 0), "the batch is committed", func(s *fsm.Group) bool {
			p := s.Partitions[fsm.TP{Topic: topic.ID}]
			return p != nil && p.NextOffset == want
		})
	}
	end(3)
	select {
	case a := <-got:
		t.Fatalf("acknowledged before it is visible: %+v", a)
	default:
	}
	waiting := func() int { lead.applier.mu.Lock(); defer lead.applier.mu.Unlock(); return len(lead.applier.waiters) }
	for waiting() < 3 { // the callbacks follow the state machine
		r.submit(lead.node, 0, fsm.KindAllocateProducers, fsm.AllocateProducers{Count: 1})
	}
	lead.applier.release(nil)
	if a := <-got; a.Code != 0 || a.BaseOffset != 2 {
		t.Errorf("visible: %+v", a)
	}
	lead.applier.mu.Lock()
	lead.applier.held = true
	lead.applier.mu.Unlock()
	lead.cluster.Append(topic, 0, batch(-1, 0, "quarantined"), time.Now().Add(testWait), take)
	for waiting() < 1 {
		r.submit(lead.node, 0, fsm.KindAllocateProducers, fsm.AllocateProducers{Count: 1})
	}
	lead.applier.release(apply.ErrQuarantined)
	if a := <-got; a.Code != codeNotLeader {
		t.Errorf("quarantined: %+v", a)
	}
	if n := answers.Load(); n != 4 {
		t.Errorf("%d answers to 4 batches", n)
	}
}

// A leader without a majority acknowledges nothing. What it was given is
// answered all the same, once, and the next leader does not have it twice.
func TestDeposedLeaderAcknowledgesNothing(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	topic := r.create(r.members[1], "t", 1)
	group := topicGroup(topic, 0)
	old := r.leaderOf(group)
	pid, err := old.cluster.ProducerID(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if a := r.produce(old, topic, 0, batch(pid, 0, "first")); a.Code != 0 {
		t.Fatalf("%+v", a)
	}
	// Raft is cut off from its peers; announcements and calls still work.
	old.node.CutRaft()
	const n = 50
	got := make(chan proxy.AppendResult, 2*n)
	for i := range n {
		old.cluster.Append(topic, 0, batch(pid, int32(i)+1, "lost?"), time.Now().Add(testWait), func(a proxy.AppendResult) { got <- a })
	}
	acked := 0
	for range n {
		select {
		case a := <-got:
			if a.Code == 0 {
				acked++ // may have left before the cut
			}
		case <-time.After(2 * testWait):
			t.Fatal("a batch was never answered")
		}
	}
	for _, m := range r.members {
		r.sees(m, "another leader", func(s *snapshot) bool {
			return m == old && s.leaders[group] != old.id || s.leaders[group] > 0 && s.leaders[group] != old.id
		})
	}
	next := r.members[old.id%3+1]
	r.sees(next, "the new leader", func(s *snapshot) bool { return s.leaders[group] > 0 })
	next = r.members[next.cluster.view.Get().leaders[group]]
	r.sees(next, "itself as the leader", func(s *snapshot) bool { return s.leaders[group] == next.id })
	end, err := next.cluster.EndOffset(r.ctx(), topic, 0, true)
	if err != nil || end < int64(1+acked) {
		t.Fatalf("%d batches were acknowledged, the new leader has %d, %v", 1+acked, end, err)
	}
	// The client sends everything again.
	for i := range n {
		a := r.produce(next, topic, 0, batch(pid, int32(i)+1, "lost?"))
		for a.Code == codeNotLeader { // so does a client: the leader may have changed once more
			var id int32
			r.sees(next, "a leader", func(s *snapshot) bool { id = s.leaders[group]; return id > 0 && id != old.id })
			next = r.members[id]
			a = r.produce(next, topic, 0, batch(pid, int32(i)+1, "lost?"))
		}
		if a.Code != 0 || a.BaseOffset != int64(i)+1 {
			// Only the last five are remembered as duplicates.
			if int64(i)+1 >= end-5 || a.Code != 45 {
				t.Fatalf("batch %d sent again: %+v", i, a)
			}
		}
	}
	if end, err := next.cluster.EndOffset(r.ctx(), topic, 0, true); err != nil || end != 1+n {
		t.Errorf("the end is %d, %v; want %d", end, err, 1+n)
	}
	select {
	case a := <-got:
		t.Errorf("a batch was answered twice: %+v", a)
	default:
	}
}

// No producer id is given out twice, by any node, in any life of one.
func TestProducerIDsAreUnique(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	var mu sync.Mutex
	seen := make(map[int64]string)
	take := func(m *member, n int) {
		for range n {
			id, err := m.cluster.ProducerID(r.ctx())
			if err != nil {
				t.Errorf("node %d: %v", m.id, err)
				return
			}
			mu.Lock()
			if who := seen[id]; who != "" || id < fsm.ClientProducerBase {
				t.Errorf("node %d was given %d, as %q", m.id, id, who)
			}
			seen[id] = fmt.Sprint("node ", m.id)
			mu.Unlock()
		}
	}
	var wg sync.WaitGroup
	for _, m := range r.members {
		for range 3 {
			wg.Go(func() { take(m, producerBlock/2) }) // crosses from one block to the next
		}
	}
	wg.Wait()
	r.stop(2)
	r.start(2)
	r.sees(r.members[2], "the catalog", func(s *snapshot) bool { return s.view.CatalogReady })
	take(r.members[2], 10)
}

// A caller of ProducerID is not held up by another's block.
func TestProducerIDHonoursItsContext(t *testing.T) {
	r := newRig(t, nil)
	m := r.join(1, r.newNode(1))
	m.cluster.ids.turn <- struct{}{} // somebody waits for a block
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := m.cluster.ProducerID(ctx)
	var ke *proxy.KafkaError
	if !errors.As(err, &ke) || ke.Code != codeTimedOut {
		t.Fatalf("got %v", err)
	}
}

// The producer of a batch that every broker refuses is told what they said, and
// nothing that makes it send the batch again; those of what was cut with it are.
func TestProducerIsToldOfTheCut(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	topic := r.create(r.members[1], "t", 1)
	lead := r.leaderOf(topicGroup(topic, 0))
	for i, c := range []struct{ said, first int16 }{{87, 87}, {32, 32}, {-1, -1}, {codeCorruptMessage, codeInvalidRecord}, {0, codeNotLeader}} {
		lead.applier.mu.Lock()
		lead.applier.held = true
		lead.applier.mu.Unlock()
		at := int64(2 * i)
		first, later := make(chan proxy.AppendResult, 1), make(chan proxy.AppendResult, 1)
		lead.cluster.Append(topic, 0, batch(-1, 0, "refused"), time.Now().Add(testWait), func(a proxy.AppendResult) { first <- a })
		lead.cluster.Append(topic, 0, batch(-1, 0, "behind it"), time.Now().Add(testWait), func(a proxy.AppendResult) { later <- a })
		for waiting := 0; waiting < 2; { // the callbacks follow the state machine
			r.submit(lead.node, 0, fsm.KindAllocateProducers, fsm.AllocateProducers{Count: 1})
			lead.applier.mu.Lock()
			waiting = len(lead.applier.waiters)
			lead.applier.mu.Unlock()
		}
		lead.applier.release(&apply.CutError{Offset: at, Code: c.said, Message: "why"})
		if a := <-first; a.Code != c.first {
			t.Errorf("brokers said %d, the producer is told %+v, want code %d", c.said, a, c.first)
		}
		if a := <-later; a.Code != codeNotLeader {
			t.Errorf("brokers said %d, whoever follows is told %+v", c.said, a)
		}
	}
}
