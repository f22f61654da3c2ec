//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	sharedTopic = "compat.shared"
	featureTime = 90 * time.Second
)

var compatFeatures = []*compatFeature{
	{name: "produce, acks=all", quick: true, run: produceOf(produced{count: 300, size: 100})},
	{name: "consume", quick: true, run: consumeShared},
	{name: "idempotent producer", quick: true, run: produceOf(produced{count: 300, size: 100, idempotent: true})},
	{name: "headers", run: produceOf(produced{count: 20, headers: true})},
	{name: "gzip", run: produceOf(produced{count: 50, size: 300, codec: "gzip"})},
	{name: "snappy", run: produceOf(produced{count: 50, size: 300, codec: "snappy"})},
	{name: "lz4", quick: true, run: produceOf(produced{count: 50, size: 300, codec: "lz4"})},
	{name: "zstd", run: produceOf(produced{count: 50, size: 300, codec: "zstd"})},
	{name: "records of 1,000,000 bytes", run: produceOf(produced{count: 4, size: 1_000_000, max: 1 << 20})},
	{name: "records of 4,000,000 bytes, topic set to 4 MiB", run: produceOf(produced{count: 3, size: 4_000_000, max: 4 << 20})},
	{name: "too large a record is refused", run: tooLarge},
	{name: "group: join, rebalance, leave, resume", quick: true, run: groupFeature},
	{name: "admin: create topic", quick: true, run: createTopicFeature},
	{name: "admin: describe topic", run: describeTopicFeature},
	{name: "admin: add partitions", run: createPartitionsFeature},
	{name: "admin: describe topic configuration", run: describeConfigFeature},
	{name: "admin: alter topic configuration", run: alterConfigFeature},
	{name: "admin: delete records", run: deleteRecordsFeature},
	{name: "admin: delete topic", run: deleteTopicFeature},
	{name: "admin: list, describe and delete groups", run: groupsFeature},
	{name: "idempotent produce and consume through a leader's kill -9", kills: true, run: leaderKill},
	{name: "committed offsets survive their coordinator's kill -9", kills: true, group: true, run: coordinatorKill},
}

// produceOf has the client produce, looks at all three brokers, and has the
// client read it all again.
func produceOf(p produced) func(context.Context, *compatRun) error {
	return func(ctx context.Context, r *compatRun) error {
		p := p // each client fills in its own
		p.partitions, p.prefix, p.repeats = 3, "r", r.cl.repeats
		what := "plain" + p.codec + strconv.Itoa(p.size) + strconv.FormatBool(p.idempotent) + strconv.FormatBool(p.headers)
		var config []string
		if p.max > 1<<20 {
			config = []string{"max.message.bytes", strconv.Itoa(p.max)}
		}
		var err error
		if p.topic, err = r.withTopic(ctx, what, p.partitions, config...); err != nil {
			return err
		}
		events, err := r.s.do(ctx, featureTime, "produce", p.args(r.c.bootstrap())...)
		if err != nil {
			return err
		}
		records, err := onEveryBroker(ctx, r.c.nodes, p.topic, p.partitions, p.count)
		if err != nil {
			return err
		}
		if err := p.check(records); err != nil {
			return err
		}
		if err := checkAcks(r.cl, events, records, p.count); err != nil {
			return err
		}
		return r.consume(ctx, p.topic, records)
	}
}

func (r *compatRun) consume(ctx context.Context, topic string, want []fullRecord) error {
	events, err := r.s.do(ctx, featureTime, "consume", r.bootstrap(), "topic="+topic, "count="+strconv.Itoa(len(want)))
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	return checkConsumed(r.cl, events, want)
}

func (r *compatRun) bootstrap() string { return "bootstrap=" + strings.Join(r.c.bootstrap(), ",") }

// produceShared fills the topic that every client reads: all codecs, headers, a
// record without a key.
func produceShared(ctx context.Context, c *cluster) ([]fullRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r := &compatRun{c: c}
	if err := createConfigured(ctx, c.node(1).kafkaAddr(), sharedTopic, 3); err != nil {
		return nil, err
	}
	if err := r.led(ctx, sharedTopic, 3); err != nil {
		return nil, err
	}
	for part := range 3 {
		if err := produceTo(ctx, c, sharedTopic, 3, fmt.Sprintf("shared%d", part), 300); err != nil {
			return nil, err
		}
	}
	return onEveryBroker(ctx, c.nodes, sharedTopic, 3, 900)
}

