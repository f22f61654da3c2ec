package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lockstep/fsm"
	"lockstep/internal/failpoint"
)

// catchUp brings one lane everything from r on, and puts it back on the feed
// where it meets it: first a copy of what the log no longer holds, then the
// log. What it reads may be deleted while it is slower than the base: then it
// goes on with a copy up to the newest one. It runs in a goroutine of its own
// and ends when the lane or the context does.
func (f *feeder) catchUp(ctx context.Context, l *lane, r *resume, gen uint64) error {
	for {
		if r.pos < r.end(l.tp) {
			if err := f.copyUp(ctx, l, r, gen); err != nil {
				return err
			}
		}
		err := f.readOn(ctx, l, r.from, gen)
		if !errors.Is(err, errGone) {
			return err
		}
		f.forgetBase() // it is older than what happened
		base, berr := f.base()
		if berr != nil {
			return berr
		}
		if base.Index <= r.from.Index {
			return fmt.Errorf("%w, and the base is of entry %d", err, base.Index)
		}
		f.passOver(l, base.Index)
		r.left = nil
		pos := r.end(l.tp)
		l.mu.Lock()
		if cutBelow(l.cuts, pos, r.from.Index) { // what was pushed is not what stands there
			l.mu.Unlock()
			l.interrupt(errAgain)
			return errSuperseded
		}
		r = &resume{from: base.Only(l.tp), birth: r.birth, pos: pos}
		r.shorten(l.tp, l.cuts)
		l.begun = base.Index
		if need := r.end(l.tp); l.gen == gen && r.pos < need {
			l.need, l.high = need, max(l.high, need)
		}
		l.mu.Unlock()
		f.lacks()
		f.a.took(l, PathCopy, "log-end-offset", r.pos, "copied-up-to", r.end(l.tp))
	}
}

// cutBelow says whether a cut after the entry at index begins below an offset.
func cutBelow(cuts []cut, offset int64, index uint64) bool {
	return slices.ContainsFunc(cuts, func(c cut) bool { return c.Index > index && c.Offset < offset })
}

// errSuperseded ends a catch-up whose lane has started another one.
var errSuperseded = errors.New("superseded")

// errGone means that an entry was deleted from the log.
var errGone = errors.New("the entry is not in the log any more")

// readOn reads the log from the state in from, until it meets the feeder.
func (f *feeder) readOn(ctx context.Context, l *lane, from *fsm.Group, gen uint64) error {
	for index := from.Index + 1; ; index++ {
		rejoined, err := f.rejoin(l, index, gen)
		if rejoined || err != nil {
			return err
		}
		data, err := f.log.Entry(index)
		if err != nil {
			err = fmt.Errorf("read entry %d again: %w", index, err)
			if f.log.Gone(err) {
				err = fmt.Errorf("%w: %w", errGone, err)
			}
			return err
		}
		if data == nil {
			continue
		}
		results, err := from.Apply(index, data)
		if err != nil {
			return err
		}
		for i, r := range results {
			if r.TP != l.tp || r.Verdict != fsm.Appended || cutBehind(results[i+1:], &r) {
				continue
			}
			it := newItem(index, &r)
			it.own(len(data))
			if err := l.pushAgain(ctx, it, gen); err != nil {
				return err
			}
		}
	}
}

// cutBehind says whether a batch was taken out of the log again by what follows
// in its own entry.
func cutBehind(rest []fsm.Result, r *fsm.Result) bool {
	for i := range rest {
		if c := &rest[i]; c.Kind == fsm.KindCut && c.Verdict == fsm.Done && c.TP == r.TP && c.BaseOffset <= r.BaseOffset {
			return true
		}
	}
	return false
}

// rejoin puts the lane back on the feed if next is the entry that the feeder
// deals out next.
func (f *feeder) rejoin(l *lane, next, gen uint64) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case next <= f.cursor:
		return false, nil
	case next > f.cursor+1: // the base was replaced: the feeder is about to start this lane over
		return false, errSuperseded
	}
	return l.rejoin(gen)
}

// copyUp copies from pos up to the log end of the state in r. What hinders it
// is tried again, with a pause.
func (f *feeder) copyUp(ctx context.Context, l *lane, r *resume, gen uint64) error {
	backoff := minBackoff
	want := r.state(l.tp)
	for r.pos < want.NextOffset {
		if f.a.copier == nil {
			l.setHitch("and there is no peer's broker to copy it from: copying is not set up")
			<-ctx.Done()
			return context.Cause(ctx)
		}
		before := r.pos
		failpoint.Hit(failpoint.CopyBefore)
		err := f.a.copier.fill(ctx, l, r.pos, r.last, want, func(it item) error {
			if it.base != r.pos {
				return fmt.Errorf("a copy goes on at offset %d, not %d", it.base, r.pos)
			}
			it.index = max(r.from.Index, 1)
			if err := l.pushAgain(ctx, it, gen); err != nil {
				return err
			}
			r.pos, r.last = it.end(), it.raw
			failpoint.Hit(failpoint.CopyPushed)
			return nil
		})
		var d *distrust
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errSuperseded) || errors.As(err, &d):
			return err
		case err == nil && r.pos < want.NextOffset:
			err = fmt.Errorf("the copy ended at offset %d", r.pos)
		case err == nil:
			failpoint.Hit(failpoint.CopyAfter)
			l.setHitch("")
			return nil
		}
		if r.pos > before {
			backoff = minBackoff
		}
		l.setHitch(err.Error())
		f.a.log.Debug("a copy from a peer's broker does not go on", "topic", l.name, "partition", l.tp.Partition, "reason", err)
		if !pause(ctx, backoff) {
			return context.Cause(ctx)
		}
		backoff = min(2*backoff, maxBackoff)
	}
	return nil
}

// setHitch notes what hinders the copy, empty if nothing does.
func (l *lane) setHitch(why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hitch = why
	signal(l.wake)
}

// copyReason says why the lane copies. l.mu is held.
func (l *lane) copyReason() string {
	s := fmt.Sprintf("the broker holds offsets up to %d, and the raft log begins at %d", l.acked, l.need)
	if l.hitch != "" {
		s += "; " + l.hitch
	}
	return s
}
