package apply

import (
	"fmt"
	"sync"
	"sync/atomic"

	"lockstep/fsm"
	"lockstep/internal/failpoint"
)

// bases is the newest tail that the group's log has, read once for all lanes
// that begin anew at it.
type bases struct {
	baseIndex atomic.Uint64 // of the newest base that is known here

	baseMu  sync.Mutex // guards what follows
	cached  *fsm.Group // never modified; nil: read it
	of      uint64     // Rebased when it was read
	adopted uint64     // Rebased when the feeder took one up last
}

// base returns the newest base, which nobody may modify. Any goroutine may call
// it.
func (f *feeder) base() (*fsm.Group, error) {
	f.baseMu.Lock()
	defer f.baseMu.Unlock()
	n := f.log.Rebased().Get() // first: one that comes in between is read again
	if f.cached != nil && f.of == n {
		return f.cached, nil
	}
	g, err := f.log.Base()
	if err != nil {
		return nil, fmt.Errorf("read the base of group %d: %w", f.id, err)
	}
	f.cached, f.of = g, n
	f.raiseBase(g.Index)
	return g, nil
}

// raiseBase notes that there is a base at index. One that a leader's snapshot
// brought may overtake one that was trusted here.
func (b *bases) raiseBase(index uint64) {
	for {
		old := b.baseIndex.Load()
		if old >= index || b.baseIndex.CompareAndSwap(old, index) {
			return
		}
	}
}

// forgetBase makes base read it again.
func (f *feeder) forgetBase() {
	f.baseMu.Lock()
	defer f.baseMu.Unlock()
	f.cached = nil
}

// trust moves the base. Only the flusher calls it.
func (f *feeder) trust(c *candidate) {
	if c.state == nil {
		return
	}
	failpoint.Hit(failpoint.TrustBefore)
	f.log.Trust(c.index, c.state)
	failpoint.Hit(failpoint.TrustAfter)
	f.forgetBase()
	f.baseIndex.Store(c.index)
}

// rebase takes up the base at the start, and one that a leader's snapshot
// brought. Only the feeder's goroutine calls it.
func (f *feeder) rebase() error {
	if f.tail != nil && f.log.Rebased().Get() == f.adopted {
		return nil
	}
	return f.adopt()
}

// adopt makes the newest base the tail. Partitions that are not in it were
// closed in the entries that nobody here will read; the others' lanes attach
// again and find out what their broker lacks.
func (f *feeder) adopt() error {
	n := f.log.Rebased().Get()
	tail, err := f.log.Base()
	if err != nil {
		return fmt.Errorf("read the base of group %d: %w", f.id, err)
	}
	index := tail.Index
	f.forgetBase()
	f.mu.Lock()
	f.adopted = n
	first := f.tail == nil
	if !first && index <= f.cursor {
		f.unlock()
		return nil
	}
	if !first {
		f.a.log.Warn("going on from a leader's snapshot: this node was too far behind the raft log",
			"group", f.id, "from", f.cursor, "to", index)
		f.a.count(PathRebase)
	}
	old := f.tail
	f.tail, f.cursor = tail, index
	f.raiseBase(index)
	if old != nil {
		f.closeMissing(old, tail)
	}
	for _, o := range tail.Topics {
		f.a.topics.declare(o)
	}
	for tp, part := range tail.Partitions {
		if l := f.lanes[tp]; l != nil {
			l.raiseStart(part.LogStart)
			f.skip(l, index)
			l.rebased(part)
			l.interrupt(errAgain)
			continue
		}
		o := tail.Topics[tp.Topic]
		if o == nil {
			f.unlock()
			return fmt.Errorf("the base of group %d has partition %s of a topic that it does not have", f.id, tp)
		}
		l := newLane(f, tp, o, index, part)
		if !first {
			f.skip(l, index)
		}
		f.addLane(l)
	}
	if tail.Catalog != nil {
		f.a.topics.sweep(tail.Catalog.Over)
		f.a.topics.present(tail.Catalog)
	}
	f.restart(index, f.a.cfg.CandidateBytes)
	f.unlock()
	f.dealt.Set(index)
	f.a.flusher.nudge()
	return nil
}

// skip tells a lane that entries are not read here, and those who wait for
// batches of them that nobody here knows what became of these. f.mu is held.
func (f *feeder) skip(l *lane, index uint64) {
	waiters := l.skip(index)
	f.due = append(f.due, func() {
		for _, w := range waiters {
			w.fn(ErrSkipped)
		}
	})
}

// passOver is skip for a lane that begins anew at a base which the feeder has not
// come to: it may be a leader's snapshot that the feeder is about to take up.
func (f *feeder) passOver(l *lane, base uint64) {
	f.mu.Lock()
	if base > f.cursor {
		f.skip(l, base)
	}
	f.unlock()
}

// dealtOut is the newest entry of which, or of what stands for which, a lane may
// have been given something.
func (f *feeder) dealtOut() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return max(f.cursor, f.baseIndex.Load())
}

// closeMissing closes what a newer state does not have any more. f.mu is held.
func (f *feeder) closeMissing(old, now *fsm.Group) {
	over := make(map[uint64]string)
	for tp, part := range old.Partitions {
		if now.Partitions[tp] == nil {
			f.removeLane(tp)
			over[tp.Topic] = part.Name
		}
	}
	for id, name := range over {
		f.remove(&fsm.Close{Topic: id, Name: name}, now.Index)
	}
}

// remove has the broker's topic deleted. Until it is, the base stays before the
// entry that closed it. f.mu is held.
func (f *feeder) remove(c *fsm.Close, index uint64) {
	begun := f.a.topics.remove(c, func() {
		f.mu.Lock()
		delete(f.removing, c.Topic)
		f.mu.Unlock()
		f.a.flusher.nudge()
	})
	if begun {
		f.removing[c.Topic] = index
	}
}
