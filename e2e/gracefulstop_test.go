//go:build e2e

package e2e

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestGracefulStop stops the proxies by SIGTERM, one after the other, E2E_STOPS
// times, under producers that look for a new leader after 10 ms: leadership is
// handed over first, and nothing is lost, repeated or refused for good. It
// prints how long producing stood still; docs/performance.md has figures.
func TestGracefulStop(t *testing.T) {
	c := newCluster(t)
	stops := envInt(t, "E2E_STOPS", 3)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(2+stops)*2*time.Minute)
	defer cancel()
	const topic, partitions = "graceful", 6
	c.createTopic(c.node(1), topic, partitions)
	quick := []kgo.Opt{kgo.MetadataMinAge(10 * time.Millisecond), kgo.RetryBackoffFn(func(int) time.Duration { return 10 * time.Millisecond })}
	w := startWorkloadWith(t, quick, c.bootstrap(), topic, partitions, 5*time.Millisecond, "p1")
	if err := w.h.waitAcks(ctx, partitions, time.Time{}, 50); err != nil {
		t.Fatal(err)
	}
	f := &failover{c: c, w: w, topic: topic, partitions: partitions}
	f.inService(ctx, t)
	var gaps, returns []time.Duration
	for range stops {
		victim, led := f.chooseVictim()
		f.lastVictim = victim
		from := time.Now()
		c.node(victim).stopProxy(t)
		if err := w.h.waitAcks(ctx, partitions, time.Now(), 20); err != nil {
			t.Fatalf("after the stop of node %d: %v", victim, err)
		}
		back := time.Now()
		gaps = append(gaps, w.h.worstGap(led, from, back))
		c.node(victim).startProxy(t)
		c.waitHealthy()
		if err := w.h.waitAcks(ctx, partitions, time.Now(), 20); err != nil {
			t.Fatalf("after the return of node %d: %v", victim, err)
		}
		returns = append(returns, w.h.worstGap(f.all(), back, time.Now()))
		t.Logf("stop of node %d, leader of partitions %v: gap %s; while it came back: %s", victim, led, ms(gaps[len(gaps)-1]), ms(returns[len(returns)-1]))
	}
	t.Logf("gaps of the partitions whose leader was stopped: %s; median %s, worst %s", list(gaps), ms(median(gaps)), ms(slices.Max(gaps)))
	t.Logf("gaps while it came back: %s; median %s, worst %s", list(returns), ms(median(returns)), ms(slices.Max(returns)))
	if worst := slices.Max(gaps); worst > worstGap {
		t.Errorf("producing stood still for %s", ms(worst))
	}
	flush, cancelFlush := context.WithTimeout(ctx, time.Minute)
	defer cancelFlush()
	if err := w.stopProducing(flush); err != nil {
		t.Fatalf("wait for the last answers: %v", err)
	}
	if err := w.waitConsumed(flush); err != nil {
		t.Errorf("consumer did not reach the last acknowledged record: %v", err)
	}
	c.waitBrokersHold(c.nodes, topic, w.h.ends())
	w.h.check(c.readBrokers(c.nodes, topic, partitions), partitions).report(t)
	c.verify()
}

// inService returns when every partition has taken records for some seconds, and
// prints the longest gap: brokers and proxies that have just started stand still
// by themselves, and what is measured are planned stops of a cluster in service.
func (f *failover) inService(ctx context.Context, t *testing.T) {
	t.Helper()
	begun := time.Now()
	if err := f.w.h.waitAcks(ctx, f.partitions, begun, 1000); err != nil {
		t.Fatal(err)
	}
	t.Logf("in service for %s: longest gap %s", ms(time.Since(begun)), ms(f.w.h.worstGap(f.all(), begun, time.Now())))
}
