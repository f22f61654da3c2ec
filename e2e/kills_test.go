//go:build e2e

package e2e

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// settleWithin bounds the wait for acknowledgements on every partition after a
// fault that leaves a majority, and after everything runs again.
const settleWithin = 30 * time.Second

// TestKillAnything kills and stops proxies and brokers in every combination,
// each kind of fault once, or E2E_ROUNDS times, in an order that E2E_SEED gives.
// Under two workloads of idempotent producers and one of plain ones, nothing
// acknowledged may be lost, moved or doubled on any broker. A seed repeats the
// faults and their pauses, not how the processes happen to run meanwhile.
func TestKillAnything(t *testing.T) {
	rounds, seed := envInt(t, "E2E_ROUNDS", len(faults)), uint64(time.Now().UnixNano()%1_000_000)
	if s := os.Getenv("E2E_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("E2E_SEED=%q: want a number: %v", s, err)
		}
	}
	t.Logf("E2E_SEED=%d E2E_ROUNDS=%d", seed, rounds)
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(2+rounds)*2*time.Minute)
	defer cancel()
	k := &kills{c: c, rnd: rand.New(rand.NewPCG(seed, 0)), gaps: map[string][]time.Duration{}, backs: map[string][]time.Duration{}}
	k.start()
	k.settle(ctx, time.Time{})
	for i, f := range k.schedule(rounds) {
		k.round(ctx, i+1, f)
	}
	k.finish(ctx)
}

// fault is one kind of thing that happens to the cluster. do returns when what
// it stopped has been continued; what it killed stays down. Victims are nodes
// in random order, the first of which the fault is about.
type fault struct {
	name     string
	majority bool          // two nodes are left whole all the time: producing goes on
	gap      time.Duration // how long a partition may stand still meanwhile, 0 if that is not Lockstep's alone
	do       func(k *kills, victims []*node)
}

const (
	// killGap is what producing may stand still for when something is gone.
	killGap = 5 * time.Second
	// hangGap is the same for a broker that hangs: it is asked every second,
	// has 2 s to answer, and broker.unreachable_after is 1 s more.
	hangGap = 8 * time.Second
)

var faults = []fault{
	{"kill proxy", true, killGap, func(k *kills, v []*node) { k.kill(v[0].proc) }},
	{"kill broker", true, killGap, func(k *kills, v []*node) { k.kill(v[0].broker.proc) }},
	{"kill proxy, then broker", true, killGap, func(k *kills, v []*node) {
		k.kill(v[0].proc)
		k.pause(0, 300)
		k.kill(v[0].broker.proc)
	}},
	{"kill broker, then proxy", true, killGap, func(k *kills, v []*node) {
		k.kill(v[0].broker.proc)
		k.pause(0, 300)
		k.kill(v[0].proc)
	}},
	{"kill two nodes", false, 0, func(k *kills, v []*node) {
		k.kill(v[0].proc, v[1].proc, v[0].broker.proc, v[1].broker.proc)
		k.noAcks()
	}},
	{"kill all proxies", false, 0, func(k *kills, v []*node) { k.kill(v[0].proc, v[1].proc, v[2].proc) }},
	{"kill all brokers", false, 0, func(k *kills, v []*node) { k.kill(v[0].broker.proc, v[1].broker.proc, v[2].broker.proc) }},
	{"kill everything", false, 0, func(k *kills, v []*node) {
		k.kill(v[0].proc, v[1].broker.proc, v[2].proc, v[0].broker.proc, v[1].proc, v[2].broker.proc)
	}},
	{"stop proxy", true, 0, func(k *kills, v []*node) { k.freeze(v[0].proc, func() { k.pause(1000, 5000) }) }},
	{"stop broker", true, hangGap, func(k *kills, v []*node) { k.freeze(v[0].broker.proc, func() { k.pause(1000, 5000) }) }},
	{"stop proxy until the others go on", true, 0, func(k *kills, v []*node) {
		k.freeze(v[0].proc, func() { k.settle(k.c.t.Context(), time.Now()) })
	}},
	{"stop broker until the others go on", true, hangGap, func(k *kills, v []*node) {
		k.freeze(v[0].broker.proc, func() { k.settle(k.c.t.Context(), time.Now()) })
	}},
	// What the killed proxy sent and the broker has not read yet is executed
	// after the new proxy has looked at the log end.
	{"stop broker, kill and restart proxy", true, 0, func(k *kills, v []*node) {
		k.freeze(v[0].broker.proc, func() {
			k.pause(0, 500)
			k.kill(v[0].proc)
			v[0].startProxy(k.c.t)
			k.pause(0, 3000)
		})
		// It goes on in fits and starts, so that the old connections and the
		// new ones are served in many orders.
		for range 5 {
			k.pause(0, 20)
			k.freeze(v[0].broker.proc, func() { k.pause(0, 200) })
		}
	}},
	{"restart proxy by SIGTERM", true, killGap, func(k *kills, v []*node) { v[0].stopProxy(k.c.t) }},
	{"restart broker by SIGTERM", true, killGap, func(k *kills, v []*node) { v[0].broker.stop(k.c.t) }},
	{"restart every proxy by SIGTERM, one by one", true, killGap, func(k *kills, v []*node) {
		for _, n := range v {
			n.stopProxy(k.c.t)
			n.startProxy(k.c.t)
			k.c.waitHealthy()
		}
	}},
}

