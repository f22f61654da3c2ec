package apply

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lockstep/internal/broker"
	"lockstep/internal/failpoint"
	"lockstep/internal/mutant"
)

// maxInFlight batches of one partition may be unanswered at once: the broker
// recognises a repeat among the last five of a producer, no further back
// (ProducerStateEntry.NUM_BATCHES_TO_RETAIN).
const maxInFlight = 5

// maxSequenceRefusals in a row without progress mean that the broker's idea of
// the applier's sequence will not come right by attaching again.
const maxSequenceRefusals = 5

const (
	minBackoff = 20 * time.Millisecond
	maxBackoff = time.Second

	// refusedBackoff is how long a refused batch waits to be tried again:
	// somebody may have changed the broker's settings.
	refusedBackoff = 5 * time.Second
)

// pipe is the lane's connection to the broker. It is owned by the lane's
// goroutine.
type pipe struct {
	l        *lane
	pending  []item // not on the broker for sure, oldest first; the first sent of them are on their way
	sent     int
	last     *item // the newest item that is known to stand on the broker, without its bytes
	refusals int   // of the sequence, or of an offset, in a row
	mystery  mystery
	adrift   bool // nobody pushes: the next attach begins at the newest base
	attached bool // agreed with the broker once
}

// run serves the partition until the lane is stopped.
//
// There is one such goroutine for every partition, and nearly all of them wait,
// in run, attempt, serve and flow. The collector gives half of a stack back if
// less than a quarter is in use: what these four have on it decides whether ten
// thousand partitions cost 80 MB or 40. So what they do before and after waiting
// is done in functions of its own; TestIdleLaneStack looks at the sum.
func (l *lane) run() {
	defer l.cancel(ErrClosed)
	p, t := &pipe{l: l}, tries{backoff: minBackoff}
	for {
		p.obey()
		t.before = l.acked
		if err := l.attempt(p); !p.after(err, &t) {
			return
		}
	}
}

// tries is how a lane's attempts went.
type tries struct {
	before  int64 // what was on the broker before the last one
	backoff time.Duration
	warned  bool
}

// after decides what follows an attempt, and waits if it must be waited for. It
// reports false when the lane is stopped.
func (p *pipe) after(err error, t *tries) bool {
	l := p.l
	var d *distrust
	switch {
	case l.ctx.Err() != nil || errors.Is(err, ErrClosed):
		l.give(StateClosed, "", ErrClosed)
		return false
	case errors.As(err, &d):
		if !p.rest(d.reason) {
			l.give(StateClosed, "", ErrClosed)
			return false
		}
		t.backoff, t.warned = minBackoff, false
		return true
	}
	if p.obey() {
		t.backoff, t.warned = minBackoff, false
		return true
	}
	l.trouble(err.Error())
	if l.acked > t.before {
		t.backoff, t.warned = minBackoff, false
	}
	if l.isRefused() { // said already
		t.backoff, t.warned = refusedBackoff, true
	}
	if t.backoff < maxBackoff || t.warned {
		l.f.a.log.Debug("attaching again", "topic", l.name, "partition", l.tp.Partition, "reason", err)
	} else {
		t.warned = true
		l.f.a.log.Warn("cannot append to the local broker and keeps trying: look at the broker's own log",
			"topic", l.name, "partition", l.tp.Partition, "group", l.f.id, "reason", err)
	}
	if l.pause(t.backoff) {
		t.backoff = min(2*t.backoff, maxBackoff)
	}
	return true
}

// opened says that the broker has the topic.
func (l *lane) opened() {
	if l.state == StateOpening { // only this goroutine writes it
		l.setState(StateAttaching, "")
	}
}

// pause waits before the broker is tried again; it reports false if the
// context ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// pause waits before the lane attaches again. It reports false if somebody wants
// it sooner, or it is stopped.
func (l *lane) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.stir:
	case <-l.ctx.Done():
	}
	return false
}

// serve attaches once and appends until something goes wrong. When it returns,
// nothing that it sent can reach the broker's log any more, unless the
// connection was lost.
func (p *pipe) serve(ctx context.Context) error {
	if err := p.l.f.a.cfg.Broker.WaitUp(ctx); err != nil {
		return err
	}
	lease, err := p.l.f.a.topics.ensure(ctx, p.l.tp)
	if err != nil {
		return err
	}
	defer lease.release()
	at, err := p.l.attach(ctx, lease.revoked)
	if err != nil {
		return err
	}
	defer p.drain(at)
	return p.flow(ctx, at)
}

// attach opens the way to the broker, which has the topic, and looks at what it
// holds.
func (l *lane) attach(ctx context.Context, revoked <-chan struct{}) (*attachment, error) {
	l.opened()
	sess, err := l.f.a.cfg.Broker.Session(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	failpoint.Hit(failpoint.AttachBefore)
	at, err := l.look(ctx)
	if err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.AttachAfter)
	at.sess, at.revoked = sess, revoked
	return at, nil
}

// step does what can be done without waiting. It returns what to wait for
// besides.
func (p *pipe) step(ctx context.Context, at *attachment) (marks <-chan struct{}, err error) {
	if p.l.due() {
		return nil, errAgain
	}
	if err := p.agree(at); err != nil {
		return nil, err
	}
	if at.agreed {
		if err := p.l.deleteRecords(ctx); err != nil {
			return nil, err
		}
		if err := p.settle(); err != nil {
			return nil, err
		}
		if p.l.unsure {
			_, marks = p.l.f.fresh.Changed()
		}
		p.send(at)
	} else {
		m, changed := p.l.f.fresh.Changed()
		if err := p.tooLong(at, m); err != nil {
			return nil, err
		}
		marks = changed
	}
	p.l.startCatchUp() // last: agreeing makes the room that it may wait for
	return marks, nil
}

