//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/e2e/check"
)

// loadTopic is a topic under load.
type loadTopic struct {
	name       string
	partitions int32
}

// load is everything that produces to and reads from a cluster, and what it
// saw. Its goroutines write rows; the test goroutine starts and stops it.
type load struct {
	t      *testing.T
	c      *cluster
	log    *check.Log
	topics []loadTopic

	producing, reading sync.WaitGroup
	stopProducers      chan struct{}
	readers            context.Context
	stopReaders        context.CancelFunc
	clients            []*kgo.Client // of producers
	readerClients      []*kgo.Client
	stopOnce           sync.Once

	mu      sync.Mutex // guards what follows
	ends    map[string]map[int32]int64
	acked   map[string]map[int32]int              // acknowledgements by topic and partition
	seen    map[string]map[string]map[int32]int64 // by assigned consumer: the offset after the last record
	changed chan struct{}                         // closed and replaced at every acknowledgement and read
	found   []string                              // what the harness itself found wrong
	leaders map[int]groupLeader                   // by group, as last heard
}

type groupLeader struct {
	node int
	term uint64
}

func newLoad(t *testing.T, c *cluster, log *check.Log, topics ...loadTopic) *load {
	t.Helper()
	l := &load{t: t, c: c, log: log, topics: topics, stopProducers: make(chan struct{}), ends: map[string]map[int32]int64{},
		acked: map[string]map[int32]int{}, seen: map[string]map[string]map[int32]int64{}, changed: make(chan struct{}), leaders: map[int]groupLeader{}}
	l.readers, l.stopReaders = context.WithCancel(context.Background())
	for i, topic := range topics {
		c.createTopic(c.nodes[i%len(c.nodes)], topic.name, topic.partitions)
		l.ends[topic.name], l.acked[topic.name] = map[int32]int64{}, map[int32]int{}
	}
	t.Cleanup(l.close)
	return l
}

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

// fatal notes what is wrong whatever the rows say, as a client that was told
// what it must never be told.
func (l *load) fatal(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.found = append(l.found, fmt.Sprintf(format, args...))
}

