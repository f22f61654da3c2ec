//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestAdminReplicated changes a topic's settings and deletes records through
// one node while another one's broker is down, and asks every broker directly
// in the end: the one that missed it all has it too.
func TestAdminReplicated(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	const topic, partitions = "administered", 3
	via, down := c.node(1), c.node(3)
	c.createTopic(via, topic, partitions)
	produceTo := func(n int) map[int32]int64 {
		t.Helper()
		for p := range int32(partitions) {
			for i := range n {
				if _, err := produceOne(ctx, c.bootstrap(), topic, p, fmt.Sprintf("%d-%d", p, i)); err != nil {
					t.Fatal(err)
				}
			}
		}
		ends := map[int32]int64{}
		for p := range int32(partitions) {
			n, err := ledEnd(ctx, c, topic, p)
			if err != nil {
				t.Fatal(err)
			}
			ends[p] = n
		}
		return ends
	}
	ends := produceTo(10)
	c.waitBrokersHold(c.nodes, topic, ends)

	alterTopic(t, ctx, via, topic, 0, map[string]string{"retention.ms": "700000000", "max.message.bytes": "300000"})
	c.brokersSay(topic, map[string]string{"retention.ms": "700000000"}, c.nodes...)

	down.broker.kill9(t)
	c.waitLedBut(topic, partitions, down)
	alterTopic(t, ctx, via, topic, 0, map[string]string{"retention.ms": "800000000", "segment.ms": "86400000"})
	// Kafka's own words for what is wrong.
	alterTopic(t, ctx, via, topic, kerr.InvalidConfig.Code, map[string]string{"retention.ms": "soon"})
	alterTopic(t, ctx, via, topic, kerr.InvalidConfig.Code, map[string]string{"retention.msec": "1"})
	alterTopic(t, ctx, via, "nowhere", kerr.UnknownTopicOrPartition.Code, map[string]string{"retention.ms": "1"})
	c.brokersSay(topic, map[string]string{"retention.ms": "800000000", "segment.ms": "86400000"}, c.others(down.id)...)

	// Clients are told of the limits that the proxy enforces, not of the
	// broker's permissive copy, and are held to them.
	told, err := topicConfig(ctx, via.kafkaAddr(), topic)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"max.message.bytes": "300000", "retention.ms": "800000000", "message.timestamp.after.max.ms": "3600000", "cleanup.policy": "delete"} {
		if told[name] != want {
			t.Errorf("described %s=%s, want %s", name, told[name], want)
		}
	}
	if _, err := produceOne(ctx, c.bootstrap(), topic, 0, string(make([]byte, 400_000))); err == nil {
		t.Error("a batch above max.message.bytes was taken")
	}

	deleted := map[int32]int64{0: 4, 1: 10, 2: -1}
	for p, to := range deleted {
		low := deleteThrough(t, ctx, c, topic, p, to, 0)
		if to == -1 {
			to = ends[p]
		}
		if low != to {
			t.Errorf("partition %d: low watermark %d, want %d", p, low, to)
		}
	}
	deleteThrough(t, ctx, c, topic, 0, 11, kerr.OffsetOutOfRange.Code)
	ends = produceTo(2)

	begin := time.Now()
	down.broker.restart(t)
	c.waitHealthy()
	c.waitBrokersHold(c.nodes, topic, ends)
	c.brokersSay(topic, map[string]string{"retention.ms": "800000000", "segment.ms": "86400000"}, c.nodes...)
	for p, want := range map[int32]int64{0: 4, 1: 10, 2: 10} {
		waitFor(t, "every broker's log start", 60*time.Second, func(ctx context.Context) error {
			for _, n := range c.nodes {
				got, err := startOffset(ctx, n.broker.addr(), topic, p)
				if err != nil {
					return err
				}
				if got != want {
					return fmt.Errorf("broker of node %d: %d/%d starts at %d, want %d", n.id, p, want, got, want)
				}
			}
			return nil
		})
	}
	t.Logf("the broker that was down had everything %s after it was started", time.Since(begin).Round(100*time.Millisecond))
	if same := c.sameConfigs(ctx, topic); same != nil {
		t.Error(same)
	}
	c.verify()
	c.trusted(ctx)
}

// brokersSay waits until brokers, asked directly, have settings of a topic.
func (c *cluster) brokersSay(topic string, want map[string]string, nodes ...*node) {
	c.t.Helper()
	waitFor(c.t, "the settings on each broker", 60*time.Second, func(ctx context.Context) error {
		for _, n := range nodes {
			got, err := topicConfig(ctx, n.broker.addr(), topic)
			if err != nil {
				return err
			}
			for name, value := range want {
				if got[name] != value {
					return fmt.Errorf("broker of node %d: %s=%s, want %s", n.id, name, got[name], value)
				}
			}
		}
		return nil
	})
}

// sameConfigs says where the brokers' settings of a topic, or what the nodes
// tell of them, differ.
func (c *cluster) sameConfigs(ctx context.Context, topic string) error {
	for _, addr := range []func(*node) string{(*node).kafkaAddr, func(n *node) string { return n.broker.addr() }} {
		first, err := topicConfig(ctx, addr(c.nodes[0]), topic)
		if err != nil {
			return err
		}
		if len(first) < 20 {
			return fmt.Errorf("only %d settings", len(first))
		}
		for _, n := range c.nodes[1:] {
			other, err := topicConfig(ctx, addr(n), topic)
			if err != nil {
				return err
			}
			for name, value := range first {
				if other[name] != value {
					return fmt.Errorf("%s is %q at node 1 and %q at node %d", name, value, other[name], n.id)
				}
			}
		}
	}
	return nil
}

