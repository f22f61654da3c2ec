package apply

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lockstep/internal/broker"
	"lockstep/kafkawire"
)

// errNotServed says that a lane does not serve at the moment, so that there is
// nothing to compare.
var errNotServed = errors.New("the partition is not served at the moment")

// step looks at a log's ends and reads about budget bytes of it, or, with no
// budget, what is new since it was read through. It reports whether there is
// more. Errors mean that nothing could be said this time.
func (s *scrubber) step(ctx context.Context, u *subject, budget int64) (more bool, err error) {
	l := u.l
	view, _, ok := l.view()
	want, have := l.committed()
	if !ok || !have {
		u.read = nil
		return false, errNotServed
	}
	if view != u.view {
		s.begin(u, view)
	}
	_, acked, _ := l.view()
	to := min(want.next, acked)
	start, end, err := s.a.cfg.Broker.LogEnd(ctx, l.name, l.tp.Partition)
	if err != nil {
		return false, err
	}
	if end < to {
		if now, _, still := l.view(); still && now == view {
			s.log.Warn("the broker's log ends before what it acknowledged: the partition attaches again",
				"topic", l.name, "partition", l.tp.Partition, "log-end-offset", end, "acknowledged", to)
			l.attachAgain(fmt.Sprintf("the broker's log ends at offset %d, it acknowledged up to %d", end, to))
		}
		return false, errNotServed
	}
	f, err := s.tooLong(ctx, u, end)
	if err != nil {
		return false, err
	}
	if f == nil {
		_, _, open := s.a.topics.look(l.tp.Topic)
		f = want.holds(start, open)
	}
	if f == nil && (budget > 0 || u.whole) {
		f, err = s.readOn(ctx, u, &want, start, to, max(budget, scrubBytes))
	}
	if err != nil {
		return false, err
	}
	if now, _, still := l.view(); !still || now != view {
		u.read = nil
		return false, errNotServed
	}
	if f != nil {
		return true, s.strike(u, f)
	}
	s.got(u, to)
	return u.read != nil && u.read.pos < to, nil
}

// begin forgets what was known of a log before its lane served it as it does
// now.
func (s *scrubber) begin(u *subject, view laneView) {
	u.view, u.read, u.strike, u.excess, u.whole, u.begun = view, nil, nil, excess{}, false, time.Time{}
	s.mu.Lock()
	defer s.mu.Unlock()
	u.proof = proof{}
}

// got notes that a log was read as far as it could be.
func (s *scrubber) got(u *subject, to int64) {
	if u.read == nil || u.read.pos < to {
		return
	}
	u.strike, u.made = nil, 0
	s.mu.Lock()
	defer s.mu.Unlock()
	if !u.whole {
		u.proof.at = time.Now()
	}
	u.proof.to, u.proof.size, u.whole = u.read.proved(), u.read.size, true
}

// strike notes a finding. One that was made often enough in a row is believed.
func (s *scrubber) strike(u *subject, f *finding) error {
	if f.same(u.strike) {
		u.made++
	} else {
		u.strike, u.made = f, 1
	}
	if u.read != nil { // read again what was not proved
		saved := u.saved
		u.read = &saved
	}
	if u.made < f.doubt {
		return nil
	}
	s.mu.Lock()
	s.stats.Findings++
	s.stats.LastFinding = fmt.Sprintf("%s/%d: %s", u.l.name, u.l.tp.Partition, f.reason())
	s.stats.LastFindingAt = time.Now()
	u.proof = proof{}
	s.mu.Unlock()
	u.l.quarantine(f.reason())
	return errNotServed
}

