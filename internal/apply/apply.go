// Package apply writes what the Raft groups committed to the local broker, in
// order, at the offsets that the state machine gave, exactly once.
//
// One feeder per group reads the committed log and computes every verdict
// again with a state machine of its own, the tail. One lane per partition
// takes the batches from there to the broker: it attaches (reads the broker's
// log end and last batch and compares them with what the log says stands
// there), then appends over a pipelined connection, and checks the offset in
// every answer. What a lane cannot hold in memory it reads again from the log.
package apply

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/internal/watch"
)

// Config of an Applier. Zero values of the sizes take the defaults.
type Config struct {
	Broker     Broker
	DataDir    string // holds bindings.db
	LaneBytes  int64  // a lane that holds more reads again from the log (default 4 MiB)
	GroupBytes int64  // all lanes of a group together (default 64 MiB)

	// LogDirs are the broker's log directories as this node sees them. What
	// the broker acknowledged is trusted once their file systems were synced
	// after that; where there are none, once TrustAfter went by (default 1m).
	LogDirs    []string
	TrustAfter time.Duration
	// CandidateBytes of entries lie between two states that may become the
	// base (default 4 MiB).
	CandidateBytes int64
	// OthersTrusted says whether a majority of the other nodes' brokers is
	// trusted beyond an index of a group. Only then may this node give up
	// entries that its own broker lacks. nil never allows it. It is called
	// from one goroutine and must not block.
	OthersTrusted func(group uint32, index uint64) bool

	Logger hclog.Logger
}

const (
	defaultLaneBytes  = 4 << 20
	defaultGroupBytes = 64 << 20
	defaultTrustAfter = time.Minute

	defaultCandidateBytes = 4 << 20
	crowdedLaneBytes      = 256 << 10 // what a lane may hold while its group is over its limit

	// conclusionAfter is how long a broker's log that is longer than the
	// committed one is waited for before it is said to be wrong: longer than
	// the word of a leader that was deposed can be under way.
	conclusionAfter = 2 * time.Second
)

// Applier owns the way from the committed logs to the local broker.
type Applier struct {
	cfg    Config
	log    hclog.Logger
	topics *topics
	copier source // nil if there is nobody to copy from; set before Open
	keeper keeper // nil if quarantines end with the process

	quarantines *quarantines // the keeper; set by Open
	scrubber    *scrubber    // nil if logs are not read through; set before Open

	cuts    *cuts       // set by Open
	wholes  *wholes     // set by Open
	turned  *turnedAway // set by Open
	flusher *flusher
	counts  counts

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	feeders         map[uint32]*feeder // fixed after Open
	changes         watch.Index        // counts state changes of lanes
	changeN         atomic.Uint64
	conclusionAfter time.Duration
	idleAfter       time.Duration

	life sync.Mutex // held by Open and Close

	mu      sync.RWMutex // guards what follows
	lanes   map[fsm.TP]*lane
	closing bool
}

// New returns an applier that does nothing until Open.
func New(cfg Config) *Applier {
	if cfg.LaneBytes == 0 {
		cfg.LaneBytes = defaultLaneBytes
	}
	if cfg.GroupBytes == 0 {
		cfg.GroupBytes = defaultGroupBytes
	}
	if cfg.TrustAfter == 0 {
		cfg.TrustAfter = defaultTrustAfter
	}
	if cfg.CandidateBytes == 0 {
		cfg.CandidateBytes = defaultCandidateBytes
	}
	a := &Applier{cfg: cfg, log: cfg.Logger.Named("apply"), feeders: make(map[uint32]*feeder), lanes: make(map[fsm.TP]*lane),
		conclusionAfter: conclusionAfter, idleAfter: idleAfter}
	a.flusher = newFlusher(a)
	a.ctx, a.cancel = context.WithCancelCause(context.Background())
	return a
}

// Open reads the durable bindings and starts following the logs. Everything
// else but Close and Changes is called after it. It is called once.
func (a *Applier) Open(logs map[uint32]Log) error {
	a.life.Lock()
	defer a.life.Unlock()
	if a.ctx.Err() != nil {
		return fmt.Errorf("open the applier: %w", context.Cause(a.ctx))
	}
	b, err := openBindings(filepath.Join(a.cfg.DataDir, "bindings.db"))
	if err != nil {
		return fmt.Errorf("open the bindings of topics to the broker's: %w", err)
	}
	if a.topics, err = newTopics(a.ctx, a.cfg.Broker, b, a.log); err != nil {
		return errors.Join(fmt.Errorf("read the bindings of topics to the broker's: %w", err), b.close())
	}
	if a.cuts, err = newCuts(b); err != nil {
		return err
	}
	if a.wholes, err = newWholes(b); err != nil {
		return err
	}
	if a.turned, err = newTurnedAway(b); err != nil {
		return err
	}
	if a.quarantines, err = newQuarantines(b, a.log); err != nil {
		return err
	}
	a.keeper = a.quarantines
	for id, l := range logs {
		a.feeders[id] = newFeeder(a, id, l)
	}
	for _, f := range a.feeders {
		a.wg.Add(1)
		go func() {
			defer a.wg.Done()
			f.run(a.ctx)
		}()
	}
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		a.flusher.run(a.ctx)
	}()
	if a.scrubber != nil {
		a.wg.Add(1)
		go func() {
			defer a.wg.Done()
			a.scrubber.run(a.ctx)
		}()
	}
	return nil
}

