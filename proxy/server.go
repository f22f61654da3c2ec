package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Server is the client side of a node. New, then Listen, then Serve; Shutdown
// or Close ends it, from any goroutine and more than once.
type Server struct {
	cfg      Config
	cluster  Cluster
	producer Producer
	log      hclog.Logger
	notices  *notices
	metrics  *metrics

	requests  *budget // request bytes of all connections
	responses *budget // bytes of the broker's answers on their way to clients
	auto      *autoCreator
	brokerID  atomic.Pointer[string] // the broker's own node id, once learnt

	openListener atomic.Bool // the broker has answered a client that had not authenticated

	stopCtx context.Context // done once the server shall end
	stop    context.CancelCauseFunc

	mu        sync.Mutex
	listeners []net.Listener
	conns     map[*conn]struct{}
	serving   bool
	wg        sync.WaitGroup // accept loops, connections, watcher
}

// New makes a server. It opens nothing.
func New(cfg Config, cluster Cluster, producer Producer) (*Server, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("configure proxy: %w", err)
	}
	s := &Server{
		cfg: cfg, cluster: cluster, producer: producer, log: cfg.Logger,
		notices:   newNotices(cfg.Logger),
		metrics:   newMetrics(),
		requests:  newBudget(cfg.Limits.MaxInflightBytes),
		responses: newBudget(int64(cfg.Limits.MaxResponseBytes)),
		conns:     make(map[*conn]struct{}),
	}
	s.stopCtx, s.stop = context.WithCancelCause(context.Background())
	s.auto = &autoCreator{ctx: s.stopCtx, create: s.autoCreate, wait: autoCreateWait, running: make(map[string]*creation)}
	return s, nil
}

// Listen binds every listener, or none. Clients may connect from here on; they
// are served from Serve on.
func (s *Server) Listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopCtx.Err() != nil {
		return ErrServerClosed
	}
	if len(s.listeners) > 0 {
		return nil
	}
	for _, l := range s.cfg.Listeners {
		ln, err := net.Listen("tcp", l.Addr)
		if err != nil {
			for _, open := range s.listeners {
				open.Close()
			}
			s.listeners = nil
			return fmt.Errorf("listen on %s for listener %s: %w", l.Addr, l.Name, err)
		}
		s.listeners = append(s.listeners, ln)
	}
	return nil
}

// Addrs returns the bound addresses, in the order of Config.Listeners; nil
// before Listen.
func (s *Server) Addrs() []net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	var addrs []net.Addr
	for _, ln := range s.listeners {
		addrs = append(addrs, ln.Addr())
	}
	return addrs
}

// Serve accepts clients until the server is closed, and returns ErrServerClosed
// then.
func (s *Server) Serve() error {
	s.mu.Lock()
	switch {
	case s.stopCtx.Err() != nil:
		s.mu.Unlock()
		return ErrServerClosed
	case len(s.listeners) == 0:
		s.mu.Unlock()
		return ErrNotListening
	case !s.serving:
		s.serving = true
		for i, ln := range s.listeners {
			s.wg.Go(func() { s.accept(ln, s.cfg.Listeners[i]) })
			s.log.Info("serving kafka clients", "listener", s.cfg.Listeners[i].Name, "address", ln.Addr().String(), "broker", s.cfg.Upstream)
		}
		s.wg.Go(s.watch)
	}
	s.mu.Unlock()
	<-s.stopCtx.Done()
	return ErrServerClosed
}

// accept serves one listener. A failing accept (no file descriptor left) waits
// a moment longer each time, as net/http does, for what is open will end.
func (s *Server) accept(ln net.Listener, l Listener) {
	const longest = time.Second
	delay := 5 * time.Millisecond
	for {
		nc, err := ln.Accept()
		if err == nil {
			delay = 5 * time.Millisecond
			s.admit(nc, l)
			continue
		}
		if s.stopCtx.Err() != nil {
			return
		}
		s.notices.warn("", "accept", "accepting a client failed; check the limit of open files", "listener", l.Name, "error", err)
		select {
		case <-time.After(delay):
			delay = min(2*delay, longest)
		case <-s.stopCtx.Done():
			return
		}
	}
}

// admit starts a connection unless there are too many.
func (s *Server) admit(nc net.Conn, l Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopCtx.Err() != nil {
		nc.Close()
		return
	}
	if len(s.conns) >= s.cfg.Limits.MaxConnections {
		nc.Close()
		s.notices.warn("", "connections", "refused a client: too many connections", "listener", l.Name,
			"remote", nc.RemoteAddr().String(), "limit", s.cfg.Limits.MaxConnections)
		return
	}
	c := newConn(s, nc, l)
	s.conns[c] = struct{}{}
	s.wg.Go(func() {
		c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
}

// watch ends polls that a new view made pointless.
func (s *Server) watch() {
	for {
		v, changed := s.cluster.Changed()
		for _, c := range s.snapshot() {
			c.up.recheck(v)
		}
		select {
		case <-changed:
		case <-s.stopCtx.Done():
			return
		}
	}
}

func (s *Server) snapshot() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	return conns
}

// Shutdown ends the server: no new connection, no new request, long polls end
// at once, what is being committed is answered. Connections still busy when
// ctx ends are cut. It returns when every goroutine of the server is gone, and
// ctx's error if anything was cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.stop(ErrServerClosed)
	for _, ln := range s.listeners {
		ln.Close()
	}
	s.mu.Unlock()
	for _, c := range s.snapshot() {
		c.stop(ErrServerClosed)
	}
	gone := make(chan struct{})
	go func() {
		s.wg.Wait()
		s.auto.wg.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
	}
	for _, c := range s.snapshot() {
		c.kill(ErrServerClosed)
	}
	<-gone
	return ctx.Err()
}

// Close is Shutdown without patience.
func (s *Server) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// unanswered logs that the broker failed a request which has no way to say so,
// and returns the cause to close the connection with.
func (s *Server) unanswered(r *request, err error) error {
	if upstreamFault(err) {
		s.notices.warn(r.c.host, "upstream "+r.api.Name, "broker did not answer; closing the client's connection",
			"api", r.api.Name, "remote", r.c.nc.RemoteAddr().String(), "broker", s.cfg.Upstream, "error", err)
	}
	return err
}

// autoCreate enters a topic with the cluster's defaults into the catalog.
func (s *Server) autoCreate(ctx context.Context, name string) error {
	err := s.cluster.CreateTopic(ctx, TopicSpec{Name: name, Partitions: s.cfg.Topics.NumPartitions})
	if err != nil {
		s.notices.warn("", "auto-create", "auto-creating a topic failed", "topic", name, "error", err)
		return err
	}
	s.log.Info("auto-created topic", "topic", name, "partitions", s.cfg.Topics.NumPartitions)
	return nil
}
