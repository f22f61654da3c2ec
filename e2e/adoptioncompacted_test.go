//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestAdoptionCompacted adopts a compacted topic: most offsets of it hold no
// record any more. Who reads it from a copy must see the records that are left,
// at their offsets, and nothing else.
func TestAdoptionCompacted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	const partitions = 2
	kept := newKeyed("kept")
	var before dump
	c := newClusterWith(t, clusterOpts{seed: func(c *cluster) {
		addr := c.node(1).broker.addr()
		if err := createCompactedAt(ctx, addr, kept.topic, partitions); err != nil {
			t.Fatal(err)
		}
		kept.produce(t, []string{addr}, partitions, 1200)
		waitFor(t, "the broker to compact", 2*time.Minute, func(ctx context.Context) error {
			kept.produce(t, []string{addr}, partitions, 2) // what is in the newest segment stays
			d, err := readBroker(ctx, addr, kept.topic, partitions)
			if err != nil {
				return err
			}
			for p := range d {
				if int64(len(d[p])) == kept.ends[p] {
					return errors.New("every offset holds a record still")
				}
			}
			before = d
			return nil
		})
	}})
	if outcomes, err := adopt(ctx, t, c.node(2), kept.topic); err != nil {
		t.Fatalf("adopt: %+v, %v", outcomes, err)
	}
	for _, n := range c.nodes {
		c.waitComplete(ctx, n, kept.topic, kept.ends)
	}
	c.waitHealthy()
	c.verify()
	t.Logf("%d of %d offsets held records when the topic was adopted", before.records(), kept.ends[0]+kept.ends[1])
	kept.consume(ctx, t, c.bootstrap(), nil)
	kept.produce(t, c.bootstrap(), partitions, 100)
	c.killNode(1)
	c.waitLed(kept.topic, partitions)
	kept.consume(ctx, t, []string{c.node(2).kafkaAddr(), c.node(3).kafkaAddr()}, nil)
	c.restartNode(1)
	c.waitHealthy()
	c.verify()
	c.trusted(ctx)
}

// createCompactedAt creates a topic on one broker, which compacts it as soon as
// it can.
func createCompactedAt(ctx context.Context, addr, topic string, partitions int32) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.SetVersion(4)
	req.TimeoutMillis = 20_000
	tp := kmsg.NewCreateTopicsRequestTopic()
	tp.Topic, tp.NumPartitions, tp.ReplicationFactor = topic, partitions, 1
	for name, value := range map[string]string{"cleanup.policy": "compact", "segment.ms": "1000", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "1000"} {
		cfg := kmsg.NewCreateTopicsRequestTopicConfig()
		cfg.Name, cfg.Value = name, &value
		tp.Configs = append(tp.Configs, cfg)
	}
	req.Topics = append(req.Topics, tp)
	resp, err := rawCall[*kmsg.CreateTopicsResponse](ctx, addr, req)
	if err == nil && (len(resp.Topics) != 1 || resp.Topics[0].ErrorCode != 0) {
		err = fmt.Errorf("create topic %s at %s: %s", topic, addr, topicError(resp.Topics))
	}
	return err
}