// kills is the run of a schedule. Its methods are called from the test
// goroutine only.
type kills struct {
	c         *cluster
	rnd       *rand.Rand
	workloads []*workload
	plain     *plainProducer
	// The longest gap of a partition by kind of fault: that of the fault, and
	// that while everything came back.
	gaps, backs map[string][]time.Duration
}

// Topics and their partitions; the last is the plain producer's.
var killTopics = []struct {
	name       string
	partitions int32
}{{"kills-a", 6}, {"kills-b", 3}, {"kills-plain", 3}}

func (k *kills) start() {
	for i, topic := range killTopics {
		k.c.createTopic(k.c.nodes[i], topic.name, topic.partitions)
		if topic.name == "kills-plain" {
			k.plain = startPlainProducer(k.c.t, k.c, topic.name, topic.partitions, "plain")
			continue
		}
		k.workloads = append(k.workloads, startWorkload(k.c.t, k.c.bootstrap(), topic.name, topic.partitions, 40*time.Millisecond,
			topic.name+"-p1", topic.name+"-p2"))
	}
}

// histories are in the order of killTopics.
func (k *kills) histories() []*history {
	var hs []*history
	for _, w := range k.workloads {
		hs = append(hs, w.h)
	}
	return append(hs, k.plain.h)
}

// schedule draws every kind of fault once before any comes again.
func (k *kills) schedule(rounds int) []fault {
	var out []fault
	for len(out) < rounds {
		for _, i := range k.rnd.Perm(len(faults)) {
			out = append(out, faults[i])
		}
	}
	if only := os.Getenv("E2E_FAULT"); only != "" {
		out = slices.DeleteFunc(slices.Repeat(faults, rounds), func(f fault) bool { return !strings.Contains(f.name, only) })
	}
	return out[:rounds]
}

// round makes one fault, requires that producing goes on if it may, starts what
// is down and waits until everything is as it was.
func (k *kills) round(ctx context.Context, number int, f fault) {
	t := k.c.t
	t.Helper()
	victims, leaders := k.victims(ctx)
	begin := time.Now()
	f.do(k, victims)
	if f.majority {
		k.settle(ctx, time.Now())
	}
	down := time.Now()
	k.restart()
	k.c.waitHealthy()
	healthy := time.Now()
	k.settle(ctx, healthy)
	k.replicated()
	k.c.trusted(ctx)
	// The plain producer gives up a node that does not answer after 3 s, the
	// others after 10 s: what a stopped process costs is theirs.
	gap, back, plain := k.gap(begin, down), k.gap(down, time.Now()), k.plain.h.worstGap(slices.Collect(maps.Keys(k.plain.h.ends())), begin, down)
	k.gaps[f.name], k.backs[f.name] = append(k.gaps[f.name], gap), append(k.backs[f.name], back)
	if f.gap > 0 && gap > f.gap {
		t.Errorf("%s: a partition stood still for %s, want at most %s", f.name, ms(gap), f.gap)
	}
	t.Logf("%s round %d: %s (node %d, then %d; leaders were %v): longest gap of a partition %s (plain producer %s), %s while it came back; fault took %s, healthy %s after the restart",
		begin.Format("15:04:05.000"), number, f.name, victims[0].id, victims[1].id, leaders, ms(gap), ms(plain), ms(back), ms(down.Sub(begin)), ms(healthy.Sub(down)))
}

// victims returns the nodes in random order, every other time with one in front
// that leads, and the leaders.
func (k *kills) victims(ctx context.Context) (order []*node, leaders map[int]int) {
	t := k.c.t
	t.Helper()
	for _, i := range k.rnd.Perm(len(k.c.nodes)) {
		order = append(order, k.c.nodes[i])
	}
	group, wantLeader := k.rnd.IntN(envInt(t, "E2E_GROUPS", 3)), k.rnd.IntN(2) == 0
	waitFor(t, "agreement on the leaders", settleWithin, func(ctx context.Context) (err error) {
		leaders, err = k.c.leaders(ctx)
		return err
	})
	if i := slices.IndexFunc(order, func(n *node) bool { return n.id == leaders[group] }); wantLeader && i > 0 {
		order[0], order[i] = order[i], order[0]
	}
	return order, leaders
}

// gap returns the longest time for which one of the partitions was not
// acknowledged to.
func (k *kills) gap(from, until time.Time) time.Duration {
	var gap time.Duration
	for _, h := range k.histories() {
		for p := range h.ends() {
			gap = max(gap, h.longestGap([]int32{p}, from, until))
		}
	}
	return gap
}

