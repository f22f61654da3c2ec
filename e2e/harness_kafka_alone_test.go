//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestHarnessKafkaAlone shows that the harness itself works, without Lockstep:
// one broker, Kafka's own producer and consumer, kill -9, restart, and every
// acknowledged record read back at its offset.
func TestHarnessKafkaAlone(t *testing.T) {
	dir := runDir(t)
	begin := time.Now()
	b := newBroker(t, dir+"/kafka", 11)
	t.Logf("Apache Kafka %s: formatted and first start in %s", b.dist.version, time.Since(begin).Round(time.Millisecond))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	const topic, partitions, count = "alone", 3, 5000
	if err := createLocalTopic(ctx, b.addr(), topic, partitions); err != nil {
		t.Fatal(err)
	}
	acks := verifiableProducer(t, ctx, dir, b.addr(), topic, count)

	b.kill9(t)
	begin = time.Now()
	b.restart(t)
	t.Logf("restart after kill -9 in %s", time.Since(begin).Round(time.Millisecond))

	d, err := readBroker(ctx, b.addr(), topic, partitions)
	if err != nil {
		t.Fatal(err)
	}
	if got := d.records(); got != count {
		t.Errorf("broker holds %d records, want %d", got, count)
	}
	if err := d.gapless(); err != nil {
		t.Error(err)
	}
	if err := acksAt(acks, d); err != nil {
		t.Error(err)
	}

	out, err := b.dist.tool(ctx, dir, "org.apache.kafka.tools.consumer.ConsoleConsumer",
		"--bootstrap-server", b.addr(), "--topic", topic, "--from-beginning",
		"--max-messages", fmt.Sprint(count), "--timeout-ms", "30000")
	if err != nil {
		t.Fatal(err)
	}
	if got := len(strings.Fields(out)); got != count {
		t.Errorf("console consumer printed %d records, want %d", got, count)
	}
}

// TestHarnessWorkloadKafkaAlone runs the failover test's producers, consumers
// and checker against one bare broker that is killed once: what they report of
// Lockstep is only worth something if they report nothing of Kafka.
func TestHarnessWorkloadKafkaAlone(t *testing.T) {
	dir := runDir(t)
	b := newBroker(t, dir+"/kafka", 11)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	const topic, javaTopic, partitions = "alone", "alone-java", 3
	for _, name := range []string{topic, javaTopic} {
		if err := createLocalTopic(ctx, b.addr(), name, partitions); err != nil {
			t.Fatal(err)
		}
	}
	java := startJavaProducer(t, dir, []string{b.addr()}, javaTopic, 100)
	consumer := startCommitSync(t, dir, []string{b.addr()}, topic)
	w := startWorkload(t, []string{b.addr()}, topic, partitions, 20*time.Millisecond, "before", "p2")
	if err := w.h.waitAcks(ctx, partitions, time.Time{}, 50); err != nil {
		t.Fatal(err)
	}
	consumer.waitFor(t, w.h, "before the kill", committedAfterLast)

	killed := time.Now()
	b.kill9(t)
	b.restart(t)
	served := time.Now()
	if err := w.h.waitAcks(ctx, partitions, served, 20); err != nil {
		t.Fatal(err)
	}
	gap := w.h.worstGap([]int32{0, 1, 2}, killed, time.Now())
	t.Logf("broker served %s after its kill, longest gap between acknowledgements %s", ms(served.Sub(killed)), ms(gap))
	if down := served.Sub(killed); gap < down/2 {
		t.Errorf("the broker was away for %s and the measured gap is %s", down, gap)
	}

	if err := w.stopProducing(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.waitConsumed(ctx); err != nil {
		t.Errorf("consumer did not reach the last acknowledged record: %v", err)
	}
	n := w.h.acked("before")
	consumer.waitFor(t, w.h, "after the kill", func(all []string) bool { return recordsSeen(all, "before") == n })
	consumer.stop(t)
	acks := java.stop(t)
	d, err := readBroker(ctx, b.addr(), topic, partitions)
	if err != nil {
		t.Fatal(err)
	}
	w.h.check(map[int]dump{1: d}, partitions).report(t)
	if d, err = readBroker(ctx, b.addr(), javaTopic, partitions); err != nil {
		t.Fatal(err)
	}
	checkJava(t, acks, map[int]dump{1: d})
}