// readOn reads batches from where the reading is, below to.
func (s *scrubber) readOn(ctx context.Context, u *subject, want *committed, start, to, budget int64) (*finding, error) {
	l := u.l
	if u.read == nil || u.read.pos < start {
		u.read, u.whole = newReading(start, want), u.whole && u.read != nil
		if !u.whole {
			u.begun = u.read.began
		}
		u.saved = *u.read
	}
	for r := u.read; r.pos < to && budget > 0; {
		raw, logStart, err := s.cfg.Broker.Range(ctx, l.name, l.tp.Partition, r.pos, to, scrubBytes)
		var code *broker.CodeError
		switch {
		case errors.Is(err, broker.ErrNoBatch) && logStart > r.pos:
			// Retention, and the next step begins at the new start; unless
			// the broker says the old one again.
			f := found(CauseDivergent, r.pos, "nothing stands there: the broker's log starts at %d, though it says %d", logStart, start)
			f.doubt = unreadable
			return f, nil
		case errors.Is(err, broker.ErrNoBatch), err == nil && len(raw) == 0 && !l.compacted:
			return found(CauseDivergent, r.pos, "nothing stands there, though the broker's log starts at %d and ends above", logStart), nil
		case errors.Is(err, broker.ErrMalformed), errors.As(err, &code) && code.Code == 2: // CORRUPT_MESSAGE
			return found(CauseCorrupt, r.pos, "what stands there cannot be read: %v", err), nil
		case code != nil && !code.Retriable() && !errors.Is(err, broker.ErrNoTopic):
			f := found(CauseCorrupt, r.pos, "the broker cannot read what stands there: %v", err)
			f.doubt = unreadable
			return f, nil
		case err != nil:
			return nil, err
		}
		if err := s.bucket.take(ctx, int64(len(raw))); err != nil {
			return nil, err
		}
		raw = l.asCommitted(raw)
		budget -= int64(len(raw))
		r.size += int64(len(raw))
		s.count(len(raw))
		if len(raw) == 0 {
			r.pos = to // the cleaner took it all
		}
		for len(raw) > 0 {
			b, rest, err := kafkawire.ParseBatch(raw)
			if err != nil {
				return found(CauseCorrupt, r.pos, "what stands there is no batch: %v", err), nil
			}
			if b.BaseOffset()+int64(b.LastOffsetDelta()) < r.pos && b.LastOffsetDelta() >= 0 && r.first {
				raw = rest // a whole batch below the log start
				continue
			}
			if f := r.take(l.tp, b, want, to, l.compacted); f != nil {
				return f, nil
			}
			if !r.chained || r.anchor == r.pos {
				u.saved = *r
			}
			raw = rest
		}
	}
	return nil, nil
}

// tooLong looks at what the broker has above everything committed.
func (s *scrubber) tooLong(ctx context.Context, u *subject, end int64) (*finding, error) {
	l := u.l
	now, ok := l.committed()
	if !ok || end <= now.next {
		u.excess = excess{}
		return nil, nil
	}
	raw, err := s.a.cfg.Broker.LastBatch(ctx, l.name, l.tp.Partition, end)
	switch {
	case errors.Is(err, broker.ErrNoBatch): // offsets that hold nothing
	case err != nil:
		return nil, fmt.Errorf("read what lies above the committed log: %w", err)
	default:
		if b, _, err := kafkawire.ParseBatch(l.asCommitted(raw)); err == nil {
			if diff := foreign(l.tp.Topic, b); diff != "" {
				return found(CauseForeign, b.BaseOffset(), "the batch there %s", diff), nil
			}
		}
	}
	m := l.f.fresh.Get()
	if u.excess.end == 0 {
		u.excess = excess{end: end, since: time.Now(), fresh: m.n}
	}
	if m.n < u.excess.fresh+2 || time.Since(u.excess.since) < s.a.conclusionAfter {
		return nil, nil
	}
	l.f.mu.Lock()
	behind := l.f.cursor < max(m.index, l.f.log.Applied().Get())
	l.f.mu.Unlock()
	if now, ok = l.committed(); !ok || behind || end <= now.next {
		return nil, nil
	}
	return found(CauseTooLong, now.next, "the broker's log ends at offset %d, but only %d offsets were ever committed: something else writes to it", end, now.next), nil
}

func (s *scrubber) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Bytes += uint64(n)
}

func (s *scrubber) proofOf(u *subject) proof {
	s.mu.Lock()
	defer s.mu.Unlock()
	return u.proof
}