// settle returns when every partition of every topic was acknowledged to
// several times after since.
func (k *kills) settle(ctx context.Context, since time.Time) {
	k.c.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	for i, h := range k.histories() {
		if err := h.waitAcks(ctx, killTopics[i].partitions, since, 5); err != nil {
			k.c.t.Fatalf("%s: %v", h.topic, err)
		}
	}
}

// replicated returns when every broker holds what is acknowledged now.
func (k *kills) replicated() {
	k.c.t.Helper()
	for _, h := range k.histories() {
		k.c.waitBrokersHold(k.c.nodes, h.topic, h.ends())
	}
}

// kill sends SIGKILL to all before it waits for any.
func (k *kills) kill(procs ...*process) {
	k.c.t.Helper()
	var errs error
	for _, p := range procs {
		errs = errors.Join(errs, p.signal(syscall.SIGKILL))
	}
	for _, p := range procs {
		errs = errors.Join(errs, p.kill9())
	}
	if errs != nil {
		k.c.t.Fatal(errs)
	}
}

// freeze stops a process with SIGSTOP while meanwhile runs.
func (k *kills) freeze(p *process, meanwhile func()) {
	k.c.t.Helper()
	err := p.signal(syscall.SIGSTOP)
	meanwhile()
	if err := errors.Join(err, p.signal(syscall.SIGCONT)); err != nil {
		k.c.t.Fatal(err)
	}
}

// pause lets a random time pass. It waits for nothing: how far apart two faults
// are, and how long one lasts, is part of the schedule.
func (k *kills) pause(fromMs, toMs int) {
	<-time.After(time.Duration(fromMs+k.rnd.IntN(toMs-fromMs+1)) * time.Millisecond)
}

// noAcks lets time pass without a majority and requires that nothing that was
// sent since is acknowledged. What was committed before may be told late: an
// answer waits for all the partitions of its request, some of which may not
// know yet what became of their batches.
func (k *kills) noAcks() {
	k.c.t.Helper()
	lost := time.Now()
	k.pause(2500, 5500)
	all := 0
	for i, h := range k.histories() {
		for p := range killTopics[i].partitions {
			sent, acked := h.sentSince(p, lost)
			if acked > 0 {
				k.c.t.Errorf("%s/%d: %d of %d records that were sent while two of three nodes were dead were acknowledged", h.topic, p, acked, sent)
			}
		}
		sent, _ := h.sentSince(-1, lost)
		all += sent
	}
	if all == 0 { // the plain producer may wait for one answer all the time
		k.c.t.Error("nothing was sent while two of three nodes were dead")
	}
}

// restart starts what is down, in random order and with random pauses.
func (k *kills) restart() {
	k.c.t.Helper()
	for _, i := range k.rnd.Perm(2 * len(k.c.nodes)) {
		n := k.c.nodes[i/2]
		switch {
		case i%2 == 0 && n.running(), i%2 == 1 && !n.broker.proc.exited():
			continue
		case i%2 == 0:
			n.startProxy(k.c.t)
		default:
			if err := n.broker.spawn(); err != nil {
				k.c.t.Fatal(err)
			}
		}
		k.pause(0, 300)
	}
}

// finish stops the producers and holds what they were told to what stands on
// each broker.
func (k *kills) finish(ctx context.Context) {
	t := k.c.t
	t.Helper()
	flush, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	k.plain.stop()
	for _, w := range k.workloads {
		if err := w.stopProducing(flush); err != nil {
			t.Errorf("%s: wait for the last answers: %v", w.h.topic, err)
		}
		if err := w.waitConsumed(flush); err != nil {
			t.Errorf("%s: consumer did not reach the last acknowledged record: %v", w.h.topic, err)
		}
	}
	k.c.waitHealthy()
	k.replicated()
	k.c.trusted(ctx)
	for i, h := range k.histories() {
		n := killTopics[i].partitions
		dumps := k.c.readBrokers(k.c.nodes, h.topic, n)
		if h == k.plain.h {
			k.plain.check(dumps, n).report(t)
		} else {
			h.check(dumps, n).report(t)
		}
		sent, acked := h.counts()
		t.Logf("%s: %d records sent, %d acknowledged, %d on the brokers", h.topic, sent, acked, dumps[1].records())
	}
	for _, f := range faults {
		if len(k.gaps[f.name]) > 0 {
			t.Logf("longest gaps, %s: %s; while it came back: %s", f.name, list(k.gaps[f.name]), list(k.backs[f.name]))
		}
	}
	k.c.verify()
}

// sentSince counts the records of a partition, or of all if it is negative, that
// were sent after t, and how many of them are acknowledged.
func (h *history) sentSince(partition int32, t time.Time) (sent, acked int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ops := range h.ops {
		for _, o := range ops {
			if !o.sent.After(t) || partition >= 0 && o.partition != partition {
				continue
			}
			sent++
			if o.state == opAcked {
				acked++
			}
		}
	}
	return sent, acked
}
