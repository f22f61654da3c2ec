package apply

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	bolt "go.etcd.io/bbolt"

	"lockstep/fsm"
)

// Cause is why a partition is quarantined, as the metric's label names it. A
// reason for people begins with its cause and a colon.
type Cause string

// The causes.
const (
	CauseBaseOffset Cause = "base-offset"   // the broker put a batch at another offset than was committed
	CauseForeign    Cause = "foreign-write" // somebody else writes to the broker
	CauseCorrupt    Cause = "corrupt"       // a batch does not have its checksum, or cannot be read
	CauseDivergent  Cause = "divergent"     // what stands there is not what was committed
	CauseRefused    Cause = "refused"       // this broker alone does not take a batch
	CauseTooLong    Cause = "too-long"      // the log holds more than was ever committed
)

// Causes lists every cause.
func Causes() []Cause {
	return []Cause{CauseBaseOffset, CauseForeign, CauseCorrupt, CauseDivergent, CauseRefused, CauseTooLong}
}

// because is a reason for people that names its cause.
func (c Cause) because(format string, args ...any) string {
	return string(c) + ": " + fmt.Sprintf(format, args...)
}

// CauseOf returns the cause that a reason names; a reason without one is about
// bytes that differ.
func CauseOf(reason string) Cause {
	word, _, _ := strings.Cut(reason, ": ")
	if c := Cause(word); slices.Contains(Causes(), c) {
		return c
	}
	return CauseDivergent
}

// distrust is the error that quarantines a partition because of c.
func (c Cause) distrust(format string, args ...any) error {
	return &distrust{c.because(format, args...)}
}

var (
	// ErrNotQuarantined is returned when a partition is to be released that
	// is not quarantined.
	ErrNotQuarantined = errors.New("partition is not quarantined on this node")

	quarantineBucket = []byte("quarantine")
	rebuildBucket    = []byte("rebuild")
)

// quarantined is one partition, as it is remembered.
type quarantined struct {
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	From   uint64    `json:"from,omitempty"` // entries after it were not given to the broker; 0: not known
}

// quarantines is the keeper that remembers on disk, in the file of bindings.
// It also remembers which topics are being made anew, from before their old
// copy is destroyed until the new one is bound: in between there is nothing
// left that a lease would have to protect.
type quarantines struct {
	store *bindings
	log   hclog.Logger

	mu      sync.Mutex // guards what follows, and orders the writes
	parts   map[fsm.TP]quarantined
	rebuilt map[uint64]bool // topics whose old copy may be gone
	counts  map[Cause]uint64
}

