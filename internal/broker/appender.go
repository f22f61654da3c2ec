package broker

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Appender hands out the connections over which committed batches are appended
// to the local broker. Safe for use by many goroutines.
//
// It bounds no memory: what is queued on a session stays there until the
// broker answered, so the caller bounds what it queues, in bytes and per
// partition.
type Appender struct {
	cfg    Config
	ctx    context.Context // ended by Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // dials and the goroutines of sessions

	mu     sync.Mutex
	slots  []slot // owned under mu
	next   int
	closed bool
}

// slot is the place of one connection.
type slot struct {
	session *Session // nil before the first dial
	flight  *flight  // the dial under way, or nil
}

// flight is one dial that any number of callers wait for.
type flight struct {
	done    chan struct{} // closed when session or err is set
	session *Session
	err     error
}

// NewAppender makes an Appender without connecting.
func NewAppender(cfg Config) *Appender {
	a := &Appender{cfg: cfg.withDefaults()}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.slots = make([]slot, a.cfg.Connections)
	return a
}

// Session returns a live connection, dialling if there is none; callers at the
// same time share one dial. With Config.Connections above 1, sessions are
// handed out in turn.
//
// Order is kept per partition on one session only. So a partition's owner
// keeps the session it was given until Session.Done is closed, and reads the
// log end again before it appends over the next.
func (a *Appender) Session(ctx context.Context) (*Session, error) {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil, ErrClosed
	}
	s := &a.slots[a.next%len(a.slots)]
	a.next++
	if s.session != nil && s.session.alive() {
		session := s.session
		a.mu.Unlock()
		return session, nil
	}
	f := s.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		s.flight = f
		a.wg.Add(1)
		go a.fly(s, f)
	}
	a.mu.Unlock()

	select {
	case <-f.done:
		return f.session, f.err
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a broker connection: %w", context.Cause(ctx))
	}
}

// fly dials for everyone waiting on f. The dial belongs to the Appender, not
// to the caller that happened to be first.
func (a *Appender) fly(s *slot, f *flight) {
	defer a.wg.Done()
	f.session, f.err = a.open()

	a.mu.Lock()
	s.flight = nil
	if f.err == nil {
		s.session = f.session
	}
	if a.closed && f.err == nil {
		f.session.fail(ErrClosed)
	}
	a.mu.Unlock()
	close(f.done)
}

func (a *Appender) open() (*Session, error) {
	c, err := dial(a.ctx, &a.cfg)
	if err != nil {
		if a.ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", ErrClosed, err)
		}
		return nil, err
	}
	s, err := newSession(&a.cfg, c)
	if err != nil {
		c.close()
		return nil, err
	}
	if err := c.nc.SetDeadline(time.Time{}); err != nil {
		c.close()
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	a.wg.Add(2)
	go func() { defer a.wg.Done(); s.writeLoop() }()
	go func() { defer a.wg.Done(); s.readLoop() }()
	return s, nil
}

// Drop ends every session that is alive: what has no answer yet gets ErrConnLost
// or ErrNotSent. The next Session dials anew. It is for a caller that knows by
// other means that the broker does not answer: a connection of its own would
// say so only after Config.RequestTimeout, and one that is dead for good may
// hang while new ones work. Any goroutine may call it, also from a callback.
func (a *Appender) Drop(cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.slots {
		if s := a.slots[i].session; s != nil {
			s.fail(fmt.Errorf("%w: %w", ErrUnreachable, cause))
		}
	}
}

// Close ends every session and returns when their goroutines have; appends
// without an answer have had their callback by then. It must not be called
// from such a callback. Idempotent.
func (a *Appender) Close() error {
	a.mu.Lock()
	a.closed = true
	for i := range a.slots {
		if s := a.slots[i].session; s != nil {
			s.fail(ErrClosed)
		}
	}
	a.mu.Unlock()
	a.cancel()
	a.wg.Wait()
	return nil
}
