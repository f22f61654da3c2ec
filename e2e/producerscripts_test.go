//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// sequenceStep is one batch of a producer.
type sequenceStep struct {
	epoch      int16
	seq, count int32
}

// producerScripts are what one producer sends to one partition, by what they
// are about. Everything is sent to a bare broker and to Lockstep.
func producerScripts() map[string][]sequenceStep {
	many := func(from, n int32) (out []sequenceStep) {
		for i := range n {
			out = append(out, sequenceStep{0, from + i, 1})
		}
		return out
	}
	return map[string][]sequenceStep{
		"in order":                  {{0, 0, 2}, {0, 2, 3}, {0, 5, 1}},
		"repeats":                   {{0, 0, 2}, {0, 0, 2}, {0, 2, 1}, {0, 0, 2}, {0, 2, 1}, {0, 3, 1}},
		"repeats of five and six":   append(many(0, 6), sequenceStep{0, 0, 1}, sequenceStep{0, 1, 1}, sequenceStep{0, 5, 1}, sequenceStep{0, 6, 1}, sequenceStep{0, 1, 1}),
		"gaps":                      {{0, 0, 2}, {0, 3, 1}, {0, 2, 1}, {0, 1000, 1}, {0, 3, 1}},
		"overlaps":                  {{0, 0, 3}, {0, 0, 2}, {0, 0, 4}, {0, 1, 2}, {0, 2, 1}, {0, 3, 1}},
		"older epoch":               {{3, 0, 1}, {2, 1, 1}, {2, 0, 1}, {0, 0, 1}, {3, 1, 1}},
		"newer epoch":               {{0, 0, 2}, {1, 2, 1}, {1, 0, 1}, {0, 2, 1}, {0, 0, 2}, {1, 0, 1}, {1, 1, 1}, {5, 0, 1}},
		"newer epoch, repeats":      {{0, 0, 1}, {0, 1, 1}, {1, 0, 1}, {1, 0, 1}, {1, 1, 1}, {1, 1, 1}, {1, 0, 1}, {1, 3, 1}},
		"newer epoch, refused":      {{0, 0, 1}, {1, 5, 1}, {0, 1, 1}, {1, 0, 1}},
		"highest epoch":             {{math.MaxInt16, 0, 1}, {0, 0, 1}, {math.MaxInt16, 1, 1}},
		"first epoch is not 0":      {{7, 0, 1}, {7, 1, 1}, {6, 2, 1}},
		"highest sequences refused": {{0, 0, 1}, {0, math.MaxInt32, 1}, {0, math.MaxInt32 - 1, 5}, {0, 1, 1}},
	}
}

// oneProducer sends batches of one producer id to a partition.
type oneProducer struct {
	addr      func(ctx context.Context) (string, error) // of the leader
	topic     string
	partition int32
	pid       int64
}

// send returns base offset and error code; it asks again where to send to as
// long as that is all that is wrong.
func (p *oneProducer) send(ctx context.Context, version int16, s sequenceStep) (base int64, code int16, err error) {
	b := batch{producerID: p.pid, epoch: s.epoch, sequence: s.seq}
	for i := range s.count {
		b.values = append(b.values, fmt.Sprint("value ", i))
	}
	raw := b.encode()
	err = waitUntil(ctx, 50*time.Millisecond, func(ctx context.Context) error {
		addr, err := p.addr(ctx)
		if err != nil {
			return err
		}
		req := kmsg.NewPtrProduceRequest()
		req.SetVersion(version)
		req.Acks, req.TimeoutMillis = -1, 5000
		rp := kmsg.NewProduceRequestTopicPartition()
		rp.Partition, rp.Records = p.partition, raw
		rt := kmsg.NewProduceRequestTopic()
		rt.Topic, rt.Partitions = p.topic, append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		resp, err := rawCall[*kmsg.ProduceResponse](ctx, addr, req)
		if err != nil {
			return err
		}
		got := resp.Topics[0].Partitions[0]
		base, code = got.BaseOffset, got.ErrorCode
		if code == kerr.NotLeaderForPartition.Code || code == kerr.LeaderNotAvailable.Code || code == kerr.UnknownTopicOrPartition.Code {
			return kerr.ErrorForCode(code)
		}
		return nil
	})
	return base, code, err
}

