//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestMetrics provokes what there is to see. A Prometheus server that scrapes
// the nodes judges by deploy/prometheus/lockstep.rules.yml, with its times
// divided by hasten: every alert fires on its cause, names the node or the group
// that it is about, and is gone when the cause is; none fires before. And every
// metric of the tables in docs/operations.md takes more than one value.
func TestMetrics(t *testing.T) {
	c := newClusterWith(t, clusterOpts{groups: 3, settings: func(n *node) []string {
		return []string{"broker.log_dirs=" + logDirs(n), "raft.snapshot_bytes=2MiB", "raft.log_retain_bytes=4MiB", "raft.log_limit_bytes=16MiB",
			"recovery.scrub_interval=5s", "recovery.scrub_bytes_per_second=64MiB", "recovery.copy_bytes_per_second=16MiB",
			"recovery.rebuild=manual", "raft.leader_rebalance_delay=1s"}
	}, prepare: func(t *testing.T, n *node) {
		if err := os.Mkdir(n.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(n.broker.dataDir(), logDirs(n)); err != nil {
			t.Fatal(err)
		}
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	s := &situations{t: t, ctx: ctx, c: c, seen: watchMetrics(t, c), prom: startPrometheus(t, c)}
	c.createTopic(c.node(1), watched, watchedPartitions)
	s.w = startWorkload(t, c.bootstrap(), watched, watchedPartitions, 20*time.Millisecond, "p1")
	begin := time.Now()
	s.take(600)                                 // at 50 a second
	s.prom.quiet(time.Since(begin) - 6*scraped) // what it has seen of the topic's creation is older

	s.deadNode()
	s.damage()
	s.flapping()
	s.foreignWrite()
	s.brokerAway()
	s.failingFlush()
	s.majorityGone()
	s.prom.waitSilent(90 * time.Second)
	c.waitHealthy()

	flush, cancelFlush := context.WithTimeout(ctx, time.Minute)
	defer cancelFlush()
	if err := s.w.stopProducing(flush); err != nil {
		t.Errorf("wait for the last answers: %v", err)
	}
	s.seen.stop()
	for _, name := range documentedMetrics(t) {
		if err := s.seen.moved(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range s.prom.alerts {
		if !s.prom.fired[name] {
			t.Errorf("nothing here provokes %s", name)
		}
	}
}

const (
	watched           = "watched"
	watchedPartitions = 3
)

// logDirs is where a node finds its broker's log directory: by a link that can
// be taken away.
func logDirs(n *node) string { return filepath.Join(n.dir, "logdirs") }

// situations are what TestMetrics brings a cluster into, and out of.
type situations struct {
	t    *testing.T
	ctx  context.Context
	c    *cluster
	seen *metricsSeen
	prom *prometheus
	w    *workload
}

// more returns when every partition has taken records from now on.
func (s *situations) more() {
	s.t.Helper()
	s.take(20)
}

// take returns when every partition has taken n records from now on.
func (s *situations) take(n int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	if err := s.w.h.waitAcks(ctx, watchedPartitions, time.Now(), n); err != nil {
		s.t.Fatal(err)
	}
}

// follower returns a node that does not lead a partition, and will not soon: the
// leaders are at home.
func (s *situations) follower(p int32) *node {
	s.t.Helper()
	waitFor(s.t, "each group's leader at home", time.Minute, func(ctx context.Context) error {
		leaders, err := s.c.leaders(ctx)
		if err == nil && !maps.Equal(leaders, map[int]int{0: 1, 1: 2, 2: 3}) {
			err = fmt.Errorf("they are %v", leaders)
		}
		return err
	})
	s.c.waitLed(watched, watchedPartitions)
	return s.c.follower(s.ctx, watched, p, watchedPartitions)
}

// rebuild orders that the topic is made anew on a node's broker, and returns when
// it is.
func (s *situations) rebuild(n *node) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	if _, err := n.cli(ctx, "rebuild", watched); err != nil {
		s.t.Fatal(err)
	}
	s.c.waitHealthy()
	s.more()
}

// damage flips a bit in a follower's copy, below the broker.
func (s *situations) damage() {
	s.t.Helper()
	n := s.follower(1)
	flipBit(s.t, n.broker.dataDir()+"/"+watched+"-1/00000000000000000000.log")
	s.prom.waitFiring(time.Minute, alert{name: "LockstepScrubFoundDamage", of: n}, alert{name: "LockstepQuarantine", of: n})
	s.rebuild(n) // that damage was found is told for an hour: see waitSilent
	s.prom.waitGone(30*time.Second, alert{name: "LockstepQuarantine", of: n})
}

// deadNode kills a proxy, which comes back with another limit.
func (s *situations) deadNode() {
	s.t.Helper()
	n := s.c.node(2)
	if err := n.proc.kill9(); err != nil {
		s.t.Fatal(err)
	}
	s.more()
	dead := []alert{{name: "LockstepNotScraped", of: n}, {name: "LockstepNodeAway", labels: series{"node": "2"}}}
	s.prom.waitFiring(30*time.Second, dead...)
	n.settings = append(n.settings, "raft.log_limit_bytes=20MiB")
	n.startProxy(s.t)
	s.c.waitHealthy()
	s.prom.waitGone(30*time.Second, dead...)
}

// flapping hands the leadership of a group to one node after the other.
func (s *situations) flapping() {
	s.t.Helper()
	const group = 1
	var last time.Time
	flap := alert{name: "LockstepLeadersFlap", labels: series{"group": strconv.Itoa(group)}}
	s.prom.waitFiringWhile(time.Minute, func() {
		if time.Since(last) < 2*scraped { // each term is to be seen
			return
		}
		last = time.Now()
		ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
		defer cancel()
		leaders, err := s.c.leaders(ctx)
		if err != nil || leaders[group] == 0 {
			return // they do not agree yet
		}
		next := leaders[group]%len(s.c.nodes) + 1
		if _, err := s.c.node(1).cli(ctx, "transfer", "--group", strconv.Itoa(group), "--to", strconv.Itoa(next)); err != nil {
			s.t.Logf("no transfer: %v", err)
		}
	}, flap)
	s.more()
	s.prom.waitGone(30*time.Second, flap)
	s.c.waitHealthy()
}

// foreignWrite puts a record into a follower's broker around the proxy.
func (s *situations) foreignWrite() {
	s.t.Helper()
	n := s.follower(0)
	b := batch{producerID: -1, epoch: -1, sequence: -1, values: []string{"around the proxy"}}
	if _, code, err := rawProduce(s.ctx, n.broker.addr(), watched, 0, b); err != nil || code != 0 {
		s.t.Fatalf("write to the broker of node %d: code %d, %v", n.id, code, err)
	}
	foreign := alert{name: "LockstepQuarantine", of: n}
	s.prom.waitFiring(time.Minute, foreign)
	s.rebuild(n)
	s.prom.waitGone(30*time.Second, foreign)
}

// brokerAway kills a broker for longer than the log reaches back. When it comes
// again there is nobody to copy from: the other brokers stand still.
func (s *situations) brokerAway() {
	s.t.Helper()
	c, away := s.c, s.c.node(3)
	away.broker.kill9(s.t)
	c.createTopic(c.node(1), "bulk", 6)
	ends := fillTopic(s.t, c.bootstrap(), "bulk", 6, 96<<20)
	c.waitBrokersHold(c.others(away.id), "bulk", ends)
	down, lags := alert{name: "LockstepBrokerDown", of: away}, alert{name: "LockstepBrokerLags", of: away}
	s.prom.waitFiring(time.Minute, down, lags)

	for _, n := range c.others(away.id) {
		if err := n.broker.proc.signal(syscall.SIGSTOP); err != nil {
			s.t.Fatal(err)
		}
	}
	c.restartBrokerOf(away)
	still := alert{name: "LockstepCopyStandsStill", of: away}
	s.prom.waitFiring(time.Minute, still, alert{name: "LockstepPartitionsUnavailable"})
	for _, n := range c.others(away.id) {
		if err := n.broker.proc.signal(syscall.SIGCONT); err != nil {
			s.t.Fatal(err)
		}
	}
	s.prom.waitGone(time.Minute, still, down)
	c.waitComplete(s.ctx, away, "bulk", ends)
	c.waitHealthy()
	s.prom.waitGone(30*time.Second, lags, alert{name: "LockstepPartitionsUnavailable"})
	s.more()
}

// failingFlush takes a leader's way to its broker's log directory away: what it
// writes is not trusted for a while, and under load its log is full soon.
func (s *situations) failingFlush() {
	s.t.Helper()
	leaders, err := s.c.leaders(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	n := s.c.node(leaders[0])
	if err := os.Remove(logDirs(n)); err != nil {
		s.t.Fatal(err)
	}
	load := startForeground(s.t, s.c, "load", 6)
	full := []alert{{name: "LockstepLogNearlyFull", of: n}, {name: "LockstepThrottled", of: n}}
	s.prom.waitFiring(30*time.Second, alert{name: "LockstepBrokerFlushFails", of: n})
	s.prom.waitFiring(30*time.Second, full...)
	load.stop()
	if err := os.Symlink(n.broker.dataDir(), logDirs(n)); err != nil {
		s.t.Fatal(err)
	}
	s.prom.waitGone(time.Minute, full...)
	s.prom.waitGone(30*time.Second, alert{name: "LockstepBrokerFlushFails", of: n})
	s.c.waitHealthy()
	s.more()
}

// majorityGone kills two proxies of three.
func (s *situations) majorityGone() {
	s.t.Helper()
	left := s.c.node(3)
	var dead sync.WaitGroup
	for _, n := range s.c.others(left.id) {
		dead.Go(func() { _ = n.proc.kill9() })
	}
	dead.Wait()
	gone := []alert{{name: "LockstepPartitionsUnavailable"}}
	for g := range 3 {
		gone = append(gone, alert{name: "LockstepGroupWithoutLeader", labels: series{"group": fmt.Sprint(g)}})
	}
	s.prom.waitFiring(30*time.Second, gone...)
	for _, n := range s.c.others(left.id) {
		n.startProxy(s.t)
	}
	s.c.waitHealthy()
	s.prom.waitGone(30*time.Second, gone...)
	s.more()
}
