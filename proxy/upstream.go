package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

var (
	// errUpstreamUnreachable is the cause when the broker cannot be dialled.
	errUpstreamUnreachable = errors.New("broker is unreachable")
	// errUpstreamLost is the cause when the connection to the broker broke or
	// the broker took too long.
	errUpstreamLost = errors.New("connection to the broker was lost")
	// errUpstreamGarbage is the cause when the broker answers with something
	// that is no answer to what was asked.
	errUpstreamGarbage = errors.New("broker sent an unexpected answer")
	// errLeadershipLost is the cause when a poll was ended because this node
	// no longer leads one of its partitions.
	errLeadershipLost = errors.New("leadership of a polled partition was lost")
	// errSessionLost is the cause when the broker's connection, and with it
	// the client's SASL session, is gone: another connection would speak to
	// the broker as nobody.
	errSessionLost = errors.New("authenticated connection to the broker was lost")
)

// call is one request to the broker and what to do with its answer.
type call struct {
	// frame is the whole request without its length; bytes 4..8 (the
	// correlation id) are overwritten.
	frame []byte

	// timeout is how long the broker may take once every earlier call of the
	// connection is answered (Kafka serves a connection's requests in order).
	timeout time.Duration

	// lostBy says whether a new view makes waiting for the answer pointless.
	// Nil: never. Called from the server's watcher goroutine.
	lostBy func(*View) bool

	// done is called exactly once, with the answer (without its length, the
	// correlation id still ours) and the bytes it holds of the response
	// budget, or with an error. It is called from the link's reader
	// goroutine, or by send itself if nothing could be sent.
	done func(resp []byte, held *lease, err error)

	// question says that it is one of our own, whose short answer needs no room
	// in a budget: an answer that the client asked for may have all of it, and
	// wait in its turn for what the question is about.
	question bool

	// offer, if not nil, may take a large answer in place of done, while it
	// comes. Called from the link's reader goroutine.
	offer offer

	corr int32 // set by the link
}

// upstream is a client connection's way to the broker: at most one TCP
// connection at a time, dialled when first needed and again after it died.
type upstream struct {
	addr      string
	tls       *tls.Config // nil: plaintext
	limits    Limits
	responses *budget                      // of all connections
	own       *budget                      // of this one
	onLost    func()                       // after an authenticated link died
	guard     func(what string, fn func()) // recovers panics of callbacks

	dialMu sync.Mutex // held while dialling, so that there is one link

	mu            sync.Mutex
	current       *link
	authenticated bool // SASL went through: never dial again
	closedBy      error
	wg            sync.WaitGroup
}

// send passes a call to the broker. It is called from the connection's reader
// goroutine (or from a callback on the link's) and blocks while the broker's
// socket takes the bytes: that is the back-pressure.
func (u *upstream) send(ctx context.Context, c *call) {
	l, err := u.link(ctx)
	if err == nil {
		err = l.send(c)
	}
	if err != nil {
		c.done(nil, nil, err)
	}
}

// busy says whether the client waits for something from the broker.
func (u *upstream) busy() bool {
	u.mu.Lock()
	l := u.current
	u.mu.Unlock()
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.passing || slices.ContainsFunc(l.pending, func(c *call) bool { return !c.question })
}

// link returns the live connection, dialling it if there is none.
func (u *upstream) link(ctx context.Context) (*link, error) {
	u.dialMu.Lock()
	defer u.dialMu.Unlock()
	u.mu.Lock()
	if l := u.current; l != nil && !l.isDead() {
		u.mu.Unlock()
		return l, nil
	}
	if err := u.refuseLocked(); err != nil {
		u.mu.Unlock()
		return nil, err
	}
	u.mu.Unlock()

	d := net.Dialer{Timeout: min(u.limits.UpstreamTimeout, dialTimeout)}
	nc, err := d.DialContext(ctx, "tcp", u.addr)
	if err != nil {
		return nil, fmt.Errorf("%w: dial %s: %w", errUpstreamUnreachable, u.addr, err)
	}
	if u.tls != nil {
		hctx, done := context.WithTimeout(ctx, d.Timeout)
		secured := tls.Client(nc, u.tls)
		err := secured.HandshakeContext(hctx)
		done()
		if err != nil {
			nc.Close()
			return nil, fmt.Errorf("%w: tls handshake with %s: %w", errUpstreamUnreachable, u.addr, err)
		}
		nc = secured
	}
	lctx, cancel := context.WithCancelCause(context.Background())
	l := &link{nc: nc, limits: u.limits, responses: u.responses, own: u.own, guard: u.guard, ctx: lctx, cancel: cancel}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.refuseLocked(); err != nil {
		cancel(err)
		nc.Close()
		return nil, err
	}
	u.current = l
	u.wg.Go(func() {
		l.readLoop()
		u.mu.Lock()
		lost := u.authenticated
		u.mu.Unlock()
		if lost {
			u.onLost()
		}
	})
	return l, nil
}

// dialTimeout bounds the wait for a broker on the same machine or beside it.
const dialTimeout = 5 * time.Second

func (u *upstream) refuseLocked() error {
	if u.closedBy != nil {
		return u.closedBy
	}
	if u.authenticated && u.current != nil {
		return errSessionLost
	}
	return nil
}

// markAuthenticated binds the connection to its current link for good.
func (u *upstream) markAuthenticated() {
	u.mu.Lock()
	u.authenticated = true
	l := u.current
	u.mu.Unlock()
	if l == nil || l.isDead() { // it died before it could know
		u.onLost()
	}
}

// abort ends the current link, so that every waiting call fails with cause.
func (u *upstream) abort(cause error) {
	u.mu.Lock()
	l := u.current
	u.mu.Unlock()
	if l != nil {
		l.abort(cause)
	}
}

// close is abort, and refuses every later call with cause.
func (u *upstream) close(cause error) {
	u.mu.Lock()
	if u.closedBy == nil {
		u.closedBy = cause
	}
	l := u.current
	u.mu.Unlock()
	if l != nil {
		l.abort(cause)
	}
}

// recheck ends the link if a view makes one of its calls pointless.
func (u *upstream) recheck(v *View) {
	u.mu.Lock()
	l := u.current
	u.mu.Unlock()
	if l != nil && l.anyLostBy(v) {
		l.abort(errLeadershipLost)
	}
}

// maxQuestionAnswer bounds an answer that takes no room.
const maxQuestionAnswer = 4 << 10
