//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	groupMembers    = 5
	groupPartitions = 24
	groupSession    = 6 * time.Second // group.min.session.timeout.ms
	resumeWithin    = groupSession + 5*time.Second
)

// TestCoordinatorKills kills the node that coordinates a consumer group of five
// over 24 partitions, proxy and broker, again and again (E2E_ROUNDS times). No
// committed offset may ever go back or be gone, the group must go on within its
// session timeout and 5 s, and no record may be skipped.
func TestCoordinatorKills(t *testing.T) {
	rounds := envInt(t, "E2E_ROUNDS", 3)
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(4+rounds)*2*time.Minute)
	defer cancel()
	const topic, group = "coordinated", "group-of-five"
	c.createTopic(c.node(1), topic, groupPartitions)
	w := startWorkload(t, c.bootstrap(), topic, groupPartitions, 100*time.Millisecond, "p1")
	g := startGroup(t, c, topic, group)
	g.waitProcessed(ctx, "at first", time.Now(), time.Minute)

	var pauses []time.Duration
	for round := range rounds {
		victim := g.coordinator(ctx)
		died := time.Now()
		c.killNode(victim)
		pause := g.waitProcessed(ctx, fmt.Sprintf("after kill %d, of node %d", round+1, victim), died, time.Minute)
		pauses = append(pauses, pause)
		t.Logf("kill %d: node %d coordinated; every partition was read and committed after %s", round+1, victim, ms(pause))
		if pause > resumeWithin {
			t.Errorf("kill %d: the group stood still for %s, more than %s", round+1, ms(pause), resumeWithin)
		}
		c.restartNode(victim)
		c.waitHealthy()
	}
	flush, cancelFlush := context.WithTimeout(ctx, time.Minute)
	defer cancelFlush()
	if err := w.stopProducing(flush); err != nil {
		t.Errorf("wait for the last answers: %v", err)
	}
	g.waitAll(ctx, w.h.ends())
	reads := g.stop()
	c.waitBrokersHold(c.nodes, topic, w.h.ends())
	w.h.check(c.readBrokers(c.nodes, topic, groupPartitions), groupPartitions).report(t)
	c.verify()
	sent, acked := w.h.counts()
	t.Logf("%d kills: pauses median %s, all %s; %d records sent, %d acknowledged, %d processed twice or more; offsets were read %d times, none went back",
		rounds, ms(median(slices.Clone(pauses))), list(pauses), sent, acked, g.repeats, reads)
}

// consumers is a consumer group that notes what it processed, what it committed,
// and what everybody can read of that. Its fields are guarded by mu.
type consumers struct {
	t            *testing.T
	c            *cluster
	topic, group string
	cancel       context.CancelFunc
	wg           sync.WaitGroup

	mu        sync.Mutex
	processed map[int32]map[int64]time.Time // first time, by offset
	commits   map[int32][]time.Time         // when a commit was acknowledged
	floor     map[int32]int64               // what a read of the committed offset must not be below
	repeats   int
	reads     int
	changed   chan struct{}
}

func startGroup(t *testing.T, c *cluster, topic, group string) *consumers {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	g := &consumers{t: t, c: c, topic: topic, group: group, cancel: cancel,
		processed: make(map[int32]map[int64]time.Time), floor: make(map[int32]int64), commits: make(map[int32][]time.Time), changed: make(chan struct{})}
	for n := range groupMembers {
		cl, err := kgo.NewClient(append(clientOpts(c.bootstrap()),
			kgo.ClientID(fmt.Sprint("member-", n)), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic),
			kgo.SessionTimeout(groupSession), kgo.HeartbeatInterval(500*time.Millisecond), kgo.RebalanceTimeout(10*time.Second),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(500*time.Millisecond),
			kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll())...)
		if err != nil {
			t.Fatal(err)
		}
		g.wg.Go(func() { defer cl.CloseAllowingRebalance(); g.consume(ctx, cl) })
	}
	g.wg.Go(func() { g.observe(ctx) })
	t.Cleanup(func() { g.stop() })
	return g
}

// stop ends the members and returns how often offsets were read.
func (g *consumers) stop() int {
	g.cancel()
	g.wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.reads
}

// consume processes records, then commits them, until ctx ends.
func (g *consumers) consume(ctx context.Context, cl *kgo.Client) {
	for ctx.Err() == nil {
		fetches := cl.PollRecords(ctx, 200)
		records := fetches.Records()
		g.note(records)
		if len(records) > 0 {
			try, cancel := context.WithTimeout(ctx, 5*time.Second)
			err := cl.CommitRecords(try, records...)
			cancel()
			if err == nil {
				g.noteCommitted(records)
			}
		}
		cl.AllowRebalance()
	}
}

