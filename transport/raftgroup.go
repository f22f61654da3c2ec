package transport

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	raftBuffer = 64 << 10

	// snapshotScale: the time for a snapshot grows by one timeout for each so
	// many bytes.
	snapshotScale = 256 << 10
)

// GroupTransport is one group's raft.Transport. Requests but those of a pipeline
// go over pooled connections, one at a time on each. All methods may be called
// from any goroutine.
type GroupTransport struct {
	layer    *streamLayer
	log      hclog.Logger
	requests chan raft.RPC

	mu        sync.Mutex // guards what follows
	closed    bool
	pool      map[raftTarget][]*raftPeer
	heartbeat func(raft.RPC)
}

var (
	_ raft.Transport   = (*GroupTransport)(nil)
	_ raft.WithPreVote = (*GroupTransport)(nil)
	_ raft.WithClose   = (*GroupTransport)(nil)
)

func newGroupTransport(l *streamLayer, log hclog.Logger) *GroupTransport {
	return &GroupTransport{layer: l, log: log, requests: make(chan raft.RPC), pool: make(map[raftTarget][]*raftPeer)}
}

// raftTarget is whom a stream was opened to, and where: after a move, what was
// opened before serves nobody.
type raftTarget struct {
	node    int32
	address raft.ServerAddress
}

// raftPeer is an outgoing stream. One goroutine writes and one reads; requests
// and answers are in the same order.
type raftPeer struct {
	net.Conn
	target raftTarget
	r      *bufio.Reader
	w      *bufio.Writer
	head   raftHead // of the writer
}

// write sends a request, whole.
func (p *raftPeer) write(args any) error {
	if err := p.head.request(args); err != nil {
		return err
	}
	if _, err := p.w.Write(p.head); err != nil {
		return err
	}
	if a, ok := args.(*raft.AppendEntriesRequest); ok {
		for _, l := range a.Entries {
			if _, err := p.w.Write(l.Data); err != nil {
				return err
			}
			if _, err := p.w.Write(l.Extensions); err != nil {
				return err
			}
		}
	}
	return p.w.Flush()
}

// peer takes a connection out of the pool, or opens one.
func (g *GroupTransport) peer(id raft.ServerID, known raft.ServerAddress) (*raftPeer, error) {
	target := raftTarget{NodeOf(id), g.layer.t.addressOf(id, known)}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil, raft.ErrTransportShutdown
	}
	if idle := g.pool[target]; len(idle) > 0 {
		p := idle[len(idle)-1]
		g.pool[target] = idle[:len(idle)-1]
		g.mu.Unlock()
		return p, nil
	}
	g.mu.Unlock()
	c, err := g.layer.dial(target.node, g.layer.timeout)
	if err != nil {
		return nil, err
	}
	return &raftPeer{Conn: c, target: target, r: bufio.NewReaderSize(c, raftBuffer), w: bufio.NewWriterSize(c, raftBuffer)}, nil
}

// giveBack puts a connection into the pool that has nothing unread.
func (g *GroupTransport) giveBack(p *raftPeer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || len(g.pool[p.target]) >= raftMaxPool {
		_ = p.Close()
		return
	}
	g.pool[p.target] = append(g.pool[p.target], p)
}

// call is one request with its answer.
func (g *GroupTransport) call(id raft.ServerID, target raft.ServerAddress, args, resp any) error {
	return g.callWith(id, target, g.layer.timeout, args, resp, nil, 0)
}

// callWith is call for a request that size bytes follow.
func (g *GroupTransport) callWith(id raft.ServerID, target raft.ServerAddress, timeout time.Duration, args, resp any, body io.Reader, size int64) error {
	p, err := g.peer(id, target)
	if err != nil {
		return err
	}
	err = p.SetDeadline(time.Now().Add(timeout))
	if err == nil {
		err = p.write(args)
	}
	if err == nil && body != nil {
		if _, err = io.CopyN(p.w, body, size); err == nil {
			err = p.w.Flush()
		} else {
			err = fmt.Errorf("send the snapshot: %w", noEOF(err)) // of the snapshot, not of the stream
		}
	}
	if err == nil {
		err = readRaftAnswer(p.r, resp)
	}
	var remote *RemoteError
	if err != nil && !errors.As(err, &remote) {
		_ = p.Close()
		return err
	}
	g.giveBack(p)
	return err
}

// AppendEntries implements raft.Transport.
func (g *GroupTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return g.call(id, target, args, resp)
}

// RequestVote implements raft.Transport. A peer that restarted leaves up to three
// dead connections in the pool, and each would cost its vote in one election:
// it is asked again over a new one. Asking twice is harmless: a voter repeats
// the answer it gave to the same candidate in the same term.
func (g *GroupTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return overFreshConn(func() error { return g.call(id, target, args, resp) })
}

