package apply

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"lockstep/fsm"
)

// State of a lane, as status shows it.
type State string

// A lane is opening until the broker has its topic, attaching until the
// broker's log end agrees with the committed log, copying while the broker
// lacks what the raft log no longer holds, ready while it appends, refused when
// the broker will not take a batch, quarantined when the broker's copy is not
// what was committed, rebuilding while that copy is made anew. Closed is the
// end.
const (
	StateOpening     State = "opening"
	StateAttaching   State = "attaching"
	StateCopying     State = "copying"
	StateReady       State = "ready"
	StateRefused     State = "refused"
	StateQuarantined State = "quarantined"
	StateRebuilding  State = "rebuilding"
	StateClosed      State = "closed"
)

type waiter struct {
	end int64
	at  fsm.Place // of the batch that ends there; zero if any will do
	fn  func(error)
}

// cutBy says whether c took what is waited for out of the log. What stands behind
// c in the log is at its offsets by right.
func (w *waiter) cutBy(c cut) bool { return w.end > c.Offset && w.at.Before(c.place()) }

// unknownTo says whether the batch that is waited for may have been cut out of
// the log in an entry, up to skipped, that this node never read.
func (w *waiter) unknownTo(skipped uint64) bool { return w.at.Index > 0 && w.at.Index <= skipped }

// lane takes one partition's batches to the broker. Its goroutine runs the
// pipe; the feeder pushes; anybody may ask.
type lane struct {
	f    *feeder
	tp   fsm.TP
	name string

	compacted bool // the broker may take records out of old batches
	based     bool // was open before this process read the log

	adopted int64          // others wrote what the broker holds below it
	birth   *fsm.Partition // where an adopted partition began, for a base that does not have it; nil: empty. Never modified

	ctx    context.Context
	cancel context.CancelCauseFunc
	wake   chan struct{} // something was pushed; capacity 1
	room   chan struct{} // something left; capacity 1, for a catch-up
	stir   chan struct{} // somebody has orders for it; capacity 1

	mu sync.Mutex // guards what follows
	feed
	place
	service
	start logStart
}

// place is how far the broker's log was found to be what was committed.
type place struct {
	acked   int64   // everything below is on the broker, and compared
	high    int64   // the highest that acked ever was: less is not served
	had     int64   // the highest that acked ever was, of what was not cut since
	reach   int64   // where what the broker was ever to be given ends, of what was not cut since
	whole   uint64  // the broker may have had all of entries up to it that this node's log never had
	begun   uint64  // the lane's items begin behind this entry, or with a copy of what was there
	turned  *turned // what the broker refused last, and has not taken since; nil: none
	unsure  bool    // turned is from before this process: it may be cut by now; the goroutine's alone
	need    int64   // everything below must be copied before anything is served
	hitch   string  // what hinders the copy, empty if nothing does
	floor   item    // what stands before the lane's first item, and ends where that begins
	oldest  uint64  // entry of the oldest item not on the broker, 0 if none
	settled bool    // attached, and agreed with the broker: oldest is true
}

// service is what others are told of the lane.
type service struct {
	state     State
	reason    string
	since     time.Time
	waiters   []waiter
	skipped   uint64                  // a leader's snapshot took the place of the entries up to it, 0: none did
	refused   *Refusal                // the batch that the broker will not take, nil if there is none
	pledges   map[int32]pledge        // by node
	restsFrom uint64                  // of a quarantine: the broker got nothing of the entries after it; 0: not known
	doom      string                  // why somebody else wants it quarantined, empty if nobody does
	back      chan struct{}           // ends a quarantine; capacity 1
	serving   context.CancelCauseFunc // ends what the lane's goroutine is at; nil between two attaches
}

