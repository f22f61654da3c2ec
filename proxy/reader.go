package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

var (
	// errClientGone is the cause when the client closed or reset the connection.
	errClientGone = errors.New("client closed the connection")
	// errClientIdle is the cause when nothing was asked for IdleTimeout.
	errClientIdle = errors.New("client was idle")
	// errClientWrite is the cause when a response could not be written.
	errClientWrite = errors.New("client does not take its responses")
	// errPanic is the cause when a request made us panic.
	errPanic = errors.New("panic while serving a request")
)

// A violation is the cause when a client breaks the protocol, or asks for what
// cannot be answered in it. Reason is static: it is the key of the rate limit.
type violation struct {
	reason string
	err    error
}

// Error implements error.
func (v *violation) Error() string {
	if v.err == nil {
		return v.reason
	}
	return v.reason + ": " + v.err.Error()
}

// Unwrap implements errors.Unwrap.
func (v *violation) Unwrap() error { return v.err }

// readLoop takes requests until the connection shall take no more. It returns
// why, never nil.
func (c *conn) readLoop() error {
	for {
		if err := c.awaitRequest(); err != nil {
			return c.endOf(err)
		}
		frame, held, err := c.readFrame()
		if err != nil {
			return c.endOf(err)
		}
		s := &slot{doneCh: make(chan struct{}), request: held, since: time.Now(), asked: len(frame)}
		s.key, s.version = kafkawire.PeekRequest(frame)
		c.inFlight.Add(1)
		select {
		case c.slots <- s:
		case <-c.ctx.Done():
			held.release()
			return context.Cause(c.ctx)
		}
		if err := c.dispatch(frame, s); err != nil {
			s.finish(nil, nil, err)
			return c.endOf(err)
		}
	}
}

// endOf returns the first cause: an error after the end is only its echo.
func (c *conn) endOf(err error) error {
	if cause := context.Cause(c.ctx); cause != nil {
		return cause
	}
	return err
}

// awaitRequest waits for the first byte of a request. A client that waits for
// its own answers (a long poll) is not idle, however long that takes.
func (c *conn) awaitRequest() error {
	limits := c.srv.cfg.Limits
	until := time.Now().Add(limits.IdleTimeout)
	for {
		c.nc.SetReadDeadline(until)
		if c.ctx.Err() != nil { // stop may have set its deadline before ours
			return context.Cause(c.ctx)
		}
		_, err := c.br.Peek(1)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("%w: %w", errClientGone, err)
		case c.ctx.Err() != nil:
			return context.Cause(c.ctx)
		}
		now := time.Now()
		if last := time.Unix(0, c.lastDone.Load()).Add(limits.IdleTimeout); c.inFlight.Load() > 0 {
			until = now.Add(limits.IdleTimeout)
		} else if last.After(now) {
			until = last
		} else {
			return errClientIdle
		}
	}
}

// readFrame reads one request. Its bytes are taken from both budgets before
// its body is read, so a client that sends faster than we commit is slowed by
// its own TCP window.
func (c *conn) readFrame() ([]byte, *lease, error) {
	limits := c.srv.cfg.Limits
	if err := c.partialDeadline(limits.PartialRequestTimeout); err != nil {
		return nil, nil, err
	}
	size, err := kafkawire.ReadFrameSize(c.br, int32(limits.MaxFrameBytes))
	if err != nil {
		return nil, nil, frameViolation(err)
	}
	own, err := c.budget.acquire(c.ctx, int64(size))
	if err != nil {
		return nil, nil, err
	}
	all, err := c.srv.requests.acquire(c.ctx, int64(size))
	if err != nil {
		c.budget.release(own)
		return nil, nil, err
	}
	held := newLease(leasePart{c.budget, own}, leasePart{c.srv.requests, all})
	upload := time.Duration(size) * time.Second / minRequestRate
	if err := c.partialDeadline(limits.PartialRequestTimeout + upload); err != nil {
		held.release()
		return nil, nil, err
	}
	frame, err := kafkawire.ReadFrameBody(c.br, size)
	if err != nil {
		held.release()
		return nil, nil, frameViolation(err)
	}
	return frame, held, nil
}

