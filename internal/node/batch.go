package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"lockstep/fsm"
	"lockstep/internal/failpoint"
)

// Errors of a proposal.
var (
	// ErrNotLeader is returned when the command was surely not appended to
	// the log, because this node does not lead the group (any more).
	ErrNotLeader = errors.New("not the leader of the group")
	// ErrUnknownOutcome is returned when the command may have been committed,
	// or may be later. It is not a failure.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrStopped is returned when the node is closing and the command was
	// surely not appended.
	ErrStopped = errors.New("node is stopping")
)

// proposal is one command on its way into the log.
type proposal struct {
	cmd  fsm.Command
	done func(fsm.Result, error)
}

// batcher puts proposals into entries: with nothing in flight the first one
// goes at once; else they gather, and go together when the entry in flight is
// through, or when there is enough for an entry of full size.
type batcher struct {
	apply       func(data []byte) raft.ApplyFuture
	entryBytes  int
	maxInFlight int
	wake        chan struct{} // capacity 1
	through     chan struct{} // an entry got its answer; capacity maxInFlight

	mu     sync.Mutex // guards what follows
	queue  []proposal
	bytes  int
	closed bool

	// owned by run
	inFlight int
	clock    time.Time // of the entry before
	wg       sync.WaitGroup
}

func newBatcher(entryBytes, maxInFlight int, apply func([]byte) raft.ApplyFuture) *batcher {
	return &batcher{apply: apply, entryBytes: entryBytes, maxInFlight: maxInFlight,
		wake: make(chan struct{}, 1), through: make(chan struct{}, maxInFlight)}
}

// propose queues a command. done is called exactly once, from another
// goroutine. It does not block.
func (b *batcher) propose(cmd fsm.Command, done func(fsm.Result, error)) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		go done(fsm.Result{}, ErrStopped)
		return
	}
	b.queue = append(b.queue, proposal{cmd, done})
	b.bytes += cmd.Size()
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// run sends entries until the context ends; it then answers what is left and
// returns when everything in flight has its answer.
func (b *batcher) run(ctx context.Context) {
	for {
		select {
		case <-b.wake:
		case <-b.through:
			b.inFlight--
		case <-ctx.Done():
			b.mu.Lock()
			b.closed = true
			left := b.queue
			b.queue = nil
			b.mu.Unlock()
			for _, p := range left {
				p.done(fsm.Result{}, ErrStopped)
			}
			b.wg.Wait()
			return
		}
		for b.inFlight < b.maxInFlight {
			batch := b.next()
			if batch == nil {
				break
			}
			b.send(ctx, batch)
		}
	}
}

// next takes the proposals of the next entry off the queue, nil if none is due.
func (b *batcher) next() []proposal {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 || (b.inFlight > 0 && b.bytes < b.entryBytes) {
		return nil
	}
	n, size := 0, 0
	for n < len(b.queue) {
		s := b.queue[n].cmd.Size()
		if n > 0 && size+s > b.entryBytes {
			break
		}
		size += s
		n++
	}
	batch := b.queue[:n:n]
	b.queue = b.queue[n:]
	if len(b.queue) == 0 {
		b.queue = nil
	}
	b.bytes -= size
	return batch
}

func (b *batcher) send(ctx context.Context, batch []proposal) {
	now := time.Now()
	var elapsed time.Duration
	if !b.clock.IsZero() {
		elapsed = min(now.Sub(b.clock), fsm.MaxElapsedMs*time.Millisecond)
	}
	// What is cut off here by rounding is kept for the next entry.
	elapsed = elapsed.Truncate(time.Millisecond)
	if b.clock.IsZero() || now.Sub(b.clock) > fsm.MaxElapsedMs*time.Millisecond {
		b.clock = now
	} else {
		b.clock = b.clock.Add(elapsed)
	}
	cmds := make([]fsm.Command, len(batch))
	for i, p := range batch {
		cmds[i] = p.cmd
	}
	failpoint.Hit(failpoint.ProposeBefore)
	future := b.apply(fsm.EncodeEntry(uint32(elapsed.Milliseconds()), cmds))
	failpoint.Hit(failpoint.ProposeAfter)
	b.inFlight++
	b.wg.Add(1)
	go func() {
		defer b.wg.Done()
		results, err := await(ctx, future)
		for i, p := range batch {
			if err != nil {
				p.done(fsm.Result{}, err)
			} else {
				p.done(results[i], nil)
			}
		}
		select {
		case b.through <- struct{}{}:
		case <-ctx.Done():
		}
	}()
}

// await waits for an entry's verdicts. Raft never answers an entry that stood
// in the queue of its FSM goroutine when it was shut down, so the wait ends
// with the node, too.
func await(ctx context.Context, future raft.ApplyFuture) ([]fsm.Result, error) {
	answered := make(chan error, 1)
	go func() { answered <- future.Error() }()
	select {
	case err := <-answered:
		if err != nil {
			return nil, proposalError(err)
		}
		results, ok := future.Response().([]fsm.Result)
		if !ok {
			return nil, ErrUnknownOutcome // the state machine stopped before the entry
		}
		return results, nil
	case <-ctx.Done():
		return nil, ErrUnknownOutcome
	}
}

// proposalError sorts Raft's errors into "surely not appended" and the rest.
func proposalError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout),
		errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return ErrNotLeader
	}
	return errors.Join(ErrUnknownOutcome, err)
}
