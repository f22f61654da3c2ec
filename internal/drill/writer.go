package drill

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A client that wants to know soon of a new leader asks soon; these are
// settings that any client has.
const (
	askLeadersEvery = 50 * time.Millisecond
	retryAfter      = 20 * time.Millisecond
	dialTimeout     = 2 * time.Second
)

// errOtherTopic is returned when the topic cannot be written to as it is.
var errOtherTopic = errors.New("the topic is another's")

// record is one numbered record; its number is its place.
type record struct {
	at        time.Duration // when it was handed to the client
	answered  time.Duration
	offset    int64
	partition int32
	acked     bool
	err       error // why not; nil while it is under way
}

// writer writes numbered records, one at a time and evenly over the
// partitions, and notes every answer.
type writer struct {
	topic  string
	key    []byte // tells this run's records from those of others
	every  time.Duration
	client *kgo.Client
	began  time.Time

	cancel  context.CancelFunc
	stopped chan struct{} // closed when the pacer has ended

	mu      sync.Mutex
	records []record
	last    [partitions]time.Duration // when the newest acknowledged record of each was written
	more    chan struct{}             // closed and replaced by each answer
}

func newWriter(addrs []string, topic string, rate int) (*writer, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(addrs...), kgo.ClientID("lockstep-kill-leader"),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
		kgo.MetadataMinAge(askLeadersEvery), kgo.DialTimeout(dialTimeout),
		kgo.RetryBackoffFn(func(int) time.Duration { return retryAfter }))
	if err != nil {
		return nil, fmt.Errorf("make a Kafka client: %w", err)
	}
	return &writer{topic: topic, key: []byte(rand.Text()), every: time.Second / time.Duration(rate), client: cl,
		began: time.Now(), stopped: make(chan struct{}), more: make(chan struct{})}, nil
}

func (w *writer) now() time.Duration { return time.Since(w.began) }

// prepare makes the topic and returns when every partition has a leader.
func (w *writer) prepare(ctx context.Context) error {
	create := kmsg.NewPtrCreateTopicsRequest()
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = w.topic, partitions, -1
	create.Topics, create.TimeoutMillis = append(create.Topics, topic), 15_000
	resp, err := create.RequestWith(ctx, w.client)
	if err != nil {
		return fmt.Errorf("create topic %s: %w", w.topic, err)
	}
	if err := kerr.ErrorForCode(resp.Topics[0].ErrorCode); err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("create topic %s: %w; if its name is at fault, give another with --topic", w.topic, err)
	}
	_, err = w.awaitLeaders(ctx)
	return err
}

// awaitLeaders asks until every partition has a leader.
func (w *writer) awaitLeaders(ctx context.Context) ([]int32, error) {
	tick := time.NewTicker(askLeadersEvery)
	defer tick.Stop()
	for {
		leaders, err := w.leaders(ctx)
		if err == nil || errors.Is(err, errOtherTopic) {
			return leaders, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// leaders returns the node that leads each partition.
func (w *writer) leaders(ctx context.Context) ([]int32, error) {
	ask := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = kmsg.StringPtr(w.topic)
	ask.Topics = append(ask.Topics, topic)
	resp, err := ask.RequestWith(ctx, w.client)
	if err != nil {
		return nil, fmt.Errorf("ask for the leaders of %s: %w", w.topic, err)
	}
	t := resp.Topics[0]
	if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
		return nil, fmt.Errorf("ask for the leaders of %s: %w", w.topic, err)
	}
	if len(t.Partitions) != partitions {
		return nil, fmt.Errorf("%w: %s has %d partitions, not %d; name another with --topic",
			errOtherTopic, w.topic, len(t.Partitions), partitions)
	}
	leaders := make([]int32, partitions)
	for _, p := range t.Partitions {
		if p.Leader < 0 || p.ErrorCode != 0 {
			return nil, fmt.Errorf("partition %d of %s has no leader: %w", p.Partition, w.topic, kerr.ErrorForCode(p.ErrorCode))
		}
		leaders[p.Partition] = p.Leader
	}
	return leaders, nil
}

// start writes until finish or close.
func (w *writer) start() {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	go func() {
		defer close(w.stopped)
		tick := time.NewTicker(w.every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.write(ctx)
			case <-ctx.Done():
				return
			}
		}
	}()
}

// write hands the next record to the client, which blocks while it holds too many.
func (w *writer) write(ctx context.Context) {
	w.mu.Lock()
	n := len(w.records)
	rec := record{at: w.now(), partition: int32(n % partitions)}
	w.records = append(w.records, rec)
	w.mu.Unlock()
	// Not ctx: what was handed over is waited for.
	w.client.Produce(context.WithoutCancel(ctx), &kgo.Record{Topic: w.topic, Partition: rec.partition, Key: w.key,
		Value: strconv.AppendInt(nil, int64(n), 10)}, func(r *kgo.Record, err error) { w.answered(n, r.Offset, err) })
}

func (w *writer) answered(n int, offset int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	rec := &w.records[n]
	rec.answered, rec.offset, rec.err, rec.acked = w.now(), offset, err, err == nil
	if rec.acked {
		w.last[rec.partition] = max(w.last[rec.partition], rec.at)
	}
	close(w.more)
	w.more = make(chan struct{})
}

// acknowledged returns when a record that was written after since is
// acknowledged in each partition.
func (w *writer) acknowledged(ctx context.Context, since time.Duration) error {
	for {
		w.mu.Lock()
		missing := slices.IndexFunc(w.last[:], func(at time.Duration) bool { return at <= since })
		more, why := w.more, w.lastError()
		w.mu.Unlock()
		if missing < 0 {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			if why == nil {
				why = context.Cause(ctx)
			}
			return fmt.Errorf("partition %d of %s acknowledges nothing: %w", missing, w.topic, why)
		}
	}
}

// lastError is why the newest record that failed did. The caller holds the mutex.
func (w *writer) lastError() error {
	for i := len(w.records) - 1; i >= 0; i-- {
		if w.records[i].err != nil {
			return w.records[i].err
		}
	}
	return nil
}

// finish stops writing and returns when every record is answered.
func (w *writer) finish(ctx context.Context) error {
	w.cancel()
	<-w.stopped
	return w.client.Flush(ctx)
}

// acks are the times at which a partition's records were acknowledged, in
// order. Only after finish.
func (w *writer) acks(partition int32) []time.Duration {
	var out []time.Duration
	for _, r := range w.records {
		if r.acked && r.partition == partition {
			out = append(out, r.answered)
		}
	}
	slices.Sort(out)
	return out
}

// close gives up what is under way. Idempotent.
func (w *writer) close() {
	if w.cancel != nil {
		w.cancel()
	}
	w.client.Close() // which ends a Produce that blocks
	if w.cancel != nil {
		<-w.stopped
	}
}
