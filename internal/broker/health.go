package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Reconnect back-off of Health.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = time.Second
)

var errNotTried = errors.New("not connected yet")

// HealthState is what Health knows. Compare Since to tell two states apart.
type HealthState struct {
	Up    bool
	Since time.Time // of the last change of Up
	Err   string    // why it is down, empty when up
	Kind  string    // what the broker looks like, kept while it is down
}

// Health keeps one connection to the broker and probes it. A lost connection
// is noticed at once; a broker that answers nothing counts as down after
// Config.ProbeTimeout, at most ProbeInterval+ProbeTimeout after it stopped.
type Health struct {
	cfg    Config
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine of Open has returned

	mu      sync.Mutex
	state   HealthState
	changed chan struct{} // closed and replaced on every change of state
}

// NewHealth makes a Health that says down until Open.
func NewHealth(cfg Config) *Health {
	return &Health{
		cfg:     cfg.withDefaults(),
		state:   HealthState{Since: time.Now(), Err: errNotTried.Error()},
		changed: make(chan struct{}),
	}
}

// Open starts probing and returns at once; it does not need the broker. ctx
// ends the probing, as Close does. Call it once.
func (h *Health) Open(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done != nil {
		return errors.New("broker health is open already")
	}
	ctx, h.cancel = context.WithCancel(ctx)
	h.done = make(chan struct{})
	go func() {
		defer close(h.done)
		h.run(ctx)
	}()
	return nil
}

// Close stops probing and returns when the goroutine has. The last state
// stays. Idempotent.
func (h *Health) Close() error {
	h.mu.Lock()
	cancel, done := h.cancel, h.done
	h.mu.Unlock()
	if done != nil {
		cancel()
		<-done
	}
	return nil
}

// State returns the present state.
func (h *Health) State() HealthState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

// Changed returns a channel that is closed at the next change. Take it before
// State, or a change in between goes unseen.
func (h *Health) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

func (h *Health) set(up bool, reason error, kind string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := h.state
	if next.Up != up {
		next.Up, next.Since = up, time.Now()
	}
	next.Err = ""
	if reason != nil {
		next.Err = reason.Error()
	}
	if kind != "" {
		next.Kind = kind
	}
	if next == h.state {
		return
	}
	if next.Up != h.state.Up {
		level := hclog.Info
		if !up {
			level = hclog.Warn
		}
		h.cfg.Logger.Log(level, "broker health changed", "up", up, "kind", next.Kind, "error", next.Err)
	}
	h.state = next
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *Health) run(ctx context.Context) {
	backoff := minBackoff
	for {
		c, err := h.connect(ctx)
		if err == nil {
			h.set(true, nil, describe(c.offered))
			backoff = minBackoff
			err = h.watch(ctx, c)
		}
		if ctx.Err() != nil {
			return
		}
		h.set(false, err, "")
		timer := time.NewTimer(backoff)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// connect dials within the probe deadline: the kernel still accepts for a
// broker that is stopped.
func (h *Health) connect(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.ProbeTimeout)
	defer cancel()
	return dial(ctx, &h.cfg)
}

// watch probes c until it fails or ctx ends. The reader goroutine is always
// blocked in a read, so that a closed connection is noticed between probes.
func (h *Health) watch(ctx context.Context, c *conn) error {
	if err := c.nc.SetDeadline(time.Time{}); err != nil {
		c.close()
		return err
	}
	answers := make(chan error)
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Add(1)
	go func() {
		defer reader.Done()
		for {
			_, err := readFrame(c.br, c.maxBytes)
			select {
			case answers <- err:
			case <-stop:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	defer reader.Wait()
	defer c.close()
	defer close(stop)

	ticker := time.NewTicker(h.cfg.ProbeInterval)
	defer ticker.Stop()
	var overdue <-chan time.Time // set while a probe is unanswered
	for {
		select {
		case err := <-answers:
			if err != nil {
				return fmt.Errorf("broker closed the connection: %w", err)
			}
			overdue = nil
		case <-overdue:
			return fmt.Errorf("broker did not answer within %s", h.cfg.ProbeTimeout)
		case <-ticker.C:
			if overdue != nil {
				continue
			}
			overdue = time.After(h.cfg.ProbeTimeout)
			if err := h.probe(c); err != nil {
				return fmt.Errorf("probe the broker: %w", err)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (h *Health) probe(c *conn) error {
	c.corr++
	c.buf = c.format.AppendRequest(c.buf[:0], apiVersionsRequest(0), c.corr)
	if err := c.nc.SetWriteDeadline(time.Now().Add(h.cfg.ProbeTimeout)); err != nil {
		return err
	}
	_, err := c.nc.Write(c.buf)
	return err
}