// report hands what was noted to the checker, which nobody else uses any more.
func (l *load) report(c *check.Checker) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.found {
		c.Reported("%s", f)
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

func (l *load) wakeLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
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

// assigned starts a consumer with every partition assigned by hand from offset
// 0, that knows the cluster by one node.
func (l *load) assigned(name string, via *node) {
	l.t.Helper()
	starts := map[string]map[int32]kgo.Offset{}
	l.seen[name] = map[string]map[int32]int64{}
	for _, topic := range l.topics {
		starts[topic.name], l.seen[name][topic.name] = map[int32]kgo.Offset{}, map[int32]int64{}
		for p := range topic.partitions {
			starts[topic.name][p] = kgo.NewOffset().At(0)
			l.log.Add(check.Event{Kind: check.Assign, By: name, Topic: topic.name, Partition: p})
		}
	}
	cl, err := kgo.NewClient(append(clientOpts([]string{via.kafkaAddr()}), kgo.ClientID(name), kgo.ConsumePartitions(starts),
		// An offset that is out of range is a finding, never a reason to jump.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.MetadataMaxAge(2*time.Second), kgo.FetchMaxWait(500*time.Millisecond))...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.readerClients = append(l.readerClients, cl)
	l.reading.Go(func() { l.read(cl, name, false) })
}

// group starts a member of a consumer group on all topics.
func (l *load) group(name, group string, via *node) {
	l.t.Helper()
	var names []string
	for _, topic := range l.topics {
		names = append(names, topic.name)
	}
	cl, err := kgo.NewClient(append(clientOpts([]string{via.kafkaAddr()}), kgo.ClientID(name), kgo.ConsumerGroup(group), kgo.ConsumeTopics(names...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.BlockRebalanceOnPoll(), kgo.SessionTimeout(10*time.Second),
		kgo.MetadataMaxAge(2*time.Second), kgo.FetchMaxWait(500*time.Millisecond), kgo.AutoCommitInterval(time.Second),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, got map[string][]int32) {
			for topic, ps := range got {
				for _, p := range ps {
					l.log.Add(check.Event{Kind: check.Assign, By: name, Topic: topic, Partition: p, Offset: -1})
				}
			}
		}))...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.readerClients = append(l.readerClients, cl)
	l.reading.Go(func() { l.read(cl, name, true) })
}

func (l *load) read(cl *kgo.Client, name string, group bool) {
	for {
		fetches := cl.PollFetches(l.readers)
		if l.readers.Err() != nil {
			return
		}
		fetches.EachError(func(topic string, p int32, err error) {
			// A group's coordinator may be gone; an assigned reader has no excuse.
			if !group {
				l.fatal("consumer %s, %s/%d: %v", name, topic, p, err)
			}
		})
		fetches.EachRecord(func(r *kgo.Record) {
			e := check.Record(check.Poll, r.Topic, r.Partition, r.Offset, string(r.Value))
			e.By = name
			l.log.Add(e)
		})
		if group {
			cl.AllowRebalance()
			continue
		}
		l.mu.Lock()
		fetches.EachRecord(func(r *kgo.Record) { l.seen[name][r.Topic][r.Partition] = r.Offset + 1 })
		l.wakeLocked()
		l.mu.Unlock()
	}
}

// askEnds asks one node for end offsets, over and over: whatever is answered
// must be up to date.
func (l *load) askEnds(n *node, every time.Duration) {
	by := fmt.Sprintf("ends-%d", n.id)
	l.reading.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for i := 0; ; i++ {
			select {
			case <-l.readers.Done():
				return
			case <-ticker.C:
			}
			topic := l.topics[i%len(l.topics)]
			p := int32(i/len(l.topics)) % topic.partitions
			l.askEnd(by, n, topic.name, p)
		}
	})
}

// askEnd asks once and reports whether it was answered.
func (l *load) askEnd(by string, n *node, topic string, p int32) bool {
	l.log.Add(check.Event{Kind: check.Ask, By: by, Topic: topic, Partition: p})
	ctx, cancel := context.WithTimeout(l.readers, time.Second)
	defer cancel()
	end, err := endOffset(ctx, n.kafkaAddr(), topic, p)
	if err == nil {
		l.log.Add(check.Event{Kind: check.End, By: by, Topic: topic, Partition: p, Offset: end})
		// A node shows ends only of partitions that it leads, and whoever leads
		// has all that was ever shown: no restart may take one back.
		l.log.Add(check.Event{Kind: check.Watch, By: by, Topic: topic, Partition: p, Offset: end})
	}
	return err == nil
}

// watchLeaders writes a row whenever a group has another leader or term.
func (l *load) watchLeaders(every time.Duration) {
	l.reading.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			heard := make(chan *status, len(l.c.nodes))
			for _, n := range l.c.nodes {
				go func() {
					ctx, cancel := context.WithTimeout(l.readers, time.Second)
					defer cancel()
					s, err := n.status(ctx)
					if err != nil {
						s = nil
					}
					heard <- s
				}()
			}
			for range l.c.nodes {
				l.noteLeaders(<-heard)
			}
			select {
			case <-l.readers.Done():
				return
			case <-ticker.C:
			}
		}
	})
}

func (l *load) noteLeaders(s *status) {
	if s == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range s.Groups {
		if old := l.leaders[g.Group]; g.Leader > 0 && g.Term > old.term {
			l.leaders[g.Group] = groupLeader{g.Leader, g.Term}
			l.log.Add(check.Event{Kind: check.Leader, Node: g.Leader, Seq: g.Group, Text: fmt.Sprintf("term %d", g.Term)})
		}
	}
}

// leads returns the groups that a node was last known to lead.
func (l *load) leads(id int) (groups []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for g, leader := range l.leaders {
		if leader.node == id {
			groups = append(groups, g)
		}
	}
	return groups
}

