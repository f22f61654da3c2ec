package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Call sends a request to a node and waits for the answer of its handler. Many
// calls share one connection, which is made when it is needed; nothing is sent
// twice. The payload may be changed once Call has returned, not before. Errors:
//
//   - *RemoteError: the handler ran and returned this error;
//   - ErrNotSent (with ErrBusy, ErrUnknownMethod, ErrTooLarge, *RefusedError,
//     ErrUnknownPeer or a network error): the handler did not and will not run;
//   - ErrOutcomeUnknown (with ErrConnLost, or the error of ctx): it may have run.
func (t *Transport) Call(ctx context.Context, node int32, method uint8, payload []byte) ([]byte, error) {
	if len(payload) > t.cfg.MaxMessage {
		return nil, fmt.Errorf("call node %d: %w: %w: %d bytes, at most %d", node, ErrNotSent, ErrTooLarge, len(payload), t.cfg.MaxMessage)
	}
	cc, err := t.callConn(ctx, node)
	if err != nil {
		return nil, fmt.Errorf("call node %d: %w: %w", node, ErrNotSent, err)
	}
	answer, err := cc.call(ctx, method, payload)
	var remote *RemoteError
	if err != nil && !errors.As(err, &remote) {
		err = fmt.Errorf("call node %d: %w", node, err)
	}
	return answer, err
}

// link is the way to one peer's handlers: at most one connection and at most one
// attempt to make it. Guarded by Transport.mu.
type link struct {
	conn    *callConn
	attempt *attempt
}

// attempt is a dial that any number of calls wait for.
type attempt struct {
	done chan struct{} // closed when conn and err are set
	conn *callConn
	err  error
}