// Close stops all goroutines and returns when they are gone. Waiters get
// ErrClosed. It may be called more than once.
func (a *Applier) Close() error {
	a.cancel(ErrClosed)
	a.mu.Lock()
	a.closing = true
	a.mu.Unlock()
	a.life.Lock()
	defer a.life.Unlock()
	a.wg.Wait()
	if a.topics == nil {
		return nil
	}
	return a.topics.close()
}

// bump wakes whoever watches Changes.
func (a *Applier) bump() { a.changes.Set(a.changeN.Add(1)) }

// Changes grows whenever a partition becomes ready, or, after the fact, stops
// being so: what was Ready after Changes was read, is until it grows.
func (a *Applier) Changes() *watch.Index { return &a.changes }

func (a *Applier) lane(tp fsm.TP) *lane {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.lanes[tp]
}

// Ready says whether the local broker serves the partition and holds
// everything below offset required.
func (a *Applier) Ready(tp fsm.TP, required int64) bool {
	l := a.lane(tp)
	return l != nil && l.ready(required)
}

// WhenVisible calls fn, once, when the local broker serves the partition and
// holds everything of it below offset end, or with the error that prevents it.
// A partition that this node's feeders have not come to yet is waited for. fn
// may be called from this goroutine or another, and must not block.
func (a *Applier) WhenVisible(tp fsm.TP, end int64, fn func(error)) {
	a.await(tp, waiter{end: end, fn: fn})
}

// WhenBatchVisible is WhenVisible for the batch that ends at end and whose command
// stands at a place of the group's log: fn gets a CutError if it was cut out of
// the log, also if another batch was committed at its offsets since, and
// ErrSkipped if this node did not read the entries that would say so.
func (a *Applier) WhenBatchVisible(tp fsm.TP, end int64, at fsm.Place, fn func(error)) {
	a.await(tp, waiter{end, at, fn})
}

func (a *Applier) await(tp fsm.TP, w waiter) {
	fn := w.fn
	if l := a.lane(tp); l != nil {
		l.whenVisible(w)
		return
	}
	a.mu.RLock()
	if a.closing {
		a.mu.RUnlock()
		fn(ErrClosed)
		return
	}
	a.wg.Add(1) // under mu: Close waits after it said that it closes
	a.mu.RUnlock()
	behind := false
	targets := make(map[*feeder]uint64, len(a.feeders))
	for _, f := range a.feeders {
		targets[f] = f.log.Applied().Get()
		behind = behind || f.dealt.Get() < targets[f]
	}
	await := func() {
		defer a.wg.Done()
		for f, index := range targets {
			if _, err := f.dealt.Wait(a.ctx, index); err != nil {
				fn(ErrClosed)
				return
			}
		}
		if l := a.lane(tp); l != nil {
			l.whenVisible(w)
		} else {
			fn(ErrNotOpen)
		}
	}
	if behind {
		go await()
	} else {
		await()
	}
}

// Conclude tells the applier that a leader, verified just now, had this commit
// index: a broker that holds more than the log up to there holds something
// that nobody committed.
func (a *Applier) Conclude(group uint32, commitIndex uint64) {
	if f := a.feeders[group]; f != nil {
		f.conclude(commitIndex)
	}
}

// Failed is closed when the applier cannot go on at all (a log entry that this
// build cannot read); Err then says why. The node must stop.
func (a *Applier) Failed() <-chan struct{} { return a.ctx.Done() }

// Err returns why the applier stopped; nil while it runs.
func (a *Applier) Err() error {
	if err := context.Cause(a.ctx); err != nil && !errors.Is(err, ErrClosed) {
		return err
	}
	return nil
}

// PartitionStatus is one partition that is not as it should be.
type PartitionStatus struct {
	Topic     string    `json:"topic"`
	TopicID   uint64    `json:"topic_id"`
	Partition int32     `json:"partition"`
	State     string    `json:"state"`
	Reason    string    `json:"reason,omitempty"`
	Since     time.Time `json:"since"`
}

// GroupStatus is how far the local broker has followed a group.
type GroupStatus struct {
	BrokerApplied uint64            // every entry up to it is on the broker, quarantined partitions left out
	Partitions    int               // lanes of the group
	Troubled      []PartitionStatus // not ready, with the reason
	QueuedBytes   int64             // on the way from the log to the broker, in memory
	QueuedBatches int64
	Base          uint64 // the newest tail: the log is read on from the entry after it
	Trusted       uint64 // the broker holds every entry up to it through a power cut; 0 while a partition is quarantined
}

// Status reports on one group.
func (a *Applier) Status(group uint32) GroupStatus {
	f := a.feeders[group]
	if f == nil {
		return GroupStatus{}
	}
	return f.status()
}

// startLane adds a lane for a partition that was opened.
func (a *Applier) startLane(l *lane) {
	a.mu.Lock()
	a.lanes[l.tp] = l
	a.mu.Unlock()
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		l.run()
	}()
}

// dropLane ends a lane whose partition was closed.
func (a *Applier) dropLane(tp fsm.TP) {
	a.mu.Lock()
	l := a.lanes[tp]
	delete(a.lanes, tp)
	a.mu.Unlock()
	if l != nil {
		l.stop(ErrClosed)
	}
}