// RequestPreVote implements raft.WithPreVote; a pre-vote changes nothing.
func (g *GroupTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return overFreshConn(func() error { return g.call(id, target, args, resp) })
}

// InstallSnapshot implements raft.Transport.
func (g *GroupTransport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	timeout := max(g.layer.timeout, g.layer.timeout*time.Duration(args.Size/snapshotScale))
	return g.callWith(id, target, timeout, args, resp, data, args.Size)
}

// TimeoutNow implements raft.Transport.
func (g *GroupTransport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return g.call(id, target, args, resp)
}

// Consumer implements raft.Transport.
func (g *GroupTransport) Consumer() <-chan raft.RPC { return g.requests }

// LocalAddr implements raft.Transport.
func (g *GroupTransport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(g.layer.addr()) }

// EncodePeer implements raft.Transport.
func (g *GroupTransport) EncodePeer(id raft.ServerID, addr raft.ServerAddress) []byte {
	return []byte(g.layer.t.addressOf(id, addr))
}

// DecodePeer implements raft.Transport.
func (g *GroupTransport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler implements raft.Transport.
func (g *GroupTransport) SetHeartbeatHandler(f func(rpc raft.RPC)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.heartbeat = f
}

// Close implements raft.WithClose: all connections end, and what waits for them
// with them. It is idempotent.
func (g *GroupTransport) Close() error {
	g.mu.Lock()
	g.closed = true
	g.pool = nil
	g.mu.Unlock()
	g.layer.close()
	return nil
}

// acceptLoop serves the streams that peers open.
func (g *GroupTransport) acceptLoop() {
	for {
		c, err := g.layer.accept()
		if err != nil {
			return
		}
		go g.serve(c) // the transport waits for it by the connection
	}
}

// serve answers one peer's requests, one after the other, until the stream ends.
func (g *GroupTransport) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	r, w := bufio.NewReaderSize(c, raftBuffer), bufio.NewWriterSize(c, raftBuffer)
	var head raftHead
	for {
		req, err := readRaftRequest(r)
		if err != nil {
			if errors.Is(err, errProtocol) {
				g.log.Warn("raft stream of a peer is broken", "remote", c.RemoteAddr().String(), "error", err)
			}
			return
		}
		resp, failed, err := g.ask(req, r)
		if err == nil {
			err = head.answer(resp, failed)
		}
		if err == nil {
			if _, err = w.Write(head); err == nil {
				err = w.Flush()
			}
		}
		if err != nil {
			return
		}
	}
}

// ask gives a request to Raft and waits for its answer, or the end.
func (g *GroupTransport) ask(req any, r *bufio.Reader) (resp any, failed, err error) {
	answers := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: req, RespChan: answers}
	if s, ok := req.(*raft.InstallSnapshotRequest); ok {
		body := &io.LimitedReader{R: r, N: s.Size}
		rpc.Reader = body
		// What Raft left unread is no request.
		defer func() {
			if err == nil && body.N > 0 {
				_, err = io.Copy(io.Discard, body)
			}
		}()
	}
	if f := g.heartbeatFor(req); f != nil {
		f(rpc)
	} else {
		select {
		case g.requests <- rpc:
		case <-g.layer.ctx.Done():
			return nil, nil, raft.ErrTransportShutdown
		}
	}
	select {
	case a := <-answers:
		return a.Response, a.Error, nil
	case <-g.layer.ctx.Done():
		return nil, nil, raft.ErrTransportShutdown
	}
}

// heartbeatFor is the way past Raft's main loop, which may be at the disk, for
// what carries nothing; nil for everything else (raft.NetworkTransport).
func (g *GroupTransport) heartbeatFor(req any) func(raft.RPC) {
	a, ok := req.(*raft.AppendEntriesRequest)
	if !ok || a.Term == 0 || len(a.Addr) == 0 || a.PrevLogEntry != 0 || a.PrevLogTerm != 0 || len(a.Entries) != 0 || a.LeaderCommitIndex != 0 {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.heartbeat
}

// AppendEntriesPipeline implements raft.Transport. The pipeline ends at the first
// fault of its connection.
func (g *GroupTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := g.peer(id, target)
	if err != nil {
		return nil, fmt.Errorf("open an append pipeline: %w", err)
	}
	pl := &raftPipeline{peer: p, timeout: g.layer.timeout, sent: make(chan *raftFuture), answered: make(chan raft.AppendFuture), done: make(chan struct{})}
	go pl.read() // ends with Close, and with the connection
	return pl, nil
}
