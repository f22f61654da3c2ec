package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// keepAlive finds a peer that vanished without a word within about 11 s.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

// acceptLoop owns the listener until it is closed.
func (t *Transport) acceptLoop(ln net.Listener) {
	const minDelay, maxDelay = 5 * time.Millisecond, time.Second
	delay := minDelay
	for {
		raw, err := ln.Accept()
		if err == nil {
			delay = minDelay
			t.greet(raw)
			continue
		}
		if t.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		// Out of file descriptors, most likely: it may pass.
		t.log.Error("cannot accept peers", "error", err, "retry-in", delay)
		select {
		case <-time.After(delay):
			delay = min(2*delay, maxDelay)
		case <-t.ctx.Done():
			return
		}
	}
}

// greet starts the accepting side of a handshake in its own goroutine.
func (t *Transport) greet(raw net.Conn) {
	if t.reg.count(func(c *conn) bool { return c.incoming && c.node == noNode }) >= maxStrangers {
		_ = raw.Close()
		t.logStranger(raw.RemoteAddr(), errors.New("too many connections that have not said who they are"))
		return
	}
	c, ok := t.reg.add(raw, true)
	if !ok {
		return
	}
	started := t.spawn(func() {
		o, err := t.accept(c)
		if err != nil {
			t.logAcceptError(c.RemoteAddr(), o, err)
			if refused := (refusal{}); errors.As(err, &refused) {
				t.refuse(c, refused)
			}
			_ = c.Close()
			return
		}
		t.logFine(quietKey{o.hello.NodeID, o.kind, o.group, true})
		switch o.kind {
		case kindRaft:
			t.deliverRaft(c, o.group)
		case kindCalls:
			t.serveCalls(c, o.hello)
		}
	})
	if !started {
		_ = c.Close()
	}
}

// accept is the accepting side of a handshake. When it returns nil the peer was
// welcomed and the connection has no deadline left.
func (t *Transport) accept(c *conn) (opening, error) {
	if err := c.raw.SetDeadline(time.Now().Add(t.cfg.HandshakeTimeout)); err != nil {
		return opening{}, fmt.Errorf("set handshake deadline: %w", err)
	}
	var secured *tls.Conn
	if t.cfg.TLS != nil {
		secured = tls.Server(c.raw, t.cfg.TLS.server(t.logTLS))
		if err := secured.HandshakeContext(t.ctx); err != nil {
			var notTLS tls.RecordHeaderError
			if errors.As(err, &notTLS) && string(notTLS.RecordHeader[:len(magic)]) == magic {
				return opening{}, refusal{errors.New("this node requires TLS on its internode port; enable it on all nodes or on none")}
			}
			if errors.As(err, &notTLS) {
				return opening{}, fmt.Errorf("%w: it does not speak TLS and this port does", errStranger)
			}
			return opening{}, fmt.Errorf("tls handshake: %w", err)
		}
		c.Conn = secured
	}
	o, err := readOpening(c)
	if err != nil {
		return o, err
	}
	if err := t.judge(c, o, secured); err != nil {
		return o, refusal{err}
	}
	hello, err := appendAnswer(nil, answer{protocol: protocolVersion, hello: t.self()})
	if err != nil {
		return o, err
	}
	if _, err := c.Write(hello); err != nil {
		return o, fmt.Errorf("answer peer: %w", err)
	}
	return o, c.raw.SetDeadline(time.Time{})
}

// refusal is an error that the peer is told of.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// judge is everything the accepting side checks; its error is the refusal.
func (t *Transport) judge(c *conn, o opening, secured *tls.Conn) error {
	if o.protocol != protocolVersion {
		return fmt.Errorf("internode protocol version %d is not known, this node speaks %d; upgrade one node at a time", o.protocol, protocolVersion)
	}
	if err := t.checkHello(o.hello); err != nil {
		return err
	}
	if secured != nil {
		if err := t.checkCertificate(secured, o.hello.NodeID); err != nil {
			return err
		}
	}
	if err := t.reg.claim(c, o.hello.NodeID, o.kind, o.group); err != nil {
		return err
	}
	if err := t.gate.Admit(o.hello, o.kind == kindRaft); err != nil {
		return err
	}
	if o.kind == kindRaft {
		if _, err := t.layer(o.group); err != nil {
			return err
		}
	}
	return nil
}