// TestProducerScriptsLikeKafka sends the same batches to a bare Kafka broker and
// to Lockstep, and expects the same answers step by step, in every version of
// Produce. In the middle of every script a proxy that leads is killed and started
// again. (The bare broker is not: after that it knows the last batch of a
// producer and no others.) The difference that is meant is a producer that is
// new to a partition and does not begin with sequence 0.
func TestProducerScriptsLikeKafka(t *testing.T) {
	bare := newBroker(t, runDir(t)+"/kafka", 11)
	c := newClusterWith(t, clusterOpts{embedded: true})
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	scripts := producerScripts()
	names := make([]string, 0, len(scripts))
	for name := range scripts {
		names = append(names, name)
	}
	slices.Sort(names)
	rng := rand.New(rand.NewPCG(uint64(envInt(t, "E2E_SEED", 1)), 2))
	for i := range 3 {
		name := fmt.Sprint("random ", i)
		scripts[name], names = randomScript(rng, 60), append(names, name)
	}
	const topic = "scripts"
	parts := int32(len(names))
	if err := createLocalTopic(ctx, bare.addr(), topic, parts); err != nil {
		t.Fatal(err)
	}
	c.createTopic(c.node(1), topic, parts)

	play := func(second bool) {
		for p, name := range names {
			steps := scripts[name]
			half := len(steps) / 2
			kafka := &oneProducer{func(context.Context) (string, error) { return bare.addr(), nil }, topic, int32(p), 1<<50 + int64(p)}
			ours := &oneProducer{func(ctx context.Context) (string, error) { return c.leaderAddr(ctx, topic, int32(p), parts) }, topic, int32(p), 1<<50 + int64(p)}
			for i, s := range steps {
				if (i >= half) != second {
					continue
				}
				version := int16(3 + i%9)
				wantBase, wantCode, err := kafka.send(ctx, version, s)
				if err != nil {
					t.Fatalf("%s, step %d at Kafka: %v", name, i, err)
				}
				base, code, err := ours.send(ctx, version, s)
				if err != nil {
					t.Fatalf("%s, step %d: %v", name, i, err)
				}
				if base != wantBase || code != wantCode {
					t.Errorf("%s, step %d, %+v, Produce %d: base offset %d, %v; Kafka says %d, %v",
						name, i, s, version, base, kerr.ErrorForCode(code), wantBase, kerr.ErrorForCode(wantCode))
				}
			}
		}
	}
	play(false)
	led, err := partitionLeaders(ctx, c.node(1), topic, parts)
	if err != nil {
		t.Fatal(err)
	}
	killed := c.node(led[0])
	if err := killed.proc.kill9(); err != nil {
		t.Fatal(err)
	}
	killed.startProxy(t)
	c.waitHealthy()
	play(true)

	c.newProducerBeginsAt0(ctx, bare)
	c.initProducerIDs(ctx, bare)
	c.verify()
}

// randomScript is a producer that mostly goes on, and now and then repeats,
// skips, or begins an epoch.
func randomScript(rng *rand.Rand, n int) (out []sequenceStep) {
	next := sequenceStep{count: 1}
	for range n {
		s := next
		s.count = 1 + rng.Int32N(3)
		switch rng.IntN(8) {
		case 0:
			if len(out) > 0 {
				s = out[max(0, len(out)-1-rng.IntN(8))]
			}
		case 1:
			s.seq += 1 + rng.Int32N(3)
		case 2:
			s.epoch, s.seq = s.epoch+int16(rng.IntN(3))-1, 0
			s.epoch = max(s.epoch, 0)
		}
		out = append(out, s)
		if s.epoch > next.epoch && s.seq == 0 || s.epoch == next.epoch && s.seq == next.seq {
			next = sequenceStep{epoch: s.epoch, seq: s.seq + s.count}
		}
	}
	return out
}

