//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"lockstep/e2e/check"
)

// mutantVariable names the mistake that a test build makes.
const mutantVariable = "LOCKSTEP_TEST_MUTANT"

// scheduleLimit bounds a mutant's schedule, from the first fault to the last.
const scheduleLimit = 10 * time.Second

// mutantCase is a mistake, and what brings it to light.
type mutantCase struct {
	name     string
	settings func(n *node) []string
	// quarantine: the schedule damages a broker, so that a product without
	// mistakes takes a partition there out of service.
	quarantine bool
	prepare    func(m *mutantRun) // what is there before the schedule begins; may be nil
	run        func(m *mutantRun)
}

var mutantCases = []mutantCase{
	{name: "ack-before-commit", run: func(m *mutantRun) {
		// The leader alone takes records in, and dies.
		leader := m.leader()
		undo := m.isolate(leader)
		m.sendFor(leader, 350*time.Millisecond, 200*time.Millisecond)
		m.kill(leader)
		undo()
		m.sendUntil(5)
		leader.startProxy(m.t)
	}},
	{name: "skip-end-offset-check", run: func(m *mutantRun) {
		// A follower starts again, with a broker that has everything.
		m.load()
		m.acks(30)
		f := m.c.others(m.leader().id)[0]
		m.kill(f)
		f.startProxy(m.t)
		m.acks(10)
	}},
	{name: "ignore-base-offset", quarantine: true, run: func(m *mutantRun) {
		// Somebody writes to a follower's broker.
		m.load()
		m.acks(5)
		f := m.c.others(m.leader().id)[1]
		for p := range m.topic.partitions {
			b := batch{producerID: -1, epoch: -1, sequence: -1, values: []string{"not through lockstep"}}
			if _, code, err := rawProduce(m.ctx, f.broker.addr(), m.topic.name, p, b); err != nil || code != 0 {
				m.t.Fatalf("write to the broker: error code %d, %v", code, err)
			}
		}
		m.acks(20)
	}},
	{name: "drop-fsync", run: func(m *mutantRun) {
		// All proxies die at once.
		m.load()
		m.acks(60)
		m.kill(m.c.nodes...)
		for _, n := range m.c.nodes {
			n.startProxy(m.t)
		}
		m.acks(5)
	}},
	{name: "serve-when-deposed", run: func(m *mutantRun) {
		// The leader is cut off from its peers, not from its clients.
		leader := m.leader()
		m.sendUntil(3)
		defer m.isolate(leader)()
		other := m.newLeader(leader)
		for rounds := 0; rounds < 10; rounds++ {
			if m.send(other, time.Second) == 0 { // it lost its office at once
				other = m.newLeader(leader)
			}
			for p := range m.topic.partitions {
				m.l.askEnd("client", leader, m.topic.name, p)
			}
		}
	}},
	{name: "timeout-is-failure", run: func(m *mutantRun) {
		// The followers get the leader's entries, their answers do not come.
		leader := m.leader()
		m.sendUntil(3)
		var undo []func()
		for _, f := range m.c.others(leader.id) {
			undo = append(undo, m.net.oneWay(f.id, leader.id))
		}
		m.sendFor(leader, 300*time.Millisecond, time.Second)
		m.newLeader(leader)
		for _, f := range undo {
			f()
		}
		m.sendUntil(5)
	}},
	{name: "compact-too-early", settings: func(*node) []string {
		return []string{"raft.snapshot_bytes=64KiB", "raft.log_retain_bytes=1", "log.level=debug"}
	}, prepare: func(m *mutantRun) {
		// What the brokers have flushed, by the time that it matters.
		m.loadEvery(8 * time.Millisecond)
		m.acks(10)
		for _, n := range m.c.nodes {
			n.broker.stop(m.t)
			if err := os.CopyFS(n.broker.dir+"/before", os.DirFS(n.broker.dataDir())); err != nil {
				m.t.Fatal(err)
			}
			n.broker.restart(m.t)
		}
		ctx, cancel := context.WithTimeout(m.ctx, 20*time.Second)
		defer cancel()
		_ = waitUntil(ctx, 50*time.Millisecond, func(ctx context.Context) error { // a sound product cuts nothing
			return errors.Join(m.c.nodes[0].cutLog(ctx), m.c.nodes[1].cutLog(ctx), m.c.nodes[2].cutLog(ctx))
		})
	}, run: func(m *mutantRun) {
		// All machines lose their power.
		m.kill(m.c.nodes...)
		for _, n := range m.c.nodes {
			n.broker.stop(m.t)
			if err := errors.Join(os.RemoveAll(n.broker.dataDir()), os.Rename(n.broker.dir+"/before", n.broker.dataDir())); err != nil {
				m.t.Fatal(err)
			}
			n.broker.restart(m.t)
			n.startProxy(m.t)
		}
	}},
	{name: "start-over-on-empty-broker", settings: func(n *node) []string {
		return []string{"raft.snapshot_bytes=64KiB", "raft.log_retain_bytes=1", "broker.log_dirs=" + n.broker.dataDir(), "log.level=debug"}
	}, prepare: func(m *mutantRun) {
		m.loadEvery(5 * time.Millisecond)
		for _, n := range m.c.nodes {
			waitFor(m.t, "the log to be cut", 30*time.Second, n.cutLog)
		}
	}, run: func(m *mutantRun) {
		// A follower's broker comes back without its data, of which the log
		// holds the end alone.
		f := m.c.others(m.leader().id)[0]
		m.kill(f)
		f.broker.stop(m.t)
		if err := os.RemoveAll(f.broker.dataDir()); err != nil {
			m.t.Fatal(err)
		}
		f.broker.restart(m.t)
		f.startProxy(m.t)
		m.acks(10)
	}},
}