func (c *conn) partialDeadline(d time.Duration) error {
	c.nc.SetReadDeadline(time.Now().Add(d))
	return context.Cause(c.ctx)
}

// frameViolation names what is wrong with a frame.
func frameViolation(err error) error {
	switch {
	case errors.Is(err, kafkawire.ErrTLSOnPlaintext):
		return &violation{"TLS on a plaintext listener", err}
	case errors.Is(err, kafkawire.ErrHTTP):
		return &violation{"HTTP on a Kafka listener", err}
	case errors.Is(err, kafkawire.ErrFrameTooLarge):
		return &violation{"request exceeds the size limit", err}
	case errors.Is(err, kafkawire.ErrFrameSize):
		return &violation{"request size is invalid", err}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &violation{reason: "request was not sent to its end in time"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &violation{reason: "connection ended inside a request"}
	}
	return fmt.Errorf("%w: %w", errClientGone, err)
}

// dispatch starts the work of one request. An error closes the connection
// after what is owed before it.
func (c *conn) dispatch(frame []byte, s *slot) error {
	h, body, err := kafkawire.ParseRequestHeader(frame)
	switch {
	case errors.Is(err, kafkawire.ErrUnknownAPI):
		return &violation{"unknown API key", err}
	case errors.Is(err, kafkawire.ErrUnsupportedVersion):
	case err != nil:
		return &violation{"request header is malformed", err}
	}
	r := &request{c: c, h: h, frame: frame, body: body, slot: s, judged: c.srv.brokerAuthorizes()}
	api, ok := kafkawire.Lookup(h.Key)
	if !ok {
		return &violation{"API is not served", fmt.Errorf("%s (key %d)", kmsg.NameForKey(h.Key), h.Key)}
	}
	r.api = api
	if c.needsSASL.Load() && !authenticates(h.Key) {
		return &violation{"request before authentication", fmt.Errorf("%s on a SASL listener; set security.protocol to SASL_PLAINTEXT or SASL_SSL and a mechanism in the client", api.Name)}
	}
	if c.sessionExpired() && !renewsSession(h.Key) {
		return &violation{"request after the end of the session", fmt.Errorf("%s; the broker's connections.max.reauth.ms ended it: use a client that authenticates again (KIP-368)", api.Name)}
	}
	if err != nil || !api.Accepts(h.Version) {
		// Kafka 4 closes the connection (SocketServer.parseRequestHeader),
		// but for ApiVersions, which is how the client learns better.
		if h.Key == int16(kmsg.ApiVersions) {
			return r.unsupportedAPIVersions()
		}
		return &violation{"API version is not supported", fmt.Errorf("%s version %d, served are %d to %d", api.Name, h.Version, api.Min, api.Max)}
	}
	if err := r.letIn(); err != nil {
		return err
	}
	var failed error = errPanic
	c.guard(api.Name, func() { failed = handlers[h.Key](r) })
	return failed
}

// explain logs the end of a connection at the level it deserves.
func (c *conn) explain(err error) {
	const event = "closed client connection"
	var v *violation
	switch {
	case errors.As(err, &v):
		args := []any{"remote", c.nc.RemoteAddr().String(), "listener", c.listener, "reason", v.reason}
		if v.err != nil {
			args = append(args, "error", v.err)
		}
		c.srv.notices.warn(c.host, v.reason, event, args...)
	case errors.Is(err, errClientWrite) && isTimeout(err):
		const reason = "client does not read its responses"
		c.srv.notices.warn(c.host, reason, event, "remote", c.nc.RemoteAddr().String(), "listener", c.listener, "reason", reason)
	case errors.Is(err, errPanic): // logged where it was caught
	default:
		c.log.Debug(event, "reason", err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ne) && ne.Timeout() || errors.Is(err, syscall.ETIMEDOUT)
}
