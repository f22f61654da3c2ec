//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"testing"
	"time"
)

// TestQuorumLost makes a cluster of the one node that is left, by the command
// for it, while the others' disks are away: everything that had reached it is
// there, it takes records, and a node of the old cluster that comes back with
// its forked log is refused.
func TestQuorumLost(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	const topic, partitions = "quorum", 6
	left, old := c.node(1), c.node(2)
	c.createTopic(left, topic, partitions)
	h := newHistory(topic)
	produceAll(t, h, c.bootstrap(), "by-three", partitions, 100)
	c.waitBrokersHold(c.nodes, topic, h.ends())
	c.killNode(2)
	c.killNode(3)
	noAck(t, left, topic)
	c.killNode(1)

	recoverCmd := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, left.bin, append([]string{"recover", "--config", left.confFile()}, args...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := recoverCmd(); err == nil {
		t.Errorf("recover without consent did something: %s", out)
	}
	out, err := recoverCmd("--accept-data-loss")
	if err != nil {
		t.Fatalf("recover: %v: %s", err, out)
	}
	t.Log(out)
	c.restartNode(1)
	waitFor(t, "leaders on the node that is left", healthyWithin, func(ctx context.Context) error {
		_, err := partitionLeaders(ctx, left, topic, partitions)
		return err
	})
	c.waitBrokersHold([]*node{left}, topic, h.ends())
	produceAll(t, h, []string{left.kafkaAddr()}, "by-one", partitions, 100)

	c.restartNode(2)
	waitFor(t, "the old node to be refused", healthyWithin, func(ctx context.Context) error {
		if old.running() {
			if s, err := old.status(ctx); err == nil && len(s.leaders()) > 0 {
				t.Fatalf("node 2 knows leaders %v", s.leaders())
			}
		}
		if s, err := left.status(ctx); err != nil || s.node(2).Problem == "" {
			return fmt.Errorf("node 1 says nothing of node 2: %v", err)
		}
		return nil
	})
	produceAll(t, h, []string{left.kafkaAddr()}, "after", partitions, 20)
	c.waitBrokersHold([]*node{left}, topic, h.ends())
	h.check(c.readBrokers([]*node{left}, topic, partitions), partitions).report(t)
}
