package proxy

import (
	"context"
	"sync"
	"time"
)

const (
	// autoCreateWait is how long a Metadata request waits for the topics it
	// brings into being. Clients retry what is not ready.
	autoCreateWait = time.Second
	// autoCreateTimeout bounds one creation, which goes on when nobody waits.
	autoCreateTimeout = 30 * time.Second
	// maxAutoCreating bounds the creations under way on behalf of Metadata
	// requests. What is beyond is not started; the client asks again.
	maxAutoCreating = 8
)

// autoCreator brings topics into the catalog for Metadata requests: each name
// once at a time, whoever asks, and not too many together.
type autoCreator struct {
	ctx    context.Context // ends the creations
	create func(context.Context, string) error
	wait   time.Duration // that ensure waits

	mu      sync.Mutex
	running map[string]*creation
	wg      sync.WaitGroup
}

type creation struct {
	doneCh chan struct{} // closed when err is set
	err    error
}

// ensure starts the creation of the named topics where it has not been, waits
// a moment, and returns the outcomes: nil for created and for not yet known.
func (a *autoCreator) ensure(ctx context.Context, names []string) map[string]error {
	outcomes := make(map[string]error, len(names))
	if len(names) == 0 {
		return outcomes
	}
	started := make(map[string]*creation)
	for _, name := range names {
		outcomes[name] = nil
		if c := a.start(name); c != nil {
			started[name] = c
		}
	}
	wait := time.NewTimer(a.wait)
	defer wait.Stop()
	for name, c := range started {
		select {
		case <-c.doneCh:
			outcomes[name] = c.err
		case <-wait.C:
			return outcomes
		case <-ctx.Done():
			return outcomes
		}
	}
	return outcomes
}

// start returns the creation of a topic, nil if there are too many.
func (a *autoCreator) start(name string) *creation {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.running[name]; c != nil {
		return c
	}
	if len(a.running) >= maxAutoCreating || a.ctx.Err() != nil {
		return nil
	}
	c := &creation{doneCh: make(chan struct{})}
	a.running[name] = c
	a.wg.Go(func() {
		ctx, cancel := context.WithTimeout(a.ctx, autoCreateTimeout)
		defer cancel()
		err := a.create(ctx, name)
		a.mu.Lock()
		delete(a.running, name)
		a.mu.Unlock()
		c.err = err
		close(c.doneCh)
	})
	return c
}
