package apply

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"lockstep/fsm"
)

// State of a lane, as status shows it.
type State string

// A lane is opening until the broker has its topic, attaching until the
// broker's log end agrees with the committed log, copying while the broker
// lacks what the raft log no longer holds, ready while it appends, quarantined
// when the broker's copy is not what was committed. Closed is the end.
const (
	StateOpening     State = "opening"
	StateAttaching   State = "attaching"
	StateCopying     State = "copying"
	StateReady       State = "ready"
	StateQuarantined State = "quarantined"
	StateClosed      State = "closed"
)

type waiter struct {
	end int64
	fn  func(error)
}

// lane takes one partition's batches to the broker. Its goroutine runs the
// pipe; the feeder pushes; anybody may ask.
type lane struct {
	f    *feeder
	tp   fsm.TP
	name string

	compacted bool // the broker may take records out of old batches

	ctx    context.Context
	cancel context.CancelCauseFunc
	wake   chan struct{} // something was pushed; capacity 1
	room   chan struct{} // something left; capacity 1, for a catch-up

	mu      sync.Mutex              // guards what follows
	doom    string                  // why somebody else wants it quarantined, empty if nobody does
	serving context.CancelCauseFunc // ends what the lane's goroutine is at; nil between two attaches
	queue   []item                  // pushed and not yet taken by the pipe
	bytes   int64                   // of the queue and of what the pipe holds
	oldest  uint64                  // entry of the oldest item not on the broker, 0 if none
	acked   int64                   // everything below is on the broker, and compared
	high    int64                   // the highest that acked ever was: less is not served
	live    bool                    // the feeder's items are wanted
	resume  *fsm.Group              // where to read again from, while not live
	gen     uint64                  // number of the catch-up that may push
	state   State
	reason  string
	since   time.Time
	waiters []waiter
}

func newLane(f *feeder, tp fsm.TP, o *fsm.Open, index uint64) *lane {
	l := &lane{f: f, tp: tp, name: o.Name, compacted: strings.Contains(o.Config["cleanup.policy"], "compact"), live: true, state: StateOpening, since: time.Now(),
		wake: make(chan struct{}, 1), room: make(chan struct{}, 1), oldest: index}
	l.ctx, l.cancel = context.WithCancelCause(f.a.ctx)
	return l
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// push is called by the feeder for each of its items; it reports whether the
// lane now holds more than it may.
func (l *lane) push(it item, entryBytes int) (over bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.live || l.state == StateQuarantined || l.state == StateClosed {
		return false
	}
	it.own(entryBytes)
	l.enqueue(it)
	return l.bytes > l.f.a.cfg.LaneBytes
}

func (l *lane) enqueue(it item) {
	l.queue = append(l.queue, it)
	l.bytes += it.size()
	l.f.bytes.Add(it.size())
	if l.oldest == 0 {
		l.oldest = it.index
	}
	signal(l.wake)
}

// pushAgain is called by catch-up number gen; it waits for room.
func (l *lane) pushAgain(ctx context.Context, it item, gen uint64) error {
	for {
		l.mu.Lock()
		switch {
		case l.gen != gen || l.state == StateQuarantined || l.state == StateClosed:
			l.mu.Unlock()
			signal(l.room) // the one that took over may be waiting for it
			return errSuperseded
		case l.roomy():
			l.enqueue(it)
			l.mu.Unlock()
			return nil
		}
		l.mu.Unlock()
		select {
		case <-l.room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// roomy says whether a catch-up may push: what it reads again must not fill the
// memory that the group has, all lanes together. l.mu is held.
func (l *lane) roomy() bool {
	if l.f.bytes.Load() > l.f.a.cfg.GroupBytes {
		return l.bytes == 0
	}
	return l.bytes <= l.f.a.cfg.LaneBytes/2
}

// fallBehind takes the lane off the feed; it reads again from the state that
// tail has now. Called by the feeder between two entries.
func (l *lane) fallBehind(tail *fsm.Group) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.live || l.state == StateQuarantined || l.state == StateClosed {
		return
	}
	l.live = false
	l.resume = tail.Only(l.tp)
	signal(l.wake)
}

// rewind forgets everything that waits and reads again from the log's start:
// the broker lost what it once had. Called by the pipe.
func (l *lane) rewind() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.release(l.bytes)
	l.queue, l.acked = nil, 0
	l.live = false
	l.gen++ // a catch-up under way is too far ahead
	l.resume = fsm.NewGroup(l.f.id).Only(l.tp)
	l.oldest = 1
	signal(l.wake)
}

// rejoin puts the lane back on the feed if gen is still the catch-up in charge.
// Called with the feeder's lock held.
func (l *lane) rejoin(gen uint64) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gen != gen {
		return false, errSuperseded
	}
	l.live = true
	if len(l.queue) == 0 && l.bytes == 0 {
		l.oldest = 0
	}
	return true, nil
}

// startCatchUp begins to read again if that is due and there is room.
func (l *lane) startCatchUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.resume == nil || l.bytes > l.f.a.cfg.LaneBytes/2 {
		return
	}
	from := l.resume
	l.resume = nil
	l.gen++
	gen := l.gen
	l.f.a.wg.Add(1)
	go func() {
		defer l.f.a.wg.Done()
		err := l.f.catchUp(l.ctx, l, from, gen)
		if err != nil && !errors.Is(err, errSuperseded) && l.ctx.Err() == nil {
			l.f.a.cancel(err)
		}
	}()
}

