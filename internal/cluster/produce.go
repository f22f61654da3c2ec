package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/internal/failpoint"
	"lockstep/internal/mutant"
	"lockstep/internal/node"
	"lockstep/kafkawire"
	"lockstep/proxy"
)

// Kafka error codes that outcomes are told as.
const (
	codeCorruptMessage = 2  // CORRUPT_MESSAGE
	codeTimedOut       = 7  // REQUEST_TIMED_OUT
	codeNotLeader      = 6  // NOT_LEADER_OR_FOLLOWER
	codeTooLarge       = 10 // MESSAGE_TOO_LARGE
	codeUnknownTopic   = 3  // UNKNOWN_TOPIC_OR_PARTITION
	codeInvalidRecord  = 87 // INVALID_RECORD
	codeNotController  = 41 // NOT_CONTROLLER: admin clients look for the controller and try again
)

// appending is one batch between its proposal and its answer.
type appending struct {
	done     func(proxy.AppendResult)
	from     time.Time // when the stage that it is in began
	timer    *time.Timer
	answered atomic.Bool
	withdraw atomic.Pointer[func()] // gives the proposal up; nil before it was made
}

// expired answers when the client waits no longer, and gives up what is not yet
// on its way into the log: its bytes are no longer accounted for.
func (a *appending) expired() {
	a.fail(codeTimedOut, "not committed and visible in time; it may still be")
	if withdraw := a.withdraw.Load(); withdraw != nil {
		(*withdraw)()
	}
}

func (a *appending) answer(r proxy.AppendResult) {
	if a.answered.CompareAndSwap(false, true) {
		a.timer.Stop()
		a.done(r)
	}
}

func (a *appending) fail(code int16, message string) {
	a.answer(proxy.AppendResult{Code: code, Message: message, BaseOffset: -1, LogStartOffset: -1})
}

// Append implements proxy.Producer: propose, wait for the verdict, wait until
// the batch is visible on this node's broker. Nothing is acknowledged that is
// not both; by whom is of no matter: a node that leads no longer knows as well
// as the next leader what is committed, and has it on its own broker. An outcome
// that stays unknown is told as NOT_LEADER_OR_FOLLOWER to an idempotent
// producer, whose batch the next leader knows by producer id and sequence, and
// as REQUEST_TIMED_OUT to others. Both are retriable.
func (c *Cluster) Append(topic *proxy.Topic, partition int32, batch []byte, deadline time.Time, done func(proxy.AppendResult)) {
	a := &appending{done: done, from: time.Now()}
	armed := make(chan struct{}) // the timer may fire before it is stored
	a.timer = time.AfterFunc(time.Until(deadline), func() {
		<-armed
		if mutant.On(mutant.TimeoutIsFailure) {
			a.fail(codeInvalidRecord, "")
			return
		}
		a.expired()
	})
	close(armed)
	g := c.groupOf(topic.ID, partition)
	// Not from this goroutine: the caller may hold what done needs.
	switch {
	case g == nil:
		go a.fail(codeUnknownTopic, "")
		return
	case len(batch) > c.cfg.MaxBatchBytes:
		go a.fail(codeTooLarge, fmt.Sprintf("a batch of %d bytes is larger than raft.max_entry_bytes, %d", len(batch), c.cfg.MaxBatchBytes))
		return
	}
	tp := fsm.TP{Topic: topic.ID, Partition: partition}
	if mutant.On(mutant.AckBeforeCommit) {
		c.ackUncommitted(g, tp, batch, a)
	}
	withdraw := g.ProposeFor(fsm.AppendCommand(tp, batch), patience(batch, deadline), func(r fsm.Result, err error) {
		switch {
		case errors.Is(err, node.ErrNotLeader), errors.Is(err, node.ErrStopped):
			a.fail(codeNotLeader, "")
		case err != nil && mutant.On(mutant.TimeoutIsFailure):
			a.fail(codeInvalidRecord, "")
		case err != nil && idempotent(batch):
			a.fail(codeNotLeader, "leadership was lost while the batch was in flight")
		case err != nil:
			a.fail(codeTimedOut, "leadership was lost while the batch was in flight; it may be committed")
		case r.Verdict == fsm.Rejected:
			a.fail(r.Code, r.Message)
		default:
			failpoint.Hit(failpoint.VerdictAfter)
			a.from = since(c.stages.commit, a.from)
			c.whenVisible(g, tp, &r, a)
		}
	})
	a.withdraw.Store(&withdraw)
	if !time.Now().Before(deadline) {
		a.expired() // the timer may have fired before it could see that
	}
}

// sendOnAfter is how long an idempotent batch waits for its fate on a node that
// leads no longer. The next leader knows it by producer id and sequence, and
// this node may be cut off for long.
const sendOnAfter = 2 * time.Second

func idempotent(batch []byte) bool { return kafkawire.Batch(batch).ProducerID() >= 0 }

