//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"lockstep/e2e/check"
)

// healWithin bounds how long everything may take to come right when the last
// fault is over.
const healWithin = 60 * time.Second

// TestChaos runs producers and consumers of all sorts against three nodes while
// a schedule of faults, which a seed gives, goes on, and then holds what they
// saw to what stands on each broker. The verdict is fail, unknown or pass.
//
// CHAOS_SEED (random), CHAOS_DURATION (60s), CHAOS_BROKER (embedded or kafka);
// CHAOS_SCHEDULE replays a file in place of these. CHAOS_SHRINK (0s) is how
// long a schedule that failed is made smaller. A seed repeats the faults, not
// how the processes happen to run meanwhile.
func TestChaos(t *testing.T) {
	cfg := chaosFromEnv(t)
	t.Logf("make chaos SEED=%d DURATION=%s BROKER=%s: %d faults", cfg.Seed, cfg.Duration, cfg.Broker, len(cfg.Steps))
	r, dir := runChaos(t, cfg)
	t.Log(r.String())
	switch r.Verdict() {
	case check.Pass:
		return
	case check.Unknown:
		t.Errorf("verdict unknown: the run shows nothing, for the reasons above (SEED=%d)", cfg.Seed)
	case check.Failed:
		t.Errorf("verdict fail: SEED=%d, schedule %s, history %s", cfg.Seed, filepath.Join(dir, "schedule.json"), filepath.Join(dir, "history.jsonl"))
		shrink(t, cfg)
	}
}

// chaos is one run. Its methods are called from the test goroutine only.
type chaos struct {
	t       *testing.T
	c       *cluster
	net     *network
	l       *load
	log     *check.Log
	disks   map[int]bool // nodes that have a small disk of their own
	began   time.Time
	lasts   time.Duration // the schedule
	active  []*running
	pending []action
}

// action is something to be done at a time.
type action struct {
	at time.Duration
	do func()
}

// after adds an action.
func (x *chaos) after(d time.Duration, do func()) {
	x.pending = append(x.pending, action{time.Since(x.began) + d, do})
	slices.SortStableFunc(x.pending, func(a, b action) int { return cmp.Compare(a.at, b.at) })
}

