package transport

import (
	"net"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
)

// noNode is the owner of a connection whose handshake has not named it yet.
const noNode int32 = -1

// conn is one tracked internode connection. Close, from any goroutine, breaks
// reads and writes that have no deadline.
type conn struct {
	net.Conn          // what is read and written: raw, or TLS over it; set before the stream is handed on
	raw      net.Conn // the TCP connection. Closing it, not the TLS layer, never waits for the peer
	reg      *registry
	once     sync.Once
	closed   atomic.Bool

	// guarded by reg.mu
	node     int32
	kind     streamKind
	group    uint32
	incoming bool
}

// Close closes the TCP connection and forgets it. TLS sends no farewell: a peer
// that is half gone could hold it up.
func (c *conn) Close() error {
	var err error
	c.once.Do(func() {
		c.closed.Store(true)
		c.reg.remove(c)
		err = c.raw.Close()
	})
	return err
}

// registry knows every open connection, so that Close, CutRaft and DropPeer can
// break them. It owns the fields of conn that say whose connection it is.
type registry struct {
	mu     sync.Mutex
	conns  map[*conn]struct{}
	closed bool
	cut    bool // CutRaft was called
	log    hclog.Logger
}

// add begins to track a connection; false when the transport is closed, and the
// connection then is too.
func (r *registry) add(raw net.Conn, incoming bool) (*conn, bool) {
	c := &conn{Conn: raw, raw: raw, reg: r, node: noNode, incoming: incoming}
	r.mu.Lock()
	if !r.closed {
		r.conns[c] = struct{}{}
		r.mu.Unlock()
		return c, true
	}
	r.mu.Unlock()
	_ = raw.Close()
	return nil, false
}

// claim says whose connection it is and what it carries. It must happen before
// the Gate is asked: a DropPeer or CutRaft that runs at the same moment then
// either finds the connection or has changed what is asked after it.
func (r *registry) claim(c *conn, node int32, kind streamKind, group uint32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	if r.cut && kind == kindRaft {
		return ErrRaftCut
	}
	c.node, c.kind, c.group = node, kind, group
	return nil
}

func (r *registry) remove(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

// closeWhere closes the connections that match; match runs under the lock.
func (r *registry) closeWhere(match func(*conn) bool) int {
	r.mu.Lock()
	var found []*conn
	for c := range r.conns {
		if match(c) {
			found = append(found, c)
		}
	}
	r.mu.Unlock()
	for _, c := range found {
		_ = c.Close()
	}
	return len(found)
}

// count is the number of connections that match.
func (r *registry) count(match func(*conn) bool) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for c := range r.conns {
		if match(c) {
			n++
		}
	}
	return n
}

// closeAll closes every connection and refuses later ones.
func (r *registry) closeAll() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.closeWhere(func(*conn) bool { return true })
}

// cutRaft closes every Raft stream and refuses later ones.
func (r *registry) cutRaft() int {
	r.mu.Lock()
	r.cut = true
	r.mu.Unlock()
	return r.closeWhere(func(c *conn) bool { return c.kind == kindRaft })
}

func (r *registry) isCut() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cut
}
