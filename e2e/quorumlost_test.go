//go:build e2e

package e2e

import (
	"context"
	"errors"
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
		if !old.proc.exited() {
			if s, err := old.status(ctx); err == nil && len(s.leaders()) > 0 {
				t.Fatalf("node 2 knows leaders %v", s.leaders())
			}
			return errors.New("node 2 runs")
		}
		if len(old.logLines("the cluster was recovered without this node")) == 0 {
			t.Fatal("node 2 ended and does not say why")
		}
		return nil
	})
	produceAll(t, h, []string{left.kafkaAddr()}, "after", partitions, 20)
	c.waitBrokersHold([]*node{left}, topic, h.ends())
	h.check(c.readBrokers([]*node{left}, topic, partitions), partitions).report(t)
}
