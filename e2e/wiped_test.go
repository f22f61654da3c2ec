//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestWiped: records are acknowledged by two nodes while the third is down; one
// of the two then loses its disk. If the wiped node voted, it and the third
// would be a majority that never saw those records. So as long as the node that
// has them is away there must be no leader, and afterwards nothing is missing.
func TestWiped(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	const topic, partitions = "wiped", 6
	complete, behind, wiped := c.node(1), c.node(2), c.node(3)
	c.createTopic(complete, topic, partitions)
	h := newHistory(topic)
	produceAll(t, h, c.bootstrap(), "by-three", partitions, 100)
	c.waitBrokersHold(c.nodes, topic, h.ends())

	c.killNode(behind.id)
	c.waitLed(topic, partitions)
	produceAll(t, h, []string{complete.kafkaAddr(), wiped.kafkaAddr()}, "by-two", partitions, 100)
	c.killNode(wiped.id)
	c.killNode(complete.id)
	if err := os.RemoveAll(wiped.dataDir()); err != nil {
		t.Fatal(err)
	}

	c.restartNode(wiped.id)
	c.restartNode(behind.id)
	pair := []*node{behind, wiped}
	waitFor(t, "the two nodes to answer", healthyWithin, func(ctx context.Context) error {
		for _, n := range pair {
			if _, err := n.status(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	noLeader(t, pair, 10*time.Second)
	for _, n := range pair {
		noAck(t, n, topic)
	}
	waitFor(t, "the wiped node to be named", 20*time.Second, func(ctx context.Context) error { return names(ctx, behind, wiped) })

	c.restartNode(complete.id)
	intact := []*node{complete, behind}
	waitFor(t, "a leader in every group", healthyWithin, func(ctx context.Context) error {
		for _, n := range intact {
			if _, err := partitionLeaders(ctx, n, topic, partitions); err != nil {
				return err
			}
		}
		return nil
	})
	c.waitBrokersHold(intact, topic, h.ends())
	produceAll(t, h, []string{complete.kafkaAddr(), behind.kafkaAddr()}, "after", partitions, 20)
	c.waitBrokersHold(intact, topic, h.ends())
	h.check(c.readBrokers(intact, topic, partitions), partitions).report(t)
	for _, n := range intact {
		d, err := readTo(ctx, []string{n.kafkaAddr()}, topic, h.ends())
		if err != nil {
			t.Fatal(err)
		}
		h.check(map[int]dump{n.id: d}, partitions).report(t)
		if err := names(ctx, n, wiped); err != nil {
			t.Error(err)
		}
		if _, err := n.cli(ctx, "status", "-o", "json"); err == nil {
			t.Errorf("lockstep status against node %d exits 0 with a wiped node in the cluster", n.id)
		}
	}
	leaders, err := complete.status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for group, id := range leaders.leaders() {
		if id == wiped.id {
			t.Errorf("group %d is led by the wiped node", group)
		}
	}
	withItsBroker(ctx, t, c, complete, wiped, topic, h)
}

// withItsBroker lets the wiped node in again with what its broker holds. Without its
// data_dir it cannot tell that this is the cluster's: it touches none of it until an
// operator gives it up.
func withItsBroker(ctx context.Context, t *testing.T, c *cluster, by, wiped *node, topic string, h *history) {
	t.Helper()
	if _, err := by.cli(ctx, "members", "replace", strconv.Itoa(wiped.id)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the rebuild to wait for an operator", time.Minute, func(ctx context.Context) error {
		if len(wiped.logLines("that lockstep did not create, and it holds records")) == 0 {
			return errors.New("nothing is quarantined")
		}
		if out, err := wiped.cli(ctx, "status", "-o", "json"); !strings.Contains(out, "frozen") {
			return errors.Join(err, fmt.Errorf("its status has no frozen rebuild: %s", lastBytes(out, 500)))
		}
		return nil
	})
	held, err := endOffset(ctx, wiped.broker.addr(), topic, 0)
	if err != nil || held == 0 {
		t.Errorf("its broker holds %d records, %v", held, err)
	}
	if _, err := wiped.cli(ctx, "rebuild", topic, "--force"); err != nil {
		t.Fatal(err)
	}
	c.waitHealthyWithin(memberStep)
	c.waitBrokersHold(c.nodes, topic, h.ends())
	c.verify()
}

// noLeader watches the nodes for the given time and fails when one of them
// knows a leader of any group.
func noLeader(t *testing.T, nodes []*node, watch time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), watch)
	defer cancel()
	seen := 0
	_ = waitUntil(ctx, 100*time.Millisecond, func(ctx context.Context) error {
		for _, n := range nodes {
			s, err := n.status(ctx)
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("node %d stopped answering: %v", n.id, err)
				}
				continue
			}
			seen++
			if l := s.leaders(); len(l) > 0 {
				t.Fatalf("node %d knows leaders %v, without a majority that has the log", n.id, l)
			}
		}
		return fmt.Errorf("watching")
	})
	if seen == 0 {
		t.Error("no node answered while watching for leaders")
	}
}

// noAck requires that the node does not acknowledge a record. A refusal, a
// timeout and a closed connection are all right.
func noAck(t *testing.T, n *node, topic string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	base, code, err := rawProduce(ctx, n.kafkaAddr(), topic, 0, batch{producerID: -1, epoch: -1, sequence: -1, values: []string{"must not be acknowledged"}})
	if err == nil && code == 0 {
		t.Errorf("node %d acknowledged a record at offset %d without a majority", n.id, base)
	}
}

// names returns an error unless the status of one node reports a problem with
// another.
func names(ctx context.Context, n, wiped *node) error {
	s, err := n.status(ctx)
	if err != nil {
		return err
	}
	if s.node(wiped.id).Problem == "" {
		return fmt.Errorf("node %d reports no problem with node %d, whose data directory was wiped", n.id, wiped.id)
	}
	if s.Healthy {
		return fmt.Errorf("node %d calls a cluster with a wiped node healthy", n.id)
	}
	return nil
}
