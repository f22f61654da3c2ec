// Package watch lets goroutines wait for a number to grow or a thing to
// change, so that nothing in Lockstep has to poll or sleep.
package watch

import (
	"context"
	"sync"
)

// Index is a number that only grows. The zero value is ready and stands at 0.
// Any goroutine may call its methods.
type Index struct {
	mu sync.Mutex
	v  uint64
	ch chan struct{} // closed when v grows; nil while nobody waits
}

// Set raises the index to v and wakes everybody who waits. A lower v is ignored.
func (x *Index) Set(v uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if v <= x.v {
		return
	}
	x.v = v
	if x.ch != nil {
		close(x.ch)
		x.ch = nil
	}
}

// Get returns the index.
func (x *Index) Get() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.v
}

// Changed returns the index and a channel that is closed when it has grown.
func (x *Index) Changed() (uint64, <-chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ch == nil {
		x.ch = make(chan struct{})
	}
	return x.v, x.ch
}

// Wait returns the index as soon as it is at least v, or the context's error.
func (x *Index) Wait(ctx context.Context, v uint64) (uint64, error) {
	for {
		got, changed := x.Changed()
		if got >= v {
			return got, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return got, context.Cause(ctx)
		}
	}
}

// Value holds the newest of a thing that is replaced as a whole. The zero
// value holds the zero T. Any goroutine may call its methods.
type Value[T any] struct {
	mu sync.Mutex
	v  T
	ch chan struct{}
}

// Set replaces the value and wakes everybody who waits.
func (x *Value[T]) Set(v T) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.v = v
	if x.ch != nil {
		close(x.ch)
		x.ch = nil
	}
}

// Get returns the value.
func (x *Value[T]) Get() T {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.v
}

// Changed returns the value and a channel that is closed when it is replaced.
func (x *Value[T]) Changed() (T, <-chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ch == nil {
		x.ch = make(chan struct{})
	}
	return x.v, x.ch
}
