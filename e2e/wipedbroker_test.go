//go:build e2e

package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// shortLog makes the Raft logs so short that a broker which is behind needs its
// peers.
func shortLog(n *node) []string {
	return []string{"broker.log_dirs=" + n.broker.dataDir(), "raft.snapshot_bytes=4MiB", "raft.log_retain_bytes=8MiB",
		"raft.log_limit_bytes=" + envOr("E2E_LOG_LIMIT", "64MiB")}
}

// TestWipedBroker empties the data directory of one of three brokers while
// records are produced. Nothing but that broker is restarted: it must become
// complete and identical again, though the logs reach back only a little, and
// the producers must hardly notice. E2E_WIPE_MIB sets the size.
func TestWipedBroker(t *testing.T) {
	c := newClusterWith(t, clusterOpts{settings: shortLog})
	mib := envInt(t, "E2E_WIPE_MIB", 128)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute+time.Duration(mib)*time.Second/4)
	defer cancel()
	const topic, partitions = "bulk", 24
	c.createTopic(c.node(1), topic, partitions)
	ends := fillTopic(t, c.bootstrap(), topic, partitions, int64(mib)<<20)
	c.waitBrokersHold(c.nodes, topic, ends)
	c.createTopic(c.node(1), "checked", 6)
	w := startWorkload(t, c.bootstrap(), "checked", 6, 40*time.Millisecond, "p1")

	fg := startForeground(t, c, "foreground", 6)
	window := 15 * time.Second
	before := fg.rate(ctx, window)
	victim := c.node(2)
	victim.broker.kill9(t)
	if err := os.RemoveAll(victim.broker.dataDir()); err != nil {
		t.Fatal(err)
	}
	if err := victim.broker.format(ctx); err != nil {
		t.Fatal(err)
	}
	c.restartBrokerOf(victim)
	begin := time.Now()
	complete := make(chan struct{})
	var during float64
	var measuring sync.WaitGroup
	measuring.Go(func() { during = fg.rateUntil(ctx, complete) })
	c.waitComplete(ctx, victim, topic, ends)
	close(complete)
	measuring.Wait()
	took := time.Since(begin)
	after := fg.rate(ctx, window)
	fg.stop()
	t.Logf("%d MiB in %d partitions copied in %s (%.1f MiB/s); foreground: before %.1f MiB/s, during %.1f MiB/s (%.0f %%), after %.1f MiB/s",
		mib, partitions, took.Round(time.Second), float64(mib)/took.Seconds(), before, during, 100*during/before, after)
	flush, cancelFlush := context.WithTimeout(ctx, time.Minute)
	defer cancelFlush()
	if err := w.stopProducing(flush); err != nil {
		t.Errorf("wait for the last answers: %v", err)
	}
	// What the foreground wrote meanwhile is copied, too, as far as the short
	// logs do not reach back.
	c.waitHealthyWithin(healthyWithin + time.Duration(mib)*time.Second/8)
	c.waitBrokersHold(c.nodes, "checked", w.h.ends())
	w.h.check(c.readBrokers(c.nodes, "checked", 6), 6).report(t)
	c.trusted(ctx)
	c.verifyWithin(5*time.Minute + time.Duration(mib)*time.Second/8)
	if lines := c.logLines("copy"); len(lines) == 0 {
		t.Error("no node logged a copy")
	}
}

// waitComplete returns when a node's broker has everything of a topic.
func (c *cluster) waitComplete(ctx context.Context, n *node, topic string, ends map[int32]int64) {
	c.t.Helper()
	err := waitUntil(ctx, 200*time.Millisecond, func(ctx context.Context) error {
		for p, want := range ends {
			got, err := endOffset(ctx, n.broker.addr(), topic, p)
			if err != nil {
				return err
			}
			if got < want {
				return fmt.Errorf("broker of node %d ends at %d/%d, want %d", n.id, p, got, want)
			}
		}
		return nil
	})
	if err != nil {
		c.t.Fatalf("wait for a complete broker: %v", err)
	}
}

// fillTopic writes bytes of incompressible records and returns the ends.
func fillTopic(t *testing.T, bootstrap []string, topic string, partitions int32, bytes int64) map[int32]int64 {
	t.Helper()
	return fillTopicAt(t, bootstrap, topic, partitions, bytes, time.Time{})
}

// fillTopicAt is fillTopic with records of a time; zero is the present.
func fillTopicAt(t *testing.T, bootstrap []string, topic string, partitions int32, bytes int64, at time.Time) map[int32]int64 {
	t.Helper()
	cl, err := kgo.NewClient(append(clientOpts(bootstrap), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(512<<10), kgo.ProducerLinger(20*time.Millisecond),
		kgo.MaxBufferedBytes(64<<20), kgo.UnknownTopicRetries(-1))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var failed atomic.Pointer[error]
	var mu sync.Mutex
	ends := map[int32]int64{}
	const size = 16 << 10
	random := rand.NewChaCha8([32]byte{1})
	for i := int64(0); i < bytes/size && failed.Load() == nil; i++ {
		value := make([]byte, size)
		_, _ = random.Read(value)
		binary.BigEndian.PutUint64(value, uint64(i))
		cl.Produce(t.Context(), &kgo.Record{Partition: int32(i % int64(partitions)), Value: value, Timestamp: at}, func(r *kgo.Record, err error) {
			if err != nil {
				failed.Store(&err)
				return
			}
			mu.Lock()
			ends[r.Partition] = max(ends[r.Partition], r.Offset+1)
			mu.Unlock()
		})
	}
	if err := cl.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := failed.Load(); err != nil {
		t.Fatalf("fill %s: %v", topic, *err)
	}
	return ends
}

// foreground produces as fast as it is acknowledged, with bounded buffers.
type foreground struct {
	acked  atomic.Int64 // bytes
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func startForeground(t *testing.T, c *cluster, topic string, partitions int32) *foreground {
	t.Helper()
	c.createTopic(c.node(1), topic, partitions)
	ctx, cancel := context.WithCancel(t.Context())
	f := &foreground{cancel: cancel}
	t.Cleanup(f.stop)
	value := make([]byte, 1<<10)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(value)
	for range 3 { // this client has one idempotent request under way per broker
		cl, err := kgo.NewClient(append(clientOpts(c.bootstrap()), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()),
			kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(256<<10), kgo.MaxBufferedBytes(8<<20), kgo.UnknownTopicRetries(-1))...)
		if err != nil {
			t.Fatal(err)
		}
		f.wg.Go(func() {
			defer cl.Close()
			for i := int32(0); ctx.Err() == nil; i++ {
				cl.Produce(ctx, &kgo.Record{Partition: i % partitions, Value: value}, func(_ *kgo.Record, err error) {
					if err == nil {
						f.acked.Add(int64(len(value)))
					}
				})
			}
		})
	}
	return f
}

func (f *foreground) stop() {
	f.cancel()
	f.wg.Wait()
}

// rate measures MiB/s for some time.
func (f *foreground) rate(ctx context.Context, window time.Duration) float64 {
	ctx, cancel := context.WithTimeout(ctx, window)
	defer cancel()
	return f.rateUntil(ctx, nil)
}

func (f *foreground) rateUntil(ctx context.Context, done <-chan struct{}) float64 {
	begin, n := time.Now(), f.acked.Load()
	select {
	case <-done:
	case <-ctx.Done():
	}
	return float64(f.acked.Load()-n) / (1 << 20) / time.Since(begin).Seconds()
}