// TestMutants: for each mistake that a test build can be made to make there is
// a schedule of at most ten seconds that turns the checker red in at least 19
// of 20 runs, and stays green without the mistake. E2E_MUTANT_RUNS (1) says how
// often, E2E_MUTANT runs only those whose name holds it.
func TestMutants(t *testing.T) {
	out := newLines()
	p, err := startProcess("lockstep-mutants", commandTo(out, sabotaged.get(t), "mutants"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	var known []string
	if err := json.Unmarshal([]byte(out.text()), &known); err != nil {
		t.Fatal(err)
	}
	for _, name := range known {
		if !slices.ContainsFunc(mutantCases, func(m mutantCase) bool { return m.name == name }) {
			t.Errorf("mutant %s has no schedule", name)
		}
	}
	runs := envInt(t, "E2E_MUTANT_RUNS", 1)
	for _, mc := range mutantCases {
		if !strings.Contains(mc.name, os.Getenv("E2E_MUTANT")) {
			continue
		}
		t.Run(mc.name, func(t *testing.T) {
			t.Run("control", func(t *testing.T) {
				if r, took := runMutant(t, mc, ""); r.Verdict() == check.Failed {
					t.Errorf("red without the mistake, after %s:\n%s", ms(took), r.String())
				}
			})
			red := 0
			for i := range runs {
				t.Run(fmt.Sprint(i+1), func(t *testing.T) {
					r, took := runMutant(t, mc, mc.name)
					if r.Verdict() == check.Failed {
						red++
						t.Logf("red, schedule of %s: %v", ms(took), r.ByKind)
					} else {
						t.Logf("not red:\n%s", r.String())
					}
				})
			}
			t.Logf("red in %d of %d runs", red, runs)
			if 20*red < 19*runs {
				t.Errorf("red in %d of %d runs, want 19 of 20", red, runs)
			}
		})
	}
}

// mutantRun is one run of a schedule. Its methods are called from the test
// goroutine only.
type mutantRun struct {
	t     *testing.T
	ctx   context.Context
	c     *cluster
	net   *network
	l     *load
	log   *check.Log
	topic loadTopic
	seq   int // of the directed producer
}

// runMutant runs a schedule on a cluster of its own and returns what the
// checker says, and how long the schedule took.
func runMutant(t *testing.T, mc mutantCase, mutant string) (check.Report, time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	w := newNetwork(t)
	c := newClusterWith(t, clusterOpts{embedded: true, groups: 1, program: &sabotaged, peerAddr: w.addr, prepare: func(_ *testing.T, n *node) {
		n.env = []string{mutantVariable + "=" + mutant}
	}, settings: func(n *node) []string {
		s := []string{"recovery.rebuild=manual"}
		if mc.settings != nil {
			s = append(s, mc.settings(n)...)
		}
		return s
	}})
	file, err := os.Create(filepath.Join(c.dir, "history.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	checker := check.New(check.Need{})
	m := &mutantRun{t: t, ctx: ctx, c: c, net: w, log: check.NewLog(file, checker), topic: loadTopic{"m", 2}}
	m.l = newLoad(t, c, m.log, m.topic)
	m.l.assigned("reader", c.nodes[0])
	if mc.prepare != nil {
		mc.prepare(m)
	}
	begin := time.Now()
	mc.run(m)
	took := time.Since(begin)
	if took > scheduleLimit {
		t.Errorf("the schedule took %s, want at most %s", took, scheduleLimit)
	}
	m.finish(checker, mc.quarantine)
	return checker.Finish(), took
}

// finish drains what can be drained and writes the rest of the history. What
// does not come right within some seconds is reported to the checker.
func (m *mutantRun) finish(checker *check.Checker, quarantineExpected bool) {
	ctx, cancel := context.WithTimeout(m.ctx, time.Minute)
	defer cancel()
	within := func(d time.Duration, f func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		return waitUntil(ctx, 100*time.Millisecond, f)
	}
	if err := within(5*time.Second, func(ctx context.Context) error { return m.l.finishProducing(ctx) }); err != nil {
		m.l.fatal("producers got no answer: %v", err)
	}
	whole := func() []*node {
		return slices.DeleteFunc(slices.Clone(m.c.nodes), func(n *node) bool { return len(n.logLines("partition quarantined")) > 0 })
	}
	err := within(10*time.Second, func(ctx context.Context) error {
		if nodes := whole(); len(nodes) < 3 && !quarantineExpected {
			return nil // it will not come right any more
		}
		return m.l.brokersHold(ctx, whole())
	})
	if err != nil {
		m.l.fatal("brokers do not come up to date: %v", err)
	}
	if lines := m.c.logLines("partition quarantined"); len(lines) > 0 && !quarantineExpected {
		m.l.fatal("partitions were quarantined, first: %s", lines[0])
	}
	reading, cancelReading := context.WithTimeout(ctx, 3*time.Second)
	defer cancelReading()
	m.l.finishReading(reading)
	if err := m.l.dump(ctx, whole()); err != nil {
		m.l.fatal("brokers cannot be read: %v", err)
	}
	m.l.report(checker)
	if err := m.log.Flush(); err != nil {
		m.t.Error(err)
	}
}

// load starts a producer that keeps on.
func (m *mutantRun) load() {
	m.loadEvery(25 * time.Millisecond)
}

func (m *mutantRun) loadEvery(tick time.Duration) {
	m.l.idempotent("idem", m.topic, tick, kgo.NoCompression())
}

// acks returns when every partition got n more acknowledgements, or when it is
// clear that it does not.
func (m *mutantRun) acks(n int) {
	ctx, cancel := context.WithTimeout(m.ctx, 4*time.Second)
	defer cancel()
	if err := m.l.waitAcks(ctx, n); err != nil {
		m.t.Logf("the schedule goes on: %v", err)
	}
}

func (m *mutantRun) leader() *node {
	m.t.Helper()
	var leaders map[int]int
	waitFor(m.t, "a leader", 10*time.Second, func(ctx context.Context) (err error) {
		if leaders, err = m.c.leaders(ctx); err == nil && leaders[0] == 0 {
			err = fmt.Errorf("there is none")
		}
		return err
	})
	return m.c.node(leaders[0])
}

// newLeader returns when another node announces that it leads.
func (m *mutantRun) newLeader(old *node) (leader *node) {
	m.t.Helper()
	waitFor(m.t, "another leader", 8*time.Second, func(ctx context.Context) error {
		for _, n := range m.c.others(old.id) {
			led, err := partitionLeaders(ctx, n, m.topic.name, m.topic.partitions)
			if err != nil {
				return err
			}
			if led[0] != n.id {
				continue
			}
			leader = n
			return nil
		}
		return fmt.Errorf("none yet")
	})
	return leader
}

// isolate cuts a node off from its peers, not from its clients.
func (m *mutantRun) isolate(n *node) (undo func()) {
	var undos []func()
	for _, o := range m.c.others(n.id) {
		undos = append(undos, m.net.reset(n.id, o.id))
	}
	return func() {
		for _, f := range undos {
			f()
		}
	}
}

func (m *mutantRun) kill(nodes ...*node) {
	m.t.Helper()
	for _, n := range nodes {
		if err := n.proc.signal(9); err != nil {
			m.t.Fatal(err)
		}
	}
	for _, n := range nodes {
		if err := n.proc.kill9(); err != nil {
			m.t.Fatal(err)
		}
	}
}

// send sends one record to each partition, through one node, and returns how
// many were acknowledged.
func (m *mutantRun) send(to *node, timeout time.Duration) (acked int) {
	for p := range m.topic.partitions {
		m.seq++
		if m.l.sendPlain("directed", m.seq, m.topic.name, p, to.id, timeout) == check.OK {
			acked++
		}
	}
	return acked
}

// sendFor sends one record after the other to a node for some time.
func (m *mutantRun) sendFor(to *node, d, timeout time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		m.send(to, timeout)
	}
}

// sendUntil sends to whoever leads until some rounds were acknowledged.
func (m *mutantRun) sendUntil(rounds int) {
	m.t.Helper()
	waitFor(m.t, "acknowledgements", 8*time.Second, func(ctx context.Context) error {
		for _, n := range m.c.nodes {
			if !n.running() {
				continue
			}
			led, err := partitionLeaders(ctx, n, m.topic.name, m.topic.partitions)
			if err != nil || led[0] != n.id {
				continue
			}
			if m.send(n, time.Second) == int(m.topic.partitions) {
				rounds--
			}
		}
		if rounds > 0 {
			return fmt.Errorf("%d rounds to go", rounds)
		}
		return nil
	})
}
