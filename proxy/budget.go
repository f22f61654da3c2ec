package proxy

import (
	"context"
	"sync"
	"sync/atomic"
)

// budget is a number of bytes that may be held at once. Waiters are served
// first come, first served, so that small requests cannot starve a large one.
type budget struct {
	capacity int64

	mu      sync.Mutex
	used    int64
	waiters []*budgetWaiter // FIFO
}

type budgetWaiter struct {
	n     int64
	ready chan struct{} // closed once n bytes are the waiter's
}

func newBudget(capacity int64) *budget { return &budget{capacity: capacity} }

// acquire waits until n bytes fit and takes them. More than the capacity counts
// as the capacity: such a holder is alone. It returns what was taken, which the
// caller hands to release, or the context's error.
func (b *budget) acquire(ctx context.Context, n int64) (int64, error) {
	n = min(n, b.capacity)
	b.mu.Lock()
	if len(b.waiters) == 0 && b.used+n <= b.capacity {
		b.used += n
		b.mu.Unlock()
		return n, nil
	}
	w := &budgetWaiter{n: n, ready: make(chan struct{})}
	b.waiters = append(b.waiters, w)
	b.mu.Unlock()

	select {
	case <-w.ready:
		return n, nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.ready: // granted while we gave up: hand it on
		b.used -= n
	default:
		for i, o := range b.waiters {
			if o == w {
				b.waiters = append(b.waiters[:i], b.waiters[i+1:]...)
				break
			}
		}
	}
	b.grantLocked()
	return 0, context.Cause(ctx)
}

// release gives bytes back.
func (b *budget) release(n int64) {
	b.mu.Lock()
	b.used -= n
	b.grantLocked()
	b.mu.Unlock()
}

// grantLocked serves waiters in order while they fit. b.mu is held.
func (b *budget) grantLocked() {
	for len(b.waiters) > 0 && b.used+b.waiters[0].n <= b.capacity {
		w := b.waiters[0]
		b.waiters = b.waiters[1:]
		b.used += w.n
		close(w.ready)
	}
}

// inUse returns the bytes held now.
func (b *budget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// lease is bytes of one or more budgets, given back when its last holder lets
// go. A nil lease is valid and holds nothing.
type lease struct {
	holders atomic.Int32
	parts   []leasePart
	buffer  []byte // used again after the release; set by a holder
}

type leasePart struct {
	b *budget
	n int64
}

func newLease(parts ...leasePart) *lease {
	l := &lease{parts: parts}
	l.holders.Store(1)
	return l
}

// retain adds a holder.
func (l *lease) retain() {
	if l != nil {
		l.holders.Add(1)
	}
}

// recycle says that nobody looks at b, a buffer from takeBuffer, after the last
// holder has let go.
func (l *lease) recycle(b []byte) {
	if l != nil {
		l.buffer = b
	}
}

// release lets one holder go.
func (l *lease) release() {
	if l == nil || l.holders.Add(-1) != 0 {
		return
	}
	if l.buffer != nil {
		putBuffer(l.buffer)
	}
	for _, p := range l.parts {
		p.b.release(p.n)
	}
}
