//go:build e2e

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func runFranz(ctx context.Context, feature string, o options) error {
	switch feature {
	case "produce":
		return franzProduce(ctx, o)
	case "consume":
		return franzConsume(ctx, o)
	case "group":
		return franzGroup(ctx, o)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(o.brokers()...))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return franzAdmin(ctx, cl, feature, o)
}

var franzCodecs = map[string]kgo.CompressionCodec{
	"": kgo.NoCompression(), "none": kgo.NoCompression(), "gzip": kgo.GzipCompression(),
	"snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

func franzProduce(ctx context.Context, o options) error {
	opts := []kgo.Opt{
		kgo.SeedBrokers(o.brokers()...), kgo.ProducerBatchCompression(franzCodecs[o["codec"]]),
		kgo.ProducerLinger(5 * time.Millisecond), kgo.RecordDeliveryTimeout(time.Minute),
	}
	if o["idempotent"] != "true" {
		opts = append(opts, kgo.DisableIdempotentWrite())
	}
	if n := o.number("max"); n > 0 {
		opts = append(opts, kgo.ProducerBatchMaxBytes(int32(n)))
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return err
	}
	defer cl.Close()
	pace := newPace(o.number("rate"))
	defer pace.stop()
	acks := make(chan error, o.number("count"))
	for i := range o.number("count") {
		r := &kgo.Record{Topic: o["topic"], Key: []byte(key(i)), Value: o.value(i)}
		for _, h := range o.headers() {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.key, Value: []byte(h.value)})
		}
		cl.Produce(ctx, r, func(r *kgo.Record, err error) {
			if err == nil {
				emit(event{Event: "acked", Value: o.id(i), Partition: r.Partition, Offset: r.Offset})
			}
			acks <- err
		})
		pace.wait(ctx)
	}
	for range cap(acks) {
		if err := <-acks; err != nil {
			return err
		}
	}
	return nil
}

func franzConsume(ctx context.Context, o options) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(o.brokers()...), kgo.ConsumeTopics(o["topic"]),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer cl.Close()
	for left := o.number("count"); left > 0; {
		fs := cl.PollFetches(ctx)
		if err := fs.Err0(); err != nil {
			return err
		}
		for _, e := range fs.Errors() {
			emit(event{Event: "notice", Error: e.Err.Error()})
		}
		fs.EachRecord(func(r *kgo.Record) {
			franzShow(r)
			left--
		})
	}
	return nil
}

func franzShow(r *kgo.Record) {
	var hs [][2]string
	for _, h := range r.Headers {
		hs = append(hs, [2]string{h.Key, fmt.Sprintf("%x", h.Value)})
	}
	emitRecord(r.Partition, r.Offset, r.Key, r.Value, hs)
}

func franzGroup(ctx context.Context, o options) error {
	var mu sync.Mutex
	mine := map[int32]bool{}
	changed := func(add bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, m map[string][]int32) {
			mu.Lock()
			defer mu.Unlock()
			for _, p := range m[o["topic"]] {
				if add {
					mine[p] = true
				} else {
					delete(mine, p)
				}
			}
			emit(event{Event: "assigned", Partitions: append([]int32{}, slices.Sorted(maps.Keys(mine))...)})
		}
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(o.brokers()...), kgo.ConsumeTopics(o["topic"]), kgo.ConsumerGroup(o["group"]),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(), kgo.SessionTimeout(6*time.Second),
		kgo.HeartbeatInterval(500*time.Millisecond), kgo.OnPartitionsAssigned(changed(true)),
		kgo.OnPartitionsRevoked(changed(false)), kgo.OnPartitionsLost(changed(false)))
	if err != nil {
		return err
	}
	defer cl.Close()
	for {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		for _, e := range fs.Errors() {
			emit(event{Event: "notice", Error: e.Err.Error()})
		}
		fs.EachRecord(franzShow)
		if fs.NumRecords() == 0 {
			continue
		}
		if err := cl.CommitUncommittedOffsets(context.WithoutCancel(ctx)); err != nil {
			emit(event{Event: "notice", Error: err.Error()})
			continue
		}
		emit(event{Event: "committed"})
	}
}

