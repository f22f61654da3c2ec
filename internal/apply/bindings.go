package apply

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	"lockstep/fsm"
)

// binding ties a topic of the catalog to the broker's own topic. It is durable:
// the broker's name for a topic says nothing about which topic it is.
type binding struct {
	Name string   `json:"name"`
	UUID [16]byte `json:"uuid"` // the broker's topic id, zero where it has none
	Gone bool     `json:"gone"` // the topic was deleted; it may not be made again
}

var bindingsBucket = []byte("bindings")

// bindings is the file of bindings. Every write is synced before it returns.
type bindings struct{ db *bolt.DB }

func openBindings(path string) (*bindings, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open %s (does another lockstep use this data_dir?): %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bindingsBucket)
		return err
	})
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("prepare %s: %w", path, err)
	}
	return &bindings{db: db}, nil
}

func (b *bindings) close() error { return b.db.Close() }

func bindingKey(topic uint64) []byte { return binary.BigEndian.AppendUint64(nil, topic) }

// partitionKey is the key of what a bucket has about a partition.
func partitionKey(tp fsm.TP) []byte {
	return binary.BigEndian.AppendUint32(bindingKey(tp.Topic), uint32(tp.Partition))
}

func (b *bindings) put(topic uint64, v binding) error {
	return b.db.Update(func(tx *bolt.Tx) error {
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return tx.Bucket(bindingsBucket).Put(bindingKey(topic), raw)
	})
}

// all returns every binding by topic id.
func (b *bindings) all() (map[uint64]binding, error) {
	out := make(map[uint64]binding)
	err := b.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bindingsBucket).ForEach(func(k, raw []byte) error {
			var v binding
			if len(k) != 8 {
				return fmt.Errorf("a key of %d bytes", len(k))
			}
			if err := json.Unmarshal(raw, &v); err != nil {
				return err
			}
			out[binary.BigEndian.Uint64(k)] = v
			return nil
		})
	})
	return out, err
}

// readPartitions makes sure that there is a bucket for what is known of partitions,
// and hands over what is in it.
func (b *bindings) readPartitions(bucket []byte, f func(tp fsm.TP, raw []byte) error) error {
	return b.db.Update(func(tx *bolt.Tx) error {
		all, err := tx.CreateBucketIfNotExists(bucket)
		if err != nil {
			return err
		}
		return all.ForEach(func(k, raw []byte) error {
			if len(k) != 12 {
				return fmt.Errorf("a key of %d bytes", len(k))
			}
			return f(fsm.TP{Topic: binary.BigEndian.Uint64(k), Partition: int32(binary.BigEndian.Uint32(k[8:]))}, raw)
		})
	})
}

// notesOf is readPartitions for a bucket of JSON.
func notesOf[V any](b *bindings, bucket []byte) (map[fsm.TP]V, error) {
	out := make(map[fsm.TP]V)
	err := b.readPartitions(bucket, func(tp fsm.TP, raw []byte) error {
		var v V
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("partition %s: %w", tp, err)
		}
		out[tp] = v
		return nil
	})
	return out, err
}

// note writes down, as JSON, what is known of a partition.
func (b *bindings) note(bucket []byte, tp fsm.TP, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucket).Put(partitionKey(tp), raw) })
}

// forget deletes what a bucket has about partitions, in one write.
func (b *bindings) forget(bucket []byte, tps []fsm.TP) error {
	if len(tps) == 0 {
		return nil
	}
	return b.db.Update(func(tx *bolt.Tx) error {
		for _, tp := range tps {
			if err := tx.Bucket(bucket).Delete(partitionKey(tp)); err != nil {
				return err
			}
		}
		return nil
	})
}
