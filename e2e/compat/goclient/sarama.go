//go:build e2e

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/IBM/sarama"
)

func saramaConfig() *sarama.Config {
	c := sarama.NewConfig()
	c.Version = sarama.V3_6_0_0
	c.Metadata.Retry.Max = 20
	c.Admin.Timeout = 20 * time.Second
	return c
}

func runSarama(ctx context.Context, feature string, o options) error {
	switch feature {
	case "produce":
		return saramaProduce(ctx, o)
	case "consume":
		return saramaConsume(ctx, o)
	case "group":
		return saramaGroup(ctx, o)
	}
	a, err := sarama.NewClusterAdmin(o.brokers(), saramaConfig())
	if err != nil {
		return err
	}
	return errors.Join(saramaAdmin(a, feature, o), a.Close())
}

var saramaCodecs = map[string]sarama.CompressionCodec{
	"gzip": sarama.CompressionGZIP, "snappy": sarama.CompressionSnappy, "lz4": sarama.CompressionLZ4, "zstd": sarama.CompressionZSTD,
}

func saramaProduce(ctx context.Context, o options) error {
	c := saramaConfig()
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Compression = saramaCodecs[o["codec"]]
	c.Producer.Return.Successes = true
	c.Producer.Flush.Frequency = 5 * time.Millisecond
	c.Producer.Retry.Max = 100
	if o["idempotent"] == "true" {
		c.Producer.Idempotent, c.Net.MaxOpenRequests = true, 1
	}
	if n := o.number("max"); n > 0 {
		c.Producer.MaxMessageBytes = n
	}
	p, err := sarama.NewAsyncProducer(o.brokers(), c)
	if err != nil {
		return err
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		pace := newPace(o.number("rate"))
		defer pace.stop()
		for i := range o.number("count") {
			m := &sarama.ProducerMessage{
				Topic: o["topic"], Key: sarama.StringEncoder(key(i)), Value: sarama.ByteEncoder(o.value(i)), Metadata: o.id(i),
			}
			for _, h := range o.headers() {
				m.Headers = append(m.Headers, sarama.RecordHeader{Key: []byte(h.key), Value: []byte(h.value)})
			}
			p.Input() <- m
			pace.wait(ctx)
		}
	}()
	var first error
	for range o.number("count") {
		select {
		case m := <-p.Successes():
			emit(event{Event: "acked", Value: m.Metadata.(string), Partition: m.Partition, Offset: m.Offset})
		case e := <-p.Errors():
			first = errors.Join(first, e.Err)
		}
	}
	<-sent
	return errors.Join(first, p.Close())
}

