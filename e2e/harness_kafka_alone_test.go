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
	if err := createTopic(ctx, b.addr(), topic, partitions, 1); err != nil {
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
