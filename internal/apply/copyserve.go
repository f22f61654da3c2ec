package apply

import (
	"context"
	"errors"
	"fmt"

	"lockstep/internal/broker"
	"lockstep/internal/failpoint"
)

// HeardCopy answers another node's request for a piece of a partition's log
// with what the local broker holds, if this node serves the partition itself:
// only then it is known to be what was committed. It waits while many others
// are being answered. Any goroutine may call it after Open.
func (a *Applier) HeardCopy(ctx context.Context, payload []byte) ([]byte, error) {
	req, err := decodeCopyRequest(payload)
	if err != nil {
		return nil, err
	}
	c, ok := a.copier.(*copier)
	if !ok {
		return nil, fmt.Errorf("answer a request for a copy: %w", errNoCopying)
	}
	select {
	case c.answering <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-a.ctx.Done():
		return nil, ErrClosed
	}
	defer func() { <-c.answering }()
	answer, err := c.answer(ctx, req)
	if err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.CopyServed)
	return answer.encode(), nil
}

var errNoCopying = errors.New("copying is not set up on this node")

// answer reads the local broker's log, up to what was compared with the
// committed log and no further.
func (c *copier) answer(ctx context.Context, req copyRequest) (copyAnswer, error) {
	l := c.a.lane(req.tp)
	if l == nil {
		return copyAnswer{status: copyUnknown}, nil
	}
	good, ready := l.good()
	if !ready {
		return copyAnswer{status: copyNotReady}, nil
	}
	if req.from >= good {
		start, _, err := c.a.cfg.Broker.LogEnd(ctx, l.name, req.tp.Partition)
		if err != nil {
			return copyAnswer{}, fmt.Errorf("read the log start for a copy: %w", err)
		}
		return copyAnswer{status: copyOK, start: start, end: max(good, start)}, nil
	}
	batches, start, err := c.cfg.Broker.Range(ctx, l.name, req.tp.Partition, req.from, good, min(req.max, copyBytes))
	switch {
	case errors.Is(err, broker.ErrNoBatch) && start > req.from:
		return copyAnswer{status: copyBelowStart, start: start, end: max(good, start)}, nil
	case errors.Is(err, broker.ErrNoTopic), errors.Is(err, broker.ErrNoBatch):
		return copyAnswer{status: copyNotReady}, nil
	case err != nil:
		return copyAnswer{}, fmt.Errorf("read the local broker for a copy: %w", err)
	}
	if _, still := l.good(); !still {
		return copyAnswer{status: copyNotReady}, nil // what was read may be another topic's by now
	}
	return copyAnswer{status: copyOK, start: max(start, 0), end: max(good, start), batches: l.asCommitted(batches)}, nil
}

// good is the offset up to which the broker's log was compared, if the lane is
// ready.
func (l *lane) good() (end int64, ready bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked, l.serves()
}
