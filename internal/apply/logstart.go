package apply

import (
	"context"
	"errors"
	"fmt"

	"lockstep/fsm"
	"lockstep/internal/broker"
)

// logStart is how far a partition's log start was raised by its log
// (DeleteRecords), and on the broker. It belongs to its lane.
type logStart struct {
	want    int64    // as of what was dealt out
	have    int64    // the broker's log starts there or above, seen since the last attach
	waiters []waiter // for have
}

// raiseStart says that a partition's log start rose. Called by the feeder.
func (l *lane) raiseStart(offset int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if offset > l.start.want {
		l.start.want = offset
		signal(l.wake)
	}
}

// lookAtStart makes the lane look where the broker's log starts: it may have
// forgotten (it writes that down every minute). Called on every attach.
func (l *lane) lookAtStart() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.start.have = 0
}

// deleteRecords raises the broker's log start to the partition's, once the
// broker has what lies below it. A broker whose policy keeps everything does
// not, and is not asked to. Called by the lane's goroutine.
func (l *lane) deleteRecords(ctx context.Context) error {
	l.mu.Lock()
	to := l.start.want
	due := to > l.start.have && l.acked >= to
	l.mu.Unlock()
	if !due {
		return nil
	}
	b := l.f.a.cfg.Broker
	start, _, err := b.LogEnd(ctx, l.name, l.tp.Partition)
	if err != nil {
		return fmt.Errorf("read the log start offset: %w", err)
	}
	if start < to {
		now, err := b.DeleteRecords(ctx, l.name, l.tp.Partition, to)
		switch {
		case errors.Is(err, broker.ErrPolicy):
		case err != nil:
			return err
		default:
			l.f.a.log.Info("deleted records on the broker", "topic", l.name, "partition", l.tp.Partition, "from", start, "to", now)
		}
	}
	l.mu.Lock()
	l.start.have = to
	started := l.takeStarted()
	l.mu.Unlock()
	for _, w := range started {
		w.fn(nil)
	}
	return nil
}

// takeStarted takes out the waiters whose offset the broker's log start has
// reached. l.mu is held.
func (l *lane) takeStarted() (due []waiter) {
	var keep []waiter
	for _, w := range l.start.waiters {
		if w.end <= l.start.have {
			due = append(due, w)
		} else {
			keep = append(keep, w)
		}
	}
	l.start.waiters = keep
	return due
}

// WhenStarted calls fn, once, when the local broker's log of a partition starts
// at offset or above, or with the error that prevents it. Offset must be one
// that the partition's log start was raised to. fn may be called from this
// goroutine or another, and must not block.
func (a *Applier) WhenStarted(tp fsm.TP, offset int64, fn func(error)) {
	l := a.lane(tp)
	if l == nil {
		fn(ErrNotOpen)
		return
	}
	l.mu.Lock()
	var err error
	switch {
	case l.state == StateClosed:
		err = ErrClosed
	case l.state == StateQuarantined || l.state == StateRebuilding:
		err = ErrQuarantined
	case l.start.have < offset:
		l.start.waiters = append(l.start.waiters, waiter{end: offset, fn: fn})
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	fn(err)
}
