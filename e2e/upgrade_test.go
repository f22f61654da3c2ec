//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// upgradeFrom is the oldest build that TestRollingUpgrade begins with.
const upgradeFrom = "bbc3fa37679d53ae15d950eb36adbf4be3747761"

// TestRollingUpgrade begins with three nodes of an older build (upgradeFrom and
// the commit before this one, or UPGRADE_FROM) and puts this one in their place,
// one after the other, by planned stops and under load. In between, when builds
// are mixed, the leader of a partition is killed, broker and proxy. Nothing is
// lost, repeated or refused for good.
func TestRollingUpgrade(t *testing.T) {
	from := []string{upgradeFrom, "HEAD~1"}
	if commit := os.Getenv("UPGRADE_FROM"); commit != "" {
		from = []string{commit}
	}
	for _, commit := range from {
		t.Run(commit, func(t *testing.T) { rollingUpgrade(t, commit) })
	}
}

func rollingUpgrade(t *testing.T, commit string) {
	old := olderBinary(t, commit)
	c := newClusterWith(t, clusterOpts{program: old})
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	const topic, partitions = "upgrade", 6
	c.createTopic(c.node(1), topic, partitions)
	quick := []kgo.Opt{kgo.MetadataMinAge(10 * time.Millisecond), kgo.RetryBackoffFn(func(int) time.Duration { return 10 * time.Millisecond })}
	w := startWorkloadWith(t, quick, c.bootstrap(), topic, partitions, 5*time.Millisecond, "p1")
	if err := w.h.waitAcks(ctx, partitions, time.Time{}, 50); err != nil {
		t.Fatal(err)
	}
	f := &failover{c: c, w: w, topic: topic, partitions: partitions}
	var gaps []time.Duration
	for i, n := range c.nodes {
		f.inService(ctx, t)
		from := time.Now()
		n.stopProxy(t)
		n.bin = lockstepBinary(t)
		n.startProxy(t)
		c.waitHealthy()
		if err := w.h.waitAcks(ctx, partitions, time.Now(), 20); err != nil {
			t.Fatalf("after the upgrade of node %d: %v", n.id, err)
		}
		gaps = append(gaps, w.h.worstGap(f.all(), from, time.Now()))
		if i == len(c.nodes)-1 {
			break
		}
		victim, led := f.chooseVictim()
		f.lastVictim = victim
		c.killNode(victim)
		if err := w.h.waitAcks(ctx, partitions, time.Now(), 20); err != nil {
			t.Fatalf("after the kill of node %d, with %d nodes upgraded: %v", victim, i+1, err)
		}
		c.restartNode(victim)
		c.waitHealthy()
		t.Logf("with %d nodes upgraded, node %d, leader of partitions %v, was killed and came back", i+1, victim, led)
	}
	t.Logf("longest pause of any partition while each node was upgraded: %s; worst %s", list(gaps), ms(slices.Max(gaps)))
	if worst := slices.Max(gaps); worst > worstGap {
		t.Errorf("producing stood still for %s", ms(worst))
	}
	flush, cancelFlush := context.WithTimeout(ctx, time.Minute)
	defer cancelFlush()
	if err := w.stopProducing(flush); err != nil {
		t.Fatalf("wait for the last answers: %v", err)
	}
	if err := w.waitConsumed(flush); err != nil {
		t.Errorf("consumer did not reach the last acknowledged record: %v", err)
	}
	c.waitBrokersHold(c.nodes, topic, w.h.ends())
	w.h.check(c.readBrokers(c.nodes, topic, partitions), partitions).report(t)
	c.verify()
}

// olderBinary builds lockstep as it was at a commit of this repository.
func olderBinary(t *testing.T, commit string) *program {
	t.Helper()
	if out, err := exec.Command("git", "cat-file", "-e", commit+"^{commit}").CombinedOutput(); err != nil {
		t.Skipf("cannot run: this checkout does not have commit %s, from which to upgrade; fetch the whole history (%v %s)", commit, err, out)
	}
	dir, err := os.MkdirTemp("", "lockstep-old-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	bin := filepath.Join(dir, "lockstep")
	build := exec.Command("sh", "-c", `git archive "$1" | tar -x -C "$2" && cd "$2" && go build -o "$3" ./cmd/lockstep`, "sh", commit, dir, bin)
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the older lockstep: %v\n%s", err, out)
	}
	p := &program{path: bin}
	p.once.Do(func() {}) // it is built
	return p
}
