package apply

import (
	"context"
	"errors"
	"fmt"

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
