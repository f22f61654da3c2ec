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
	"lockstep/internal/broker"
	"lockstep/internal/watch"
	"lockstep/kafkawire"
)

// Session is one connection to the local broker for appends. Appends of one
// partition are executed in the order in which they were queued, as long as
// the session lives.
type Session interface {
	// Append queues one stamped batch without blocking. done is called
	// exactly once, from another goroutine.
	Append(a broker.Append, done func(broker.Result))
	// Done is closed when the connection is lost.
	Done() <-chan struct{}
}

// Broker is the local broker, as the applier needs it. Methods may be called
// from any goroutine.
type Broker interface {
	// WaitUp returns when the broker is reachable.
	WaitUp(ctx context.Context) error
	Session(ctx context.Context) (Session, error)
	LogEnd(ctx context.Context, topic string, partition int32) (start, end int64, err error)
	LastBatch(ctx context.Context, topic string, partition int32, end int64) ([]byte, error)
	Topic(ctx context.Context, name string) (broker.TopicInfo, error)
	CreateTopic(ctx context.Context, name string, partitions int32, config map[string]string) (broker.TopicInfo, error)
	ExtendTopic(ctx context.Context, name string, total int32) error
	DeleteTopic(ctx context.Context, name string) error
	// DeleteRecords raises a partition's log start and returns what it is then.
	DeleteRecords(ctx context.Context, topic string, partition int32, offset int64) (int64, error)
	// EnsureTopicConfig gives the topic the settings that CreateTopic would
	// have given it, and reports whether it had others.
	EnsureTopicConfig(ctx context.Context, name string, config map[string]string) (changed bool, err error)
}

// Log is one group's committed log, as the applier reads it. Methods may be
// called from any goroutine. Base, Trust and Bytes mean something once Applied
// has grown: the state machine is restored then.
type Log interface {
	// Entry returns the commands at an index that has been applied, nil if
	// the entry holds none (Raft's own entries).
	Entry(index uint64) ([]byte, error)
	// Applied is the index up to which the group's state machine has applied.
	Applied() *watch.Index
	// Base returns the newest tail: the state to read the log on from, at the
	// entry after its index. The caller owns it.
	Base() (*fsm.Group, error)
	// Trust moves the tail: the local broker holds everything up to index
	// through a power cut, or it is known to need a copy. state is the
	// encoding of the state machine at index.
	Trust(index uint64, state []byte)
	// Gone says whether an error of Entry means that the entry was deleted
	// from the log: what it held is below the base by now.
	Gone(err error) bool
	// Bytes is how much of the log lies after the tail and so cannot be
	// deleted, and how much of it this group may hold; no limit if 0.
	Bytes() (held, limit int64)
	// Never says whether an entry was never in this node's log: a leader's
	// snapshot took its place. What is unsure is not said.
	Never(index uint64) bool
	// Missing is the newest such entry, 0 if there is none.
	Missing() uint64
	// Rebased grows when a leader's snapshot took the place of the base.
	Rebased() *watch.Index
}

// source brings batches that the log no longer holds, from a peer's broker.
type source interface {
	// fill pushes everything of the lane's partition from offset from up to
	// want.NextOffset, in order, verified against want. last is the last
	// batch on the local broker, nil if there is none to compare. It returns
	// nil when all of it was pushed, and a distrust when what the local
	// broker holds cannot be right.
	fill(ctx context.Context, l *lane, from int64, last kafkawire.Batch, want *fsm.Partition, push func(item) error) error
}

// Errors that waiters for visibility get.
var (
	// ErrNotOpen is returned when this node does not hold the partition.
	ErrNotOpen = errors.New("partition is not open on this node")
	// ErrQuarantined is returned when the partition's copy on this node's
	// broker is not trusted.
	ErrQuarantined = errors.New("partition is quarantined on this node")
	// ErrClosed is returned when the partition was closed or the node stops.
	ErrClosed = errors.New("partition is closed")
	// ErrCut is returned when the batch that was waited for was cut out of the
	// log, because no broker took it or what was before it.
	ErrCut = errors.New("batch was cut out of the log")
	// ErrSkipped is returned when a leader's snapshot took the place of entries
	// in which the batch may have been cut: what became of it is not known here.
	ErrSkipped = errors.New("what became of the batch is not known on this node, which goes on from a leader's snapshot")
)

// CutError is the ErrCut that waiters get. What begins at Offset is the batch that
// no broker took; Code is the local broker's Kafka error code for it, 0 if it is
// not known any more.
type CutError struct {
	Offset  int64
	Code    int16
	Message string
}

// Error implements error.
func (e *CutError) Error() string { return fmt.Sprintf("%v at offset %d", ErrCut, e.Offset) }

// Unwrap returns ErrCut.
func (e *CutError) Unwrap() error { return ErrCut }

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
