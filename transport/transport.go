package transport

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Defaults of Config.
const (
	DefaultDialTimeout      = 2 * time.Second
	DefaultHandshakeTimeout = 5 * time.Second
	DefaultMaxMessage       = 24 << 20
	DefaultMaxHandlers      = 256

	maxStrangers = 128 // connections inside their handshake at one time
)

// Config describes the internode port of one node.
type Config struct {
	// Self is what this node says of itself in every handshake.
	Self Hello

	// Listen is the address to bind, host:port.
	Listen string

	// Peers holds host:port of every node by node id, this one included. They
	// are names: each dial resolves them again. SetPeer changes them later.
	Peers map[int32]string

	// TLS turns mutual TLS on; nil means plaintext, for loopback or an operator
	// who said so.
	TLS *TLS

	// DialTimeout bounds name resolution and TCP connection, HandshakeTimeout
	// everything from there to the exchanged Hellos. Zero means the default.
	DialTimeout      time.Duration
	HandshakeTimeout time.Duration

	// MaxMessage is the largest payload of a call and of an answer in bytes.
	MaxMessage int

	// MaxHandlers bounds the handlers running for one connection. A call above
	// it is refused with ErrBusy, never queued: queues of two nodes that call
	// each other would wait for each other.
	MaxHandlers int

	// Logger may be nil.
	Logger hclog.Logger
}

// withDefaults fills the zero fields.
func (c Config) withDefaults() Config {
	if c.DialTimeout <= 0 {
		c.DialTimeout = DefaultDialTimeout
	}
	if c.HandshakeTimeout <= 0 {
		c.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if c.MaxMessage <= 0 {
		c.MaxMessage = DefaultMaxMessage
	}
	if c.MaxHandlers <= 0 {
		c.MaxHandlers = DefaultMaxHandlers
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	c.Peers = maps.Clone(c.Peers)
	if c.Peers == nil {
		c.Peers = make(map[int32]string)
	}
	return c
}

// Gate decides whether a peer may open, or be given, a stream. Admit is called
// for every incoming and every outgoing handshake, after the checks of this
// package (cluster id, number of groups, known node, certificate), from any
// goroutine, and must not block: the peer waits. The text of its error is sent
// to the peer. Whoever withdraws an admission calls DropPeer afterwards.
type Gate interface {
	Admit(peer Hello, raftStream bool) error
}

// GateFunc is a Gate made of a function.
type GateFunc func(peer Hello, raftStream bool) error

// Admit calls the function.
func (f GateFunc) Admit(peer Hello, raftStream bool) error { return f(peer, raftStream) }

// Handler answers one call. It runs in its own goroutine; ctx ends when the
// caller gave up, the connection ended or the transport closes, and the handler
// must return soon after, because Close waits for it. The payload is the
// handler's own; the answer must not be changed after it was returned. An error
// reaches the caller as *RemoteError, by its text.
type Handler func(ctx context.Context, from Hello, payload []byte) ([]byte, error)

// Transport is one node's internode port: Raft streams and calls, in both
// directions. All methods may be called from any goroutine.
type Transport struct {
	cfg  Config
	gate Gate
	log  hclog.Logger

	reg     *registry
	quiet   *quiet
	timing  timing
	inbound sync.WaitGroup // Raft connections that are read
	wg      sync.WaitGroup // every goroutine started by spawn
	ctx     context.Context
	cancel  context.CancelFunc

	recovery atomic.Int32 // what this node says of itself, see SetRecovery

	mu       sync.Mutex // guards everything below
	listener net.Listener
	serving  bool
	closed   bool
	peers    map[int32]string
	links    map[int32]*link
	layers   map[uint32]*streamLayer
	handlers map[uint8]Handler
}

// timing holds the intervals tests shorten.
type timing struct {
	ping  time.Duration // a dialled call connection says something at least this often
	idle  time.Duration // a call connection that is silent for longer is dead
	write time.Duration // one write that takes longer ends its connection
}

// New makes a transport that does nothing yet.
func New(cfg Config, gate Gate) *Transport {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	return &Transport{
		cfg:      cfg,
		gate:     gate,
		log:      cfg.Logger,
		reg:      &registry{conns: make(map[*conn]struct{}), log: cfg.Logger},
		quiet:    newQuiet(),
		timing:   timing{ping: 3 * time.Second, idle: 10 * time.Second, write: 10 * time.Second},
		ctx:      ctx,
		cancel:   cancel,
		peers:    cfg.Peers,
		links:    make(map[int32]*link),
		layers:   make(map[uint32]*streamLayer),
		handlers: make(map[uint8]Handler),
	}
}

// Listen checks the configuration and binds the port. Nothing is accepted
// before Serve.
func (t *Transport) Listen() error {
	if t.gate == nil {
		return errors.New("listen: a gate is required")
	}
	if err := t.cfg.Self.validate(); err != nil {
		return fmt.Errorf("listen: own hello: %w", err)
	}
	if _, err := encodeHello(t.cfg.Self); err != nil {
		return fmt.Errorf("listen: own hello: %w", err)
	}
	ln, err := (&net.ListenConfig{KeepAliveConfig: keepAlive}).Listen(t.ctx, "tcp", t.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for peers on %s: %w", t.cfg.Listen, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.listener != nil {
		_ = ln.Close()
		if t.closed {
			return fmt.Errorf("listen: %w", ErrClosed)
		}
		return errors.New("listen: already listening")
	}
	t.listener = ln
	return nil
}

// Addr is the bound address, nil before Listen.
func (t *Transport) Addr() net.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.listener == nil {
		return nil
	}
	return t.listener.Addr()
}

// Serve starts to accept peers and returns. Handlers must be registered before.
func (t *Transport) Serve() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return fmt.Errorf("serve: %w", ErrClosed)
	case t.listener == nil:
		return errors.New("serve: call Listen first")
	case t.serving:
		return errors.New("serve: already serving")
	}
	t.serving = true
	ln := t.listener
	t.wg.Go(func() { t.acceptLoop(ln) })
	return nil
}

