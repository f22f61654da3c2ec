package proxy

import (
	"context"
	"fmt"
	"testing"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestFranzProducesAndConsumes runs an idempotent producer and a group consumer
// over several topics and partitions, with topics made by the way.
func TestFranzProducesAndConsumes(t *testing.T) {
	f := newFixture(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	topics := []string{"orders", "payments"}
	cl, err := kgo.NewClient(kgo.SeedBrokers(f.addr), kgo.AllowAutoTopicCreation(),
		kgo.ConsumeTopics(topics...), kgo.ConsumerGroup("billing"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	const each = 50
	for i := range each {
		for _, topic := range topics {
			rec := &kgo.Record{Topic: topic, Key: fmt.Appendf(nil, "k%d", i), Value: fmt.Appendf(nil, "%s-%d", topic, i)}
			cl.Produce(ctx, rec, func(r *kgo.Record, err error) {
				if err != nil {
					t.Errorf("produce %s: %v", r.Value, err)
				}
			})
		}
	}
	if err := cl.Flush(ctx); err != nil {
		t.Fatalf("flush: %v", err)
	}
	got := map[string]int{}
	for len(got) < each*len(topics) {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("after %d records: %v", len(got), err)
		}
		fetches.EachRecord(func(r *kgo.Record) { got[string(r.Value)]++ })
	}
	for v, n := range got {
		if n != 1 {
			t.Errorf("%s came %d times", v, n)
		}
	}
	if err := cl.CommitUncommittedOffsets(ctx); err != nil {
		t.Errorf("commit: %v", err)
	}
	if f.producer.appended() == 0 {
		t.Error("nothing went through the Producer")
	}
}

// TestSaramaProducesAndConsumes is the same with another client library.
func TestSaramaProducesAndConsumes(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 3, nil)
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V3_6_0_0
	cfg.Producer.Return.Successes = true
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.Producer.Idempotent = true
	cfg.Net.MaxOpenRequests = 1
	cl, err := sarama.NewClient([]string{f.addr}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	p, err := sarama.NewSyncProducerFromClient(cl)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const n = 20
	sent := map[int32]int64{}
	for i := range n {
		part, off, err := p.SendMessage(&sarama.ProducerMessage{Topic: "orders", Key: sarama.StringEncoder(fmt.Sprint(i)), Value: sarama.StringEncoder(fmt.Sprint("v", i))})
		if err != nil {
			t.Fatalf("send: %v", err)
		}
		if off != sent[part] {
			t.Errorf("partition %d: offset %d, want %d", part, off, sent[part])
		}
		sent[part]++
	}
	consumer, err := sarama.NewConsumerFromClient(cl)
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()
	for part, count := range sent {
		pc, err := consumer.ConsumePartition("orders", part, sarama.OffsetOldest)
		if err != nil {
			t.Fatal(err)
		}
		for want := range count {
			select {
			case m := <-pc.Messages():
				if m.Offset != want {
					t.Errorf("partition %d: offset %d, want %d", part, m.Offset, want)
				}
			case <-t.Context().Done():
				t.Fatal("no message")
			}
		}
		pc.Close()
	}
}