// produceTo spreads count records over the partitions of a topic, with a client
// that is not under test.
func produceTo(ctx context.Context, c *cluster, topic string, partitions int32, prefix string, count int) error {
	cl, err := kgo.NewClient(append(clientOpts(c.bootstrap()), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	var rs []*kgo.Record
	for i := range count {
		rs = append(rs, &kgo.Record{
			Topic: topic, Partition: int32(i) % partitions, Value: []byte(fmt.Sprintf("%s-%d.", prefix, i)), Key: []byte("k"),
		})
	}
	return cl.ProduceSync(ctx, rs...).FirstErr()
}

func consumeShared(ctx context.Context, r *compatRun) error {
	return r.consume(ctx, sharedTopic, r.shared)
}

// tooLarge: the client's own limits are raised, so that it is the cluster that
// must refuse.
func tooLarge(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "toolarge", 1)
	if err != nil {
		return err
	}
	p := produced{topic: topic, partitions: 1, prefix: "r", count: 1, size: 2_000_000, max: 6_000_000}
	_, refused := r.s.do(ctx, featureTime, "produce", p.args(r.c.bootstrap())...)
	if refused == nil {
		return fmt.Errorf("a record of %d bytes was acknowledged", p.size)
	}
	said := strings.NewReplacer(" ", "", "_", "", "was", "").Replace(strings.ToLower(refused.Error()))
	if !strings.Contains(said, "toolarge") && !strings.Contains(said, "largerthan") {
		return fmt.Errorf("refused for another reason than size: %w", refused)
	}
	for _, n := range r.c.nodes {
		if _, total, err := endOffsets(ctx, n.broker.addr(), topic, 1); err != nil || total != 0 {
			return fmt.Errorf("broker of node %d holds %d records of a refused batch (%w)", n.id, total, err)
		}
	}
	return nil
}

func createTopicFeature(ctx context.Context, r *compatRun) error {
	topic := r.topic("created")
	_, err := r.s.do(ctx, featureTime, "create-topic", r.bootstrap(), "topic="+topic, "partitions=5", "name=retention.ms", "value=3600000")
	if err != nil {
		return err
	}
	if err := r.led(ctx, topic, 5); err != nil {
		return err
	}
	return r.onBrokers(ctx, topic, 5, "3600000")
}

// onBrokers waits until each broker itself has the topic with this many
// partitions and, if one is named, this retention.
func (r *compatRun) onBrokers(ctx context.Context, topic string, partitions int, retention string) error {
	return soon(ctx, 30*time.Second, func(ctx context.Context) error {
		for _, n := range r.c.nodes {
			md, err := metadata(ctx, n.broker.addr(), topic)
			if err != nil {
				return err
			}
			if got := len(md.Topics[0].Partitions); got != partitions {
				return fmt.Errorf("broker of node %d has %d partitions of %s, want %d", n.id, got, topic, partitions)
			}
			got, err := compatTopicConfig(ctx, n.broker.addr(), topic, "retention.ms")
			if err != nil {
				return err
			}
			if retention != "" && got != retention {
				return fmt.Errorf("broker of node %d has retention.ms=%s for %s, want %s", n.id, got, topic, retention)
			}
		}
		return nil
	})
}

// result returns the last result of a feature.
func result(events []compatEvent) (compatEvent, error) {
	for _, e := range slices.Backward(events) {
		if e.Event == "result" {
			return e, nil
		}
	}
	return compatEvent{}, fmt.Errorf("the client showed no result")
}

func describeTopicFeature(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "described", 4)
	if err != nil {
		return err
	}
	events, err := r.s.do(ctx, featureTime, "describe-topic", r.bootstrap(), "topic="+topic)
	if err != nil {
		return err
	}
	got, err := result(events)
	if err != nil {
		return err
	}
	if string(got.Partitions) != "4" || got.Replicas != 3 {
		return fmt.Errorf("the client sees %s partitions with %d replicas, want 4 with 3", got.Partitions, got.Replicas)
	}
	return nil
}

func createPartitionsFeature(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "grown", 2)
	if err != nil {
		return err
	}
	if _, err := r.s.do(ctx, featureTime, "create-partitions", r.bootstrap(), "topic="+topic, "partitions=5"); err != nil {
		return err
	}
	if err := r.led(ctx, topic, 5); err != nil {
		return err
	}
	return r.onBrokers(ctx, topic, 5, "")
}

func describeConfigFeature(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "configured", 1, "retention.ms", "7200000")
	if err != nil {
		return err
	}
	events, err := r.s.do(ctx, featureTime, "describe-config", r.bootstrap(), "topic="+topic, "name=retention.ms")
	if err != nil {
		return err
	}
	got, err := result(events)
	if err == nil && got.Value != "7200000" {
		err = fmt.Errorf("the client sees retention.ms=%s, want 7200000", got.Value)
	}
	return err
}

