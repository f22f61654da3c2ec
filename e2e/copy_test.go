//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestCopyOfOffsetsThatNoRecordHas empties one broker that holds what no replay
// can give it: partitions whose logs begin above zero, and partitions of a
// compacted topic. It must come back with every record at its offset and with
// the others' log starts, also after a kill -9 that makes Kafka forget where its
// logs begin; and who reads from it must see records of the cluster alone.
func TestCopyOfOffsetsThatNoRecordHas(t *testing.T) {
	c := newClusterWith(t, clusterOpts{settings: shortLog})
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	const partitions = 6
	c.createTopic(c.node(1), "begun", partitions)
	createCompacted(t, c, "kept", partitions)
	begun, kept := newKeyed("begun"), newKeyed("kept")
	begun.produce(t, c.bootstrap(), partitions, 1200)
	kept.produce(t, c.bootstrap(), partitions, 1200)
	c.waitBrokersHold(c.nodes, "begun", begun.ends)
	starts := map[int32]int64{}
	for p := range int32(partitions) {
		starts[p] = begun.ends[p]/2 + int64(p)
	}
	starts[5] = begun.ends[5] // nothing is left of it
	for _, n := range c.nodes {
		for p, start := range starts {
			if err := deleteRecords(ctx, n.broker.addr(), "begun", p, start); err != nil {
				t.Fatal(err)
			}
		}
	}
	kept.awaitHoles(ctx, t, c)
	// The logs must not reach back to any of this.
	c.createTopic(c.node(1), "bulk", partitions)
	bulk := fillTopic(t, c.bootstrap(), "bulk", partitions, 48<<20)
	c.waitBrokersHold(c.nodes, "bulk", bulk)
	c.verify()

	victim := c.node(2)
	victim.broker.kill9(t)
	if err := os.RemoveAll(victim.broker.dataDir()); err != nil {
		t.Fatal(err)
	}
	if err := victim.broker.format(ctx); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	c.restartBrokerOf(victim)
	c.waitComplete(ctx, victim, "begun", begun.ends)
	c.waitComplete(ctx, victim, "kept", kept.ends)
	c.waitComplete(ctx, victim, "bulk", bulk)
	c.waitHealthy()
	took := time.Since(begin)
	d, err := readBroker(ctx, victim.broker.addr(), "kept", partitions)
	if err != nil {
		t.Fatal(err)
	}
	fillers := 0
	for _, records := range d {
		for _, r := range records {
			if r.value == "" {
				fillers++
			}
		}
	}
	if fillers == 0 {
		t.Error("the copy of the compacted topic has no fillers: the test shows nothing")
	}
	t.Logf("complete again %s after the start; %d offsets of the compacted topic are filled", took.Round(100*time.Millisecond), fillers)
	c.sameStarts(victim, "begun", starts)
	if lines := c.logLines("raised the log start"); len(lines) == 0 {
		t.Error("no log start was raised: were the logs copied at all?")
	}

	victim.broker.kill9(t)
	c.restartBrokerOf(victim)
	c.waitHealthy()
	c.sameStarts(victim, "begun", starts)
	c.verify()

	// Everything is read from the broker that was empty.
	c.killNode(1)
	c.waitLed("kept", partitions)
	waitFor(t, "the copied broker's node to lead", healthyWithin, func(ctx context.Context) error {
		leaders, err := partitionLeaders(ctx, victim, "kept", partitions)
		if err == nil && len(ledBy(leaders, victim.id)) == 0 {
			err = errors.New("it leads none")
		}
		return err
	})
	alive := []string{victim.kafkaAddr(), c.node(3).kafkaAddr()}
	begun.produce(t, alive, partitions, 60)
	kept.produce(t, alive, partitions, 60)
	begun.consume(ctx, t, alive, starts)
	kept.consume(ctx, t, alive, nil)
	if lines := c.logLines("partition quarantined"); len(lines) > 0 {
		t.Errorf("%d partitions were quarantined, first: %s", len(lines), lines[0])
	}
}