// Open is Listen and Serve.
func (t *Transport) Open() error {
	if err := t.Listen(); err != nil {
		return err
	}
	return t.Serve()
}

// Close stops listening, breaks every connection and waits for the goroutines
// of this package, the running handlers included. Raft transports made by
// RaftTransport are closed too. It is idempotent; a second caller waits as well.
func (t *Transport) Close() error {
	t.mu.Lock()
	t.closed = true
	ln := t.listener
	layers := make([]*streamLayer, 0, len(t.layers))
	for _, l := range t.layers {
		layers = append(layers, l)
	}
	t.mu.Unlock()

	if ln != nil {
		_ = ln.Close()
	}
	// Connections end before contexts do: a handler that is told to stop must
	// not be able to send what it made of that as an answer.
	t.reg.closeAll()
	t.cancel()
	for _, l := range layers {
		_ = l.raft.Close() // never fails
	}
	t.wg.Wait()
	// Only the goroutines waited for above hand connections to raft, so no
	// inbound.Add can run from here on.
	t.inbound.Wait()
	return nil
}

// Handle registers the handler of a method. It panics on a second handler for
// the same method or after Serve: both are mistakes of the program.
func (t *Transport) Handle(method uint8, h Handler) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, dup := t.handlers[method]; dup || t.serving {
		panic(fmt.Sprintf("transport: handler for method %d registered twice or after Serve", method))
	}
	t.handlers[method] = h
}

// SetPeer sets the address of a node, or forgets the node when addr is empty.
// Connections to an address that changed are closed.
func (t *Transport) SetPeer(node int32, addr string) {
	t.mu.Lock()
	old := t.peers[node]
	if addr == "" {
		delete(t.peers, node)
	} else {
		t.peers[node] = addr
	}
	t.mu.Unlock()
	if old != "" && old != addr {
		t.DropPeer(node)
	}
}

// self is what this node says of itself now.
func (t *Transport) self() Hello {
	h := t.cfg.Self
	h.Recovery = max(h.Recovery, int16(t.recovery.Load()))
	return h
}

// SetRecovery raises the recovery number that this node says of itself. It
// closes every connection, so that the peers hear it.
func (t *Transport) SetRecovery(number int16) {
	t.recovery.Store(int32(number))
	t.reg.closeWhere(func(*conn) bool { return true })
}

// DropPeer closes every connection with a node, in both directions. The Gate
// decides whether they come back.
func (t *Transport) DropPeer(node int32) {
	n := t.reg.closeWhere(func(c *conn) bool { return c.node == node })
	if n > 0 {
		t.log.Info("closed connections of peer", "node", node, "connections", n)
	}
}

// CutRaft closes every Raft stream and refuses new ones, both ways, until the
// process ends; calls go on. It is for a node whose disk hangs: Raft's own
// heartbeats would hide that from the others, who must elect.
func (t *Transport) CutRaft() {
	n := t.reg.cutRaft()
	t.log.Error("raft streams cut on this node; restart it once the cause is repaired", "connections", n)
}

// peerAddr is the current address of a node.
func (t *Transport) peerAddr(node int32) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	addr, ok := t.peers[node]
	if !ok {
		return "", fmt.Errorf("node %d: %w", node, ErrUnknownPeer)
	}
	return addr, nil
}

// spawn runs f in a goroutine that Close waits for; false after Close began.
func (t *Transport) spawn(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Go(f)
	return true
}