// runChaos runs a schedule on a cluster of its own.
func runChaos(t *testing.T, cfg chaosConfig) (r check.Report, dir string) {
	t.Helper()
	x := &chaos{t: t, net: newNetwork(t), disks: map[int]bool{}, lasts: cfg.Duration}
	x.c = newClusterWith(t, clusterOpts{embedded: cfg.Broker == "embedded", peerAddr: x.net.addr, settings: chaosSettings,
		prepare: func(_ *testing.T, n *node) { x.smallDisk(n) }})
	raw, err := json.MarshalIndent(cfg, "", " ")
	if err == nil {
		err = os.WriteFile(filepath.Join(x.c.dir, "schedule.json"), raw, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(x.c.dir, "history.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	// Twenty a second are far below what is sent.
	checker := check.New(check.Need{Acked: int(20 * cfg.Duration.Seconds()), Info: boolInt(len(cfg.Steps) > 3)})
	x.log = check.NewLog(file, checker)
	x.start()
	x.began = time.Now()
	for i, s := range cfg.Steps {
		x.pending = append(x.pending, action{s.At, func() { x.begin(i, s) }})
	}
	x.after(0, func() {}) // sorts
	for len(x.pending) > 0 || time.Since(x.began) < cfg.Duration {
		wait := time.Until(x.began.Add(cfg.Duration))
		if len(x.pending) > 0 {
			wait = time.Until(x.began.Add(x.pending[0].at))
		}
		select {
		case <-time.After(wait):
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
		if len(x.pending) > 0 {
			next := x.pending[0]
			x.pending = x.pending[1:]
			next.do()
		}
	}
	x.heal()
	defer dumpAfter(5 * time.Minute)()
	x.finish(checker)
	return checker.Finish(), x.c.dir
}

// dumpAfter prints what every goroutine of the test does, unless the function
// that it returns is called before: once a run waited for ever after all faults
// were over, and nobody knows for what.
func dumpAfter(d time.Duration) (stop func() bool) {
	return time.AfterFunc(d, func() { _ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1) }).Stop
}

// chaosSettings make the log be cut every few seconds, on one node by age and
// on the others by flush.
func chaosSettings(n *node) []string {
	s := []string{"raft.snapshot_bytes=128KiB", "raft.log_retain_bytes=512KiB", "broker.trust_after=3s",
		"raft.max_entry_bytes=2MiB", "raft.segment_bytes=2MiB"}
	if n.id != 2 {
		s = append(s, "broker.log_dirs="+n.broker.dataDir())
	}
	return s
}

// start begins all producers and consumers.
func (x *chaos) start() {
	a, b, p := loadTopic{"chaos-a", 4}, loadTopic{"chaos-b", 3}, loadTopic{"chaos-plain", 3}
	x.l = newLoad(x.t, x.c, x.log, a, b, p)
	for i, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.SnappyCompression(), kgo.ZstdCompression(), kgo.Lz4Compression()} {
		topic := a
		if i%2 == 1 {
			topic = b
		}
		x.l.idempotent(fmt.Sprintf("idem-%d", i), topic, 60*time.Millisecond, codec)
	}
	x.l.plain("plain-0", p, 60*time.Millisecond, 300*time.Millisecond)
	x.l.plain("plain-1", p, 60*time.Millisecond, time.Second)
	x.l.plain("plain-2", b, 100*time.Millisecond, 500*time.Millisecond)
	for i, n := range x.c.nodes {
		x.l.assigned(fmt.Sprintf("assigned-%d", n.id), n)
		x.l.group(fmt.Sprintf("member-%d", i), "chaos", n)
		x.l.askEnds(n, 100*time.Millisecond)
	}
	x.l.watchLeaders(250 * time.Millisecond)
}

// heal ends every fault and waits until the cluster calls itself healthy.
func (x *chaos) heal() {
	for len(x.active) > 0 {
		x.end(x.active[0].number)
	}
	for _, n := range x.c.nodes {
		x.fatalIfEnded(n)
		x.revive(n)
	}
	ctx, cancel := context.WithTimeout(x.t.Context(), healWithin)
	defer cancel()
	begin := time.Now()
	err := waitUntil(ctx, 200*time.Millisecond, func(ctx context.Context) error {
		for _, n := range x.c.nodes {
			x.fatalIfEnded(n)
			x.revive(n)
			s, err := n.status(ctx)
			if err != nil {
				return err
			}
			if !s.Healthy {
				return fmt.Errorf("node %d: %v", n.id, s.Problems)
			}
			if err := s.complete(len(x.c.nodes)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = x.l.waitAcks(ctx, 3)
	}
	if err != nil {
		x.l.fatal("not healthy after the last fault: %v", err)
	}
	x.t.Logf("healthy and producing %s after the last fault", ms(time.Since(begin)))
}

// finish drains and reads everything.
func (x *chaos) finish(checker *check.Checker) {
	ctx, cancel := context.WithTimeout(x.t.Context(), 3*time.Minute)
	defer cancel()
	flush, cancelFlush := context.WithTimeout(ctx, 30*time.Second)
	defer cancelFlush()
	if err := x.l.finishProducing(flush); err != nil {
		x.l.fatal("idempotent producers got no answer: %v", err)
	}
	hold, cancelHold := context.WithTimeout(ctx, healWithin)
	defer cancelHold()
	if err := waitUntil(hold, 200*time.Millisecond, func(ctx context.Context) error { return x.l.brokersHold(ctx, x.c.nodes) }); err != nil {
		x.l.fatal("brokers do not come up to date: %v", err)
	}
	reading, cancelReading := context.WithTimeout(ctx, 30*time.Second)
	defer cancelReading()
	x.l.finishReading(reading)
	if err := x.l.dump(ctx, x.c.nodes); err != nil {
		x.l.fatal("brokers cannot be read: %v", err)
	}
	if out, err := x.c.nodes[0].cli(ctx, "verify", "-o", "json"); err != nil {
		x.l.fatal("lockstep verify: %v %s", err, lastBytes(out, 500))
	}
	if lines := x.c.logLines("partition quarantined"); len(lines) > 0 {
		x.l.fatal("%d times a partition was quarantined, first: %s", len(lines), lines[0])
	}
	x.l.report(checker)
	if err := x.log.Flush(); err != nil {
		x.t.Error(err)
	}
}

// shrink looks for a part of a schedule that still fails, for as long as
// CHAOS_SHRINK says: first halves, then without single faults.
func shrink(t *testing.T, cfg chaosConfig) {
	budget, err := time.ParseDuration(envOr("CHAOS_SHRINK", "0s"))
	if err != nil {
		t.Fatalf("CHAOS_SHRINK: %v", err)
	}
	end, tries := time.Now().Add(budget), 0
	failsWith := func(steps []step) bool {
		if len(steps) == 0 || time.Until(end) < cfg.Duration {
			return false
		}
		smaller := cfg
		smaller.Steps = steps
		tries++
		failed := false
		t.Run(fmt.Sprintf("shrink-%d", tries), func(t *testing.T) {
			r, _ := runChaos(t, smaller)
			failed = r.Verdict() == check.Failed
			t.Logf("%d faults: %s", len(steps), r.Verdict())
		})
		return failed
	}
	best := smallest(cfg.Steps, failsWith)
	if tries == 0 {
		return
	}
	cfg.Steps = best
	raw, err := json.MarshalIndent(cfg, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("after %d more runs, %d faults are left that fail:\n%s", tries, len(best), raw)
}
