//go:build e2e

package e2e

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/e2e/check"
)

// idempotent starts a producer that sends a record to every partition of a
// topic at every tick, whether or not the ones before were answered.
func (l *load) idempotent(name string, topic loadTopic, tick time.Duration, codec kgo.CompressionCodec) {
	l.t.Helper()
	cl, err := kgo.NewClient(append(clientOpts(l.c.bootstrap()),
		kgo.ClientID(name), kgo.DefaultProduceTopic(topic.name), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0), kgo.UnknownTopicRetries(-1), kgo.ProducerBatchCompression(codec),
		kgo.ProduceRequestTimeout(time.Second), kgo.RequestTimeoutOverhead(time.Second), kgo.RetryTimeout(time.Minute),
		kgo.MaxBufferedRecords(2000), kgo.MetadataMaxAge(2*time.Second),
		kgo.ProducerOnDataLossDetected(func(topic string, p int32) {
			l.fatal("producer %s was told that its sequence on %s/%d does not follow what is there", name, topic, p)
		}),
	)...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.clients = append(l.clients, cl)
	l.producing.Go(func() {
		ticker, seq := time.NewTicker(tick), 0
		defer ticker.Stop()
		for {
			select {
			case <-l.stopProducers:
				return
			case <-ticker.C:
			}
			for p := range topic.partitions {
				if cl.BufferedProduceRecords() >= 1500 {
					break // rather than block: the stop must be heard
				}
				e := check.Event{Kind: check.Send, Topic: topic.name, Partition: p, Producer: name, Seq: seq, Idem: true}
				seq++
				l.log.Add(e)
				r := &kgo.Record{Partition: p, Value: []byte(check.Payload(name, e.Seq, topic.name, p, payloadSize()))}
				cl.Produce(context.Background(), r, func(r *kgo.Record, err error) {
					e.Kind = check.Info
					if err == nil {
						e.Kind, e.Offset = check.OK, r.Offset
					}
					l.outcome(e)
				})
			}
		}
	})
}

// payloadSize is mostly small, sometimes not.
func payloadSize() int {
	switch n := rand.IntN(100); {
	case n == 0:
		return 20_000 + rand.IntN(80_000)
	case n < 10:
		return 1000 + rand.IntN(4000)
	default:
		return 60 + rand.IntN(200)
	}
}

// outcome writes a producer's row.
func (l *load) outcome(e check.Event) {
	l.log.Add(e)
	if e.Kind != check.OK {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ends[e.Topic][e.Partition] = max(l.ends[e.Topic][e.Partition], e.Offset+1)
	l.acked[e.Topic][e.Partition]++
	l.wakeLocked()
}

// plain starts a producer that sends each record once, not idempotent, with a
// short timeout, over a connection of its own: no client between could send it
// again. One goroutine per partition.
func (l *load) plain(name string, topic loadTopic, tick, timeout time.Duration) {
	for p := range topic.partitions {
		l.producing.Go(func() {
			ticker, leader := time.NewTicker(tick), 0
			defer ticker.Stop()
			for seq := int(p); ; {
				select {
				case <-l.stopProducers:
					return
				case <-ticker.C:
				}
				if leader == 0 {
					if leader = l.lookUp(topic, p); leader == 0 {
						continue
					}
				}
				if kind := l.sendPlain(name, seq, topic.name, p, leader, timeout); kind != check.OK {
					leader = 0
				}
				seq += int(topic.partitions)
			}
		})
	}
}

// sendPlain sends one record to a node and writes its rows.
func (l *load) sendPlain(name string, seq int, topic string, p int32, leader int, timeout time.Duration) check.Kind {
	e := check.Event{Kind: check.Send, Topic: topic, Partition: p, Producer: name, Seq: seq}
	l.log.Add(e)
	ctx, cancel := context.WithTimeout(context.Background(), timeout+500*time.Millisecond)
	defer cancel()
	value := check.Payload(name, seq, topic, p, 80)
	base, code, err := rawProduceWithin(ctx, l.c.node(leader).kafkaAddr(), topic, p, batch{producerID: -1, epoch: -1, sequence: -1, values: []string{value}}, timeout)
	switch {
	case err == nil && code == 0:
		e.Kind, e.Offset = check.OK, base
	case err == nil && definite(code):
		e.Kind = check.Fail
	default:
		e.Kind = check.Info
	}
	l.outcome(e)
	return e.Kind
}

// definite says whether an error code promises that nothing was written. A
// leader that is lost and a time that is up promise nothing.
func definite(code int16) bool {
	switch code {
	case 5, 6, 7, 13, 14, 15, 16, 19, 20, 41, 56, -1:
		return false
	}
	return true
}

// rawProduceWithin is rawProduce with a timeout that the server is told.
func rawProduceWithin(ctx context.Context, addr, topic string, partition int32, b batch, timeout time.Duration) (base int64, code int16, err error) {
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(9)
	req.Acks, req.TimeoutMillis = -1, int32(timeout.Milliseconds())
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, b.encode()
	tp := kmsg.NewProduceRequestTopic()
	tp.Topic, tp.Partitions = topic, append(tp.Partitions, p)
	req.Topics = append(req.Topics, tp)
	resp, err := rawCall[*kmsg.ProduceResponse](ctx, addr, req)
	if err != nil {
		return 0, 0, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return 0, 0, errors.New("produce answer does not name the one partition asked for")
	}
	got := resp.Topics[0].Partitions[0]
	return got.BaseOffset, got.ErrorCode, nil
}

func (l *load) lookUp(topic loadTopic, p int32) int {
	for _, i := range rand.Perm(len(l.c.nodes)) {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		md, err := metadata(ctx, l.c.nodes[i].kafkaAddr(), topic.name)
		cancel()
		if err != nil {
			continue
		}
		for _, part := range md.Topics[0].Partitions {
			if part.Partition == p && part.ErrorCode == 0 && part.Leader > 0 {
				return int(part.Leader)
			}
		}
	}
	return 0
}
