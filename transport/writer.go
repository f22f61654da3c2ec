package transport

import (
	"bufio"
	"net"
	"sync"
	"time"
)

const (
	writeQueue   = 64 // messages that may wait for the writer before their senders do
	writesPerRun = 64 // small messages written between two parts of a large one
)

// outgoing is a message on its way out. The writer copies its payload part by
// part under mu, never holding it while it writes to the network, so a sender
// that gives up gets its payload back at once.
type outgoing struct {
	message
	taken     func() // if not nil: called by the writer before the last part leaves
	mu        sync.Mutex
	sent      int  // payload bytes the writer has taken
	finished  bool // the last part was taken: it may reach the peer
	withdrawn bool
}

// withdraw takes the message back; false when it may already reach the peer.
// In both cases the writer does not touch the payload afterwards.
func (o *outgoing) withdraw() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.payload = nil
	o.withdrawn = !o.finished
	return o.withdrawn
}

// take encodes the next part into b, which has room for the largest frame. It
// returns the bytes to send (none when withdrawn before the first part) and
// whether more is to come.
func (o *outgoing) take(b []byte) ([]byte, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.withdrawn && o.sent == 0:
		return nil, false
	case o.withdrawn:
		putHeader(b, o.id, frameAbort, 0, 0)
		return b[:frameHeader], false
	}
	n := min(len(o.payload)-o.sent, maxChunk)
	kind := o.kind
	more := o.sent+n < len(o.payload)
	if more {
		kind |= moreFollows
	}
	putHeader(b, o.id, kind, o.method, n)
	copy(b[frameHeader:], o.payload[o.sent:o.sent+n])
	o.sent += n
	if !more {
		o.finished, o.payload = true, nil
		if o.taken != nil {
			o.taken()
		}
	}
	return b[:frameHeader+n], more
}

// writer owns the writing half of a call connection. Messages in one part and
// messages in several wait in two queues, and take turns.
type writer struct {
	small, large chan *outgoing
	pong         chan struct{}    // one slot: a ping is unanswered
	ping         <-chan time.Time // nil on the accepting side
	stop         <-chan struct{}  // closed when the connection ended

	out *bufio.Writer
	buf []byte
}

// newWriter makes the writer of a connection; run works until stop is closed.
func newWriter(c net.Conn, timeout time.Duration, ping <-chan time.Time, stop <-chan struct{}) *writer {
	return &writer{
		small: make(chan *outgoing, writeQueue),
		large: make(chan *outgoing),
		pong:  make(chan struct{}, 1),
		ping:  ping,
		stop:  stop,
		out:   bufio.NewWriterSize(deadlineWriter{c, timeout}, maxChunk+frameHeader),
		buf:   make([]byte, frameHeader+maxChunk),
	}
}

// queue is where a message waits, by its size.
func (w *writer) queue(o *outgoing) chan<- *outgoing {
	if len(o.payload) > maxChunk {
		return w.large
	}
	return w.small
}

// run writes until stop is closed or a write fails. Every round ends with a
// flush, so what was taken is never left in the buffer.
func (w *writer) run() error {
	var large *outgoing
	for {
		if large == nil {
			var err error
			select {
			case large = <-w.large:
			case o := <-w.small:
				_, err = w.put(o)
			case <-w.pong:
				err = w.putBare(framePong)
			case <-w.ping:
				err = w.putBare(framePing)
			case <-w.stop:
				return nil
			}
			if err != nil {
				return err
			}
		}
		if large != nil {
			more, err := w.put(large)
			if err != nil {
				return err
			}
			if !more {
				large = nil
			}
		}
		if err := w.drain(); err != nil {
			return err
		}
		if err := w.out.Flush(); err != nil {
			return err
		}
	}
}

// drain writes what waits now and is small.
func (w *writer) drain() error {
	for range writesPerRun {
		var err error
		select {
		case o := <-w.small:
			_, err = w.put(o)
		case <-w.pong:
			err = w.putBare(framePong)
		case <-w.ping:
			err = w.putBare(framePing)
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) put(o *outgoing) (more bool, err error) {
	b, more := o.take(w.buf)
	_, err = w.out.Write(b)
	return more, err
}

func (w *writer) putBare(kind uint8) error {
	putHeader(w.buf, 0, kind, 0, 0)
	_, err := w.out.Write(w.buf[:frameHeader])
	return err
}

// answerPing asks for a pong without waiting.
func (w *writer) answerPing() {
	select {
	case w.pong <- struct{}{}:
	default: // one is asked for already
	}
}

// deadlineWriter gives every write its own deadline.
type deadlineWriter struct {
	c       net.Conn
	timeout time.Duration
}

func (w deadlineWriter) Write(b []byte) (int, error) {
	if err := w.c.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
		return 0, err
	}
	return w.c.Write(b)
}

// idleReader ends a connection on which nothing arrives for too long.
type idleReader struct {
	c       net.Conn
	timeout time.Duration
}

func (r idleReader) Read(b []byte) (int, error) {
	if err := r.c.SetReadDeadline(time.Now().Add(r.timeout)); err != nil {
		return 0, err
	}
	return r.c.Read(b)
}