// refuse tells the peer why; it is a courtesy, errors do not matter. It waits
// for the peer to close first, within the handshake's deadline: closing over
// unread bytes would reset the connection and lose the reason.
func (t *Transport) refuse(c *conn, cause error) {
	b, err := appendAnswer(nil, answer{protocol: protocolVersion, refused: true, reason: cause.Error()})
	if err == nil {
		_, err = c.Write(b)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(c, openingHeader+maxHello))
	}
	if err != nil {
		t.log.Debug("refusal may not have been delivered", "error", err)
	}
}

// checkHello holds for whoever is at the other end, dialled or accepted.
func (t *Transport) checkHello(h Hello) error {
	self := t.cfg.Self
	switch {
	case h.ClusterID != self.ClusterID:
		return fmt.Errorf("cluster ids differ: node %d is of %q, node %d of %q; check cluster.id", h.NodeID, h.ClusterID, self.NodeID, self.ClusterID)
	case h.Groups != self.Groups:
		return fmt.Errorf("numbers of raft groups differ: %d on node %d, %d on node %d; check raft.groups", h.Groups, h.NodeID, self.Groups, self.NodeID)
	case h.NodeID == self.NodeID:
		return fmt.Errorf("both sides are node %d: two nodes share an id, or raft.peers leads back to its own node", self.NodeID)
	}
	if _, err := t.peerAddr(h.NodeID); err != nil {
		return fmt.Errorf("node %d is not in raft.peers of node %d", h.NodeID, self.NodeID)
	}
	return nil
}

// dial connects to a node and opens a stream. The name is resolved every time.
func (t *Transport) dial(ctx context.Context, node int32, kind streamKind, group uint32) (*conn, Hello, error) {
	c, hello, err := t.dialOnce(ctx, node, kind, group)
	key := quietKey{node, kind, group, false}
	if err == nil {
		t.logFine(key)
		return c, hello, nil
	}
	if t.ctx.Err() == nil && ctx.Err() == nil && !errors.Is(err, ErrClosed) && t.quiet.trouble(key, reasonOf(err)) {
		t.log.Warn("no stream to peer", "node", node, "stream", kind.String(), "group", group, "reason", reasonOf(err))
	}
	return nil, Hello{}, err
}

func (t *Transport) dialOnce(ctx context.Context, node int32, kind streamKind, group uint32) (*conn, Hello, error) {
	addr, err := t.peerAddr(node)
	if err != nil {
		return nil, Hello{}, err
	}
	if kind == kindRaft && t.reg.isCut() {
		return nil, Hello{}, ErrRaftCut
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()

	dialer := net.Dialer{Timeout: t.cfg.DialTimeout, KeepAliveConfig: keepAlive}
	raw, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, Hello{}, fmt.Errorf("dial node %d: %w", node, err)
	}
	c, ok := t.reg.add(raw, false)
	if !ok {
		return nil, Hello{}, ErrClosed
	}
	// A context that ends breaks the handshake off by closing under it.
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	hello, err := t.introduce(ctx, c, node, kind, group)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = c.Close()
		if t.ctx.Err() != nil {
			return nil, Hello{}, ErrClosed
		}
		return nil, Hello{}, fmt.Errorf("greet node %d: %w", node, err)
	}
	return c, hello, nil
}