// patience is how long it is worth to wait for what became of a batch after
// leadership was lost: a plain one that is sent again may be there twice.
func patience(batch []byte, deadline time.Time) time.Duration {
	if left := time.Until(deadline); !idempotent(batch) || left < sendOnAfter {
		return left
	}
	return sendOnAfter
}

// whenVisible answers when this node's broker has what was committed.
func (c *Cluster) whenVisible(g *node.Group, tp fsm.TP, r *fsm.Result, a *appending) {
	c.visible.add(g.ID, a)
	base := r.BaseOffset
	c.applier.WhenBatchVisible(tp, r.EndOffset(), r.At, func(err error) {
		c.visible.remove(g.ID, a)
		var cut *apply.CutError
		if errors.As(err, &cut) && cut.Offset == base && cut.Code != 0 {
			a.fail(refusedForGood(cut.Code), "every broker refuses the batch: "+cut.Message)
			return
		}
		if err != nil {
			a.fail(codeNotLeader, err.Error())
			return
		}
		since(c.stages.visible, a.from)
		a.answer(proxy.AppendResult{BaseOffset: base, LogStartOffset: -1})
	})
	if g.Leading.Get() == nil {
		c.releaseStranded(g)
	}
}

// refusedForGood is the error that a producer is told for a batch that every
// broker refuses: what the broker said, unless clients would take that for an
// accident on the way and send the batch again, to be cut again.
func refusedForGood(code int16) int16 {
	if code == codeCorruptMessage {
		return codeInvalidRecord
	}
	return code
}

// releaseStranded sends clients on to the new leader if their batches are
// committed but this node, which leads no longer, has no broker to show them
// on. There they are known by producer id and sequence.
func (c *Cluster) releaseStranded(g *node.Group) {
	if c.cfg.Broker().Up {
		return // the broker has them in a moment
	}
	for _, a := range c.visible.take(g.ID) {
		a.fail(codeNotLeader, "committed, but this node's broker is unreachable and another node leads now")
	}
}

// visibility is who waits for the local broker, by group.
type visibility struct {
	mu      sync.Mutex
	waiting map[uint32]map[*appending]struct{}
}

func (v *visibility) add(group uint32, a *appending) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.waiting[group] == nil {
		v.waiting[group] = make(map[*appending]struct{})
	}
	v.waiting[group][a] = struct{}{}
}

func (v *visibility) remove(group uint32, a *appending) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.waiting[group], a)
}

// take returns who waits and forgets them.
func (v *visibility) take(group uint32) []*appending {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := slices.Collect(maps.Keys(v.waiting[group]))
	delete(v.waiting, group)
	return out
}

// groupOf returns the group that holds a partition, nil if it is not known.
func (c *Cluster) groupOf(topic uint64, partition int32) *node.Group {
	groups := c.view.Get().topics.routes[topic]
	if partition < 0 || int(partition) >= len(groups) {
		return nil
	}
	return c.node.Group(groups[partition])
}

// EndOffset implements proxy.Cluster.
func (c *Cluster) EndOffset(ctx context.Context, topic *proxy.Topic, partition int32, verify bool) (int64, error) {
	g := c.groupOf(topic.ID, partition)
	if g == nil {
		return 0, &proxy.KafkaError{Code: codeUnknownTopic}
	}
	if !c.awake.believed() {
		return 0, &proxy.KafkaError{Code: codeNotLeader, Message: "this process was suspended, and it is not confirmed yet that it leads"}
	}
	if verify {
		if err := g.VerifyLeader(ctx); err != nil {
			return 0, &proxy.KafkaError{Code: codeNotLeader, Message: err.Error()}
		}
	}
	end := int64(-1)
	g.Read(func(s *fsm.Group) {
		if p := s.Partitions[fsm.TP{Topic: topic.ID, Partition: partition}]; p != nil {
			end = p.NextOffset
		}
	})
	if end < 0 {
		return 0, &proxy.KafkaError{Code: codeUnknownTopic}
	}
	return end, nil
}

// producerBlock is how many producer ids a node takes at once.
const producerBlock = 1000

// producerIDs hands out the ids of a block.
type producerIDs struct {
	turn      chan struct{} // capacity 1: whoever put a token in owns the rest
	next, end int64
}

func newProducerIDs() producerIDs { return producerIDs{turn: make(chan struct{}, 1)} }

// ProducerID implements proxy.Cluster.
func (c *Cluster) ProducerID(ctx context.Context) (int64, error) {
	select {
	case c.ids.turn <- struct{}{}:
		defer func() { <-c.ids.turn }()
	case <-ctx.Done(): // another caller's block does not come
		return 0, &proxy.KafkaError{Code: codeTimedOut, Message: "no producer id was given out in time"}
	}
	if c.ids.next == c.ids.end {
		r, err := c.submit(ctx, fsm.CatalogGroup, fsm.KindAllocateProducers, fsm.AllocateProducers{Count: producerBlock})
		if err != nil {
			return 0, err
		}
		c.ids.next, c.ids.end = r.FirstN, r.FirstN+producerBlock
	}
	id := c.ids.next
	c.ids.next++
	return id, nil
}
