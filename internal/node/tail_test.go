package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"testing"

	"lockstep/fsm"
	"lockstep/kafkawire"
)

// smallLogs makes snapshots and cuts happen after little.
func smallLogs(kind string) func(*Config) {
	return func(cfg *Config) {
		cfg.LogStore, cfg.SegmentBytes, cfg.EntryBytes = kind, 256<<10, 8<<10
		cfg.Retention = Retention{SnapshotBytes: 256 << 10, LogRetainBytes: 2, LogLimitBytes: 1 << 30}
	}
}

var loadTP = fsm.TP{Topic: 1, Partition: 0}

// loadBatch is one record's batch. The state machine looks at no record.
func loadBatch(size int) []byte {
	b := make([]byte, kafkawire.BatchHeaderLen+size)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	b[16] = 2
	for i := 43; i < 57; i++ {
		b[i] = 0xff // no producer
	}
	binary.BigEndian.PutUint32(b[57:], 1)
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// openLoad opens the partition that load appends to, in group 1.
func (c *testCluster) openLoad() {
	c.t.Helper()
	for _, n := range c.nodes {
		r, err := n.Submit(c.ctx(), 1, fsm.Control(fsm.KindOpen, fsm.Open{Level: 1, Topic: loadTP.Topic, Name: "t", Total: 1, Partitions: []int32{0}}))
		if err != nil || r.Verdict != fsm.Done {
			c.t.Fatalf("open: %+v, %v", r, err)
		}
		return
	}
}

// load appends batches of size bytes to group 1 until total is reached, once
// more as a whole if the leader changes meanwhile.
func (c *testCluster) load(total, size int) {
	c.t.Helper()
	err := c.tryLoad(total, size)
	if errors.Is(err, ErrNotLeader) || errors.Is(err, ErrUnknownOutcome) {
		err = c.tryLoad(total, size)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *testCluster) tryLoad(total, size int) error {
	c.t.Helper()
	g := c.leader(1).Group(1)
	ctx := c.ctx()
	batch := loadBatch(size)
	var mu sync.Mutex
	var failed error
	slots := make(chan struct{}, 16)
	for range max(total/size, 1) {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			c.t.Fatal("the load does not get through")
		}
		g.Propose(fsm.AppendCommand(loadTP, batch), func(r fsm.Result, err error) {
			if err == nil && r.Verdict != fsm.Appended {
				err = fmt.Errorf("verdict %+v", r)
			}
			mu.Lock()
			if failed == nil {
				failed = err
			}
			mu.Unlock()
			<-slots
		})
	}
	for range cap(slots) {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			c.t.Fatal("the load does not end")
		}
	}
	mu.Lock()
	defer mu.Unlock()
	return failed
}

// tailer reads a group's log as the applier does: from the base, entry by
// entry, and from the base again where the log is gone.
type tailer struct {
	t     *testing.T
	log   *machine
	state *fsm.Group
	at    uint64 // last entry read
	bases int    // how often the base was read
}

func newTailer(t *testing.T, g *Group) *tailer {
	t.Helper()
	f := &tailer{t: t, log: g.Log()}
	f.rebase()
	return f
}

func (f *tailer) rebase() {
	f.t.Helper()
	base, err := f.log.Base()
	if err != nil {
		f.t.Fatal(err)
	}
	f.state, f.at = base, base.Index
	f.bases++
}

// follow reads up to index, which has been applied.
func (f *tailer) follow(index uint64) {
	f.t.Helper()
	for f.at < index {
		data, err := f.log.Entry(f.at + 1)
		switch {
		case err != nil && f.log.Gone(err):
			before := f.at
			if f.rebase(); f.at <= before {
				f.t.Fatalf("entry %d is gone, but the base is at %d", before+1, f.at)
			}
			continue
		case err != nil:
			f.t.Fatal(err)
		}
		f.at++
		if data == nil {
			continue
		}
		if _, err := f.state.Apply(f.at, data); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *tailer) trust() { f.log.Trust(f.at, f.state.Encode()) }

// sameAsHead follows to the end and compares the two cursors.
func (f *tailer) sameAsHead() {
	f.t.Helper()
	f.follow(f.log.Applied().Get())
	f.state.Index = f.at
	var head []byte
	f.log.read(func(s *fsm.Group) {
		at := *s
		at.Index = f.at
		head = at.Encode()
	})
	if !bytes.Equal(f.state.Encode(), head) {
		f.t.Errorf("at %d the tail and the head differ", f.at)
	}
}

// trustAll trusts everything that is applied on a node, as fast as it comes.
func (c *testCluster) trustAll(ids ...int32) (stop func()) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, id := range ids {
		for _, g := range c.nodes[id].Groups() {
			f := newTailer(c.t, g)
			wg.Go(func() {
				for {
					at, err := f.log.Applied().Wait(ctx, f.at+1)
					if err != nil {
						return
					}
					f.follow(at)
					f.trust()
				}
			})
		}
	}
	return func() { cancel(); wg.Wait() }
}
