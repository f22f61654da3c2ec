package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Large answers of the broker to a Fetch of one partition are passed on while
// they come: the fixed part in front of the records is patched, then the rest
// goes from one socket to the other, by splice(2) where the kernel can (Go's
// net.TCPConn.ReadFrom), with no more of it in memory than the kernel's buffers
// hold. Only the connection's writer may write to the client, so this is done
// where it waits for this very answer; else the answer is read first, as any
// other is, for who waits on the writer may in turn wait for the link.

const (
	// minStream is the size of an answer from which it is passed on while it
	// comes.
	minStream = 64 << 10
	// streamHead is how much of an answer is read before: more than stands
	// before the records of one partition, with the longest name of a topic.
	streamHead = 512
)

// errStreamCut is the cause when a broker's answer ended after a part of it was
// passed on: the client has a piece of a frame, and nothing can follow it.
var errStreamCut = errors.New("broker's answer was cut off while it was passed on")

// stream is what is left of an answer that is passed on while it comes. The
// link's reader makes it and waits for its end, the client's writer reads it.
type stream struct {
	src     net.Conn
	size    int64         // bytes left
	timeout time.Duration // the broker's, without progress

	once sync.Once
	done chan struct{} // closed by end
	err  error         // set before
}

// end says that nobody reads the stream any more: nil if it was read to its end.
// The first call counts.
func (s *stream) end(err error) {
	if s != nil {
		s.once.Do(func() {
			s.err = err
			close(s.done)
		})
	}
}

// passTo writes the rest of the answer to the client, in pieces of which each
// has its own time, as progressWriter does.
func (s *stream) passTo(nc net.Conn, timeout time.Duration) error {
	for s.size > 0 {
		piece := min(s.size, writePiece)
		now := time.Now()
		// While the client takes what came before, the broker is not read.
		if err := errors.Join(nc.SetWriteDeadline(now.Add(timeout)), s.src.SetReadDeadline(now.Add(timeout+s.timeout))); err != nil {
			return err
		}
		n, err := io.CopyN(nc, s.src, piece)
		s.size -= n
		switch {
		case err == nil:
		case isTimeout(err) && time.Since(now) < timeout+s.timeout: // the broker's time is not over
			return fmt.Errorf("%w: %w", errClientWrite, err)
		default:
			return err
		}
	}
	return nil
}

// offer is a call's chance to have its answer passed on while it comes. It is
// given the frame's start, without its length, and the frame's size, and
// reports whether the writer took rest. If not, it has written to nothing.
type offer func(head []byte, size int, rest *stream) bool

// tryStream reads the start of an answer of n bytes to the oldest call, if that
// makes offers, and has the rest passed on if it is taken. If not, head is what
// was read.
func (l *link) tryStream(n int) (passed bool, head []byte, err error) {
	l.mu.Lock()
	var c *call
	if len(l.pending) > 0 {
		c = l.pending[0]
	}
	l.mu.Unlock()
	if c == nil || c.offer == nil || n < minStream {
		return false, nil, nil
	}
	head = make([]byte, streamHead)
	if _, err := io.ReadFull(l.nc, head); err != nil {
		return false, nil, fmt.Errorf("%w: read: %w", errUpstreamLost, err)
	}
	if correlationOf(head) != c.corr {
		return false, head, nil // found out when all has come
	}
	// From here to its end the deadline is the stream's: a request sent
	// meanwhile must not cut it short by its own.
	l.mu.Lock()
	l.passing = true
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.passing = false
		if passed {
			l.armLocked()
		}
		l.mu.Unlock()
	}()
	rest := &stream{src: l.nc, size: int64(n - len(head)), timeout: l.limits.UpstreamTimeout, done: make(chan struct{})}
	taken := false
	l.guard("upstream", func() { taken = c.offer(head, n, rest) })
	if !taken {
		return false, head, nil
	}
	l.mu.Lock()
	l.pending = l.pending[1:]
	l.mu.Unlock()
	<-rest.done
	if rest.err != nil {
		return false, nil, fmt.Errorf("%w: %w", errUpstreamLost, rest.err)
	}
	return true, nil, nil
}

// finishStream is finish with an answer of which only the start has come. It
// reports false, and has done nothing, unless the writer waits for this slot.
func (s *slot) finishStream(head []byte, size int, rest *stream) bool {
	if !s.awaited.Load() || !s.finished.CompareAndSwap(false, true) {
		return false
	}
	s.resp, s.size, s.rest = head, size, rest
	close(s.doneCh)
	return true
}
