//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"lockstep/e2e/check"
)

// place is a named point at which the test build can be killed, as the binary
// itself lists it.
type place struct {
	Point    string `json:"point"`
	When     string `json:"when"`
	Leader   bool   `json:"leader"`
	Follower bool   `json:"follower"`
}

// failpointVariable names the file of orders to a node.
const failpointVariable = "LOCKSTEP_TEST_FAILPOINT_FILE"

func (n *node) ordersFile() string { return filepath.Join(n.dir, "failpoint") }

// arm has the node kill itself when it passes a point for the nth time from
// now, whether it runs already or not.
func (n *node) arm(t *testing.T, point string, nth int) {
	t.Helper()
	_ = os.Remove(n.ordersFile() + ".hit")
	tmp := n.ordersFile() + ".new"
	if err := os.WriteFile(tmp, fmt.Appendf(nil, "%s %d kill\n", point, nth), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, n.ordersFile()); err != nil {
		t.Fatal(err)
	}
}

// killRound is one kill: where, on whom.
type killRound struct {
	place
	leads bool
}

func (r killRound) String() string {
	role := "follower"
	if r.leads {
		role = "leader"
	}
	return fmt.Sprintf("%s on the %s", r.Point, role)
}

// TestKillAtEveryFailpoint kills a proxy at every named point between receive
// and acknowledge and of every durable step behind it, on the leader and on a
// follower, and starts it again. A point at which nothing dies fails the test.
// In the end everything acknowledged is on every broker, once. E2E_POINT runs
// only the points whose name holds it.
func TestKillAtEveryFailpoint(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	c := newClusterWith(t, clusterOpts{embedded: true, groups: 1, program: &sabotaged, prepare: func(_ *testing.T, n *node) {
		n.env = []string{failpointVariable + "=" + n.ordersFile()}
	}, settings: failpointSettings})
	k := &pointKills{t: t, c: c}
	file, err := os.Create(filepath.Join(c.dir, "history.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	checker := check.New(check.Need{Acked: 100})
	k.log = check.NewLog(file, checker)
	k.l = newLoad(t, c, k.log, loadTopic{"points", 3}, loadTopic{"points-plain", 2})
	k.l.idempotent("idem", k.l.topics[0], 30*time.Millisecond, kgo.NoCompression())
	k.l.plain("plain", k.l.topics[1], 40*time.Millisecond, time.Second)
	k.l.assigned("reader", c.nodes[0])
	for _, n := range c.nodes {
		k.l.askEnds(n, 100*time.Millisecond)
	}
	k.settle(ctx)
	begin := time.Now()
	rounds := k.rounds(ctx)
	for i, r := range rounds {
		k.round(ctx, i, r)
	}
	t.Logf("%d kills in %s", len(rounds), time.Since(begin).Round(time.Second))
	k.finish(ctx, checker)
}

// failpointSettings make what is rare in a healthy cluster happen in seconds, and
// have raft say when it cuts its log.
func failpointSettings(n *node) []string {
	return []string{"broker.log_dirs=" + n.broker.dataDir(), "raft.snapshot_bytes=64KiB", "raft.log_retain_bytes=1", "log.level=debug",
		"topics.max_message_bytes=512KiB", "raft.max_entry_bytes=1MiB", "raft.segment_bytes=1MiB"}
}

// pointKills is the run. Its methods are called from the test goroutine only.
type pointKills struct {
	t      *testing.T
	c      *cluster
	l      *load
	log    *check.Log
	topics int // made so far
}

// rounds asks the binary which points there are.
func (k *pointKills) rounds(ctx context.Context) (out []killRound) {
	k.t.Helper()
	raw, err := k.c.nodes[0].cliAlone(ctx, "failpoints")
	if err != nil {
		k.t.Fatal(err)
	}
	var places []place
	if err := json.Unmarshal([]byte(raw), &places); err != nil {
		k.t.Fatal(err)
	}
	for _, p := range places {
		if !strings.Contains(p.Point, os.Getenv("E2E_POINT")) {
			continue
		}
		if p.Leader {
			out = append(out, killRound{p, true})
		}
		if p.Follower {
			out = append(out, killRound{p, false})
		}
	}
	if len(out) == 0 {
		k.t.Fatal("no such point")
	}
	return out
}

// settle returns when every partition is acknowledged to again.
func (k *pointKills) settle(ctx context.Context) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	if err := k.l.waitAcks(ctx, 3); err != nil {
		k.t.Fatal(err)
	}
}

// round kills one node and waits until everything is as it was.
func (k *pointKills) round(ctx context.Context, number int, r killRound) {
	t := k.t
	t.Helper()
	begin := time.Now()
	var leaders map[int]int
	waitFor(t, "agreement on the leader", settleWithin, func(ctx context.Context) (err error) {
		if leaders, err = k.c.leaders(ctx); err == nil && leaders[0] == 0 {
			err = fmt.Errorf("there is none")
		}
		return err
	})
	victim := k.c.node(leaders[0])
	if !r.leads {
		victim = k.c.others(leaders[0])[number%2]
	}
	k.log.Add(check.Event{Kind: check.Fault, Seq: number, Text: r.String(), Node: victim.id})
	quarantines := len(k.c.logLines("partition quarantined"))
	k.prepare(r, victim)
	// Not always the first time: what was in flight differs.
	victim.arm(t, r.Point, 1+number%3*boolInt(r.When == "producing"))
	undo := k.trigger(ctx, r, victim, k.c.node(leaders[0]))
	if victim = k.awaitDeath(r, victim); victim != nil {
		k.log.Add(check.Event{Kind: check.Landed, Seq: number})
	}
	died := time.Now()
	for _, f := range undo {
		f()
	}
	for _, n := range k.c.nodes {
		if !n.running() {
			n.startProxy(t)
		}
	}
	k.c.waitHealthy()
	k.settle(ctx)
	waitFor(t, "the records on each broker", 30*time.Second, func(ctx context.Context) error { return k.l.brokersHold(ctx, k.c.nodes) })
	if lines := k.c.logLines("partition quarantined")[quarantines:]; len(lines) > 0 && r.When != "rebuilding" {
		t.Errorf("%s: a partition was quarantined: %s", r, lines[0])
	}
	if t.Failed() {
		t.Fatalf("%s: stopped here", r)
	}
	t.Logf("%s: node %d died after %s, healthy %s later", r, victim.id, ms(died.Sub(begin)), ms(time.Since(died)))
}

// awaitDeath returns the node that died at the point: the victim, or if that is
// open, any.
func (k *pointKills) awaitDeath(r killRound, victim *node) (dead *node) {
	t := k.t
	t.Helper()
	may := []*node{victim}
	if r.When == "serving" {
		may = k.c.others(victim.id)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := waitUntil(ctx, 5*time.Millisecond, func(context.Context) error {
		for _, n := range may {
			if !n.proc.exited() {
				continue
			}
			if hit, _ := os.ReadFile(n.ordersFile() + ".hit"); string(hit) == r.Point {
				dead = n
			} else {
				t.Errorf("%s: node %d ended elsewhere: %v\n%s", r, n.id, n.proc.err, tail(n.logFile(), 20))
			}
			return nil
		}
		return fmt.Errorf("nobody passed it")
	})
	if err != nil {
		t.Errorf("%s (node %d): %v", r, victim.id, err)
	}
	for _, n := range k.c.nodes {
		_ = os.Remove(n.ordersFile())
	}
	return dead
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// cutLog returns an error unless the node's raft log was ever cut: Raft says
// where it begins, each time, at log level debug.
func (n *node) cutLog(context.Context) error {
	for _, line := range n.logLines("compacting logs") {
		if !strings.Contains(line, "from=1 ") {
			return nil
		}
	}
	return fmt.Errorf("it still begins at 1")
}

// wipeBroker has a broker come back with an empty disk.
func (k *pointKills) wipeBroker(n *node) {
	k.t.Helper()
	n.broker.stop(k.t)
	if err := os.RemoveAll(n.broker.dataDir()); err != nil {
		k.t.Fatal(err)
	}
	n.broker.restart(k.t)
}

// prepare makes what a trigger needs, before the point is armed.
func (k *pointKills) prepare(r killRound, victim *node) {
	k.t.Helper()
	switch r.When {
	case "deleting":
		k.topics++
		k.c.createTopic(victim, fmt.Sprintf("gone-%d", k.topics), 2)
	case "copying", "serving": // else its own log has everything
		waitFor(k.t, "the log to be cut", time.Minute, victim.cutLog)
	}
}

// trigger makes the cluster pass a point that load alone does not reach.
func (k *pointKills) trigger(ctx context.Context, r killRound, victim, leader *node) (undo []func()) {
	t := k.t
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	done := make(chan struct{})
	background := func(f func()) {
		go func() { defer close(done); f() }()
		undo = append(undo, func() { cancel(); <-done })
	}
	switch r.When {
	case "producing":
		cancel()
	case "electing": // the leader goes, and this node has a say in who follows
		cancel()
		if err := leader.proc.kill9(); err != nil {
			t.Fatal(err)
		}
	case "attaching":
		cancel()
		victim.broker.stop(t)
		victim.broker.restart(t)
	case "installing": // the log goes on without the node until it is cut behind it
		cancel()
		_ = os.Remove(victim.ordersFile())
		if err := victim.proc.kill9(); err != nil {
			t.Fatal(err)
		}
		leader.waitCutPast(t)
		victim.arm(t, r.Point, 1)
		victim.startProxy(t)
	case "copying":
		cancel()
		k.wipeBroker(victim)
	case "rebuilding":
		cancel()
		b := batch{producerID: -1, epoch: -1, sequence: -1, values: []string{"not through lockstep"}}
		if _, code, err := rawProduce(t.Context(), victim.broker.addr(), k.l.topics[0].name, 0, b); err != nil || code != 0 {
			t.Fatalf("write to the broker: error code %d, %v", code, err)
		}
	case "serving": // whichever node is asked for the copy
		cancel()
		other := k.c.node(6 - victim.id - leader.id)
		other.arm(t, r.Point, 1)
		leader.arm(t, r.Point, 1)
		_ = os.Remove(victim.ordersFile())
		k.wipeBroker(victim)
	case "creating":
		k.topics++
		name := fmt.Sprintf("new-%d", k.topics)
		background(func() { _ = createTopic(ctx, leader.kafkaAddr(), name, 2, 3) }) // its outcome is open
	case "deleting":
		name := fmt.Sprintf("gone-%d", k.topics)
		background(func() { _ = deleteTopic(ctx, leader.kafkaAddr(), name) })
	default:
		cancel()
		t.Fatalf("%s: nobody knows how to get there: %q", r, r.When)
	}
	return undo
}

// finish drains everything and reports.
func (k *pointKills) finish(ctx context.Context, checker *check.Checker) {
	t := k.t
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := k.l.finishProducing(ctx); err != nil {
		t.Errorf("wait for the last answers: %v", err)
	}
	waitFor(t, "the records on each broker", 30*time.Second, func(ctx context.Context) error { return k.l.brokersHold(ctx, k.c.nodes) })
	reading, cancelReading := context.WithTimeout(ctx, 30*time.Second)
	defer cancelReading()
	k.l.finishReading(reading)
	if err := k.l.dump(ctx, k.c.nodes); err != nil {
		t.Fatal(err)
	}
	k.l.report(checker)
	if err := k.log.Flush(); err != nil {
		t.Error(err)
	}
	r := checker.Finish()
	t.Log(r.String())
	if v := r.Verdict(); v != check.Pass {
		t.Errorf("verdict %s", v)
	}
	k.c.verify()
}

// cliAlone runs a command of the node's binary that asks nobody.
func (n *node) cliAlone(ctx context.Context, args ...string) (string, error) {
	out := newLines()
	p, err := startProcess("lockstep-"+args[0], commandTo(out, n.bin, args...))
	if err != nil {
		return "", err
	}
	err = p.wait(ctx)
	return out.text(), err
}

// TestShippedBinaryCannotBeSabotaged: a normal build holds neither failpoints
// nor mutants.
func TestShippedBinaryCannotBeSabotaged(t *testing.T) {
	f, err := os.Open(lockstepBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	raw, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{failpointVariable, mutantVariable} {
		if strings.Contains(string(raw), s) {
			t.Errorf("the binary under test looks at %s", s)
		}
	}
	if raw, err = os.ReadFile(sabotaged.get(t)); err != nil || slices.Equal(raw, nil) || !strings.Contains(string(raw), mutantVariable) {
		t.Errorf("the test build does not look at %s (%v)", mutantVariable, err)
	}
}
