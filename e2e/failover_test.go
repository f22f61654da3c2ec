//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// The bounds of the promise: how long producing may stand still when the
// leader's machine is gone.
const (
	medianGap = time.Second
	worstGap  = 3 * time.Second
)

// TestFailover kills a leader's proxy and broker E2E_KILLS times, each time
// another node, under a running idempotent producer and a consumer, and proves
// that nothing acknowledged was lost, moved or doubled on any broker.
func TestFailover(t *testing.T) {
	c := newCluster(t)
	kills := envInt(t, "E2E_KILLS", 10)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(2+kills)*2*time.Minute)
	defer cancel()
	const topic, javaTopic, partitions = "failover", "failover-java", 6
	c.createTopic(c.node(1), topic, partitions)
	c.createTopic(c.node(1), javaTopic, partitions)
	java := startJavaProducer(t, c.dir, c.bootstrap(), javaTopic, 100)
	w := startWorkload(t, c.bootstrap(), topic, partitions, 20*time.Millisecond, "p1", "p2")
	if err := w.h.waitAcks(ctx, partitions, time.Time{}, 50); err != nil {
		t.Fatal(err)
	}

	f := &failover{c: c, w: w, topic: topic, partitions: partitions}
	for range kills {
		f.round(ctx)
	}
	f.summary()

	flush, cancelFlush := context.WithTimeout(ctx, time.Minute)
	defer cancelFlush()
	if err := w.stopProducing(flush); err != nil {
		t.Fatalf("wait for the last answers: %v", err)
	}
	if err := w.waitConsumed(flush); err != nil {
		t.Errorf("consumer did not reach the last acknowledged record: %v", err)
	}
	javaAcks := java.stop(t)
	c.waitHealthy()
	c.waitBrokersHold(c.nodes, topic, w.h.ends())
	w.h.check(c.readBrokers(c.nodes, topic, partitions), partitions).report(t)
	sent, acked := w.h.counts()
	t.Logf("%d records sent, %d acknowledged, %d left open", sent, acked, sent-acked)
	if least := kills * 1000; acked < least {
		t.Errorf("only %d records acknowledged over %d kills: too few to prove anything (want %d)", acked, kills, least)
	}
	checkJava(t, javaAcks, c.readBrokers(c.nodes, javaTopic, partitions))
	c.verify()
}

// failover is the loop over kills and what it measured.
type failover struct {
	c          *cluster
	w          *workload
	topic      string
	partitions int32
	lastVictim int
	gaps       []time.Duration // worst partition led by the killed node, by kill
	overall    []time.Duration // any partition at all
	restarts   []time.Duration // worst partition while the node came back
}

// round kills one leader, waits until every partition is written again, brings
// the node back and waits for health.
func (f *failover) round(ctx context.Context) {
	t := f.c.t
	t.Helper()
	victim, led := f.chooseVictim()
	killed := time.Now()
	f.c.killNode(victim)
	bounded, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := f.w.h.waitAcks(bounded, f.partitions, killed, 20); err != nil {
		t.Fatalf("after the kill of node %d: %v", victim, err)
	}
	back := time.Now()
	gap := f.w.h.worstGap(led, killed, back)
	overall := f.w.h.longestGap(f.all(), killed, back)
	f.c.restartNode(victim)
	f.c.waitHealthy()
	healthy := time.Now()
	bounded, cancel = context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := f.w.h.waitAcks(bounded, f.partitions, healthy, 20); err != nil {
		t.Fatalf("after the return of node %d: %v", victim, err)
	}
	restart := f.w.h.worstGap(f.all(), back, time.Now())
	f.gaps, f.overall, f.restarts = append(f.gaps, gap), append(f.overall, overall), append(f.restarts, restart)
	f.lastVictim = victim
	t.Logf("kill %d: node %d, leader of partitions %v: gap %s on the worst of them, %s over all partitions; healthy again %s after its restart, longest gap meanwhile %s",
		len(f.gaps), victim, led, ms(gap), ms(overall), healthy.Sub(back).Round(100*time.Millisecond), ms(restart))
}

// chooseVictim returns a node that leads a partition and was not the last one
// killed, and the partitions it leads.
func (f *failover) chooseVictim() (victim int, led []int32) {
	f.c.t.Helper()
	next := f.lastVictim%len(f.c.nodes) + 1
	waitFor(f.c.t, "another node to lead a partition", 60*time.Second, func(ctx context.Context) error {
		leaders, err := partitionLeaders(ctx, f.c.node(1), f.topic, f.partitions)
		if err != nil {
			return err
		}
		for i := range len(f.c.nodes) - 1 {
			victim = (next-1+i)%len(f.c.nodes) + 1
			if led = ledBy(leaders, victim); len(led) > 0 && victim != f.lastVictim {
				return nil
			}
		}
		return fmt.Errorf("leaders are %v, node %d was killed last", leaders, f.lastVictim)
	})
	return victim, led
}

func (f *failover) all() []int32 {
	var all []int32
	for p := range f.partitions {
		all = append(all, p)
	}
	return all
}

// summary prints every gap and holds median and worst to the bounds.
func (f *failover) summary() {
	t := f.c.t
	t.Helper()
	t.Logf("gaps of the partitions whose leader was killed: %s; median %s, worst %s", list(f.gaps), ms(median(f.gaps)), ms(slices.Max(f.gaps)))
	t.Logf("gaps over all partitions together: %s; median %s, worst %s", list(f.overall), ms(median(f.overall)), ms(slices.Max(f.overall)))
	t.Logf("gaps while the node came back: %s; median %s, worst %s", list(f.restarts), ms(median(f.restarts)), ms(slices.Max(f.restarts)))
	if m := median(f.gaps); m > medianGap {
		t.Errorf("median gap %s, want at most %s", ms(m), medianGap)
	}
	if m := slices.Max(f.gaps); m > worstGap {
		t.Errorf("worst gap %s, want at most %s", ms(m), worstGap)
	}
}

func median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

func list(ds []time.Duration) string {
	var s []string
	for _, d := range ds {
		s = append(s, ms(d).String())
	}
	return strings.Join(s, " ")
}