// newLane makes a lane for a partition that was opened at an index, or that
// part, of the base at that index, says was opened before. f.mu is held.
func newLane(f *feeder, tp fsm.TP, o *fsm.Open, index uint64, part *fsm.Partition) *lane {
	l := &lane{f: f, tp: tp, name: o.Name, compacted: strings.Contains(o.Config["cleanup.policy"], "compact"),
		wake: make(chan struct{}, 1), room: make(chan struct{}, 1), stir: make(chan struct{}, 1)}
	l.live, l.state, l.since, l.oldest = true, StateOpening, time.Now(), max(index, 1)
	l.back = make(chan struct{}, 1)
	if c := f.a.cuts; c != nil {
		l.cuts = c.of(tp)
	}
	l.adopted, l.begun = o.AdoptedEnd(tp.Partition), index
	if part != nil {
		l.based = true
	} else if o.Adopted != nil {
		part = o.Birth(tp, f.tail.Recovery)
		l.birth = part
	}
	if part != nil {
		part = leftOf(part, index, l.cuts)
		l.floor, l.start.want = floorOf(part), part.LogStart
	}
	if k := f.a.keeper; k != nil {
		l.doom, _, _ = k.quarantined(tp)
	}
	if w, t := f.a.wholes, f.a.turned; w != nil && t != nil {
		l.whole, l.turned = w.of(tp), t.of(tp)
		l.unsure = l.turned != nil
	}
	l.ctx, l.cancel = context.WithCancelCause(f.a.ctx)
	return l
}

