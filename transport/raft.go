package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	// DefaultRaftTimeout is the deadline of one Raft request with its answer.
	DefaultRaftTimeout = 10 * time.Second

	raftMaxPool = 3
)

// ServerID is the Raft server id of a node that a cluster began with: its
// decimal id.
func ServerID(node int32) raft.ServerID { return raft.ServerID(strconv.Itoa(int(node))) }

// NodeOf is the node of a Raft server id: the decimal number before a dot, or
// all of it; 0 if it is none.
func NodeOf(id raft.ServerID) int32 {
	number, _, _ := strings.Cut(string(id), ".")
	node, err := strconv.ParseInt(number, 10, 32)
	if err != nil {
		return 0
	}
	return int32(node)
}

// RaftTransport makes the Raft transport of one group, with a timeout per
// request (0: DefaultRaftTimeout). NodeOf says whose server ids are,
// addresses the names in Peers; the current name of an id wins over the address
// in Raft's own configuration, so that addresses may change.
//
// Close the returned transport before raft.Shutdown is waited for: it breaks
// off dials and requests to dead peers that the shutdown would otherwise wait
// out. After that the group may be opened again. Transport.Close closes it too.
func (t *Transport) RaftTransport(group uint32, logger hclog.Logger, timeout time.Duration) (*GroupTransport, error) {
	if int64(group) >= int64(t.cfg.Self.Groups) {
		return nil, fmt.Errorf("open raft group %d: there are %d", group, t.cfg.Self.Groups)
	}
	if logger == nil {
		logger = t.log
	}
	if timeout <= 0 {
		timeout = DefaultRaftTimeout
	}
	ctx, cancel := context.WithCancel(t.ctx)
	l := &streamLayer{t: t, group: group, timeout: timeout, ctx: ctx, cancel: cancel, incoming: make(chan net.Conn)}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		cancel()
		return nil, fmt.Errorf("open raft group %d: %w", group, ErrClosed)
	}
	if t.layers[group] != nil {
		cancel()
		return nil, fmt.Errorf("raft group %d is open already", group)
	}
	l.raft = newGroupTransport(l, logger)
	t.layers[group] = l
	t.wg.Go(l.raft.acceptLoop)
	return l.raft, nil
}

// overFreshConn repeats ask while it fails because the peer had closed the
// connection, at most as often as the pool can hold such connections.
func overFreshConn(ask func() error) error {
	err := ask()
	for range raftMaxPool {
		if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, net.ErrClosed) {
			return err
		}
		err = ask()
	}
	return err
}

// addressOf is the current name of a server, or the one that Raft's own
// configuration has if there is none.
func (t *Transport) addressOf(id raft.ServerID, known raft.ServerAddress) raft.ServerAddress {
	addr, err := t.peerAddr(NodeOf(id))
	if err != nil {
		return known
	}
	return raft.ServerAddress(addr)
}

// streamLayer has the streams of one group. No byte from
// outside reaches raft before the handshake of its connection has passed.
type streamLayer struct {
	t        *Transport
	group    uint32
	timeout  time.Duration
	ctx      context.Context // ends when the layer or the transport closes
	cancel   context.CancelFunc
	incoming chan net.Conn
	raft     *GroupTransport // guarded by t.mu
}

// accept returns the next incoming stream, net.ErrClosed after the end; only
// the group's accepting goroutine calls it.
func (l *streamLayer) accept() (net.Conn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// dial opens a stream to a node. An address does not say who is meant: it may
// have been another node's, which is still known.
func (l *streamLayer) dial(node int32, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := l.ctx, context.CancelFunc(func() {})
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
	}
	defer cancel()
	c, _, err := l.t.dial(ctx, node, kindRaft, l.group)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// close ends the group's connections. It is idempotent.
func (l *streamLayer) close() {
	l.cancel()
	l.t.mu.Lock()
	if l.t.layers[l.group] == l {
		delete(l.t.layers, l.group)
	}
	l.t.mu.Unlock()
	l.t.reg.closeWhere(func(c *conn) bool { return c.kind == kindRaft && c.group == l.group })
}

// addr is the name under which the others know us.
func (l *streamLayer) addr() string {
	addr, err := l.t.peerAddr(l.t.cfg.Self.NodeID)
	if err != nil {
		return l.t.cfg.Listen
	}
	return addr
}

// layer is the open layer of a group.
func (t *Transport) layer(group uint32) (*streamLayer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.layers[group]; l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("raft group %d is not open on node %d", group, t.cfg.Self.NodeID)
}

// deliverRaft hands an accepted stream to raft.
func (t *Transport) deliverRaft(c *conn, group uint32) {
	l, err := t.layer(group)
	if err != nil {
		_ = c.Close() // closed since the handshake
		return
	}
	t.inbound.Add(1)
	in := &raftConn{conn: c, timeout: l.timeout, release: sync.OnceFunc(t.inbound.Done)}
	select {
	case l.incoming <- in:
	case <-l.ctx.Done():
		_ = in.Close()
	}
}

// raftConn is an accepted Raft stream: raft sets no deadlines on that side.
type raftConn struct {
	*conn
	timeout time.Duration
	release func()
}

// Read reports every end of the stream as a plain one: raft logs anything else
// as an error, and peers that die or are cut off are no news at this level.
func (c *raftConn) Read(b []byte) (int, error) {
	n, err := c.conn.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		c.reg.log.Debug("raft stream ended", "error", err)
		err = io.EOF
	}
	return n, err
}

// Write gives up on a peer that reads nothing any more.
func (c *raftConn) Write(b []byte) (int, error) {
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.conn.Write(b)
}

// Close is called by the reading goroutine as the last thing it does.
func (c *raftConn) Close() error {
	err := c.conn.Close()
	c.release()
	return err
}