func franzAdmin(ctx context.Context, cl *kgo.Client, feature string, o options) error {
	switch feature {
	case "create-topic":
		req := kmsg.NewPtrCreateTopicsRequest()
		t := kmsg.NewCreateTopicsRequestTopic()
		t.Topic, t.NumPartitions, t.ReplicationFactor = o["topic"], int32(o.number("partitions")), 3
		if o["name"] != "" {
			c := kmsg.NewCreateTopicsRequestTopicConfig()
			c.Name, c.Value = o["name"], kmsg.StringPtr(o["value"])
			t.Configs = append(t.Configs, c)
		}
		req.Topics = append(req.Topics, t)
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		return failed(resp.Topics[0].ErrorCode, resp.Topics[0].ErrorMessage)
	case "describe-topic":
		req := kmsg.NewPtrMetadataRequest()
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(o["topic"])
		req.Topics = append(req.Topics, t)
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		if err := failed(resp.Topics[0].ErrorCode, nil); err != nil {
			return err
		}
		ps := resp.Topics[0].Partitions
		emit(event{Event: "result", Partitions: len(ps), Replicas: len(ps[0].Replicas)})
		return nil
	case "create-partitions":
		req := kmsg.NewPtrCreatePartitionsRequest()
		req.TimeoutMillis = 10_000
		t := kmsg.NewCreatePartitionsRequestTopic()
		t.Topic, t.Count = o["topic"], int32(o.number("partitions"))
		req.Topics = append(req.Topics, t)
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		return failed(resp.Topics[0].ErrorCode, resp.Topics[0].ErrorMessage)
	case "delete-topic":
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.TimeoutMillis, req.TopicNames = 10_000, []string{o["topic"]}
		t := kmsg.NewDeleteTopicsRequestTopic()
		t.Topic = kmsg.StringPtr(o["topic"])
		req.Topics = append(req.Topics, t)
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		return failed(resp.Topics[0].ErrorCode, resp.Topics[0].ErrorMessage)
	case "list-groups", "describe-group", "delete-group":
		return franzGroups(ctx, cl, feature, o)
	}
	return franzConfigs(ctx, cl, feature, o)
}

func franzConfigs(ctx context.Context, cl *kgo.Client, feature string, o options) error {
	switch feature {
	case "describe-config":
		req := kmsg.NewPtrDescribeConfigsRequest()
		r := kmsg.NewDescribeConfigsRequestResource()
		r.ResourceType, r.ResourceName, r.ConfigNames = kmsg.ConfigResourceTypeTopic, o["topic"], []string{o["name"]}
		req.Resources = append(req.Resources, r)
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		if err := failed(resp.Resources[0].ErrorCode, resp.Resources[0].ErrorMessage); err != nil {
			return err
		}
		for _, c := range resp.Resources[0].Configs {
			if c.Name == o["name"] && c.Value != nil {
				emit(event{Event: "result", Value: *c.Value})
			}
		}
		return nil
	case "alter-config":
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		c.Name, c.Value = o["name"], kmsg.StringPtr(o["value"])
		r := kmsg.NewIncrementalAlterConfigsRequestResource()
		r.ResourceType, r.ResourceName, r.Configs = kmsg.ConfigResourceTypeTopic, o["topic"], append(r.Configs, c)
		req.Resources = append(req.Resources, r)
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		return failed(resp.Resources[0].ErrorCode, resp.Resources[0].ErrorMessage)
	case "delete-records":
		req := kmsg.NewPtrDeleteRecordsRequest()
		req.TimeoutMillis = 10_000
		p := kmsg.NewDeleteRecordsRequestTopicPartition()
		p.Partition, p.Offset = int32(o.number("partition")), int64(o.number("offset"))
		t := kmsg.NewDeleteRecordsRequestTopic()
		t.Topic, t.Partitions = o["topic"], append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		return failed(resp.Topics[0].Partitions[0].ErrorCode, nil)
	}
	return fmt.Errorf("no feature %s", feature)
}

func franzGroups(ctx context.Context, cl *kgo.Client, feature string, o options) error {
	switch feature {
	case "list-groups":
		var names []string
		for _, shard := range cl.RequestSharded(ctx, kmsg.NewPtrListGroupsRequest()) {
			if shard.Err != nil {
				return shard.Err
			}
			for _, g := range shard.Resp.(*kmsg.ListGroupsResponse).Groups {
				names = append(names, g.Group)
			}
		}
		emit(event{Event: "result", Groups: names})
	case "describe-group":
		req := kmsg.NewPtrDescribeGroupsRequest()
		req.Groups = []string{o["group"]}
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		if err := failed(resp.Groups[0].ErrorCode, nil); err != nil {
			return err
		}
		emit(event{Event: "result", Members: len(resp.Groups[0].Members)})
	case "delete-group":
		req := kmsg.NewPtrDeleteGroupsRequest()
		req.Groups = []string{o["group"]}
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		return failed(resp.Groups[0].ErrorCode, nil)
	}
	return nil
}

func failed(code int16, msg *string) error {
	err := kerr.ErrorForCode(code)
	if err != nil && msg != nil {
		return errors.Join(err, errors.New(*msg))
	}
	return err
}

// pace holds a producer to a number of records a second.
type pace struct{ ticks *time.Ticker }

func newPace(rate int) *pace {
	if rate == 0 {
		return &pace{}
	}
	return &pace{time.NewTicker(time.Second / time.Duration(rate))}
}

func (p *pace) wait(ctx context.Context) {
	if p.ticks == nil {
		return
	}
	select {
	case <-p.ticks.C:
	case <-ctx.Done():
	}
}

func (p *pace) stop() {
	if p.ticks != nil {
		p.ticks.Stop()
	}
}
