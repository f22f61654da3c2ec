package apply

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	bolt "go.etcd.io/bbolt"

	"lockstep/fsm"
)

var wholesBucket = []byte("wholes")

// wholes remembers, through a restart, up to which entry a partition's copy was
// whole where entries are missing from this node's log: with a copy the broker may
// have got what was in them. It is written down before the partition is served.
type wholes struct {
	store *bindings

	mu sync.Mutex // guards what follows
	by map[fsm.TP]uint64
}

func newWholes(store *bindings) (*wholes, error) {
	w := &wholes{store: store, by: make(map[fsm.TP]uint64)}
	err := store.readPartitions(wholesBucket, func(tp fsm.TP, raw []byte) error {
		if len(raw) != 8 {
			return fmt.Errorf("partition %s: a value of %d bytes", tp, len(raw))
		}
		w.by[tp] = binary.BigEndian.Uint64(raw)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read which copies were whole: %w", err)
	}
	return w, nil
}

func (w *wholes) of(tp fsm.TP) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.by[tp]
}

// note writes down that a partition's copy is whole up to an entry. Many partitions
// may become whole at once: they share a write.
func (w *wholes) note(tp fsm.TP, index uint64) error {
	err := w.store.db.Batch(func(tx *bolt.Tx) error {
		return tx.Bucket(wholesBucket).Put(partitionKey(tp), binary.BigEndian.AppendUint64(nil, index))
	})
	if err != nil {
		return fmt.Errorf("write down that the copy of partition %s is whole: %w", tp, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.by[tp] = index
	return nil
}

// forget takes back what was noted of partitions, in one write.
func (w *wholes) forget(tps []fsm.TP) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	known := slices.DeleteFunc(slices.Clone(tps), func(tp fsm.TP) bool { _, ok := w.by[tp]; return !ok })
	if err := w.store.forget(wholesBucket, known); err != nil {
		return fmt.Errorf("forget which copies were whole: %w", err)
	}
	for _, tp := range known {
		delete(w.by, tp)
	}
	return nil
}

// noteWhole writes down that the copy is about to be served, which may hold what
// was in entries up to missing, that this node's log never had.
func (l *lane) noteWhole(missing uint64) error {
	if err := l.f.a.wholes.note(l.tp, missing); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.whole = missing
	return nil
}
