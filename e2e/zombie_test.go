//go:build e2e

package e2e

import (
	"context"
	"syscall"
	"testing"
	"time"
)

// TestZombieAppend stops a broker (SIGSTOP) while records are produced, so that
// Produce requests wait in its sockets, kills its proxy with -9 and starts it
// again, and lets the broker go on: what the dead proxy sent executes beside
// what the new one sends. E2E_ZOMBIES sets how often.
func TestZombieAppend(t *testing.T) {
	c := newCluster(t)
	rounds := envInt(t, "E2E_ZOMBIES", 6)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(2+rounds/2)*time.Minute)
	defer cancel()
	const topic, partitions = "zombie", 6
	c.createTopic(c.node(1), topic, partitions)
	w := startWorkload(t, c.bootstrap(), topic, partitions, 20*time.Millisecond, "p1", "p2")
	settle := func(n int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, settleWithin)
		defer cancel()
		if err := w.h.waitAcks(ctx, partitions, time.Now(), n); err != nil {
			t.Fatal(err)
		}
	}
	settle(5)
	for round := range rounds {
		n := c.nodes[round%len(c.nodes)]
		if err := n.broker.proc.signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		// Some rounds kill while the stopped broker's node still leads, some
		// after leadership has moved away and everything was acknowledged.
		if round%3 == 0 {
			settle(3)
		} else {
			waitAny(t, ctx, w, 30)
		}
		if err := n.proc.kill9(); err != nil {
			t.Fatal(err)
		}
		n.startProxy(t)
		if round%2 == 0 {
			waitFor(t, "the new proxy", healthyWithin, func(ctx context.Context) error {
				_, err := n.status(ctx)
				return err
			})
		}
		if err := n.broker.proc.signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		settle(3)
		c.waitHealthy()
		c.waitBrokersHold(c.nodes, topic, w.h.ends())
		c.trusted(ctx)
	}
	flush, cancelFlush := context.WithTimeout(ctx, time.Minute)
	defer cancelFlush()
	if err := w.stopProducing(flush); err != nil {
		t.Errorf("wait for the last answers: %v", err)
	}
	c.waitBrokersHold(c.nodes, topic, w.h.ends())
	w.h.check(c.readBrokers(c.nodes, topic, partitions), partitions).report(t)
	c.verify()
	_, acked := w.h.counts()
	t.Logf("%d rounds, %d records acknowledged", rounds, acked)
}

// waitAny returns when n more records were acknowledged, whatever the partition.
func waitAny(t *testing.T, ctx context.Context, w *workload, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	count := func() (all int) {
		for _, times := range w.h.ackTimes {
			all += len(times)
		}
		return all
	}
	first := -1
	if err := w.h.waitFor(ctx, func() bool {
		if first < 0 {
			first = count()
		}
		return count() >= first+n
	}); err != nil {
		t.Fatal(err)
	}
}
