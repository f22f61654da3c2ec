//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestReplication: 100,000 records by Kafka's own verifiable producer through
// one proxy; then a leader's proxy and broker are killed, and each of the other
// two brokers, asked directly, holds every record at its acknowledged offset.
// Kafka's console consumer reads the same from a surviving proxy.
func TestReplication(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	const topic, partitions = "replicated", 6
	count := envInt(t, "E2E_RECORDS", 100_000)
	c.createTopic(c.node(1), topic, partitions)

	begin := time.Now()
	acks := verifiableProducer(t, ctx, c.dir, c.node(1).kafkaAddr(), topic, count)
	t.Logf("verifiable producer: %d records acknowledged in %s", len(acks), time.Since(begin).Round(time.Millisecond))
	ends := map[int32]int64{}
	for _, a := range acks {
		ends[a.Partition] = max(ends[a.Partition], a.Offset+1)
	}

	leaders, err := partitionLeaders(ctx, c.node(1), topic, partitions)
	if err != nil {
		t.Fatal(err)
	}
	victim := leaders[0]
	c.killNode(victim)
	t.Logf("killed node %d, leader of partitions %v", victim, ledBy(leaders, victim))

	survivors := c.others(victim)
	c.waitBrokersHold(survivors, topic, ends)
	for id, d := range c.readBrokers(survivors, topic, partitions) {
		if err := acksAt(acks, d); err != nil {
			t.Errorf("broker of node %d: %v", id, err)
		}
		if err := eachOnce(d, count); err != nil {
			t.Errorf("broker of node %d: %v", id, err)
		}
	}

	c.waitLed(topic, partitions)
	begin = time.Now()
	out, err := c.node(1).broker.dist.tool(ctx, c.dir, "org.apache.kafka.tools.consumer.ConsoleConsumer",
		"--bootstrap-server", survivors[0].kafkaAddr(), "--topic", topic, "--from-beginning",
		"--max-messages", fmt.Sprint(count), "--timeout-ms", "60000")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("console consumer: %d records in %s", strings.Count(out, "\n"), time.Since(begin).Round(time.Millisecond))
	consumed := dump{}
	for value := range strings.Lines(out) {
		consumed[0] = append(consumed[0], stored{value: strings.TrimSpace(value)})
	}
	if err := eachOnce(consumed, count); err != nil {
		t.Errorf("console consumer: %v", err)
	}

	c.restartNode(victim)
	c.waitHealthy()
	c.readBrokers(c.nodes, topic, partitions)
	c.verify()
}

// eachOnce returns an error unless d holds the values 0 to count-1, each once.
func eachOnce(d dump, count int) error {
	seen := make(map[string]bool, count)
	for p, records := range d {
		for _, r := range records {
			if seen[r.value] {
				return fmt.Errorf("value %s stands twice, again at %d/%d", r.value, p, r.offset)
			}
			seen[r.value] = true
		}
	}
	for i := range count {
		if !seen[fmt.Sprint(i)] {
			return fmt.Errorf("value %d of %d is missing (%d found)", i, count, len(seen))
		}
	}
	if len(seen) != count {
		return fmt.Errorf("%d values, want %d", len(seen), count)
	}
	return nil
}