func (g *consumers) note(records []*kgo.Record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range records {
		p := g.processed[r.Partition]
		if p == nil {
			p = make(map[int64]time.Time)
			g.processed[r.Partition] = p
		}
		if _, again := p[r.Offset]; again {
			g.repeats++
			continue
		}
		p[r.Offset] = time.Now()
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *consumers) noteCommitted(records []*kgo.Record) {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range records {
		g.floor[r.Partition] = max(g.floor[r.Partition], r.Offset+1)
		if n := len(g.commits[r.Partition]); n == 0 || g.commits[r.Partition][n-1] != now {
			g.commits[r.Partition] = append(g.commits[r.Partition], now)
		}
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

// observe reads the group's offsets all the time, from whoever coordinates it.
func (g *consumers) observe(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		g.mu.Lock()
		floor := make(map[int32]int64, len(g.floor))
		for p, o := range g.floor {
			floor[p] = o
		}
		g.mu.Unlock()
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		node, err := findCoordinator(ctx, g.c, g.group)
		if err == nil {
			var got map[int32]int64
			if got, err = committedOffsets(ctx, g.c.node(node).kafkaAddr(), g.group, g.topic, groupPartitions); err == nil {
				g.check(node, got, floor)
			}
		}
		cancel()
	}
}

// check holds what was read to what had been committed, or read, before.
func (g *consumers) check(node int, got, floor map[int32]int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reads++
	for p, least := range floor {
		if got[p] < least {
			g.t.Errorf("node %d says that partition %d is committed up to %d; it was %d before", node, p, got[p], least)
		}
	}
	for p, o := range got {
		if o > 0 {
			g.floor[p] = max(g.floor[p], o)
		}
	}
}

// waitProcessed waits until records of every partition were processed and
// committed after since, and returns how long after since the last was.
func (g *consumers) waitProcessed(ctx context.Context, when string, since time.Time, limit time.Duration) time.Duration {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last time.Time
	err := g.waitFor(ctx, func() bool {
		last = since
		for p := range int32(groupPartitions) {
			first := time.Time{}
			for _, at := range g.commits[p] {
				// Within the first second it may be an answer from before.
				if at.After(since.Add(time.Second)) {
					first = at
					break
				}
			}
			if first.IsZero() {
				return false
			}
			if first.After(last) {
				last = first
			}
		}
		return true
	})
	if err != nil {
		g.t.Fatalf("%s the group does not read every partition: %v", when, err)
	}
	return last.Sub(since)
}

// waitAll waits until every record below the ends was processed and committed.
func (g *consumers) waitAll(ctx context.Context, ends map[int32]int64) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	missing := ""
	err := g.waitFor(ctx, func() bool {
		missing = ""
		for p, end := range ends {
			for o := range end {
				if _, ok := g.processed[p][o]; !ok {
					missing = fmt.Sprintf("offset %d of partition %d, which ends at %d", o, p, end)
					return false
				}
			}
		}
		return true
	})
	if err != nil {
		g.t.Errorf("skipped: %s: %v", missing, err)
	}
}

func (g *consumers) waitFor(ctx context.Context, ok func() bool) error {
	for {
		g.mu.Lock()
		done, changed := ok(), g.changed
		g.mu.Unlock()
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

// coordinator is the node that coordinates the group now.
func (g *consumers) coordinator(ctx context.Context) int {
	g.t.Helper()
	var id int
	waitFor(g.t, "a coordinator", 30*time.Second, func(context.Context) (err error) {
		id, err = findCoordinator(ctx, g.c, g.group)
		return err
	})
	return id
}

// findCoordinator asks the proxies that run.
func findCoordinator(ctx context.Context, c *cluster, group string) (int, error) {
	var errs error
	for _, n := range c.nodes {
		if !n.running() {
			continue
		}
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.SetVersion(3)
		req.CoordinatorKey = group
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		resp, err := rawCall[*kmsg.FindCoordinatorResponse](ctx, n.kafkaAddr(), req)
		cancel()
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err == nil {
			return int(resp.NodeID), nil
		}
		errs = errors.Join(errs, err)
	}
	return 0, errs
}

// committedOffsets reads a group's offsets at an address.
func committedOffsets(ctx context.Context, addr, group, topic string, partitions int32) (map[int32]int64, error) {
	req := kmsg.NewPtrOffsetFetchRequest()
	req.SetVersion(5)
	req.Group = group
	t := kmsg.NewOffsetFetchRequestTopic()
	t.Topic = topic
	for p := range partitions {
		t.Partitions = append(t.Partitions, p)
	}
	req.Topics = append(req.Topics, t)
	resp, err := rawCall[*kmsg.OffsetFetchResponse](ctx, addr, req)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return nil, err
	}
	out := make(map[int32]int64)
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, err
			}
			out[p.Partition] = p.Offset
		}
	}
	return out, nil
}