// take hands the queue to the pipe. The bytes stay counted until release.
func (l *lane) take() []item {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue
	l.queue = nil
	return q
}

// release gives bytes back. l.mu is held.
func (l *lane) release(n int64) {
	l.bytes -= n
	l.f.bytes.Add(-n)
	signal(l.room)
}

// advance says that the broker holds everything below end. n bytes have left
// the pipe; oldest is the entry of the first item that is still in it, 0 if
// none.
func (l *lane) advance(end int64, n int64, oldest uint64) {
	l.mu.Lock()
	l.release(n)
	l.acked = max(l.acked, end)
	l.high = max(l.high, l.acked)
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
	if l.state != StateReady {
		return nil
	}
	var due []waiter
	keep := l.waiters[:0]
	for _, w := range l.waiters {
		if w.end <= l.acked {
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
		oldest = l.resume.Index + 1
	case !l.live:
		return // a catch-up is under way: stay where we were
	}
	l.oldest = oldest
}

func (l *lane) whenVisible(end int64, fn func(error)) {
	l.mu.Lock()
	var err error
	switch {
	case l.state == StateClosed:
		err = ErrClosed
	case l.state == StateQuarantined:
		err = ErrQuarantined
	case l.acked < end || l.state != StateReady:
		l.waiters = append(l.waiters, waiter{end, fn})
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	fn(err)
}

func (l *lane) ready(required int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == StateReady && l.doom == "" && l.acked >= max(required, l.high)
}

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
	l.mu.Unlock()
	if s == StateReady {
		s = StateAttaching
	}
	l.setState(s, reason) // the lane's goroutine alone changes the state
}

// give ends the lane's service for good: nobody waits on it any longer and it
// holds no memory.
func (l *lane) give(s State, reason string, err error) {
	l.setState(s, reason)
	l.mu.Lock()
	l.release(l.bytes)
	l.queue, l.resume, l.live = nil, nil, false
	l.gen++
	l.oldest = 0
	waiters := l.waiters
	l.waiters = nil
	l.mu.Unlock()
	for _, w := range waiters {
		w.fn(err)
	}
}

func (l *lane) stop(cause error) { l.cancel(cause) }

// quarantine takes the partition out of service: somebody found that the
// broker's copy is not what was committed. Any goroutine may call it; the first
// reason counts. It returns at once: the lane is not ready from then on, its
// own goroutine does the rest.
func (l *lane) quarantine(reason string) {
	l.mu.Lock()
	if l.doom == "" && l.state != StateQuarantined && l.state != StateClosed {
		l.doom = reason
	}
	if l.doom != "" && l.serving != nil {
		l.serving(&distrust{l.doom})
	}
	l.mu.Unlock()
	l.f.a.bump()
}

// attempt runs serve once, in a context that others may end. A verdict that
// came from outside takes precedence over what serve says.
func (l *lane) attempt(serve func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(l.ctx)
	defer cancel(nil)
	l.mu.Lock()
	doom := l.doom
	l.serving = cancel
	l.mu.Unlock()
	var err error
	if doom == "" {
		err = serve(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serving = nil
	if l.doom != "" {
		err = &distrust{l.doom}
		l.doom = ""
	}
	return err
}

func (l *lane) status() (oldest uint64, trouble *PartitionStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == StateReady {
		return l.oldest, nil
	}
	return l.oldest, &PartitionStatus{Topic: l.name, TopicID: l.tp.Topic, Partition: l.tp.Partition,
		State: string(l.state), Reason: l.reason, Since: l.since}
}
