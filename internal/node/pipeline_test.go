package node

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// fakePipeline has room for nothing: a send waits until it is closed.
type fakePipeline struct {
	answers chan raft.AppendFuture
	closed  chan struct{}
}

func (p *fakePipeline) AppendEntries(*raft.AppendEntriesRequest, *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	<-p.closed
	return nil, raft.ErrPipelineShutdown
}
func (p *fakePipeline) Consumer() <-chan raft.AppendFuture { return p.answers }
func (p *fakePipeline) Close() error                       { close(p.closed); return nil }

type fakeAnswer struct {
	raft.AppendFuture
	err error
	ok  bool
}

func (a fakeAnswer) Error() error { return a.err }
func (a fakeAnswer) Response() *raft.AppendEntriesResponse {
	return &raft.AppendEntriesResponse{Success: a.ok}
}

// A bad answer sets the sender free, though nobody reads answers after it, and
// an answer that never came is not passed on as one.
func TestPipelineEndsAtABadAnswer(t *testing.T) {
	for _, bad := range []fakeAnswer{{err: errors.New("connection reset")}, {ok: false}} {
		inner := &fakePipeline{answers: make(chan raft.AppendFuture), closed: make(chan struct{})}
		p := newPipeline(inner)
		sent := make(chan error, 1)
		go func() {
			_, err := p.AppendEntries(nil, nil)
			sent <- err
		}()
		inner.answers <- fakeAnswer{ok: true}
		if f := <-p.Consumer(); !f.Response().Success {
			t.Fatal("a good answer came out bad")
		}
		inner.answers <- bad
		if bad.err == nil {
			<-p.Consumer() // as Raft does, and leaves
		}
		select {
		case err := <-sent:
			if !errors.Is(err, raft.ErrPipelineShutdown) {
				t.Errorf("the sender was told %v", err)
			}
		case <-time.After(testWait):
			t.Fatal("the sender waits for ever")
		}
		if err := p.Close(); err != nil { // as Raft does; twice is once
			t.Error(err)
		}
	}
}