// keyed is what was acknowledged of a topic whose records have one of a few
// keys.
type keyed struct {
	topic   string
	records map[int32]map[int64]string // key=value by offset
	last    map[int32]map[string]int64 // newest offset of each key
	ends    map[int32]int64
	sent    int
}

func newKeyed(topic string) *keyed {
	return &keyed{topic: topic, records: map[int32]map[int64]string{}, last: map[int32]map[string]int64{}, ends: map[int32]int64{}}
}

// produce sends n records for each partition, in batches of several.
func (k *keyed) produce(t *testing.T, bootstrap []string, partitions int32, n int) {
	t.Helper()
	cl, err := kgo.NewClient(append(clientOpts(bootstrap), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.UnknownTopicRetries(-1),
		kgo.ProducerLinger(5*time.Millisecond), kgo.MaxBufferedRecords(200))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var records []*kgo.Record
	for range n {
		k.sent++
		for p := range partitions {
			records = append(records, &kgo.Record{Topic: k.topic, Partition: p,
				Key: fmt.Appendf(nil, "key-%d", k.sent*k.sent%509), Value: fmt.Appendf(nil, "value %d", k.sent)})
		}
	}
	if err := cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatalf("produce to %s: %v", k.topic, err)
	}
	for _, r := range records {
		p := r.Partition
		if k.records[p] == nil {
			k.records[p], k.last[p] = map[int64]string{}, map[string]int64{}
		}
		k.records[p][r.Offset] = string(r.Key) + "=" + string(r.Value)
		k.last[p][string(r.Key)] = max(k.last[p][string(r.Key)], r.Offset)
		k.ends[p] = max(k.ends[p], r.Offset+1)
	}
}

// consume reads the topic from offset 0, or from where it starts, to its ends,
// and holds every record to what was acknowledged: all of those from starts on,
// or, without starts, at least the newest of each key.
func (k *keyed) consume(ctx context.Context, t *testing.T, bootstrap []string, starts map[int32]int64) {
	t.Helper()
	from := map[int32]kgo.Offset{}
	left := map[int32]int64{}
	for p, end := range k.ends {
		from[p], left[p] = kgo.NewOffset().At(starts[p]), end
	}
	cl, err := kgo.NewClient(append(clientOpts(bootstrap), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{k.topic: from}))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	got := map[int32]map[int64]string{}
	for len(left) > 0 {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		fetches := cl.PollFetches(ctx)
		cancel()
		if err := fetches.Err0(); err != nil {
			t.Fatalf("consume %s, partitions left %v: %v", k.topic, slicesOfKeys(left), err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if got[r.Partition] == nil {
				got[r.Partition] = map[int64]string{}
			}
			got[r.Partition][r.Offset] = string(r.Key) + "=" + string(r.Value)
			if r.Offset+1 >= k.ends[r.Partition] {
				delete(left, r.Partition)
			}
		})
	}
	for p, records := range k.records {
		for offset, rec := range got[p] {
			if records[offset] != rec {
				t.Errorf("%s/%d offset %d holds %q, acknowledged was %q", k.topic, p, offset, rec, records[offset])
			}
		}
		if starts == nil {
			for key, offset := range k.last[p] {
				if _, ok := got[p][offset]; !ok {
					t.Errorf("%s/%d: the newest record of %s, at offset %d, is not there", k.topic, p, key, offset)
				}
			}
			continue
		}
		for offset := starts[p]; offset < k.ends[p]; offset++ {
			if _, ok := got[p][offset]; !ok {
				t.Fatalf("%s/%d: the record at offset %d is not there", k.topic, p, offset)
			}
		}
	}
}

func slicesOfKeys(m map[int32]int64) string { return fmt.Sprint(m) }

