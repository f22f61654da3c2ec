package node

import (
	"sync"

	"github.com/hashicorp/raft"

	"lockstep/transport"
)

// pipelining is a group's Raft transport with pipelines that end when they must.
//
// In hashicorp/raft 1.8.0 the goroutine that reads a pipeline's answers leaves
// at the first bad one (pipelineDecode), while the one that sends may wait for
// room in the pipeline, which only answers that are read would make
// (netPipeline.AppendEntries). It then waits for ever: the follower gets no
// entry from this leader any more, although heartbeats go on, and the shutdown
// never ends. An answer that never came counts as a contact there, too.
type pipelining struct{ *transport.GroupTransport }

// AppendEntriesPipeline implements raft.Transport.
func (t pipelining) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.GroupTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return newPipeline(inner), nil
}

// pipeline closes itself at the first bad answer, which sets its sender free.
type pipeline struct {
	raft.AppendPipeline
	answers chan raft.AppendFuture
	done    chan struct{}
	once    sync.Once
	err     error // of closing; set once
}

// newPipeline starts a goroutine that ends with Close, which Raft calls.
func newPipeline(inner raft.AppendPipeline) *pipeline {
	p := &pipeline{AppendPipeline: inner, answers: make(chan raft.AppendFuture), done: make(chan struct{})}
	go p.pass()
	return p
}

func (p *pipeline) pass() {
	for {
		select {
		case f := <-p.AppendPipeline.Consumer():
			if f.Error() != nil {
				_ = p.Close() // the sender hears of it
				return
			}
			select {
			case p.answers <- f:
			case <-p.done:
				return
			}
			if !f.Response().Success {
				_ = p.Close() // Raft reads no more
				return
			}
		case <-p.done:
			return
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.once.Do(func() {
		close(p.done)
		p.err = p.AppendPipeline.Close()
	})
	return p.err
}