// waitUntil returns when ok, called with l.mu held, is true, or when ctx ends.
func (l *load) waitUntil(ctx context.Context, ok func() bool) error {
	for {
		l.mu.Lock()
		done, changed := ok(), l.changed
		l.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waitAcks returns when every partition got n more acknowledgements.
func (l *load) waitAcks(ctx context.Context, n int) error {
	l.mu.Lock()
	want := map[string]map[int32]int{}
	for _, topic := range l.topics {
		want[topic.name] = map[int32]int{}
		for p := range topic.partitions {
			want[topic.name][p] = l.acked[topic.name][p] + n
		}
	}
	l.mu.Unlock()
	behind := ""
	err := l.waitUntil(ctx, func() bool {
		for _, topic := range l.topics {
			for p := range topic.partitions {
				if got := l.acked[topic.name][p]; got < want[topic.name][p] {
					behind = fmt.Sprintf("%s/%d has %d, want %d", topic.name, p, got, want[topic.name][p])
					return false
				}
			}
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("wait for %d more acknowledgements on each partition: %s: %w", n, behind, err)
	}
	return nil
}

// finishProducing stops the producers and waits for the last answers.
func (l *load) finishProducing(ctx context.Context) error {
	l.stopOnce.Do(func() { close(l.stopProducers) })
	l.producing.Wait()
	var errs error
	for _, cl := range l.clients {
		errs = errors.Join(errs, cl.Flush(ctx))
	}
	return errs
}

// finishReading returns when every assigned consumer has got to the last
// acknowledged record, or when ctx ends, and stops them.
func (l *load) finishReading(ctx context.Context) {
	_ = l.waitUntil(ctx, func() bool { // who did not get there is a finding of the checker
		for _, seen := range l.seen {
			for topic, ends := range l.ends {
				for p, end := range ends {
					if seen[topic][p] < end {
						return false
					}
				}
			}
		}
		return true
	})
	l.stopReading()
	for name := range l.seen {
		for _, topic := range l.topics {
			for p := range topic.partitions {
				l.log.Add(check.Event{Kind: check.Expect, By: name, Topic: topic.name, Partition: p})
			}
		}
	}
}

func (l *load) stopReading() {
	l.stopReaders()
	for _, cl := range l.readerClients {
		cl.CloseAllowingRebalance()
	}
	l.reading.Wait()
}

// dump writes what stands on the brokers of the given nodes, read directly.
func (l *load) dump(ctx context.Context, nodes []*node) error {
	for _, n := range nodes {
		for _, topic := range l.topics {
			ends := map[int32]int64{}
			for p := range topic.partitions {
				end, err := endOffset(ctx, n.broker.addr(), topic.name, p)
				if err != nil {
					return fmt.Errorf("node %d: %w", n.id, err)
				}
				ends[p] = end
			}
			d, err := readTo(ctx, []string{n.broker.addr()}, topic.name, ends)
			if err != nil {
				return fmt.Errorf("node %d: %w", n.id, err)
			}
			for p := range topic.partitions {
				for _, r := range d[p] {
					e := check.Record(check.Stored, topic.name, p, r.offset, r.value)
					e.Node = n.id
					l.log.Add(e)
				}
				l.log.Add(check.Event{Kind: check.Read, Topic: topic.name, Partition: p, Node: n.id, Offset: ends[p]})
			}
		}
	}
	return nil
}

// brokersHold returns an error unless the given nodes' brokers have every
// acknowledged record, going by their end offsets.
func (l *load) brokersHold(ctx context.Context, nodes []*node) error {
	l.mu.Lock()
	want := map[string]map[int32]int64{}
	for topic, ends := range l.ends {
		want[topic] = map[int32]int64{}
		for p, end := range ends {
			want[topic][p] = end
		}
	}
	l.mu.Unlock()
	for _, n := range nodes {
		for topic, ends := range want {
			for p, end := range ends {
				got, err := endOffset(ctx, n.broker.addr(), topic, p)
				if err != nil {
					return fmt.Errorf("broker of node %d: %w", n.id, err)
				}
				if got < end {
					return fmt.Errorf("broker of node %d ends at %d of %s/%d, acknowledged is up to %d", n.id, got, topic, p, end)
				}
			}
		}
	}
	return nil
}

// close ends everything; it may be called after the others, or instead.
func (l *load) close() {
	l.stopOnce.Do(func() { close(l.stopProducers) })
	for _, cl := range l.clients {
		cl.Close()
	}
	l.producing.Wait()
	l.stopReading()
}
