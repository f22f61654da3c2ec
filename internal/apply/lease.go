package apply

import (
	"context"
	"fmt"
	"sync"
)

// use counts the lanes that may have appends on their way to a topic. A topic
// is deleted or made again only when there are none: appends name a topic by
// its name, and one that is late would land in the next topic of that name.
type use struct {
	n        int
	revoking bool
	revoked  chan struct{} // closed to make the holders finish
	idle     chan struct{} // closed when the last one has
}

// lease is the right to append to a topic. Its holder gives it back when
// revoked is closed, after everything it sent was answered or its connection
// was lost.
type lease struct {
	revoked <-chan struct{}
	release func() // may be called more than once
}

// lease gives out a lease. The topic's name is locked.
func (t *topics) lease(id uint64) *lease {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.uses[id]
	if u == nil {
		u = &use{revoked: make(chan struct{}), idle: make(chan struct{})}
		t.uses[id] = u
	}
	u.n++
	return &lease{revoked: u.revoked, release: sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if u.n--; u.n == 0 {
			delete(t.uses, id)
			close(u.idle)
		}
	})}
}

// revoke returns when nobody holds a lease of the topic. The topic's name is
// locked, so nobody gets one meanwhile.
func (t *topics) revoke(ctx context.Context, id uint64) error {
	t.mu.Lock()
	u := t.uses[id]
	if u != nil && !u.revoking {
		u.revoking = true
		close(u.revoked)
	}
	t.mu.Unlock()
	if u == nil {
		return nil
	}
	select {
	case <-u.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for appends under way: %w", context.Cause(ctx))
	}
}
