package drill

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// askEndsEvery is the pause between two looks at a broker that lacks something.
const askEndsEvery = 100 * time.Millisecond

// readBack reads the topic from each broker itself, past the proxies, and
// counts.
func (d *drill) readBack(ctx context.Context) error {
	for _, n := range d.cfg.Nodes {
		c, err := d.countBroker(ctx, n)
		if err != nil {
			return fmt.Errorf("read what the broker of node %d holds: %w", n.ID, err)
		}
		d.result.Brokers = append(d.result.Brokers, c)
		d.result.Lost = max(d.result.Lost, c.Lost)
		d.result.Duplicated = max(d.result.Duplicated, c.Duplicated)
		d.result.OutOfOrder = max(d.result.OutOfOrder, c.OutOfOrder)
	}
	return nil
}

func (d *drill) countBroker(ctx context.Context, n Node) (BrokerCount, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.Broker), kgo.ClientID("lockstep-kill-leader"),
		kgo.DialTimeout(dialTimeout), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		return BrokerCount{}, fmt.Errorf("make a Kafka client: %w", err)
	}
	defer cl.Close()
	ends, err := d.awaitEnds(ctx, n, cl)
	if err != nil {
		return BrokerCount{}, err
	}
	var seen tally
	err = d.within(ctx, "the log is read to its end", func(ctx context.Context) error {
		seen, err = d.readBroker(ctx, cl, ends)
		return err
	})
	c := seen.count(d.w.records)
	c.Node = n.ID
	return c, err
}

// readBroker reads one broker's copy of the topic from its beginning to ends.
func (d *drill) readBroker(ctx context.Context, cl *kgo.Client, ends []int64) (tally, error) {
	from := make(map[int32]kgo.Offset)
	for p, end := range ends {
		if end > 0 {
			from[int32(p)] = kgo.NewOffset().AtStart()
		}
	}
	cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{d.cfg.Topic: from})
	seen := tally{copies: make([]uint8, len(d.w.records))}
	for len(from) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return tally{}, err
		}
		for _, e := range fetches.Errors() {
			return tally{}, fmt.Errorf("partition %d: %w", e.Partition, e.Err)
		}
		var bad error
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset >= ends[r.Partition]-1 {
				delete(from, r.Partition)
			}
			if !bytes.Equal(r.Key, d.w.key) {
				return // of an earlier run
			}
			number, err := strconv.Atoi(string(r.Value))
			if err != nil || number < 0 || number >= len(seen.copies) {
				bad = fmt.Errorf("partition %d holds a record at offset %d that was never written: %q", r.Partition, r.Offset, r.Value)
				return
			}
			seen.add(r.Partition, number)
		})
		if bad != nil {
			return tally{}, bad
		}
	}
	return seen, nil
}

// awaitEnds returns where the broker's copies end, once that is not before the
// last acknowledged record. After the drill's timeout what is there is counted:
// as far as anybody can tell, the rest is lost on that broker.
func (d *drill) awaitEnds(ctx context.Context, n Node, cl *kgo.Client) ([]int64, error) {
	var want [partitions]int64
	for _, r := range d.w.records {
		if r.acked {
			want[r.partition] = max(want[r.partition], r.offset+1)
		}
	}
	tick, timeout := time.NewTicker(askEndsEvery), time.NewTimer(d.cfg.Timeout)
	defer tick.Stop()
	defer timeout.Stop()
	for {
		ends, err := d.ends(ctx, cl)
		if err != nil {
			return nil, err
		}
		short := -1
		for p := range ends {
			if ends[p] < want[p] {
				short = p
			}
		}
		if short < 0 {
			return ends, nil
		}
		select {
		case <-tick.C:
		case <-timeout.C:
			d.cfg.Say("on the broker of node %d partition %d still ends at %d after %s, and what is acknowledged at %d",
				n.ID, short, ends[short], d.cfg.Timeout, want[short])
			return ends, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// ends asks the broker where its copies end.
func (d *drill) ends(ctx context.Context, cl *kgo.Client) ([]int64, error) {
	ask := kmsg.NewPtrListOffsetsRequest()
	ask.ReplicaID = -1
	topic := kmsg.NewListOffsetsRequestTopic()
	topic.Topic = d.cfg.Topic
	for p := range int32(partitions) {
		part := kmsg.NewListOffsetsRequestTopicPartition()
		part.Partition, part.Timestamp = p, -1
		topic.Partitions = append(topic.Partitions, part)
	}
	ask.Topics = append(ask.Topics, topic)
	resp, err := ask.RequestWith(ctx, cl)
	if err != nil {
		return nil, fmt.Errorf("ask for the ends of its logs: %w", err)
	}
	ends := make([]int64, partitions)
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, fmt.Errorf("ask for the end of partition %d: %w", p.Partition, err)
			}
			ends[p.Partition] = p.Offset
		}
	}
	return ends, nil
}

// tally is what was read from one broker.
type tally struct {
	copies     []uint8 // of each number, at most 255
	last       [partitions]int
	outOfOrder int
}

func (t *tally) add(partition int32, number int) {
	if t.copies[number] < 255 {
		t.copies[number]++
	}
	if number < t.last[partition] {
		t.outOfOrder++
	}
	t.last[partition] = max(t.last[partition], number)
}

// count compares what was read with what was acknowledged.
func (t *tally) count(written []record) BrokerCount {
	c := BrokerCount{OutOfOrder: t.outOfOrder}
	for n, copies := range t.copies {
		switch {
		case copies == 0 && written[n].acked:
			c.Lost++
		case copies > 0:
			c.Records++
			if copies > 1 {
				c.Duplicated++
			}
		}
	}
	return c
}
