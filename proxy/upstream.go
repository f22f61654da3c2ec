package proxy

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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

// link is one TCP connection to the broker. Answers come in the order of the
// requests, so matching is a FIFO; the correlation id only confirms it.
type link struct {
	nc        net.Conn
	limits    Limits
	responses *budget
	own       *budget
	guard     func(string, func())
	ctx       context.Context // done once the link is aborted
	cancel    context.CancelCauseFunc

	writeMu sync.Mutex // held over queueing and writing, so both have one order

	mu      sync.Mutex
	pending []*call
	next    int32
	dead    bool
	passing bool // an answer is passed on: the read deadline is its writer's
}

func (l *link) isDead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead || l.ctx.Err() != nil
}

// abort makes the reader goroutine fail everything that waits.
func (l *link) abort(cause error) {
	l.cancel(cause)
	l.nc.Close()
}

func (l *link) anyLostBy(v *View) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.pending {
		if c.lostBy != nil && c.lostBy(v) {
			return true
		}
	}
	return false
}

// send queues the call, then writes it. After a nil return the call's done is
// (or was) called by the reader goroutine; an error means that nothing was sent.
func (l *link) send(c *call) error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	l.mu.Lock()
	if err := context.Cause(l.ctx); err != nil { // as for those that wait when it is ended
		l.mu.Unlock()
		return err
	}
	c.corr = l.next
	l.next = (l.next + 1) & 0x7fffffff
	binary.BigEndian.PutUint32(c.frame[4:], uint32(c.corr))
	l.pending = append(l.pending, c)
	if len(l.pending) == 1 {
		l.armLocked()
	}
	l.mu.Unlock()

	var size [4]byte
	binary.BigEndian.PutUint32(size[:], uint32(len(c.frame)))
	bufs := net.Buffers{size[:], c.frame}
	// No write deadline of its own: the read deadline of the oldest call
	// covers a broker that neither answers nor reads.
	if _, err := bufs.WriteTo(l.nc); err != nil {
		l.abort(fmt.Errorf("%w: write: %w", errUpstreamLost, err))
	}
	return nil
}

// armLocked gives the oldest call its time, or leaves it to the answer that is
// passed on before. l.mu is held.
func (l *link) armLocked() {
	if l.passing {
		return
	}
	var t time.Time
	if len(l.pending) > 0 {
		t = time.Now().Add(l.pending[0].timeout)
	}
	l.nc.SetReadDeadline(t) // fails only on a closed socket, where reading fails too
}

// readLoop matches answers to calls until the connection ends, then fails what
// still waits.
func (l *link) readLoop() {
	err := l.readAnswers()
	l.abort(err)
	cause := context.Cause(l.ctx)
	l.mu.Lock()
	l.dead = true
	rest := l.pending
	l.pending = nil
	l.mu.Unlock()
	for _, c := range rest {
		l.guard("upstream", func() { c.done(nil, nil, cause) })
	}
}

func (l *link) readAnswers() error {
	for {
		resp, held, err := l.readAnswer()
		if err != nil {
			return err
		}
		if resp == nil {
			continue // it was passed on
		}
		l.mu.Lock()
		var c *call
		if len(l.pending) > 0 {
			c = l.pending[0]
			l.pending = l.pending[1:]
			l.armLocked()
		}
		l.mu.Unlock()
		corr := correlationOf(resp)
		if c == nil {
			held.release()
			return fmt.Errorf("%w: an answer to no request", errUpstreamGarbage)
		}
		if c.corr != corr {
			held.release()
			err := fmt.Errorf("%w: correlation id %d, want %d", errUpstreamGarbage, corr, c.corr)
			l.guard("upstream", func() { c.done(nil, nil, err) })
			return err
		}
		l.guard("upstream", func() { c.done(resp, held, nil) })
	}
}

// correlationOf is the correlation id that an answer begins with.
func correlationOf(resp []byte) int32 { return int32(binary.BigEndian.Uint32(resp)) }

// readAnswer reads one response frame, having taken its bytes from the budgets
// of responses first: a client that does not read its answers gets no more. It
// returns none if the answer was passed on while it came.
func (l *link) readAnswer() ([]byte, *lease, error) {
	var size [4]byte
	if _, err := io.ReadFull(l.nc, size[:]); err != nil {
		return nil, nil, fmt.Errorf("%w: read: %w", errUpstreamLost, err)
	}
	n := int(int32(binary.BigEndian.Uint32(size[:])))
	if n < 4 || n > l.limits.MaxResponseBytes {
		return nil, nil, fmt.Errorf("%w: response of %d bytes, limit %d", errUpstreamGarbage, n, l.limits.MaxResponseBytes)
	}
	passed, head, err := l.tryStream(n)
	if passed || err != nil {
		return nil, nil, err
	}
	var held *lease
	if !l.answersQuestion(n) {
		if held, err = l.room(int64(n)); err != nil {
			return nil, nil, err
		}
	}
	resp := takeBuffer(n)
	if _, err := io.ReadFull(l.nc, resp[copy(resp, head):]); err != nil {
		held.release()
		return nil, nil, fmt.Errorf("%w: read: %w", errUpstreamLost, err)
	}
	return resp, held, nil
}

// maxQuestionAnswer bounds an answer that takes no room.
const maxQuestionAnswer = 4 << 10

// answersQuestion says whether an answer of n bytes comes to a question of our own.
func (l *link) answersQuestion(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return n <= maxQuestionAnswer && len(l.pending) > 0 && l.pending[0].question
}

// room waits until an answer of n bytes may be held.
func (l *link) room(n int64) (*lease, error) {
	own, err := l.own.acquire(l.ctx, n)
	if err != nil {
		return nil, err
	}
	all, err := l.responses.acquire(l.ctx, n)
	if err != nil {
		l.own.release(own)
		return nil, err
	}
	return newLease(leasePart{l.own, own}, leasePart{l.responses, all}), nil
}