func newQuarantines(store *bindings, log hclog.Logger) (*quarantines, error) {
	parts, err := notesOf[quarantined](store, quarantineBucket)
	if err != nil {
		return nil, fmt.Errorf("read the quarantined partitions: %w", err)
	}
	q := &quarantines{store: store, log: log, parts: parts, rebuilt: make(map[uint64]bool), counts: make(map[Cause]uint64)}
	err = store.db.Update(func(tx *bolt.Tx) error {
		topics, err := tx.CreateBucketIfNotExists(rebuildBucket)
		if err != nil {
			return err
		}
		return topics.ForEach(func(k, _ []byte) error {
			if len(k) != 8 {
				return fmt.Errorf("a key of %d bytes", len(k))
			}
			q.rebuilt[binary.BigEndian.Uint64(k)] = true
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read which topics are made anew: %w", err)
	}
	return q, nil
}

// quarantined implements keeper.
func (q *quarantines) quarantined(tp fsm.TP) (reason string, from uint64, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	v, ok := q.parts[tp]
	return v.Reason, v.From, ok
}

// quarantine implements keeper. A quarantine that cannot be written down holds
// until the process ends.
func (q *quarantines) quarantine(tp fsm.TP, reason string, from uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	v := quarantined{Reason: reason, Since: time.Now().UTC(), From: from}
	q.parts[tp] = v
	q.counts[CauseOf(reason)]++
	if err := q.store.note(quarantineBucket, tp, v); err != nil {
		q.log.Error("cannot write down that a partition is quarantined: a restart forgets it; look at the disk of data_dir",
			"partition", tp, "error", err)
	}
}

// of returns the quarantined partitions of a topic.
func (q *quarantines) of(topic uint64) []fsm.TP {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []fsm.TP
	for tp := range q.parts {
		if tp.Topic == topic {
			out = append(out, tp)
		}
	}
	slices.SortFunc(out, func(a, b fsm.TP) int { return cmp.Compare(a.Partition, b.Partition) })
	return out
}

// lift forgets one quarantine.
func (q *quarantines) lift(tp fsm.TP) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.parts[tp]; !ok {
		return ErrNotQuarantined
	}
	if err := q.store.forget(quarantineBucket, []fsm.TP{tp}); err != nil {
		return fmt.Errorf("forget a quarantine: %w", err)
	}
	delete(q.parts, tp)
	return nil
}

// rebuilding says that the old copy of a topic may be gone, and may go.
func (q *quarantines) rebuilding(topic uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.rebuilt[topic]
}

// beginRebuild writes down that the old copy of a topic is about to go.
func (q *quarantines) beginRebuild(topic uint64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	err := q.store.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(rebuildBucket).Put(bindingKey(topic), nil) })
	if err != nil {
		return fmt.Errorf("write down that a topic is made anew: %w", err)
	}
	q.rebuilt[topic] = true
	return nil
}

// endRebuild forgets, in one step, all that was wrong with a topic's old copy.
// Partitions that are gone with their topic are forgotten too.
func (q *quarantines) endRebuild(topic uint64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	err := q.store.db.Update(func(tx *bolt.Tx) error {
		for tp := range q.parts {
			if tp.Topic != topic {
				continue
			}
			if err := tx.Bucket(quarantineBucket).Delete(partitionKey(tp)); err != nil {
				return err
			}
		}
		return tx.Bucket(rebuildBucket).Delete(bindingKey(topic))
	})
	if err != nil {
		return fmt.Errorf("forget the quarantines of a topic: %w", err)
	}
	maps.DeleteFunc(q.parts, func(tp fsm.TP, _ quarantined) bool { return tp.Topic == topic })
	delete(q.rebuilt, topic)
	return nil
}

// forget drops what is remembered of topics that are over.
func (q *quarantines) forget(over func(topic uint64) bool) error {
	q.mu.Lock()
	gone := make(map[uint64]bool)
	for tp := range q.parts {
		gone[tp.Topic] = true
	}
	for topic := range q.rebuilt {
		gone[topic] = true
	}
	q.mu.Unlock()
	for topic := range gone {
		if over(topic) {
			if err := q.endRebuild(topic); err != nil {
				return err
			}
		}
	}
	return nil
}

// Quarantines counts the quarantines since the start, by cause.
func (a *Applier) Quarantines() map[Cause]uint64 {
	out := make(map[Cause]uint64)
	for _, c := range Causes() {
		out[c] = 0
	}
	if q := a.quarantines; q != nil {
		q.mu.Lock()
		defer q.mu.Unlock()
		maps.Copy(out, q.counts)
	}
	return out
}

// Release ends the quarantine of a partition without making it anew, for an
// operator who knows that the broker's copy is right by now: its end and its
// last batch are compared, no more. Any goroutine, after Open.
func (a *Applier) Release(tp fsm.TP) error {
	l := a.lane(tp)
	if l == nil {
		return ErrNotOpen
	}
	if !l.resting() {
		return ErrNotQuarantined
	}
	if err := a.quarantines.lift(tp); err != nil {
		return err
	}
	a.log.Warn("a quarantined partition was released by command: its end is compared, what lies below is not before the next scrub",
		"topic", l.name, "partition", tp.Partition)
	l.readmit()
	return nil
}

// resting says that the lane is in quarantine and does nothing.
func (l *lane) resting() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == StateQuarantined || l.state == StateRebuilding
}
