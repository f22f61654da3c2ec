//go:build e2e

package e2e

import (
	"context"
	"testing"
	"time"
)

// TestRecreate deletes a topic and creates it again under the same name while
// one node is down. When the node is back, no record of the former topic is on
// any broker or given to any client.
func TestRecreate(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	const topic, partitions = "recreated", 6
	const down = 3
	c.createTopic(c.node(1), topic, partitions)
	old := newHistory(topic)
	produceAll(t, old, c.bootstrap(), "old", partitions, 200)
	c.waitBrokersHold(c.nodes, topic, old.ends())

	c.killNode(down)
	up := c.others(down)
	c.waitLed(topic, partitions)
	if err := deleteTopic(ctx, up[0].kafkaAddr(), topic); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the deletion", 20*time.Second, func(ctx context.Context) error {
		for _, n := range up {
			if _, err := metadata(ctx, n.kafkaAddr(), topic); !isUnknownTopic(err) {
				return errNotYet(err)
			}
		}
		return nil
	})
	c.createTopic(up[1], topic, partitions)
	h := newHistory(topic)
	produceAll(t, h, []string{up[0].kafkaAddr(), up[1].kafkaAddr()}, "new", partitions, 50)

	c.restartNode(down)
	c.waitHealthy()
	produceAll(t, h, c.bootstrap(), "newer", partitions, 50)
	c.waitBrokersHold(c.nodes, topic, h.ends())
	h.check(c.readBrokers(c.nodes, topic, partitions), partitions).report(t)
	for _, n := range c.nodes {
		d, err := readTo(ctx, []string{n.kafkaAddr()}, topic, h.ends())
		if err != nil {
			t.Fatal(err)
		}
		h.check(map[int]dump{n.id: d}, partitions).report(t)
	}
	c.verify()
}
