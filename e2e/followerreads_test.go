//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestFollowerReads: a consumer that names its rack reads from the node of that
// rack, also what others lead; when that node is killed it reads on at the
// leaders, and when it is back there again. It gets every record once, in order.
func TestFollowerReads(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	const topic, partitions = "nearby", 3
	c.createTopic(c.node(1), topic, partitions)
	near := c.node(3)
	leaders, err := partitionLeaders(ctx, c.node(1), topic, partitions)
	if err != nil {
		t.Fatal(err)
	}
	if len(ledBy(leaders, near.id)) == partitions {
		t.Fatalf("node %d leads everything: %v", near.id, leaders)
	}
	w := startWorkload(t, c.bootstrap(), topic, partitions, 20*time.Millisecond, "p1")
	r := startRackReader(t, c.bootstrap(), topic, partitions, "c")

	isNear := func(id int32) bool { return id == int32(near.id) }
	isFar := func(id int32) bool { return id != int32(near.id) }
	r.wait(ctx, "at the node of its rack", isNear)
	before := r.count()
	r.wait(ctx, "still there", isNear)
	if from := r.since(before); slices.ContainsFunc(from, isFar) {
		t.Errorf("partitions led by %v were read at %v, want node %d alone", leaders, from, near.id)
	}

	c.killNode(near.id)
	killed := time.Now()
	r.wait(ctx, "at the leaders, after the kill", isFar)
	t.Logf("read every partition at its leader %s after the kill", time.Since(killed).Round(time.Millisecond))

	c.restartNode(near.id)
	c.waitHealthy()
	r.wait(ctx, "at the node of its rack, which is back", isNear)

	if err := w.stopProducing(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.waitConsumed(ctx); err != nil {
		t.Errorf("the consumer without a rack did not reach the end: %v", err)
	}
	ends := w.h.ends()
	c.waitBrokersHold(c.nodes, topic, ends)
	dumps := c.readBrokers(c.nodes, topic, partitions)
	r.waitFor(ctx, "to the end", func() bool {
		for p, log := range dumps[1] {
			if len(r.got[p]) < len(log) {
				return false
			}
		}
		return true
	})
	w.h.check(dumps, partitions).report(t)
	r.check(dumps[1], partitions)
	c.verify()
}

// rackReader consumes a topic for a rack and notes which node each batch came
// from.
type rackReader struct {
	t          *testing.T
	partitions int32

	mu      sync.Mutex
	changed chan struct{}
	got     map[int32][]stored
	batches []batchFrom
}

type batchFrom struct{ partition, node int32 }

func startRackReader(t *testing.T, bootstrap []string, topic string, partitions int32, rack string) *rackReader {
	t.Helper()
	r := &rackReader{t: t, partitions: partitions, changed: make(chan struct{}), got: map[int32][]stored{}}
	starts := map[int32]kgo.Offset{}
	for p := range partitions {
		starts[p] = kgo.NewOffset().At(0)
	}
	cl, err := kgo.NewClient(append(clientOpts(bootstrap), kgo.ClientID("in-"+rack), kgo.Rack(rack), kgo.WithHooks(r),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: starts}), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxWait(500*time.Millisecond),
		// A replica that is gone does not end this client's choice of it,
		// but by default only half an hour does.
		kgo.RecheckPreferredReplicaInterval(2*time.Second))...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			fetches := cl.PollFetches(ctx)
			if ctx.Err() != nil {
				return
			}
			fetches.EachError(func(_ string, p int32, err error) { t.Errorf("consumer in rack %s, partition %d: %v", rack, p, err) })
			fetches.EachRecord(func(rec *kgo.Record) {
				r.edit(func() {
					r.got[rec.Partition] = append(r.got[rec.Partition], stored{offset: rec.Offset, value: string(rec.Value)})
				})
			})
		}
	}()
	t.Cleanup(func() { cancel(); cl.Close(); <-done })
	return r
}

// OnFetchBatchRead implements kgo.HookFetchBatchRead.
func (r *rackReader) OnFetchBatchRead(from kgo.BrokerMetadata, _ string, partition int32, _ kgo.FetchBatchMetrics) {
	r.edit(func() { r.batches = append(r.batches, batchFrom{partition, from.NodeID}) })
}

func (r *rackReader) edit(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *rackReader) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.batches)
}

// since lists the nodes that batches after the first n came from.
func (r *rackReader) since(n int) []int32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	var nodes []int32
	for _, b := range r.batches[n:] {
		nodes = append(nodes, b.node)
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

// wait returns when, from now on, every partition was read ten times in a row
// from nodes that are right.
func (r *rackReader) wait(ctx context.Context, where string, right func(int32) bool) {
	r.t.Helper()
	seen := r.count()
	row := map[int32]int{}
	r.waitFor(ctx, where, func() bool {
		for ; seen < len(r.batches); seen++ {
			if b := r.batches[seen]; right(b.node) {
				row[b.partition]++
			} else {
				row[b.partition] = 0
			}
		}
		for p := range r.partitions {
			if row[p] < 10 {
				return false
			}
		}
		return true
	})
}

// waitFor calls ok, with the reader locked, after each change.
func (r *rackReader) waitFor(ctx context.Context, what string, ok func() bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		r.mu.Lock()
		is, changed, n := ok(), r.changed, len(r.batches)
		last := slices.Clone(r.batches[max(0, n-10):])
		r.mu.Unlock()
		if is {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			r.t.Fatalf("the consumer does not read %s; %d batches, the last from %v", what, n, last)
		}
	}
}

// check compares what was read with a broker's log.
func (r *rackReader) check(log dump, partitions int32) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	total := 0
	for p := range partitions {
		if err := sameRecords(r.got[p], log[p]); err != nil {
			r.t.Errorf("partition %d: %v", p, err)
		}
		total += len(r.got[p])
	}
	r.t.Logf("%d records read in %d batches", total, len(r.batches))
}

func sameRecords(got, want []stored) error {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Errorf("record %d is %v, the broker has %v", i, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d records, the broker has %d", len(got), len(want))
	}
	return nil
}
