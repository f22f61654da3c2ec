//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"
)

// compatKill is one kill of a node that several clients go through together:
// starting a killed node again takes longer than everything else.
type compatKill struct {
	victim int
	groups sync.WaitGroup // members that have joined and committed
	ready  sync.WaitGroup // everybody who waits for the kill
	killed chan struct{}
}

// compatTicket is one participant's; it belongs to one goroutine.
type compatTicket struct {
	round   *compatKill
	isGroup bool
	arrived bool
}

func (k *compatKill) ticket(f *compatFeature) *compatTicket {
	k.ready.Add(1)
	if f.group {
		k.groups.Add(1)
	}
	return &compatTicket{round: k, isGroup: f.group}
}

// arrive says that the kill may come, or that it need not wait.
func (kt *compatTicket) arrive() {
	if kt.arrived {
		return
	}
	kt.arrived = true
	if kt.isGroup {
		kt.round.groups.Done()
	}
	kt.round.ready.Done()
}

// await returns when the node is dead.
func (kt *compatTicket) await() {
	kt.arrive()
	<-kt.round.killed
}

// throughAKill runs the features that need one, for some clients at once, and
// brings the node back.
func throughAKill(t *testing.T, c *cluster, table *compatTable, victim int, runs []*compatRun, wanted func(*compatClient, *compatFeature) bool) {
	t.Helper()
	k := &compatKill{victim: victim, killed: make(chan struct{})}
	var work sync.WaitGroup
	var starts []func()
	for _, f := range compatFeatures {
		for _, r := range runs {
			if !f.kills || !wanted(r.cl, f) {
				continue
			}
			mine := &compatRun{c: r.c, cl: r.cl, shared: r.shared, ticket: k.ticket(f)}
			starts = append(starts, func() {
				defer mine.ticket.arrive()
				mine.one(t, table, f)
			})
		}
	}
	if len(starts) == 0 {
		return
	}
	for _, start := range starts {
		work.Go(start)
	}
	k.ready.Wait()
	c.killNode(victim)
	t.Logf("killed proxy and broker of node %d", victim)
	close(k.killed)
	work.Wait()
	c.restartNode(victim)
	c.waitHealthy()
	c.verify()
}

// leaderKill: proxy and broker of a leader are killed while the client's
// producer and consumer run. Nothing may be missing, nothing may stand twice.
func leaderKill(ctx context.Context, r *compatRun) (err error) {
	const partitions = 6
	victim := r.ticket.round.victim
	p := produced{partitions: partitions, prefix: "r", count: 3000, size: 100, idempotent: true, rate: 150}
	if p.topic, err = r.withTopic(ctx, "killed", partitions); err != nil {
		return err
	}
	if err := r.leads(ctx, victim, p.topic, partitions); err != nil {
		return err
	}
	consumer, err := r.cl.start("consume", r.bootstrap(), "topic="+p.topic, "count="+strconv.Itoa(p.count))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, consumer.proc.kill9()) }()
	r.ticket.round.groups.Wait()
	producer, err := r.cl.start(append([]string{"produce"}, p.args(r.c.bootstrap())...)...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, producer.proc.kill9()) }()
	if err := r.waitRecords(ctx, p.topic, partitions, 100); err != nil {
		return err
	}
	r.ticket.await()
	if ended(producer.stdout.snapshot()) {
		return errors.New("the producer was done before the kill: nothing was shown")
	}
	if err := producer.waitFor(ctx, joinWait, "produce", ended); err != nil {
		return err
	}
	events, err := outcome(producer.stdout.snapshot())
	if err != nil {
		return fmt.Errorf("produce: %w", err)
	}
	records, err := onEveryBroker(ctx, r.c.others(victim), p.topic, partitions, p.count)
	if err != nil {
		return err
	}
	if err := p.check(records); err != nil {
		return err
	}
	if err := checkAcks(r.cl, events, records, p.count); err != nil {
		return err
	}
	if err := consumer.waitFor(ctx, joinWait, "consume", ended); err != nil {
		return fmt.Errorf("%w (%d of %d records read)", err, recordsOf(consumer.stdout.snapshot(), "r"), p.count)
	}
	if events, err = outcome(consumer.stdout.snapshot()); err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	return checkConsumed(r.cl, events, records)
}

// leads waits until a node leads a partition of the topic: leadership moves for
// a while after a node has come back.
func (r *compatRun) leads(ctx context.Context, id int, topic string, partitions int32) error {
	return soon(ctx, time.Minute, func(ctx context.Context) error {
		leaders, err := partitionLeaders(ctx, r.c.node(id), topic, partitions)
		if err == nil && len(ledBy(leaders, id)) == 0 {
			err = fmt.Errorf("node %d leads no partition, the leaders are %v", id, leaders)
		}
		return err
	})
}

// waitRecords returns when the first node's broker holds this many records.
func (r *compatRun) waitRecords(ctx context.Context, topic string, partitions int32, count int) error {
	return soon(ctx, joinWait, func(ctx context.Context) error {
		_, total, err := endOffsets(ctx, r.c.node(1).broker.addr(), topic, partitions)
		if err == nil && total < int64(count) {
			err = fmt.Errorf("%d records produced, waiting for %d", total, count)
		}
		return err
	})
}

// coordinatorKill: a group has committed; the node of its coordinator is
// killed. The offsets are still there, and the member goes on.
func coordinatorKill(ctx context.Context, r *compatRun) (err error) {
	topic, err := r.withTopic(ctx, "coordinated", compatGroupPartitions)
	if err != nil {
		return err
	}
	victim := r.ticket.round.victim
	group, err := r.groupAt(ctx, victim)
	if err != nil {
		return err
	}
	g := &groupRun{r: r, topic: topic, group: group}
	defer g.killAll()
	m, err := g.join()
	if err != nil {
		return err
	}
	if err := g.sees(ctx, m, "one"); err != nil {
		return err
	}
	committing, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := waitUntil(committing, 100*time.Millisecond, g.committedAll); err != nil {
		return err
	}
	before, err := compatCommittedOffsets(ctx, r.c, g.group, topic, compatGroupPartitions)
	if err != nil {
		return err
	}
	r.ticket.await()
	survivors, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var after map[int32]int64
	err = waitUntil(survivors, 100*time.Millisecond, func(ctx context.Context) error {
		var err error
		after, err = compatCommittedOffsets(ctx, r.c, g.group, topic, compatGroupPartitions)
		return err
	})
	if err != nil {
		return err
	}
	for p, was := range before {
		if after[p] < was {
			return fmt.Errorf("the group had committed %d/%d, after the kill its offset is %d", p, was, after[p])
		}
	}
	if err := produceTo(ctx, r.c, topic, compatGroupPartitions, "two", groupBatch); err != nil {
		return err
	}
	return m.waitFor(ctx, joinWait, "the records after the kill", func(all []string) bool { return recordsOf(all, "two") == groupBatch })
}

// groupAt returns the name of a group that this node coordinates.
func (r *compatRun) groupAt(ctx context.Context, id int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	group, i := "", 0
	err := waitUntil(ctx, 50*time.Millisecond, func(ctx context.Context) error {
		i++
		group = r.topic("coordinated" + strconv.Itoa(i))
		at, err := coordinatorOf(ctx, r.c, group)
		if err == nil && at != id {
			err = fmt.Errorf("no group of %d is coordinated by node %d", i, id)
		}
		return err
	})
	return group, err
}
