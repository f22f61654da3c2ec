//go:build e2e

package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	overloadPartitions = 6
	overloadProducers  = 8
	overloadRecord     = 1 << 10
	overloadRecent     = 10 * time.Second // within which a reader must have read something
)

// TestOverload has producers send as fast as they are answered, each with its
// whole window under way, for OVERLOAD_SECONDS: the nodes' memory stays where it
// is, nobody's leadership moves, no record fails, none is lost or repeated, and a
// consumer reads along.
func TestOverload(t *testing.T) {
	span := time.Duration(envInt(t, "OVERLOAD_SECONDS", 20)) * time.Second
	c := newClusterWith(t, clusterOpts{prepare: func(_ *testing.T, n *node) {
		n.broker.settings = append(n.broker.settings, "log.retention.check.interval.ms=5000")
	}})
	const topic = "overload"
	overloadTopic(t, c, topic)
	before, err := c.node(1).status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o := &overload{t: t, topic: topic, next: map[overloadStream]uint64{}, end: map[int32]int64{}}
	watch := watchUse(c, max(span/20, time.Second))
	reading, stopReading := context.WithCancel(t.Context())
	defer stopReading()
	read := make(chan error, 1)
	go func() { read <- o.read(reading, c.bootstrap()) }()
	o.produce(t.Context(), c.bootstrap(), span)
	_, memory := watch.stop()
	sent := o.acked.Load()
	waitFor(t, "the consumer", 2*time.Minute, func(context.Context) error {
		if got := o.consumed.Load(); got != sent {
			return fmt.Errorf("read %d of %d records", got, sent)
		}
		return nil
	})
	stopReading()
	if err := <-read; err != nil {
		t.Error(err)
	}
	after, err := c.node(1).status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range watch.lines {
		t.Log(line)
	}
	t.Logf("%s: %d records acknowledged and read in order, %.1f MiB/s, p50 %.0f ms, p99 %.0f ms, worst %.0f ms; %d failed; the reader's longest pause %s; largest proxy %d MiB",
		span, sent, float64(sent)*overloadRecord/(1<<20)/span.Seconds(), o.lat.at(0.5), o.lat.at(0.99), o.lat.at(1), o.failed.Load(),
		time.Duration(o.pause.Load()).Round(time.Millisecond), memory>>20)
	if n := o.failed.Load(); n > 0 {
		t.Errorf("%d records failed", n)
	}
	if !maps.Equal(before.terms(), after.terms()) {
		t.Errorf("leaders changed: terms %v before, %v after", before.terms(), after.terms())
	}
	if pause := time.Duration(o.pause.Load()); pause > overloadRecent {
		t.Errorf("the consumer read nothing for %s", pause)
	}
	c.waitHealthy()
	c.verifyWithin(3 * time.Minute)
}

// overloadTopic makes a topic of which the disks keep a little.
func overloadTopic(t *testing.T, c *cluster, topic string) {
	t.Helper()
	req := kmsg.NewPtrCreateTopicsRequest()
	req.Version, req.TimeoutMillis = 5, 30_000
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = topic, overloadPartitions, 3
	for key, value := range map[string]string{"retention.bytes": "268435456", "segment.bytes": "67108864", "file.delete.delay.ms": "1000"} {
		rt.Configs = append(rt.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: key, Value: kmsg.StringPtr(value)})
	}
	req.Topics = append(req.Topics, rt)
	resp, err := rawCall[*kmsg.CreateTopicsResponse](t.Context(), c.node(1).kafkaAddr(), req)
	if err == nil && resp.Topics[0].ErrorCode != 0 {
		err = fmt.Errorf("error %d", resp.Topics[0].ErrorCode)
	}
	if err != nil {
		t.Fatalf("make the topic: %v", err)
	}
	c.waitLed(topic, overloadPartitions)
}

type overloadStream struct {
	producer  uint32
	partition int32
}

// overload is one run. What is counted is counted by all goroutines; next and end
// belong to the reader.
type overload struct {
	t     *testing.T
	topic string

	acked, failed, consumed, pause atomic.Int64
	lat                            latencies

	next map[overloadStream]uint64
	end  map[int32]int64
}

// produce returns when all that was sent has its answer.
func (o *overload) produce(ctx context.Context, seeds []string, span time.Duration) {
	sending, stop := context.WithTimeout(ctx, span)
	defer stop()
	var wg sync.WaitGroup
	for i := range overloadProducers {
		cl, err := kgo.NewClient(append(clientOpts(seeds), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerLinger(0),
			kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MaxBufferedRecords(4<<20/overloadRecord))...)
		if err != nil {
			o.t.Fatal(err)
		}
		wg.Go(func() {
			defer cl.Close()
			padding := strings.Repeat("o", overloadRecord-12)
			for n := uint64(0); sending.Err() == nil; n++ {
				value := binary.BigEndian.AppendUint32(make([]byte, 0, overloadRecord), uint32(i))
				value = append(binary.BigEndian.AppendUint64(value, n/overloadPartitions), padding...)
				at := time.Now()
				cl.Produce(ctx, &kgo.Record{Topic: o.topic, Partition: int32(n % overloadPartitions), Value: value}, func(_ *kgo.Record, err error) {
					if err != nil {
						o.failed.Add(1)
						return
					}
					if o.acked.Add(1)%100 == 0 {
						o.lat.add(time.Since(at))
					}
				})
			}
			if err := cl.Flush(ctx); err != nil {
				o.t.Errorf("wait for the last answers: %v", err)
			}
		})
	}
	wg.Wait()
}

// read reads everything once and in order: every stream counts up by one, every
// offset follows the one before. It returns when ctx ends.
func (o *overload) read(ctx context.Context, seeds []string) error {
	from := map[int32]kgo.Offset{}
	for p := range int32(overloadPartitions) {
		from[p] = kgo.NewOffset().At(0)
	}
	cl, err := kgo.NewClient(append(clientOpts(seeds), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{o.topic: from}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	last := time.Now()
	for {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		for it := fetches.RecordIter(); !it.Done(); {
			r := it.Next()
			stream := overloadStream{binary.BigEndian.Uint32(r.Value), r.Partition}
			if n := binary.BigEndian.Uint64(r.Value[4:]); n != o.next[stream] || r.Offset != o.end[r.Partition] {
				return fmt.Errorf("partition %d, offset %d: record %d of producer %d, want offset %d and record %d",
					r.Partition, r.Offset, n, stream.producer, o.end[r.Partition], o.next[stream])
			}
			o.next[stream]++
			o.end[r.Partition]++
			o.consumed.Add(1)
		}
		now := time.Now()
		o.pause.Store(max(o.pause.Load(), int64(now.Sub(last))))
		last = now
	}
}