// floorOf is the last batch of a partition, as what stands before the first
// item of a lane. Its offsets are known even where the batch is not.
func floorOf(p *fsm.Partition) item {
	if b := p.LastBatch; b.Count > 0 {
		return item{base: b.Base, count: b.Count, seq: b.Sequence, epoch: b.Epoch, crc: b.CRC}
	}
	return item{base: p.NextOffset}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// advance says that the broker holds everything below end. n has left the
// pipe; oldest is the entry of the first item that is still in it, 0 if
// none.
func (l *lane) advance(end int64, n load, oldest uint64) {
	if err := l.tookIt(end); err != nil {
		l.f.a.cancel(err) // as with every disk that cannot be written
		return
	}
	l.mu.Lock()
	l.release(n)
	l.acked = max(l.acked, end)
	l.high, l.had = max(l.high, l.acked), max(l.had, l.acked)
	if l.refused != nil && l.acked > l.refused.Offset {
		l.refused = nil
		l.again = true // what came after the refused batch was not kept
	}
	l.setOldest(oldest)
	due := l.takeDue()
	l.mu.Unlock()
	for _, w := range due {
		w.fn(nil)
	}
}

// takeDue takes out the waiters whose wish has come true. l.mu is held; they
// are called after it is released.
func (l *lane) takeDue() []waiter {
	if !l.serves() {
		return nil
	}
	return l.takeWaiters(func(w waiter) bool { return w.end <= l.acked })
}

// takeWaiters takes out the waiters that are meant. l.mu is held.
func (l *lane) takeWaiters(meant func(waiter) bool) []waiter {
	var due []waiter
	keep := l.waiters[:0]
	for _, w := range l.waiters {
		if meant(w) {
			due = append(due, w)
		} else {
			keep = append(keep, w)
		}
	}
	clear(l.waiters[len(keep):])
	l.waiters = keep
	return due
}

// setOldest notes the oldest entry that is not on the broker. l.mu is held.
func (l *lane) setOldest(oldest uint64) {
	switch {
	case oldest > 0:
	case len(l.queue) > 0:
		oldest = l.queue[0].index
	case l.resume != nil:
		oldest = l.resume.oldest()
	case !l.live:
		oldest = l.oldest // a catch-up is under way: stay where we were
	}
	l.oldest = oldest
	l.unblock()
}

// blocks says whether the lane keeps an index from being applied: the broker
// may lack something of an entry up to it. A copy that is not trusted anyway
// does not. l.mu is held.
func (l *lane) blocks(index uint64) bool {
	switch l.state {
	case StateQuarantined, StateRebuilding, StateClosed:
		return false
	}
	return !l.settled || (l.oldest > 0 && l.oldest <= index)
}

// unblock tells the flusher if it waited for this lane. l.mu is held.
func (l *lane) unblock() {
	if l.f.blocker.Load() == l && !l.blocks(l.f.blockedAt.Load()) {
		l.f.a.flusher.nudge()
	}
}

func (l *lane) whenVisible(w waiter) {
	l.mu.Lock()
	var err error
	switch {
	case l.state == StateClosed:
		err = ErrClosed
	case l.state == StateQuarantined || l.state == StateRebuilding:
		err = ErrQuarantined
	case w.unknownTo(l.skipped):
		err = ErrSkipped
	case w.at != (fsm.Place{}) && slices.ContainsFunc(l.cuts, w.cutBy):
		// Another batch may stand at its offsets by now.
		err = &CutError{Offset: l.cuts[slices.IndexFunc(l.cuts, w.cutBy)].Offset}
	case l.acked < w.end || !l.serves():
		l.waiters = append(l.waiters, w)
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	w.fn(err)
}

// skip notes that the entries up to index are not read here, and takes out the
// waiters whose batches may have been cut in them: what is at their offsets
// when the lane goes on may be others' records.
func (l *lane) skip(index uint64) []waiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.skipped = max(l.skipped, index)
	return l.takeWaiters(func(w waiter) bool { return w.unknownTo(index) })
}

func (l *lane) ready(required int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.serves() && l.acked >= max(required, l.high)
}

// serves says whether clients may be told of the partition: what was found
// since by others, or by an answer, counts before the state shows it. l.mu is
// held.
func (l *lane) serves() bool { return l.state == StateReady && l.doom == "" && l.refused == nil }

func (l *lane) held() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// setState records a change of state, calls whom it concerns and wakes whoever
// watches.
func (l *lane) setState(s State, reason string) {
	l.mu.Lock()
	changed := l.state != s && l.state != StateClosed
	if changed {
		l.state, l.since = s, time.Now()
		l.unblock()
	}
	l.reason = reason
	var due []waiter
	if changed {
		due = l.takeDue()
	}
	l.mu.Unlock()
	for _, w := range due {
		w.fn(nil)
	}
	if changed {
		l.f.a.bump()
	}
}

// trouble notes why the lane does not serve at the moment.
func (l *lane) trouble(reason string) {
	l.mu.Lock()
	s := l.state
	if s == StateReady || s == StateCopying {
		s = StateAttaching
	}
	if l.refused != nil {
		s, reason = StateRefused, l.refused.String()
	}
	l.mu.Unlock()
	l.setState(s, reason) // the lane's goroutine alone changes the state
}

// give ends the lane's service for good: nobody waits on it any longer and it
// holds no memory.
func (l *lane) give(s State, reason string, err error) {
	l.setState(s, reason)
	l.mu.Lock()
	l.empty()
	l.release(l.load) // what the pipe held
	l.again, l.trim = false, nil
	l.oldest, l.refused, l.settled = 0, nil, false
	waiters := append(l.waiters, l.start.waiters...)
	l.waiters, l.start.waiters = nil, nil
	l.mu.Unlock()
	for _, w := range waiters {
		w.fn(err)
	}
}

// order ends what the lane's goroutine is at, so that it looks at what it is
// told. l.mu is held.
func (l *lane) order(cause error) {
	if l.serving != nil {
		l.serving(cause)
	} else {
		signal(l.stir)
	}
}

func (l *lane) isRefused() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused != nil
}

func (l *lane) stop(cause error) { l.cancel(cause) }

func (l *lane) status() (oldest uint64, trouble *PartitionStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	state, reason := l.state, l.reason
	if state == StateReady {
		// It begins anew: what its broker lacks is not known, and oldest says nothing.
		if l.settled && !l.again {
			return l.oldest, nil
		}
		state, reason = StateAttaching, "compares its broker with a newer base"
	}
	return l.oldest, &PartitionStatus{Topic: l.name, TopicID: l.tp.Topic, Partition: l.tp.Partition,
		State: string(state), Reason: reason, Since: l.since}
}
