package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/internal/failpoint"
	"lockstep/kafkawire"
)

// slot is a request's place in the order of responses.
type slot struct {
	doneCh   chan struct{} // closed by finish
	finished atomic.Bool
	awaited  atomic.Bool // the writer waits for it

	// Set by finish, read by the writer after doneCh.
	resp     []byte  // the frame without its length; nil: nothing to write
	rest     *stream // what follows resp, nil if nothing does
	size     int     // of the frame, with rest
	held     *lease  // response bytes
	closeErr error   // close the connection instead of answering

	request *lease // the request's bytes; released by the writer

	// What is counted. Set by the reader before it passes the slot on, but for
	// code, which is set as resp is.
	since        time.Time
	asked        int // bytes of the request
	key, version int16
	code         int16 // the first error in the answer
}

// finish gives the slot its outcome. Only the first call counts.
func (s *slot) finish(resp []byte, held *lease, closeErr error) { s.finishAs(0, resp, held, closeErr) }

// finishAs is finish for an answer in which code is the first error.
func (s *slot) finishAs(code int16, resp []byte, held *lease, closeErr error) {
	if !s.finished.CompareAndSwap(false, true) {
		held.release()
		return
	}
	s.resp, s.held, s.closeErr, s.code = resp, held, closeErr, code
	close(s.doneCh)
}

// conn is one client connection. Two goroutines own it: the reader takes frames
// and starts the work, the writer answers in the order of the slots. Work that
// waits for others (commits, the broker) finishes its slot from elsewhere.
type conn struct {
	srv      *Server
	nc       net.Conn      // with TLS, where the listener has it
	raw      net.Conn      // nc, without
	br       *bufio.Reader // owned by the reader
	listener string
	host     string // remote host, for notices
	log      hclog.Logger

	// ctx is done when the connection shall take no more work; deadCh is
	// closed when what is unanswered stays so.
	ctx    context.Context
	cancel context.CancelCauseFunc
	deadCh chan struct{}
	dead   sync.Once

	slots    chan *slot // reader to writer, in request order; closed by the reader
	budget   *budget    // this connection's request bytes
	up       *upstream
	letIn    bool                     // the broker answers this client; owned by the reader
	shown    bool                     // it was told of topics; owned by the reader
	access   map[string]access        // what the broker said that the client may do with topics; owned by the reader
	cluster  access                   // the same with the cluster; owned by the reader
	sentAway map[TopicPartition]int64 // fetch offset with which the client was sent to a follower; owned by the reader
	work     sync.WaitGroup           // helpers of requests, ended by ctx
	lastDone atomic.Int64             // UnixNano of the last response written
	inFlight atomic.Int32             // slots not yet dealt with by the writer

	needsSASL  atomic.Bool               // the client must authenticate before anything else
	sessionEnd atomic.Pointer[time.Time] // when it must have done so again; nil: never
	mechanism  string                    // of SASL, as the client named it last; owned by the reader
}

func newConn(s *Server, nc net.Conn, l Listener) *conn {
	raw, listener := nc, l.Name
	if l.TLS != nil {
		nc = tls.Server(raw, l.TLS)
	}
	host := nc.RemoteAddr().String()
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	c := &conn{
		srv: s, nc: nc, raw: raw, listener: listener, host: host,
		br:     bufio.NewReaderSize(nc, 16<<10),
		log:    s.log.With("remote", nc.RemoteAddr().String(), "listener", listener),
		deadCh: make(chan struct{}),
		slots:  make(chan *slot, s.cfg.Limits.MaxRequestsInFlightPerConn),
		budget: newBudget(s.cfg.Limits.MaxInflightBytesPerConn),
	}
	c.ctx, c.cancel = context.WithCancelCause(s.stopCtx)
	c.up = &upstream{addr: s.cfg.Upstream, tls: s.cfg.UpstreamTLS, limits: s.cfg.Limits, responses: s.responses, own: newBudget(minFetchBytes)}
	c.needsSASL.Store(l.SASL)
	c.up.guard = c.guard
	c.up.onLost = func() { c.stop(errSessionLost) }
	return c
}

// serve runs the connection to its end.
func (c *conn) serve() {
	var writer sync.WaitGroup
	writer.Go(c.writeLoop)
	err := c.secure()
	if err == nil {
		err = c.readLoop()
	}
	close(c.slots)
	if errors.Is(err, errClientGone) {
		c.kill(err)
	}
	// Whoever breaks the protocol waits for nothing: polls end now, so that
	// the answers already owed can leave before the connection closes.
	c.up.close(err)
	writer.Wait()
	c.kill(err)
	c.up.wg.Wait()
	c.work.Wait()
	c.explain(err)
}