// leaderAddr returns where a partition's leader is reached, by any proxy that
// runs.
func (c *cluster) leaderAddr(ctx context.Context, topic string, partition, partitions int32) (string, error) {
	led, err := partitionLeaders(ctx, c.nodes[0], topic, partitions)
	if err != nil {
		return "", err
	}
	return c.node(led[partition]).kafkaAddr(), nil
}

// newProducerBeginsAt0 holds the difference that is meant: on a partition that
// has forgotten nobody, an unknown producer cannot begin in the middle
// (KAFKA-15591), where Kafka lets it.
func (c *cluster) newProducerBeginsAt0(ctx context.Context, bare *broker) {
	t := c.t
	t.Helper()
	const topic = "begins"
	if err := createLocalTopic(ctx, bare.addr(), topic, 1); err != nil {
		t.Fatal(err)
	}
	c.createTopic(c.node(1), topic, 1)
	kafka := &oneProducer{func(context.Context) (string, error) { return bare.addr(), nil }, topic, 0, 1 << 50}
	ours := &oneProducer{func(ctx context.Context) (string, error) { return c.leaderAddr(ctx, topic, 0, 1) }, topic, 0, 1 << 50}
	s := sequenceStep{0, 5, 1}
	if base, code, err := kafka.send(ctx, 9, s); err != nil || code != 0 || base != 0 {
		t.Errorf("Kafka, a new producer with sequence 5: base offset %d, %v, %v", base, kerr.ErrorForCode(code), err)
	}
	if _, code, err := ours.send(ctx, 9, s); err != nil || code != outOfOrder {
		t.Errorf("a new producer with sequence 5: %v, %v, want OUT_OF_ORDER_SEQUENCE_NUMBER", kerr.ErrorForCode(code), err)
	}
}

// initProducerIDs compares the answers to InitProducerId without a transactional
// id, but for the ids.
func (c *cluster) initProducerIDs(ctx context.Context, bare *broker) {
	t := c.t
	t.Helper()
	for _, has := range []struct {
		id    int64
		epoch int16
	}{{-1, -1}, {5, 3}, {5, -1}, {-1, 3}, {5, math.MaxInt16}, {-7, -7}} {
		for version := int16(0); version <= 4; version++ {
			req := kmsg.NewPtrInitProducerIDRequest()
			req.SetVersion(version)
			req.TransactionTimeoutMillis, req.ProducerID, req.ProducerEpoch = 1000, has.id, has.epoch
			var want *kmsg.InitProducerIDResponse
			if err := waitUntil(ctx, 50*time.Millisecond, func(ctx context.Context) (err error) {
				if want, err = rawCall[*kmsg.InitProducerIDResponse](ctx, bare.addr(), req); err == nil && want.ErrorCode == kerr.CoordinatorLoadInProgress.Code {
					err = kerr.CoordinatorLoadInProgress // no block of ids yet
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			got, err := rawCall[*kmsg.InitProducerIDResponse](ctx, c.nodes[1].kafkaAddr(), req)
			if err != nil {
				t.Fatal(err)
			}
			if got.ErrorCode != want.ErrorCode || got.ProducerEpoch != want.ProducerEpoch || (got.ProducerID < 0) != (want.ProducerID < 0) {
				t.Errorf("InitProducerId %d of %+v: id %d, epoch %d, %v; Kafka says %d, %d, %v", version, has,
					got.ProducerID, got.ProducerEpoch, kerr.ErrorForCode(got.ErrorCode), want.ProducerID, want.ProducerEpoch, kerr.ErrorForCode(want.ErrorCode))
			}
		}
	}
}