// flow moves items from the queue to the broker.
func (p *pipe) flow(ctx context.Context, at *attachment) error {
	if err := p.begin(at); err != nil {
		return err
	}
	for {
		marks, err := p.step(ctx, at)
		if err != nil {
			return err
		}
		select {
		case <-p.l.wake:
		case <-marks:
		case r := <-at.results:
			if err := p.answered(&r, at); err != nil {
				return err
			}
		case <-at.sess.Done():
			return errLost
		case <-at.revoked:
			return fmt.Errorf("the topic is made anew on the broker: %w", errAgain)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// settle marks the lane ready once it agrees with the broker and has what it
// must have before it serves. Behind a copy that began with fillers it asks for
// another attach, which hides them.
func (p *pipe) settle() error {
	l := p.l
	missing := l.f.log.Missing()
	l.mu.Lock()
	l.settled = true
	state, reason := StateReady, ""
	switch {
	case l.refused != nil:
		state, reason = StateRefused, l.refused.String()
	case l.acked < l.need:
		state, reason = StateCopying, l.copyReason()
	}
	done := state == StateReady && l.need > 0
	if done {
		l.need, l.hitch = 0, ""
	}
	note := state == StateReady && missing > l.whole && l.begun >= missing
	l.unblock()
	l.mu.Unlock()
	if note {
		if err := l.noteWhole(missing); err != nil {
			return err
		}
	}
	if done {
		l.f.a.log.Info("copied what the broker lacked", "topic", l.name, "partition", l.tp.Partition, "group", l.f.id)
	}
	if len(p.pending) == 0 {
		l.advance(l.acked, load{}, 0)
	}
	if done && l.startsAbove() {
		return errAgain
	}
	l.setState(state, reason)
	return nil
}

// drop removes the first pending item, which the broker has. The log is
// trusted up to end.
func (p *pipe) drop(end int64) {
	it := p.pending[0]
	p.pending[0] = item{}
	p.pending = p.pending[1:]
	var oldest uint64
	if len(p.pending) > 0 {
		oldest = p.pending[0].index
	}
	p.l.advance(end, it.load(), oldest)
}

// send puts as many items on their way as the broker may have unanswered.
func (p *pipe) send(at *attachment) {
	l, now := p.l, time.Now()
	for p.sent < maxInFlight {
		if p.sent == len(p.pending) {
			p.pending = append(p.pending, l.take()...)
			if p.sent == len(p.pending) {
				return
			}
		}
		if p.sent > 0 && !p.fenced(at, now) {
			return
		}
		it := &p.pending[p.sent]
		if l.mayBeCut(it) {
			return
		}
		p.sent++
		if at.results == nil { // most lanes have nothing to send
			at.results = make(chan broker.Result, maxInFlight)
		}
		results := at.results
		head, body := it.stamped(l.tp.Topic)
		at.sess.Append(broker.Append{Topic: l.name, Partition: l.tp.Partition, Head: head, Body: body},
			func(r broker.Result) { results <- r })
	}
}

// fenced says whether the broker would refuse the next item if the one before
// it were refused: only then may it follow at once. It does not where it knows
// nothing of the applier, or forgets it because of old timestamps.
func (p *pipe) fenced(at *attachment, now time.Time) bool {
	return at.success && p.last.fences(now) && p.pending[p.sent-1].fences(now)
}

// answered takes the broker's answer to the oldest item on its way.
func (p *pipe) answered(r *broker.Result, at *attachment) error {
	p.sent--
	if r.Err != nil {
		p.mystery = mystery{}
		return fmt.Errorf("%w: append: %w", errLost, r.Err)
	}
	if r.Code != 0 {
		ref := &refusal{code: r.Code, message: r.Message}
		good := p.forGood(ref, &p.pending[0])
		switch {
		case good && p.pending[0].raw != nil:
			return CauseRefused.distrust("%v at offset %d: this broker cannot take what the others hold", ref, p.pending[0].base)
		case good:
			p.park(ref)
		case ref.sequence():
			if p.refusals++; p.refusals >= maxSequenceRefusals {
				return CauseRefused.distrust("%v at offset %d, %d times in a row", ref, p.pending[0].base, p.refusals)
			}
		}
		return ref
	}
	it := p.pending[0]
	switch {
	case r.BaseOffset == it.base, mutant.On(mutant.IgnoreBaseOffset), mutant.On(mutant.StartOverOnEmptyBroker):
	case r.BaseOffset < 0: // says nothing: the log end will
		if p.refusals++; p.refusals >= maxSequenceRefusals {
			return CauseBaseOffset.distrust("the broker does not say where it put the batch committed at offset %d, %d times in a row", it.base, p.refusals)
		}
		return fmt.Errorf("append answered without an offset: %w", errAgain)
	default:
		return CauseBaseOffset.distrust("the broker put the batch committed at offset %d at offset %d", it.base, r.BaseOffset)
	}
	p.refusals, p.mystery = 0, mystery{}
	at.success = true
	p.last = it.trace()
	p.drop(it.end())
	failpoint.Hit(failpoint.AppendNoted)
	return nil
}

// drain waits for what is still on its way, so that nothing of it lands
// between the next look at the log end and the next append, or in another topic
// of that name.
func (p *pipe) drain(at *attachment) {
	for ; p.sent > 0; p.sent-- {
		select {
		case <-at.results:
		case <-at.sess.Done():
			p.sent = 0
			return
		case <-p.l.f.a.ctx.Done():
			p.sent = 0
			return
		}
	}
}