// stop ends the reading; what was taken is still answered. Any goroutine.
func (c *conn) stop(cause error) {
	c.cancel(cause)
	c.nc.SetReadDeadline(time.Unix(1, 0)) // wakes the reader; it looks at ctx before it sets another
	c.up.close(cause)
}

// kill ends the connection at once. Any goroutine.
func (c *conn) kill(cause error) {
	c.cancel(cause)
	c.dead.Do(func() { close(c.deadCh) })
	if errors.Is(cause, ErrServerClosed) {
		c.raw.Close() // closing TLS may wait for the client, one after the other
	}
	c.nc.Close()
	c.up.close(cause)
}

// guard runs fn and turns a panic into the end of this connection alone.
func (c *conn) guard(what string, fn func()) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("panic while serving a request; connection closed, please report this",
				"api", what, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			c.kill(errPanic)
		}
	}()
	fn()
}

// writeLoop answers in the order of the slots. It is the only writer.
func (c *conn) writeLoop() {
	w := bufio.NewWriterSize(&progressWriter{nc: c.nc, timeout: c.srv.cfg.Limits.WriteTimeout}, 16<<10)
	alive := true
	for s := range c.slots {
		if alive {
			if err := c.answer(w, s); err != nil {
				alive = false
				c.kill(err)
			}
		}
		// After the end the slots are only emptied. A slot that is still
		// being worked on keeps its bytes until it is finished.
		c.settle(s)
	}
	if alive {
		_ = w.Flush() // the client is gone: nobody to tell
	}
}

// answer waits for one slot and writes its response.
func (c *conn) answer(w *bufio.Writer, s *slot) error {
	select {
	case <-s.doneCh:
	default:
		if err := w.Flush(); err != nil {
			return fmt.Errorf("%w: %w", errClientWrite, err)
		}
		s.awaited.Store(true)
		select {
		case <-s.doneCh:
		case <-c.deadCh:
			return context.Cause(c.ctx)
		}
	}
	defer c.srv.metrics.answer(s)
	if s.closeErr != nil {
		_ = w.Flush() // what precedes is owed; the close follows in any case
		return s.closeErr
	}
	if s.rest != nil {
		if err := c.passOn(w, s); err != nil {
			return err
		}
	} else if s.resp != nil {
		if err := kafkawire.WriteFrame(w, s.resp); err != nil {
			return fmt.Errorf("%w: %w", errClientWrite, err)
		}
	}
	if len(c.slots) == 0 {
		if err := w.Flush(); err != nil {
			return fmt.Errorf("%w: %w", errClientWrite, err)
		}
	}
	failpoint.Hit(failpoint.AnswerWritten)
	c.lastDone.Store(time.Now().UnixNano())
	return nil
}

// passOn writes an answer while it comes from the broker. After an error the
// client has a part of it, and nothing may follow.
func (c *conn) passOn(w *bufio.Writer, s *slot) error {
	_, err := w.Write(kafkawire.AppendFrameSize(nil, s.size))
	if err == nil {
		_, err = w.Write(s.resp)
	}
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errClientWrite, err)
	}
	if err := s.rest.passTo(c.nc, c.srv.cfg.Limits.WriteTimeout); err != nil {
		return fmt.Errorf("%w: %w", errStreamCut, err)
	}
	s.rest.end(nil)
	return nil
}

// settle gives back what a slot holds, now or when its work ends.
func (c *conn) settle(s *slot) {
	c.inFlight.Add(-1)
	select {
	case <-s.doneCh:
		s.rest.end(errStreamCut) // unless it was passed on
		s.held.release()
		s.request.release()
	default:
		s.abandon()
	}
}

// abandon releases the slot's bytes in place of whoever finishes it later.
func (s *slot) abandon() {
	if s.finished.CompareAndSwap(false, true) {
		s.request.release()
		return
	}
	<-s.doneCh // finish is between its two steps
	s.rest.end(errStreamCut)
	s.held.release()
	s.request.release()
}

// progressWriter writes in pieces and gives each its own deadline: a slow
// client is served, one that reads nothing is not waited for.
type progressWriter struct {
	nc      net.Conn
	timeout time.Duration
}

const writePiece = 256 << 10

// Write implements io.Writer.
func (p *progressWriter) Write(b []byte) (int, error) {
	var done int
	for done < len(b) {
		piece := b[done:min(len(b), done+writePiece)]
		if err := p.nc.SetWriteDeadline(time.Now().Add(p.timeout)); err != nil {
			return done, err
		}
		n, err := p.nc.Write(piece)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}