// introduce is the dialling side of a handshake.
func (t *Transport) introduce(ctx context.Context, c *conn, node int32, kind streamKind, group uint32) (Hello, error) {
	if err := c.raw.SetDeadline(time.Now().Add(t.cfg.HandshakeTimeout)); err != nil {
		return Hello{}, fmt.Errorf("set handshake deadline: %w", err)
	}
	if err := t.reg.claim(c, node, kind, group); err != nil {
		return Hello{}, err
	}
	if t.cfg.TLS != nil {
		secured := tls.Client(c.raw, t.cfg.TLS.client(t.logTLS))
		if err := secured.HandshakeContext(ctx); err != nil {
			return Hello{}, fmt.Errorf("tls handshake: %w", err)
		}
		if err := t.checkCertificate(secured, node); err != nil {
			return Hello{}, &RefusedError{Node: node, Reason: err.Error(), err: err}
		}
		c.Conn = secured
	}
	b, err := appendOpening(nil, opening{protocol: protocolVersion, kind: kind, group: group, hello: t.self()})
	if err != nil {
		return Hello{}, err
	}
	if _, err := c.Write(b); err != nil {
		return Hello{}, fmt.Errorf("send hello: %w", err)
	}
	a, err := readAnswer(c)
	if errors.Is(err, io.EOF) {
		return Hello{}, fmt.Errorf("peer closed without an answer, something else may listen there: %w", err)
	}
	if err != nil {
		return Hello{}, err
	}
	if err := t.checkAnswer(a, node, kind); err != nil {
		return Hello{}, err
	}
	return a.hello, c.raw.SetDeadline(time.Time{})
}

// checkAnswer is everything the dialling side checks about the answer.
func (t *Transport) checkAnswer(a answer, node int32, kind streamKind) error {
	if a.refused {
		return &RefusedError{Node: node, Reason: a.reason, ByPeer: true}
	}
	err := t.checkHello(a.hello)
	if err == nil && a.hello.NodeID != node {
		err = fmt.Errorf("the address of node %d is answered by node %d; check raft.peers", node, a.hello.NodeID)
	}
	if err == nil {
		err = t.gate.Admit(a.hello, kind == kindRaft)
	}
	if err != nil {
		return &RefusedError{Node: node, Reason: err.Error(), err: err}
	}
	return nil
}

// logAcceptError tells what went wrong with an incoming connection. A node that
// named itself and is known is told of by name, anyone else as a stranger.
func (t *Transport) logAcceptError(from net.Addr, o opening, err error) {
	if t.ctx.Err() != nil {
		return
	}
	if o.hello.ClusterID == "" && o.protocol <= protocolVersion {
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			t.log.Debug("connection ended before a hello", "remote-address", from, "error", err)
			return // a health check, or a peer that changed its mind
		}
		t.logStranger(from, err)
		return
	}
	if _, known := t.peerAddr(o.hello.NodeID); known != nil {
		t.logStranger(from, err)
		return
	}
	key := quietKey{o.hello.NodeID, o.kind, o.group, true}
	if t.quiet.trouble(key, reasonOf(err)) {
		t.log.Warn("refused peer", "node", o.hello.NodeID, "stream", o.kind.String(), "group", o.group, "reason", reasonOf(err), "remote-address", from)
	}
}

func (t *Transport) logStranger(from net.Addr, err error) {
	if tell, withheld := t.quiet.stranger(time.Now()); tell {
		t.log.Warn("closed connection of a stranger", "remote-address", from, "reason", err, "not-told-of", withheld)
	}
}

func (t *Transport) logFine(key quietKey) {
	if t.quiet.fine(key) {
		t.log.Info("peer is back", "node", key.node, "stream", key.kind.String(), "group", key.group, "incoming", key.incoming)
	}
}

func (t *Transport) logTLS(err error) {
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	key := quietKey{node: noNode}
	switch {
	case err == nil && t.quiet.fine(key):
		t.log.Info("tls files are readable again")
	case err != nil && t.quiet.trouble(key, reason):
		t.log.Error("cannot reread tls files; the previous ones stay in use", "error", err)
	}
}
