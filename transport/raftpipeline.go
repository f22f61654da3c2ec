package transport

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// raftPipeline sends AppendEntries without waiting for the answers to those
// before: with sent unbuffered two are on their way, as with
// raft.DefaultMaxRPCsInFlight, on which the memory budget counts.
type raftPipeline struct {
	peer     *raftPeer
	timeout  time.Duration
	sent     chan *raftFuture
	answered chan raft.AppendFuture
	done     chan struct{}
	once     sync.Once
}

// AppendEntries implements raft.AppendPipeline. One goroutine calls it.
func (p *raftPipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	select {
	case <-p.done:
		return nil, raft.ErrPipelineShutdown
	default:
	}
	f := &raftFuture{start: time.Now(), req: args, resp: resp, done: make(chan struct{})}
	err := p.peer.SetWriteDeadline(f.start.Add(p.timeout))
	if err == nil {
		err = p.peer.write(args)
	}
	if err != nil {
		_ = p.Close()
		return nil, err
	}
	select {
	case p.sent <- f:
		return f, nil
	case <-p.done:
		return nil, raft.ErrPipelineShutdown
	}
}

// read gives the answers out in the order of the requests, until one is an error.
func (p *raftPipeline) read() {
	for {
		var f *raftFuture
		select {
		case f = <-p.sent:
		case <-p.done:
			return
		}
		err := p.peer.SetReadDeadline(time.Now().Add(p.timeout))
		if err == nil {
			err = readRaftAnswer(p.peer.r, f.resp)
		}
		f.err = err
		close(f.done)
		if err != nil { // the sender hears of it, and Raft has nothing to do with it
			_ = p.Close()
			return
		}
		select {
		case p.answered <- f:
		case <-p.done:
			return
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (p *raftPipeline) Consumer() <-chan raft.AppendFuture { return p.answered }

// Close implements raft.AppendPipeline. It is idempotent.
func (p *raftPipeline) Close() error {
	p.once.Do(func() {
		close(p.done)
		_ = p.peer.Close()
	})
	return nil
}

// raftFuture is a request on its way; err and resp may be read when done is
// closed.
type raftFuture struct {
	start time.Time
	req   *raft.AppendEntriesRequest
	resp  *raft.AppendEntriesResponse
	err   error
	done  chan struct{}
}

// Error implements raft.Future: it waits for the answer.
func (f *raftFuture) Error() error {
	<-f.done
	return f.err
}

// Start implements raft.AppendFuture.
func (f *raftFuture) Start() time.Time { return f.start }

// Request implements raft.AppendFuture.
func (f *raftFuture) Request() *raft.AppendEntriesRequest { return f.req }

// Response implements raft.AppendFuture.
func (f *raftFuture) Response() *raft.AppendEntriesResponse { return f.resp }
