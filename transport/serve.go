package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"
)

const (
	maxErrorText = 4096 // bytes of a handler's error that travel
	bytesPerConn = 4    // times MaxMessage: what the running handlers of one connection may hold
)

// server is the accepting side of one call connection.
type server struct {
	t        *Transport
	from     Hello
	w        *writer
	done     chan struct{} // closed when the connection ended
	ctx      context.Context
	handlers sync.WaitGroup

	mu      sync.Mutex
	running map[uint64]context.CancelFunc // by request id
	unsent  int                           // answers the writer has not taken
	bytes   int                           // payloads of the running requests and the unsent answers
}

// serveCalls answers the calls of one connection until it ends, in the
// goroutine of the handshake, and returns when its handlers have.
func (t *Transport) serveCalls(c *conn, from Hello) {
	ctx, cancel := context.WithCancel(t.ctx)
	s := &server{t: t, from: from, done: make(chan struct{}), ctx: ctx, running: make(map[uint64]context.CancelFunc)}
	s.w = newWriter(c, t.timing.write, nil, s.done)
	s.handlers.Go(func() {
		if err := s.w.run(); err != nil {
			_ = c.Close() // wakes the reader
		}
	})
	err := s.read(c)
	_ = c.Close()
	cancel()
	close(s.done)
	s.handlers.Wait()
	switch {
	case t.ctx.Err() != nil:
	case errors.Is(err, errProtocol):
		t.log.Error("closed call connection of a peer that broke the protocol", "node", from.NodeID, "version", from.Version, "error", err)
	default:
		t.log.Debug("call connection ended", "node", from.NodeID, "reason", err)
	}
}

// read starts the handlers.
func (s *server) read(c *conn) error {
	fr := &frameReader{r: bufio.NewReaderSize(idleReader{c, s.t.timing.idle}, maxChunk), max: s.t.cfg.MaxMessage}
	for {
		m, err := fr.next()
		if err != nil {
			return err
		}
		switch m.kind {
		case framePing:
			s.w.answerPing()
		case frameCancel:
			s.mu.Lock()
			if cancel := s.running[m.id]; cancel != nil {
				cancel()
			}
			s.mu.Unlock()
		case frameRequest:
			if err := s.start(m); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: frame of kind %d from the dialling side", errProtocol, m.kind)
		}
	}
}

// start runs the handler of a request, or says why not.
func (s *server) start(m message) error {
	s.t.mu.Lock()
	h := s.t.handlers[m.method]
	s.t.mu.Unlock()
	if h == nil {
		s.send(message{id: m.id, kind: frameNoMethod})
		return nil
	}
	s.mu.Lock()
	if s.running[m.id] != nil {
		s.mu.Unlock()
		return fmt.Errorf("%w: request id %d is in use", errProtocol, m.id)
	}
	limit := s.t.cfg.MaxHandlers
	if len(s.running) >= limit || s.unsent >= limit || s.bytes+len(m.payload) > bytesPerConn*s.t.cfg.MaxMessage {
		s.mu.Unlock()
		s.send(message{id: m.id, kind: frameBusy})
		return nil
	}
	ctx, cancel := context.WithCancel(s.ctx)
	s.running[m.id] = cancel
	s.bytes += len(m.payload)
	s.mu.Unlock()
	s.handlers.Go(func() { s.handle(ctx, cancel, h, m) })
	return nil
}

// handle runs one handler and sends its answer.
func (s *server) handle(ctx context.Context, cancel context.CancelFunc, h Handler, m message) {
	size := len(m.payload)
	defer cancel()
	payload, err := h(ctx, s.from, m.payload)
	reply := message{id: m.id, kind: frameAnswer, payload: payload}
	if err == nil && len(payload) > s.t.cfg.MaxMessage {
		err = fmt.Errorf("answer of %d bytes, at most %d are allowed", len(payload), s.t.cfg.MaxMessage)
	}
	if err != nil {
		text := err.Error()
		reply.kind, reply.payload = frameError, []byte(text[:min(len(text), maxErrorText)])
	}
	// The request stops to count before its answer leaves, so that a caller who
	// keeps to the limit is never told that we are busy. Answers count by
	// themselves: a peer that does not read them gets no more handlers.
	answered := len(reply.payload)
	s.mu.Lock()
	delete(s.running, m.id)
	s.unsent++
	s.bytes += answered - size
	s.mu.Unlock()
	s.queue(&outgoing{message: reply, taken: func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unsent--
		s.bytes -= answered
	}})
}

// send queues a message, or drops it when the connection has ended.
func (s *server) send(m message) { s.queue(&outgoing{message: m}) }

func (s *server) queue(o *outgoing) {
	select {
	case s.w.queue(o) <- o:
	case <-s.done:
	}
}
