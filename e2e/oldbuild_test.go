//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// unknownCommand is what a node says that stops before an entry which its build
// cannot read.
const unknownCommand = "a command this build does not know: upgrade this node"

// TestOldBuildStopsAtANewCommand has one node run an older build when an order is
// given that this build does not know (lockstep rebalance). It stops before the
// entry, says so, and does so again when it is started again; it never skips it.
// The others go on serving. Upgraded, it goes on from there, and has what they
// have.
func TestOldBuildStopsAtANewCommand(t *testing.T) {
	old := olderBinary(t, envOr("UPGRADE_FROM", upgradeFrom))
	const topic, partitions, each, behind = "mixed", 6, 50, 3
	c := newClusterWith(t, clusterOpts{program: old, prepare: func(t *testing.T, n *node) {
		if n.id != behind {
			n.bin = lockstepBinary(t)
		}
	}})
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c.createTopic(c.node(1), topic, partitions)
	h := newHistory(topic)
	produceAll(t, h, c.bootstrap(), "before", partitions, each)
	c.waitBrokersHold(c.nodes, topic, h.ends())

	n, others := c.node(behind), c.others(behind)
	placed := make(chan struct{})
	go func() {
		defer close(placed)
		rebalance(t, ctx, c.node(1)) // ends when all nodes have all groups as they should
	}()
	n.stopsAtUnknown(t, ctx, 1)
	for _, o := range others {
		if !o.running() {
			t.Fatalf("node %d, which knows the command, is not running: %s", o.id, tail(o.logFile(), 20))
		}
	}
	without := []string{others[0].kafkaAddr(), others[1].kafkaAddr()}
	produceAll(t, h, without, "without", partitions, each)
	c.waitBrokersHold(others, topic, h.ends())
	n.startProxy(t)
	n.stopsAtUnknown(t, ctx, 2)
	produceAll(t, h, without, "still", partitions, each)
	held, err := readBroker(ctx, n.broker.addr(), topic, partitions)
	if err != nil {
		t.Fatal(err)
	}
	stands := 0 // partitions of the catalog's group: what follows there is behind the entry
	for p := range int32(partitions) {
		if len(held[p]) == each {
			stands++
		}
	}
	if stands == 0 {
		t.Errorf("node %d's broker has %d records, some of every partition: it has passed the entry over", behind, held.records())
	}
	t.Logf("in %d partitions the broker of node %d has what was before the order, and no more", stands, behind)

	n.bin = lockstepBinary(t)
	n.startProxy(t)
	c.waitHealthy()
	select {
	case <-placed:
	case <-ctx.Done():
		t.Fatal("the groups do not get their places")
	}
	produceAll(t, h, c.bootstrap(), "after", partitions, each)
	c.waitBrokersHold(c.nodes, topic, h.ends())
	h.check(c.readBrokers(c.nodes, topic, partitions), partitions).report(t)
	c.verify()
	t.Logf("from a healthy cluster on: %s", time.Since(begin).Round(100*time.Millisecond))
}

// stopsAtUnknown returns when the node's process has ended by itself, with an
// exit code and, for the nth time, a line that say why.
func (n *node) stopsAtUnknown(t *testing.T, ctx context.Context, nth int) {
	t.Helper()
	select {
	case <-n.proc.done:
	case <-ctx.Done():
		t.Fatalf("node %d goes on: %s", n.id, tail(n.logFile(), 20))
	}
	var exit *exec.ExitError
	if !errors.As(n.proc.err, &exit) || exit.ExitCode() <= 0 {
		t.Errorf("node %d ended with %v", n.id, n.proc.err)
	}
	said := n.logLines(unknownCommand)
	stops := 0
	for _, line := range said {
		if strings.Contains(line, "this node must stop") {
			stops++
		}
	}
	if stops != nth {
		t.Errorf("node %d stopped %d times, and says %s", n.id, nth, fmt.Sprint(said))
	}
	t.Logf("node %d: %v; %s", n.id, n.proc.err, said[max(0, len(said)-1):])
}
