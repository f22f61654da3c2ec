package apply

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	bolt "go.etcd.io/bbolt"

	"lockstep/fsm"
)

// cut took everything from Offset on, of what stands before it, out of the log.
type cut struct {
	Index  uint64 `json:"index"`
	Offset int64  `json:"offset"`
	Nth    int    `json:"nth,omitempty"` // of the entry's commands
}

func (c cut) place() fsm.Place { return fsm.Place{Index: c.Index, Nth: c.Nth} }

var cutsBucket = []byte("cuts")

// cuts remembers, through a restart, what was cut out of the log after the
// base. The refused batch is read again then, before its cut is: a broker that
// would take it by now must not be given it.
type cuts struct {
	store *bindings

	mu sync.Mutex // guards what follows, and orders the writes
	by map[fsm.TP][]cut
}

func newCuts(store *bindings) (*cuts, error) {
	c := &cuts{store: store, by: make(map[fsm.TP][]cut)}
	err := store.db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(cutsBucket)
		if err != nil {
			return err
		}
		return b.ForEach(func(k, raw []byte) error {
			var v []cut
			if len(k) != 12 {
				return fmt.Errorf("a key of %d bytes", len(k))
			}
			if err := json.Unmarshal(raw, &v); err != nil {
				return err
			}
			c.by[fsm.TP{Topic: binary.BigEndian.Uint64(k), Partition: int32(binary.BigEndian.Uint32(k[8:]))}] = v
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read the cuts: %w", err)
	}
	return c, nil
}

// of returns the cuts of a partition.
func (c *cuts) of(tp fsm.TP) []cut {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.by[tp])
}

// add remembers a cut, and forgets those that the base is behind.
func (c *cuts) add(tp fsm.TP, v cut, base uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(c.by[tp], v) {
		return nil
	}
	kept := slices.DeleteFunc(slices.Clone(c.by[tp]), func(o cut) bool { return o.Index <= base })
	return c.put(tp, append(kept, v))
}

// drop forgets a partition that is closed.
func (c *cuts) drop(tp fsm.TP) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.by[tp]) == 0 {
		return nil
	}
	return c.put(tp, nil)
}

// put replaces the cuts of a partition. mu is held.
func (c *cuts) put(tp fsm.TP, v []cut) error {
	key := binary.BigEndian.AppendUint32(bindingKey(tp.Topic), uint32(tp.Partition))
	err := c.store.db.Update(func(tx *bolt.Tx) error {
		if len(v) == 0 {
			return tx.Bucket(cutsBucket).Delete(key)
		}
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return tx.Bucket(cutsBucket).Put(key, raw)
	})
	if err != nil {
		return fmt.Errorf("write the cuts of partition %s: %w", tp, err)
	}
	c.by[tp] = v
	return nil
}