// awaitHoles returns when every broker has compacted every partition. Only what
// is not in the newest segment is compacted, so it goes on sending.
func (k *keyed) awaitHoles(ctx context.Context, t *testing.T, c *cluster) {
	t.Helper()
	begin := time.Now()
	roll := time.NewTicker(2 * time.Second) // segments are cut by time
	defer roll.Stop()
	for {
		select {
		case <-roll.C:
		case <-ctx.Done():
			t.Fatal(context.Cause(ctx))
		}
		k.produce(t, c.bootstrap(), int32(len(k.ends)), 2)
		c.waitBrokersHold(c.nodes, k.topic, k.ends)
		full := 0
		for _, n := range c.nodes {
			d, err := readBroker(ctx, n.broker.addr(), k.topic, int32(len(k.ends)))
			if err != nil {
				t.Fatal(err)
			}
			for p := range d {
				if int64(len(d[p])) == k.ends[p] {
					full++
				}
			}
		}
		switch {
		case full == 0:
			t.Logf("compacted everywhere after %s", time.Since(begin).Round(time.Second))
			return
		case ctx.Err() != nil || time.Since(begin) > 3*time.Minute:
			t.Fatalf("%d copies of partitions were not compacted", full)
		}
	}
}

// sameStarts waits until a node's broker begins its logs where they should: it
// takes a moment until its proxy notices that it was away.
func (c *cluster) sameStarts(n *node, topic string, starts map[int32]int64) {
	c.t.Helper()
	waitFor(c.t, fmt.Sprintf("the log starts on broker %d", n.id), healthyWithin, func(ctx context.Context) error {
		got := map[int32]int64{}
		for p := range starts {
			start, err := listOffset(ctx, n.broker.addr(), topic, p, -2)
			if err != nil {
				return err
			}
			got[p] = start
		}
		if !maps.Equal(got, starts) {
			return fmt.Errorf("the logs of %s begin at %v, want %v", topic, got, starts)
		}
		return nil
	})
}

// createCompacted creates a topic that brokers compact as soon as they can.
func createCompacted(t *testing.T, c *cluster, topic string, partitions int32) {
	t.Helper()
	req := kmsg.NewPtrCreateTopicsRequest()
	req.SetVersion(4)
	req.TimeoutMillis = 20_000
	tp := kmsg.NewCreateTopicsRequestTopic()
	tp.Topic, tp.NumPartitions, tp.ReplicationFactor = topic, partitions, 3
	for _, kv := range []string{"cleanup.policy=compact", "segment.ms=1000", "min.cleanable.dirty.ratio=0.01", "max.compaction.lag.ms=1000"} {
		name, value, _ := strings.Cut(kv, "=")
		cfg := kmsg.NewCreateTopicsRequestTopicConfig()
		cfg.Name, cfg.Value = name, &value
		tp.Configs = append(tp.Configs, cfg)
	}
	req.Topics = append(req.Topics, tp)
	resp, err := rawCall[*kmsg.CreateTopicsResponse](t.Context(), c.node(1).kafkaAddr(), req)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Topics) != 1 || resp.Topics[0].ErrorCode != 0 {
		t.Fatalf("create topic %s: %s", topic, topicError(resp.Topics))
	}
	c.waitLed(topic, partitions)
}

// deleteRecords raises a log start on one broker, as retention would.
func deleteRecords(ctx context.Context, addr, topic string, partition int32, offset int64) error {
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.SetVersion(1)
	req.TimeoutMillis = 20_000
	p := kmsg.NewDeleteRecordsRequestTopicPartition()
	p.Partition, p.Offset = partition, offset
	tp := kmsg.NewDeleteRecordsRequestTopic()
	tp.Topic, tp.Partitions = topic, append(tp.Partitions, p)
	req.Topics = append(req.Topics, tp)
	resp, err := rawCall[*kmsg.DeleteRecordsResponse](ctx, addr, req)
	if err != nil {
		return err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 || resp.Topics[0].Partitions[0].ErrorCode != 0 {
		return fmt.Errorf("delete records of %s/%d at %s: %+v", topic, partition, addr, resp.Topics)
	}
	return nil
}