func alterConfigFeature(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "altered", 1, "retention.ms", "7200000")
	if err != nil {
		return err
	}
	if _, err := r.s.do(ctx, featureTime, "alter-config", r.bootstrap(), "topic="+topic, "name=retention.ms", "value=1800000"); err != nil {
		return err
	}
	return r.onBrokers(ctx, topic, 1, "1800000")
}

func deleteRecordsFeature(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "trimmed", 1)
	if err != nil {
		return err
	}
	if err := produceTo(ctx, r.c, topic, 1, "t", 40); err != nil {
		return err
	}
	if _, err := onEveryBroker(ctx, r.c.nodes, topic, 1, 40); err != nil {
		return err
	}
	if _, err := r.s.do(ctx, featureTime, "delete-records", r.bootstrap(), "topic="+topic, "partition=0", "offset=30"); err != nil {
		return err
	}
	return r.startsAt(ctx, topic, 30)
}

// startsAt waits until each broker's log of partition 0 starts there.
func (r *compatRun) startsAt(ctx context.Context, topic string, want int64) error {
	return soon(ctx, 30*time.Second, func(ctx context.Context) error {
		for _, n := range r.c.nodes {
			start, err := listOffset(ctx, n.broker.addr(), topic, 0, -2)
			if err != nil {
				return err
			}
			if start != want {
				return fmt.Errorf("the log on the broker of node %d starts at %d, want %d", n.id, start, want)
			}
		}
		return nil
	})
}

func deleteTopicFeature(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "deleted", 2)
	if err != nil {
		return err
	}
	if _, err := r.s.do(ctx, featureTime, "delete-topic", r.bootstrap(), "topic="+topic); err != nil {
		return err
	}
	return r.gone(ctx, topic)
}

// gone waits until no proxy and no broker knows the topic.
func (r *compatRun) gone(ctx context.Context, topic string) error {
	return soon(ctx, 30*time.Second, func(ctx context.Context) error {
		for _, n := range r.c.nodes {
			for _, addr := range []string{n.broker.addr(), n.kafkaAddr()} {
				if _, err := rawTopic(ctx, addr, topic); !isUnknownTopic(err) {
					return errNotYet(err)
				}
			}
		}
		return nil
	})
}

// rawTopic asks for a topic without having it created.
func rawTopic(ctx context.Context, addr, topic string) (*kmsg.MetadataResponse, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(9)
	req.AllowAutoTopicCreation = false
	tp := kmsg.NewMetadataRequestTopic()
	tp.Topic = kmsg.StringPtr(topic)
	req.Topics = append(req.Topics, tp)
	resp, err := rawCall[*kmsg.MetadataResponse](ctx, addr, req)
	if err != nil {
		return nil, err
	}
	if len(resp.Topics) != 1 {
		return nil, fmt.Errorf("metadata of %s from %s: %d topics", topic, addr, len(resp.Topics))
	}
	return resp, kerr.ErrorForCode(resp.Topics[0].ErrorCode)
}

// compatTopicConfig asks one address for one setting of a topic.
func compatTopicConfig(ctx context.Context, addr, topic, name string) (string, error) {
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.SetVersion(4)
	res := kmsg.NewDescribeConfigsRequestResource()
	res.ResourceType, res.ResourceName, res.ConfigNames = kmsg.ConfigResourceTypeTopic, topic, []string{name}
	req.Resources = append(req.Resources, res)
	resp, err := rawCall[*kmsg.DescribeConfigsResponse](ctx, addr, req)
	if err != nil {
		return "", err
	}
	if len(resp.Resources) != 1 || len(resp.Resources[0].Configs) != 1 || resp.Resources[0].Configs[0].Value == nil {
		return "", fmt.Errorf("%s names no %s of %s", addr, name, topic)
	}
	return *resp.Resources[0].Configs[0].Value, nil
}

// createConfigured is createTopic with settings, name and value in turn.
func createConfigured(ctx context.Context, addr, topic string, partitions int32, config ...string) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.SetVersion(4)
	req.TimeoutMillis = 20_000
	tp := kmsg.NewCreateTopicsRequestTopic()
	tp.Topic, tp.NumPartitions, tp.ReplicationFactor = topic, partitions, 3
	for pair := range slices.Chunk(config, 2) {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = pair[0], kmsg.StringPtr(pair[1])
		tp.Configs = append(tp.Configs, c)
	}
	req.Topics = append(req.Topics, tp)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	resp, err := rawCall[*kmsg.CreateTopicsResponse](ctx, addr, req)
	if err != nil {
		return err
	}
	if len(resp.Topics) != 1 || resp.Topics[0].ErrorCode != 0 {
		return fmt.Errorf("create topic %s at %s: refused: %s", topic, addr, topicError(resp.Topics))
	}
	return nil
}
