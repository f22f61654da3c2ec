package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// idleReuse is how long an idle connection is trusted before the next request
// dials anew instead of finding out.
const idleReuse = 30 * time.Second

// caller makes one request at a time over a connection it keeps between
// requests. Safe for use by many goroutines.
type caller struct {
	cfg    *Config
	ctx    context.Context // ended by close, with cause ErrClosed
	cancel context.CancelCauseFunc
	sem    chan struct{} // one token; its taker owns the fields below
	conn   *conn
	usedAt time.Time
}

func newCaller(cfg *Config) *caller {
	c := &caller{cfg: cfg, sem: make(chan struct{}, 1)}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	return c
}

// build makes a request for the versions of the connected broker.
type build func(v versions) (kmsg.Request, error)

// call sends what b builds. With again, the request may safely be sent twice:
// it is repeated once when a kept connection turned out to be dead. Without,
// a fresh connection is used.
func (c *caller) call(ctx context.Context, again bool, b build) (kmsg.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
	defer cancel()
	ctx, cancelCause := context.WithCancelCause(ctx)
	defer cancelCause(nil)
	defer context.AfterFunc(c.ctx, func() { cancelCause(ErrClosed) })()
	select {
	case c.sem <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the broker connection: %w", context.Cause(ctx))
	}
	defer func() { <-c.sem }()
	if c.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if !again || time.Since(c.usedAt) > idleReuse {
		c.drop()
	}
	kept := c.conn != nil
	resp, err := c.callOnce(ctx, b)
	if err != nil && kept && c.conn == nil && ctx.Err() == nil {
		resp, err = c.callOnce(ctx, b)
	}
	return resp, err
}

// callOnce is called with the token held. It leaves c.conn nil if the
// connection failed.
func (c *caller) callOnce(ctx context.Context, b build) (kmsg.Response, error) {
	if c.conn == nil {
		conn, err := dial(ctx, c.cfg)
		if err != nil {
			return nil, err
		}
		c.conn = conn
	}
	req, err := b(c.conn.versions)
	if err != nil {
		return nil, err
	}
	resp, err := c.conn.call(ctx, req)
	if err != nil {
		c.drop()
		return nil, fmt.Errorf("%w: %w", ErrConnLost, err)
	}
	c.usedAt = time.Now()
	return resp, nil
}

// offered returns the answer to ApiVersions of a fresh connection.
func (c *caller) offered(ctx context.Context) (*kmsg.ApiVersionsResponse, error) {
	var offered *kmsg.ApiVersionsResponse
	_, err := c.call(ctx, false, func(v versions) (kmsg.Request, error) {
		offered = c.conn.offered
		version, err := v.pick(kmsg.ApiVersions, 0, 3)
		return apiVersionsRequest(version), err
	})
	return offered, err
}

func (c *caller) drop() {
	if c.conn != nil {
		c.conn.close()
		c.conn = nil
	}
}

// close aborts the request under way and ends the connection. Idempotent.
func (c *caller) close() {
	c.cancel(ErrClosed)
	c.sem <- struct{}{}
	c.drop()
	<-c.sem
}
