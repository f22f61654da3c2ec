//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestJavaConsumerCommitSync: the leader's broker was restarted twice, so the
// leader epoch in its batches is higher than the other brokers'. A Java
// consumer that takes epochs from batches (commitSync does) would then ignore
// metadata of the next leader for ever. It must go on after the leader's death.
func TestJavaConsumerCommitSync(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	const topic, partitions, count = "committed", 6, 100
	c.createTopic(c.node(1), topic, partitions)
	leaders, err := partitionLeaders(ctx, c.node(1), topic, partitions)
	if err != nil {
		t.Fatal(err)
	}
	victim := c.node(leaders[0])
	for range 2 {
		victim.broker.stop(t)
		victim.broker.restart(t)
		c.waitHealthy()
	}
	led := c.letLead(victim, topic, partitions)
	requireHigherEpoch(t, ctx, c, victim, topic, led[0])

	h := newHistory(topic)
	produceAll(t, h, c.bootstrap(), "before", partitions, count)
	consumer := startCommitSync(t, c.dir, c.bootstrap(), topic)
	consumer.waitFor(t, h, "before the kill", func(all []string) bool {
		return recordsSeen(all, "before") == count*partitions && committedAfterLast(all)
	})

	c.killNode(victim.id)
	t.Logf("killed node %d, leader of partitions %v", victim.id, led)
	produceAll(t, h, c.bootstrap(), "after", partitions, count)
	begin := time.Now()
	consumer.waitFor(t, h, "after the kill", func(all []string) bool {
		return recordsSeen(all, "after") == count*partitions && committedAfterLast(all)
	})
	t.Logf("the consumer had read and committed all new records %s after they were acknowledged", time.Since(begin).Round(time.Millisecond))
	consumer.stop(t)

	c.restartNode(victim.id)
	c.waitHealthy()
	c.waitBrokersHold(c.nodes, topic, h.ends())
	h.check(c.readBrokers(c.nodes, topic, partitions), partitions).report(t)
	c.verify()
}

// letLead returns the partitions that a node leads, waiting for the rebalance
// that follows its return and, failing that, stopping other leaders' proxies,
// which touches no broker.
func (c *cluster) letLead(n *node, topic string, partitions int32) []int32 {
	c.t.Helper()
	for range 10 {
		var led []int32
		ctx, cancel := context.WithTimeout(c.t.Context(), 15*time.Second)
		err := waitUntil(ctx, 200*time.Millisecond, func(ctx context.Context) error {
			leaders, err := partitionLeaders(ctx, n, topic, partitions)
			if err != nil {
				return err
			}
			if led = ledBy(leaders, n.id); len(led) == 0 {
				return fmt.Errorf("leaders are %v", leaders)
			}
			return nil
		})
		cancel()
		if err == nil {
			return led
		}
		leaders, err := partitionLeaders(c.t.Context(), n, topic, partitions)
		if err != nil || leaders[0] == n.id {
			continue
		}
		c.node(leaders[0]).stopProxy(c.t)
		c.node(leaders[0]).startProxy(c.t)
		c.waitHealthy()
	}
	c.t.Fatalf("node %d came to lead no partition of %s", n.id, topic)
	return nil
}

// requireHigherEpoch makes sure that the trap is set: the victim's broker is at
// a higher epoch than the others'.
func requireHigherEpoch(t *testing.T, ctx context.Context, c *cluster, victim *node, topic string, partition int32) {
	t.Helper()
	epochs := map[int]int32{}
	for _, n := range c.nodes {
		e, err := leaderEpochs(ctx, n.broker.addr(), topic)
		if err != nil {
			t.Fatal(err)
		}
		epochs[n.id] = e[partition]
	}
	t.Logf("leader epochs of partition %d by node: %v", partition, epochs)
	for _, n := range c.others(victim.id) {
		if epochs[n.id] >= epochs[victim.id] {
			t.Fatalf("node %d's broker is at leader epoch %d, node %d's at %d: this would prove nothing", victim.id, epochs[victim.id], n.id, epochs[n.id])
		}
	}
}

// commitSync is a running testdata/CommitSyncConsumer.java.
type commitSync struct {
	proc   *process
	stdout *lines
	stderr *lines
}

func startCommitSync(t *testing.T, dir string, bootstrap []string, topic string) *commitSync {
	t.Helper()
	dist := kafka(t)
	javac := exec.Command("javac", "-d", dir, "-cp", dist.libs+"/*", "testdata/CommitSyncConsumer.java")
	if out, err := javac.CombinedOutput(); err != nil {
		t.Fatalf("compile the Java consumer: %v\n%s", err, out)
	}
	j := &commitSync{stdout: newLines(), stderr: newLines()}
	flags := dist.jvmFlags(256, filepath.Join(dir, "CommitSyncConsumer.log"))
	flags[len(flags)-1] += ":" + dir // the class path is the last of the flags
	cmd := exec.Command(dist.java, append(flags, "CommitSyncConsumer", strings.Join(bootstrap, ","), "commit-sync", topic)...)
	cmd.Stdout, cmd.Stderr = j.stdout, j.stderr
	var err error
	if j.proc, err = startProcess("CommitSyncConsumer", cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.proc.kill9(); err != nil {
			t.Error(err)
		}
	})
	return j
}

// waitFor returns when ok holds of the consumer's output, within 90 s: the
// group's session timeout of 45 s may have to pass when its coordinator died.
func (j *commitSync) waitFor(t *testing.T, h *history, when string, ok func([]string) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	err := j.stdout.waitFor(ctx, func(all []string) bool { return ok(all) || j.proc.exited() })
	if err != nil || j.proc.exited() {
		all := j.stdout.snapshot()
		t.Fatalf("Java consumer %s: %v, ended %t; it saw %d records before and %d after the kill of %v\n%s\n%s", when, err, j.proc.exited(),
			recordsSeen(all, "before"), recordsSeen(all, "after"), h.ends(), strings.Join(all[max(0, len(all)-10):], "\n"), lastBytes(j.stderr.text(), 3000))
	}
}

func (j *commitSync) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := j.proc.stop(ctx); err != nil {
		t.Error(err)
	}
}

// recordsSeen counts the different records of one producer that were printed.
// A group that lost its coordinator may rightly be given records again.
func recordsSeen(all []string, producer string) int {
	seen := map[string]bool{}
	for _, line := range all {
		if f := strings.Fields(line); len(f) == 4 && f[0] == "record" && strings.HasPrefix(f[3], producer+"/") {
			seen[f[3]] = true
		}
	}
	return len(seen)
}

// committedAfterLast tells whether a commit succeeded after the last record.
func committedAfterLast(all []string) bool {
	for i := len(all) - 1; i >= 0; i-- {
		if all[i] == "committed" {
			return true
		}
		if strings.HasPrefix(all[i], "record ") {
			return false
		}
	}
	return false
}
