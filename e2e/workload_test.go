//go:build e2e

package e2e

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// workload is running clients that write what they see into a history.
type workload struct {
	t       *testing.T
	h       *history
	stopCh  chan struct{} // closed by stopProducing
	clients []*kgo.Client
	consume context.CancelFunc
	senders sync.WaitGroup
	reader  sync.WaitGroup
	stopped bool

	// brokenDisks: brokers answer the consumer with whatever an error of their
	// disk makes them say, as they would any client.
	brokenDisks atomic.Bool
}

// clientOpts makes a client look again soon instead of after its defaults of
// 0.25 to 5 s, which would be what the failover test measures.
func clientOpts(bootstrap []string) []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(bootstrap...),
		kgo.MetadataMinAge(50 * time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }),
		kgo.DialTimeout(2 * time.Second),
		kgo.RequestTimeoutOverhead(5 * time.Second),
	}
}

// startWorkload runs one idempotent acks=all producer per name, each sending a
// record to every partition at every tick, and one consumer with all
// partitions assigned by hand from offset 0.
func startWorkload(t *testing.T, bootstrap []string, topic string, partitions int32, tick time.Duration, producers ...string) *workload {
	t.Helper()
	return startWorkloadWith(t, nil, bootstrap, topic, partitions, tick, producers...)
}

// startWorkloadWith is startWorkload with options of its clients.
func startWorkloadWith(t *testing.T, opts []kgo.Opt, bootstrap []string, topic string, partitions int32, tick time.Duration, producers ...string) *workload {
	t.Helper()
	w := &workload{t: t, h: newHistory(topic), stopCh: make(chan struct{})}
	for _, name := range producers {
		cl, err := kgo.NewClient(append(append(clientOpts(bootstrap), opts...),
			kgo.ClientID(name),
			kgo.DefaultProduceTopic(topic),
			kgo.RecordPartitioner(kgo.ManualPartitioner()),
			kgo.RequiredAcks(kgo.AllISRAcks()),
			kgo.ProducerLinger(0),
			kgo.ProduceRequestTimeout(5*time.Second),
			kgo.UnknownTopicRetries(-1),
			// Otherwise the client starts over with a new producer id and says nothing.
			kgo.ProducerOnDataLossDetected(func(topic string, p int32) {
				t.Errorf("producer %s was told that its sequence on %s/%d does not follow what is there", name, topic, p)
			}),
		)...)
		if err != nil {
			t.Fatal(err)
		}
		w.clients = append(w.clients, cl)
		w.senders.Go(func() { w.send(cl, name, partitions, tick) })
	}
	starts := map[int32]kgo.Offset{}
	for p := range partitions {
		starts[p] = kgo.NewOffset().At(0)
	}
	cl, err := kgo.NewClient(append(append(clientOpts(bootstrap), opts...),
		kgo.ClientID("consumer"),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: starts}),
		// An offset that is out of range is a finding, never a reason to jump.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxWait(500*time.Millisecond),
	)...)
	if err != nil {
		t.Fatal(err)
	}
	w.clients = append(w.clients, cl)
	ctx, cancel := context.WithCancel(context.Background())
	w.consume = cancel
	w.reader.Go(func() { w.read(ctx, cl) })
	t.Cleanup(w.close)
	return w
}

// send runs until stopCh closes; the rate does not depend on the answers.
func (w *workload) send(cl *kgo.Client, name string, partitions int32, tick time.Duration) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-w.stopCh:
			return
		case <-ticker.C:
		}
		for p := range partitions {
			counter := w.h.sent(name, p)
			r := &kgo.Record{Partition: p, Value: []byte(payload(name, counter, p))}
			cl.Produce(context.Background(), r, func(r *kgo.Record, err error) {
				if err == nil {
					w.h.ack(name, counter, r.Offset, time.Now())
				} else if !errors.Is(err, kgo.ErrClientClosed) {
					w.t.Logf("producer %s, record %d of partition %d: outcome unknown: %v", name, counter, p, err)
				}
			})
		}
	}
}

func (w *workload) read(ctx context.Context, cl *kgo.Client) {
	for {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return
		}
		fetches.EachError(func(_ string, p int32, err error) {
			if !w.brokenDisks.Load() {
				w.t.Errorf("consumer, partition %d: %v", p, err)
			}
		})
		fetches.EachRecord(func(r *kgo.Record) {
			w.h.consume(r.Partition, stored{offset: r.Offset, value: string(r.Value)})
		})
	}
}

// stopProducing stops the senders and waits for the answers of what is under
// way; what is unanswered when ctx ends stays unknown.
func (w *workload) stopProducing(ctx context.Context) error {
	if !w.stopped {
		w.stopped = true
		close(w.stopCh)
	}
	w.senders.Wait()
	var errs error
	for _, cl := range w.clients {
		errs = errors.Join(errs, cl.Flush(ctx))
	}
	return errs
}

// waitConsumed returns when the consumer has seen every acknowledged record.
func (w *workload) waitConsumed(ctx context.Context) error {
	ends := w.h.ends()
	return w.h.waitFor(ctx, func() bool {
		for p, end := range ends {
			if int64(len(w.h.consumed[p])) < end {
				return false
			}
		}
		return true
	})
}

// close ends all clients; it may be called twice.
func (w *workload) close() {
	if !w.stopped {
		w.stopped = true
		close(w.stopCh)
	}
	w.consume()
	for _, cl := range w.clients {
		cl.Close()
	}
	w.senders.Wait()
	w.reader.Wait()
}

// produceAll sends count records to every partition and returns when all are
// acknowledged; one that is not fails the test.
func produceAll(t *testing.T, h *history, bootstrap []string, name string, partitions int32, count int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cl, err := kgo.NewClient(append(clientOpts(bootstrap),
		kgo.ClientID(name), kgo.DefaultProduceTopic(h.topic), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0), kgo.UnknownTopicRetries(-1))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var (
		mu     sync.Mutex
		failed error
	)
	for i := range count * int(partitions) {
		p := int32(i) % partitions
		counter := h.sent(name, p)
		r := &kgo.Record{Partition: p, Value: []byte(payload(name, counter, p))}
		cl.Produce(ctx, r, func(r *kgo.Record, err error) {
			if err == nil {
				h.ack(name, counter, r.Offset, time.Now())
				return
			}
			mu.Lock()
			failed = err
			mu.Unlock()
		})
	}
	err = cl.Flush(ctx)
	mu.Lock()
	defer mu.Unlock()
	if err := errors.Join(err, failed); err != nil {
		t.Fatalf("produce to %s: %v", h.topic, err)
	}
}