// waitLedBut returns when every partition is led by a node other than one.
func (c *cluster) waitLedBut(topic string, partitions int32, but *node) {
	c.t.Helper()
	waitFor(c.t, "leaders elsewhere", 60*time.Second, func(ctx context.Context) error {
		for _, n := range c.others(but.id) {
			leaders, err := partitionLeaders(ctx, n, topic, partitions)
			if err != nil {
				return err
			}
			if led := ledBy(leaders, but.id); len(led) > 0 {
				return fmt.Errorf("node %d still leads %v", but.id, led)
			}
		}
		return nil
	})
}

// alterTopic sets settings through one node and wants a code for it.
func alterTopic(t *testing.T, ctx context.Context, via *node, topic string, want int16, config map[string]string) {
	t.Helper()
	alterTopicAt(t, ctx, via.kafkaAddr(), topic, want, config)
}

// alterTopicAt is alterTopic at an address, which may be a broker's own.
func alterTopicAt(t *testing.T, ctx context.Context, addr, topic string, want int16, config map[string]string) {
	t.Helper()
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.SetVersion(1)
	res := kmsg.NewIncrementalAlterConfigsRequestResource()
	res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	for name, value := range config {
		cfg := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		cfg.Name, cfg.Value = name, kmsg.StringPtr(value)
		res.Configs = append(res.Configs, cfg)
	}
	req.Resources = append(req.Resources, res)
	resp, err := rawCall[*kmsg.IncrementalAlterConfigsResponse](ctx, addr, req)
	if err != nil {
		t.Fatal(err)
	}
	got := resp.Resources[0]
	msg := ""
	if got.ErrorMessage != nil {
		msg = *got.ErrorMessage
	}
	if got.ErrorCode != want {
		t.Fatalf("alter %s to %v: code %d (%s), want %d", topic, config, got.ErrorCode, msg, want)
	}
	t.Logf("alter %s to %v: code %d %s", topic, config, got.ErrorCode, msg)
}

// topicConfig returns a topic's settings as whoever listens at addr tells them.
func topicConfig(ctx context.Context, addr, topic string) (map[string]string, error) {
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.SetVersion(4)
	res := kmsg.NewDescribeConfigsRequestResource()
	res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	req.Resources = append(req.Resources, res)
	resp, err := rawCall[*kmsg.DescribeConfigsResponse](ctx, addr, req)
	if err != nil {
		return nil, err
	}
	if code := resp.Resources[0].ErrorCode; code != 0 {
		return nil, kerr.ErrorForCode(code)
	}
	config := map[string]string{}
	for _, cfg := range resp.Resources[0].Configs {
		if cfg.Value != nil {
			config[cfg.Name] = *cfg.Value
		}
	}
	return config, nil
}

// deleteThrough deletes through the partition's leader, wherever that is by
// then, and returns the low watermark.
func deleteThrough(t *testing.T, ctx context.Context, c *cluster, topic string, partition int32, offset int64, want int16) int64 {
	t.Helper()
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.SetVersion(2)
	req.TimeoutMillis = 20_000
	rt := kmsg.NewDeleteRecordsRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewDeleteRecordsRequestTopicPartition()
	rp.Partition, rp.Offset = partition, offset
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	var low int64
	waitFor(t, "records to be deleted", 60*time.Second, func(ctx context.Context) error {
		leader, err := leaderNode(ctx, c, topic, partition)
		if err != nil {
			return err
		}
		resp, err := rawCall[*kmsg.DeleteRecordsResponse](ctx, leader.kafkaAddr(), req)
		if err != nil {
			return err
		}
		got := resp.Topics[0].Partitions[0]
		if got.ErrorCode != want {
			return fmt.Errorf("delete %s/%d up to %d: code %d, want %d", topic, partition, offset, got.ErrorCode, want)
		}
		low = got.LowWatermark
		return nil
	})
	return low
}

// produceOne produces one record and returns its offset.
func produceOne(ctx context.Context, bootstrap []string, topic string, partition int32, value string) (int64, error) {
	cl, err := kgo.NewClient(append(clientOpts(bootstrap), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(1<<20),
		kgo.ProducerBatchCompression(kgo.NoCompression()))...)
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	r, err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Partition: partition, Value: []byte(value)}).First()
	if err != nil {
		return 0, err
	}
	return r.Offset, nil
}

// leaderNode is the node that leads a partition.
func leaderNode(ctx context.Context, c *cluster, topic string, partition int32) (*node, error) {
	md, err := metadata(ctx, c.nodes[0].kafkaAddr(), topic)
	if err != nil {
		return nil, err
	}
	for _, p := range md.Topics[0].Partitions {
		if p.Partition == partition && p.Leader > 0 {
			return c.node(int(p.Leader)), nil
		}
	}
	return nil, fmt.Errorf("%s/%d has no leader", topic, partition)
}

// ledEnd is a partition's end as its leader tells it.
func ledEnd(ctx context.Context, c *cluster, topic string, partition int32) (int64, error) {
	leader, err := leaderNode(ctx, c, topic, partition)
	if err != nil {
		return 0, err
	}
	return endOffset(ctx, leader.kafkaAddr(), topic, partition)
}

// startOffset is a partition's log start as whoever listens at addr tells it.
func startOffset(ctx context.Context, addr, topic string, partition int32) (int64, error) {
	return listOffset(ctx, addr, topic, partition, -2)
}