// callConn returns the live connection to a node, or waits for one.
func (t *Transport) callConn(ctx context.Context, node int32) (*callConn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a, cc, err := t.attemptFor(node)
	if cc != nil || err != nil {
		return cc, err
	}
	select {
	case <-a.done:
		return a.conn, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// attemptFor returns the connection, or else the attempt to make one, which it
// starts when there is none.
func (t *Transport) attemptFor(node int32) (*attempt, *callConn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, nil, ErrClosed
	}
	l := t.links[node]
	if l == nil {
		if node == t.cfg.Self.NodeID {
			return nil, nil, fmt.Errorf("%w: it is this node", ErrUnknownPeer)
		}
		l = &link{}
		t.links[node] = l
	}
	if l.conn != nil && !l.conn.c.closed.Load() {
		return nil, l.conn, nil
	}
	if l.attempt == nil {
		l.attempt = &attempt{done: make(chan struct{})}
		a := l.attempt
		t.wg.Go(func() { t.runAttempt(node, l, a) })
	}
	return l.attempt, nil, nil
}

// runAttempt dials and, when that worked, serves the connection until it ends.
// It does not use a caller's context: others wait for the same dial.
func (t *Transport) runAttempt(node int32, l *link, a *attempt) {
	c, peer, err := t.dial(t.ctx, node, kindCalls, 0)
	if err == nil {
		a.conn = newCallConn(t, c, peer)
	}
	a.err = err
	t.mu.Lock()
	l.attempt, l.conn = nil, a.conn
	t.mu.Unlock()
	close(a.done)
	if err != nil {
		return
	}
	a.conn.run(func() {
		t.mu.Lock()
		if l.conn == a.conn {
			l.conn = nil
		}
		t.mu.Unlock()
	})
}

// callConn is the dialling side of one call connection.
type callConn struct {
	t    *Transport
	c    *conn
	node int32
	peer Hello
	w    *writer
	ping *time.Ticker
	done chan struct{} // closed when the connection ended; err is set before
	err  error

	mu      sync.Mutex
	nextID  uint64
	pending map[uint64]chan message // by request id, one slot each
}

func newCallConn(t *Transport, c *conn, peer Hello) *callConn {
	cc := &callConn{t: t, c: c, node: peer.NodeID, peer: peer, done: make(chan struct{}), pending: make(map[uint64]chan message)}
	cc.ping = time.NewTicker(t.timing.ping)
	cc.w = newWriter(c, t.timing.write, cc.ping.C, cc.done)
	return cc
}

// run reads and writes until the connection ends. onEnd runs before the calls
// that wait are told, so that a caller who tries again gets a new connection.
func (cc *callConn) run(onEnd func()) {
	defer cc.ping.Stop()
	var writing sync.WaitGroup
	var writeErr error
	writing.Go(func() {
		if writeErr = cc.w.run(); writeErr != nil {
			_ = cc.c.Close() // wakes the reader
		}
	})
	err := cc.read()
	_ = cc.c.Close()
	onEnd()
	cc.err = err
	close(cc.done)
	writing.Wait()
	if writeErr != nil {
		err = writeErr
	}
	if cc.t.ctx.Err() == nil {
		cc.t.log.Debug("call connection ended", "node", cc.node, "reason", err)
	}
}

// read hands answers to their calls.
func (cc *callConn) read() error {
	fr := &frameReader{r: bufio.NewReaderSize(idleReader{cc.c, cc.t.timing.idle}, maxChunk), max: cc.t.cfg.MaxMessage}
	for {
		m, err := fr.next()
		if err != nil {
			return err
		}
		switch m.kind {
		case framePong:
		case frameAnswer, frameError, frameBusy, frameNoMethod:
			cc.mu.Lock()
			ch := cc.pending[m.id]
			delete(cc.pending, m.id)
			cc.mu.Unlock()
			if ch != nil { // else its caller has gone
				ch <- m
			}
		default:
			return fmt.Errorf("%w: frame of kind %d from the accepting side", errProtocol, m.kind)
		}
	}
}

// call sends one request on this connection and waits for its answer.
func (cc *callConn) call(ctx context.Context, method uint8, payload []byte) ([]byte, error) {
	ch := make(chan message, 1)
	cc.mu.Lock()
	cc.nextID++
	id := cc.nextID
	cc.pending[id] = ch
	cc.mu.Unlock()
	defer func() {
		cc.mu.Lock()
		delete(cc.pending, id)
		cc.mu.Unlock()
	}()

	o := &outgoing{message: message{id: id, kind: frameRequest, method: method, payload: payload}}
	select {
	case cc.w.queue(o) <- o:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrNotSent, ctx.Err())
	case <-cc.done:
		return nil, fmt.Errorf("%w: %w: %w", ErrNotSent, ErrConnLost, cc.err)
	}
	select {
	case m := <-ch:
		return cc.result(m)
	case <-ctx.Done():
		return nil, cc.gaveUp(o, ctx.Err())
	case <-cc.done:
	}
	select {
	case m := <-ch: // the answer came before the end
		return cc.result(m)
	default:
	}
	if o.withdraw() {
		return nil, fmt.Errorf("%w: %w: %w", ErrNotSent, ErrConnLost, cc.err)
	}
	return nil, fmt.Errorf("%w: %w: %w", ErrOutcomeUnknown, ErrConnLost, cc.err)
}

// result turns an answer into what Call returns.
func (cc *callConn) result(m message) ([]byte, error) {
	switch m.kind {
	case frameAnswer:
		return m.payload, nil
	case frameBusy:
		return nil, fmt.Errorf("%w: %w", ErrNotSent, ErrBusy)
	case frameNoMethod:
		return nil, fmt.Errorf("%w: %w", ErrNotSent, ErrUnknownMethod)
	default:
		return nil, &RemoteError{Node: cc.node, Message: string(m.payload), From: cc.peer}
	}
}

// gaveUp ends a call whose context is done.
func (cc *callConn) gaveUp(o *outgoing, cause error) error {
	if o.withdraw() {
		return fmt.Errorf("%w: %w", ErrNotSent, cause)
	}
	cancel := &outgoing{message: message{id: o.id, kind: frameCancel}}
	select {
	case cc.w.small <- cancel:
	default: // a courtesy: the handler stops earlier
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, cause)
}
