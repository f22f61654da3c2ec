package node

import (
	"context"
	"errors"
	"slices"
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

// defaultPatience is how long the fate of a command is waited for after
// leadership was lost, where nobody says.
const defaultPatience = 5 * time.Second

// proposal is one command on its way into the log.
type proposal struct {
	cmd      fsm.Command
	at       time.Time // when it was queued
	patience time.Duration
	done     func(fsm.Result, error) // nil: answered
	queued   bool                    // it is in the queue, and nobody withdrew it; guarded by the batcher's mu
}

// batcher puts proposals into entries: with nothing in flight the first one
// goes at once; else they gather, and go together when the entry in flight is
// through, or when there is enough for an entry of full size.
type batcher struct {
	apply       func(data []byte) (f raft.ApplyFuture, term uint64)
	fates       *fates
	entryBytes  int
	maxInFlight int
	wake        chan struct{} // capacity 1
	through     chan struct{} // an entry got its answer; capacity maxInFlight

	// hold says whether records must wait because the log has no room, and
	// returns channels that are closed when that may have changed.
	hold func() (held bool, room, office <-chan struct{})

	// waited is told how long each batch of records was queued.
	waited func(time.Duration)

	mu     sync.Mutex // guards what follows
	queue  []*proposal
	gone   int // of the queue, those that were withdrawn
	bytes  int
	closed bool

	// owned by run
	inFlight int
	clock    time.Time // of the entry before
	wg       sync.WaitGroup
}

func newBatcher(entryBytes, maxInFlight int, apply func([]byte) (raft.ApplyFuture, uint64)) *batcher {
	return &batcher{apply: apply, fates: new(fates), entryBytes: entryBytes, maxInFlight: maxInFlight,
		wake: make(chan struct{}, 1), through: make(chan struct{}, maxInFlight),
		waited: func(time.Duration) {},
		hold:   func() (bool, <-chan struct{}, <-chan struct{}) { return false, nil, nil }}
}

// propose queues a command. done is called exactly once, from another
// goroutine. It does not block. withdraw takes the command off the queue, if it
// is still there, and has done called with ErrNotLeader, from its own goroutine:
// a leader that lets nothing in must not gather what nobody waits for.
func (b *batcher) propose(cmd fsm.Command, patience time.Duration, done func(fsm.Result, error)) (withdraw func()) {
	p := &proposal{cmd: cmd, at: time.Now(), patience: patience, done: done, queued: true}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		go done(fsm.Result{}, ErrStopped)
		return func() {}
	}
	b.queue = append(b.queue, p)
	b.bytes += cmd.Size()
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
	return func() { b.withdraw(p) }
}

func (b *batcher) withdraw(p *proposal) {
	b.mu.Lock()
	if !p.queued {
		b.mu.Unlock()
		return
	}
	p.queued = false
	b.bytes -= p.cmd.Size()
	p.cmd = fsm.Command{} // its bytes go now, its place when half of the places are empty
	if b.gone++; 2*b.gone > len(b.queue) {
		b.tidy()
	}
	b.mu.Unlock()
	p.done(fsm.Result{}, ErrNotLeader)
}

// tidy drops what was withdrawn. b.mu is held.
func (b *batcher) tidy() {
	if b.gone > 0 {
		b.queue = slices.DeleteFunc(b.queue, func(p *proposal) bool { return !p.queued })
		b.gone = 0
	}
}

// take marks proposals as taken off the queue. b.mu is held.
func take(batch []*proposal) []*proposal {
	for _, p := range batch {
		p.queued = false
	}
	return batch
}

// run sends entries until the context ends; it then answers what is left and
// returns when everything in flight has its answer.
func (b *batcher) run(ctx context.Context) {
	for {
		held, room, office := b.hold()
		for b.inFlight < b.maxInFlight {
			batch := b.next(held)
			if batch == nil {
				break
			}
			b.send(ctx, batch)
		}
		select {
		case <-b.wake:
		case <-b.through:
			b.inFlight--
		case <-room:
		case <-office:
		case <-ctx.Done():
			b.mu.Lock()
			b.closed = true
			b.tidy()
			left := take(b.queue)
			b.queue = nil
			b.mu.Unlock()
			for _, p := range left {
				p.done(fsm.Result{}, ErrStopped)
			}
			b.wg.Wait()
			return
		}
	}
}

// next takes the proposals of the next entry off the queue, nil if none is due.
// While records are held only what controls the group goes: it may be what
// makes room.
func (b *batcher) next(held bool) []*proposal {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tidy()
	if held {
		return b.takeControl()
	}
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
	return take(batch)
}

// takeControl takes the proposals without records or offsets off the queue, as far as they
// fit into an entry. b.mu is held.
func (b *batcher) takeControl() []*proposal {
	var batch []*proposal
	size := 0
	b.queue = slices.DeleteFunc(b.queue, func(p *proposal) bool {
		s := p.cmd.Size()
		if p.cmd.Kind == fsm.KindAppend || p.cmd.Kind == fsm.KindCommitOffsets || len(batch) > 0 && size+s > b.entryBytes {
			return false
		}
		size += s
		batch = append(batch, p)
		return true
	})
	b.bytes -= size
	return take(batch)
}

func (b *batcher) send(ctx context.Context, batch []*proposal) {
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
		if p.cmd.Kind == fsm.KindAppend {
			b.waited(now.Sub(p.at))
		}
	}
	failpoint.Hit(failpoint.ProposeBefore)
	b.fates.begin()
	future, term := b.apply(fsm.EncodeEntry(uint32(elapsed.Milliseconds()), cmds))
	failpoint.Hit(failpoint.ProposeAfter)
	b.inFlight++
	b.wg.Add(1)
	go func() {
		defer b.wg.Done()
		defer b.fates.end()
		results, err := await(ctx, future)
		doubt := errors.Is(err, raft.ErrLeadershipLost) && term != 0
		if !doubt {
			answer(batch, fate{results, err})
		}
		select {
		case b.through <- struct{}{}:
		case <-ctx.Done():
		}
		if doubt {
			b.resolve(ctx, future.Index(), term, batch)
		}
	}()
}

func answer(batch []*proposal, f fate) {
	for i, p := range batch {
		if f.err != nil {
			p.done(fsm.Result{}, f.err)
		} else {
			p.done(f.results[i], nil)
		}
	}
}

// resolve answers an entry that was in the log when leadership was lost, when
// it is known what became of it, and every proposal at the latest when its
// patience, or the node, ends.
func (b *batcher) resolve(ctx context.Context, index, term uint64, batch []*proposal) {
	known, forget := b.fates.ask(index, term)
	defer forget()
	for since := time.Now(); ; {
		next := time.Duration(-1)
		for _, p := range batch {
			switch left := p.patience - time.Since(since); {
			case p.done == nil:
			case left <= 0:
				done := p.done
				p.done = nil
				done(fsm.Result{}, ErrUnknownOutcome)
			case next < 0 || left < next:
				next = left
			}
		}
		if next < 0 {
			return
		}
		var f fate
		timer := time.NewTimer(next)
		select {
		case f = <-known:
		case <-ctx.Done():
			f.err = ErrUnknownOutcome
		case <-timer.C:
			continue
		}
		timer.Stop()
		for _, p := range batch {
			if p.done == nil {
				p.done = func(fsm.Result, error) {} // was answered
			}
		}
		answer(batch, f)
		return
	}
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
