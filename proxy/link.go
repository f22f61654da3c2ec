package proxy

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

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