func saramaConsume(ctx context.Context, o options) error {
	cons, err := sarama.NewConsumer(o.brokers(), saramaConfig())
	if err != nil {
		return err
	}
	defer func() { _ = cons.Close() }() // everything wanted has been read
	ps, err := cons.Partitions(o["topic"])
	if err != nil {
		return err
	}
	all := make(chan *sarama.ConsumerMessage)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, p := range ps {
		pc, err := saramaOpen(ctx, cons, o["topic"], p)
		if err != nil {
			return err
		}
		go func() {
			for m := range pc.Messages() {
				select {
				case all <- m:
				case <-ctx.Done():
				}
			}
		}()
		defer pc.AsyncClose()
	}
	for range o.number("count") {
		select {
		case m := <-all:
			saramaShow(m)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// saramaOpen starts a partition from its beginning. The library leaves it to
// the application to try again when the leader has just moved.
func saramaOpen(ctx context.Context, cons sarama.Consumer, topic string, p int32) (sarama.PartitionConsumer, error) {
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for {
		pc, err := cons.ConsumePartition(topic, p, sarama.OffsetOldest)
		moved := errors.Is(err, sarama.ErrNotLeaderForPartition) || errors.Is(err, sarama.ErrLeaderNotAvailable)
		if !moved {
			return pc, err
		}
		emit(event{Event: "notice", Error: err.Error()})
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func saramaShow(m *sarama.ConsumerMessage) {
	var hs [][2]string
	for _, h := range m.Headers {
		hs = append(hs, [2]string{string(h.Key), hex.EncodeToString(h.Value)})
	}
	emitRecord(m.Partition, m.Offset, m.Key, m.Value, hs)
}

// saramaMember prints what its group gives it and commits after each record
// that was the last one at hand.
type saramaMember struct{ topic string }

func (m *saramaMember) Setup(s sarama.ConsumerGroupSession) error {
	ps := append([]int32{}, s.Claims()[m.topic]...)
	slices.Sort(ps)
	emit(event{Event: "assigned", Partitions: ps})
	return nil
}

func (m *saramaMember) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (m *saramaMember) ConsumeClaim(s sarama.ConsumerGroupSession, c sarama.ConsumerGroupClaim) error {
	for {
		select {
		case msg, ok := <-c.Messages():
			if !ok {
				return nil
			}
			saramaShow(msg)
			s.MarkMessage(msg, "")
			if len(c.Messages()) == 0 {
				s.Commit()
				emit(event{Event: "committed"})
			}
		case <-s.Context().Done():
			return nil
		}
	}
}

func saramaGroup(ctx context.Context, o options) error {
	c := saramaConfig()
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	c.Consumer.Offsets.AutoCommit.Enable = false
	c.Consumer.Group.Session.Timeout = 6 * time.Second
	c.Consumer.Group.Heartbeat.Interval = 500 * time.Millisecond
	c.Consumer.Group.Rebalance.Retry.Max = 20
	g, err := sarama.NewConsumerGroup(o.brokers(), o["group"], c)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := g.Consume(ctx, []string{o["topic"]}, &saramaMember{o["topic"]}); err != nil && ctx.Err() == nil {
			emit(event{Event: "notice", Error: err.Error()})
		}
	}
	return g.Close()
}

func saramaAdmin(a sarama.ClusterAdmin, feature string, o options) error {
	switch feature {
	case "create-topic":
		d := &sarama.TopicDetail{NumPartitions: int32(o.number("partitions")), ReplicationFactor: 3}
		if v := o["value"]; o["name"] != "" {
			d.ConfigEntries = map[string]*string{o["name"]: &v}
		}
		return a.CreateTopic(o["topic"], d, false)
	case "describe-topic":
		ts, err := a.DescribeTopics([]string{o["topic"]})
		if err != nil {
			return err
		}
		if ts[0].Err != sarama.ErrNoError {
			return ts[0].Err
		}
		emit(event{Event: "result", Partitions: len(ts[0].Partitions), Replicas: len(ts[0].Partitions[0].Replicas)})
		return nil
	case "create-partitions":
		return a.CreatePartitions(o["topic"], int32(o.number("partitions")), nil, false)
	case "describe-config":
		results, err := a.DescribeConfigs([]*sarama.ConfigResource{
			{Type: sarama.TopicResource, Name: o["topic"], ConfigNames: []string{o["name"]}},
		}, sarama.DescribeConfigsOptions{})
		if err != nil {
			return err
		}
		for _, r := range results {
			if r.ErrorCode != sarama.ErrNoError {
				return r.ErrorCode
			}
			for _, e := range r.Configs {
				emit(event{Event: "result", Value: e.Value})
			}
		}
		return nil
	case "alter-config":
		v := o["value"]
		return a.IncrementalAlterConfig(sarama.TopicResource, o["topic"], map[string]sarama.IncrementalAlterConfigsEntry{
			o["name"]: {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &v},
		}, false)
	case "delete-records":
		return a.DeleteRecords(o["topic"], map[int32]int64{int32(o.number("partition")): int64(o.number("offset"))})
	case "list-groups":
		gs, err := a.ListConsumerGroups()
		if err != nil {
			return err
		}
		var names []string
		for name := range gs {
			names = append(names, name)
		}
		emit(event{Event: "result", Groups: names})
		return nil
	case "describe-group":
		gs, err := a.DescribeConsumerGroups([]string{o["group"]})
		if err != nil {
			return err
		}
		if gs[0].Err != sarama.ErrNoError {
			return gs[0].Err
		}
		emit(event{Event: "result", Members: len(gs[0].Members)})
		return nil
	case "delete-group":
		return a.DeleteConsumerGroup(o["group"])
	case "delete-topic":
		return a.DeleteTopic(o["topic"])
	}
	return fmt.Errorf("no feature %s", feature)
}
