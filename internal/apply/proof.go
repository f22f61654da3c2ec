package apply

import (
	"context"
	"fmt"
	"time"
)

// PartitionProof is what a node says of its broker's copy of a partition.
type PartitionProof struct {
	Partition int32 `json:"partition"`
	Ready     bool  `json:"ready"`
	// Verified: everything below it was read from the broker, lately, and is
	// what was committed.
	Verified int64  `json:"verified"`
	Reason   string `json:"reason,omitempty"` // why it is not more
}

// Verified reads the local broker's copy of a topic, unless that was done a
// moment ago, and says of each partition how much of it is what was committed.
// It returns when all is read or the context ends, whichever is first; called
// again it goes on where it was. Any goroutine, after Open.
func (a *Applier) Verified(ctx context.Context, topic uint64) []PartitionProof {
	var out []PartitionProof
	for _, l := range a.lanesOf(topic) {
		p := PartitionProof{Partition: l.tp.Partition}
		if s := a.scrubber; s == nil {
			p.Reason = "the scrub is not set up"
		} else if got, err := s.prove(ctx, l); err != nil {
			p.Reason = err.Error()
			p.Verified = got.to
		} else {
			p.Ready, p.Verified = true, got.to
		}
		out = append(out, p)
	}
	return out
}

// prove reads one lane's log up to what is committed now.
func (s *scrubber) prove(ctx context.Context, l *lane) (proof, error) {
	u := s.subject(l)
	select {
	case u.turn <- struct{}{}:
	case <-ctx.Done():
		return proof{}, context.Cause(ctx)
	}
	defer func() { <-u.turn }()
	want, ok := l.committed()
	if !ok {
		return proof{}, ErrNotOpen
	}
	if p := s.proofOf(u); u.whole && !p.holds(&s.cfg) {
		u.read, u.whole = nil, false
	}
	for {
		if err := ctx.Err(); err != nil {
			return proof{}, context.Cause(ctx)
		}
		if trouble := l.unserved(); trouble != "" {
			return proof{}, fmt.Errorf("%w: %s", errNotServed, trouble)
		}
		s.settle(ctx, l)
		more, err := s.step(ctx, u, scrubBytes)
		if p := s.proofOf(u); err == nil && u.whole && p.to >= want.next {
			return p, nil
		}
		if (err != nil || !more) && !pause(ctx, 20*time.Millisecond) {
			return s.proofOf(u), context.Cause(ctx)
		}
	}
}

// settle waits a moment until the broker has what is committed, so that the log
// can be compared up to its end.
func (s *scrubber) settle(ctx context.Context, l *lane) {
	want, ok := l.committed()
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	done := make(chan struct{})
	l.whenVisible(waiter{end: want.next, fn: func(error) { close(done) }})
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// unserved says why a lane will not serve soon, empty if it may.
func (l *lane) unserved() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.state {
	case StateQuarantined, StateRebuilding, StateRefused, StateCopying, StateClosed:
		return fmt.Sprintf("%s %s", l.state, l.reason)
	}
	if l.doom != "" {
		return l.doom
	}
	return ""
}
