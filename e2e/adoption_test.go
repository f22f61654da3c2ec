//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// adoptee is a topic that one broker held before any proxy was there, and what
// Kafka itself said of it then.
type adoptee struct {
	topic      string
	on         *node
	partitions int32
	starts     map[int32]int64
	ends       map[int32]int64
	before     dump
	files      logSums
}

// note reads what the broker holds, going around Lockstep.
func (a *adoptee) note(ctx context.Context, t *testing.T) {
	t.Helper()
	a.starts, a.ends = map[int32]int64{}, map[int32]int64{}
	for p := range a.partitions {
		var err error
		if a.starts[p], err = listOffset(ctx, a.on.broker.addr(), a.topic, p, -2); err != nil {
			t.Fatal(err)
		}
		if a.ends[p], err = endOffset(ctx, a.on.broker.addr(), a.topic, p); err != nil {
			t.Fatal(err)
		}
	}
	a.before = a.read(ctx, t, []string{a.on.broker.addr()})
	var err error
	if a.files, err = a.sums(nil); err != nil {
		t.Fatal(err)
	}
}

// read reads what was there before, from wherever the addresses lead.
func (a *adoptee) read(ctx context.Context, t *testing.T, bootstrap []string) dump {
	t.Helper()
	ends := map[int32]int64{}
	for p, end := range a.ends {
		if end > a.starts[p] {
			ends[p] = end
		}
	}
	d, err := readTo(ctx, bootstrap, a.topic, ends)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// same fails the test unless the records and log starts at the addresses are
// what the broker held before.
func (a *adoptee) same(ctx context.Context, t *testing.T, who string, bootstrap ...string) {
	t.Helper()
	if err := sameDump(a.before, a.read(ctx, t, bootstrap), a.partitions); err != nil {
		t.Errorf("%s: %s is not what the broker of node %d held before: %v", who, a.topic, a.on.id, err)
	}
	for p, start := range a.starts {
		got := int64(-1)
		waitFor(t, "the beginning of "+a.topic, 30*time.Second, func(ctx context.Context) (err error) { // leaders may be moving
			for _, addr := range bootstrap {
				if got, err = listOffset(ctx, addr, a.topic, p, -2); err == nil {
					break
				}
			}
			return err
		})
		if got != start {
			t.Errorf("%s: %s/%d begins at %d, was %d before", who, a.topic, p, got, start)
		}
	}
}

// adoptOutcome is one line of "lockstep adopt -o json".
type adoptOutcome struct {
	Topic  string `json:"topic"`
	Error  string `json:"error"`
	Result struct {
		Holders []int `json:"holders"`
		Copying []int `json:"copying"`
		Aside   []int `json:"kept_aside"`
	} `json:"result"`
}

// adopt runs "lockstep adopt" and returns what it says of each topic.
func adopt(ctx context.Context, t *testing.T, n *node, args ...string) (map[string]adoptOutcome, error) {
	t.Helper()
	out, err := n.cli(ctx, append([]string{"adopt", "-o", "json"}, args...)...)
	var list []adoptOutcome
	if jerr := json.Unmarshal([]byte(out), &list); jerr != nil {
		t.Fatalf("read output of lockstep adopt %v: %v: %q (%v)", args, jerr, out, err)
	}
	by := map[string]adoptOutcome{}
	for _, o := range list {
		by[o.Topic] = o
	}
	return by, err
}

// foreignStates maps topic to state, as "lockstep adopt" lists them.
func foreignStates(ctx context.Context, t *testing.T, n *node) map[string]string {
	t.Helper()
	out, err := n.cli(ctx, "adopt", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Topics []struct {
			Name  string `json:"name"`
			State string `json:"state"`
		} `json:"topics"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, f := range r.Topics {
		m[f.Name] = f.State
	}
	return m
}

// TestAdoption starts proxies in front of brokers that hold topics already. What
// one broker has is adopted with its offsets and copied to the others; what two
// have with different records waits for the operator's choice, and the other
// copy stays as it is until it is given up. Meanwhile clients write and read
// through the proxies, and a consumer group from before goes on where it was.
// ADOPT_BYTES is how much there is.
func TestAdoption(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	var all []*adoptee
	var aside *adoptee
	var group *oldReaders
	c := newClusterWith(t, clusterOpts{
		prepare: func(_ *testing.T, n *node) { n.broker.settings = append(n.broker.settings, quickRetention...) },
		seed: func(c *cluster) {
			all, aside = makeAdoptees(ctx, t, c)
			group = &oldReaders{a: all[0]}
			group.start(ctx, t, []string{group.a.on.broker.addr()})
		}})
	conflict, certain := all[len(all)-1], all[:len(all)-1]

	states := foreignStates(ctx, t, c.node(1))
	for _, a := range all {
		want := "single"
		if a.topic == "same" || a.topic == "conflict" {
			want = a.topic
		}
		if states[a.topic] != want {
			t.Errorf("%s is listed as %q, want %q", a.topic, states[a.topic], want)
		}
	}
	if err := createTopic(ctx, c.node(3).kafkaAddr(), "conflict", 1, 3); err == nil || !strings.Contains(err.Error(), "lockstep adopt conflict") {
		t.Errorf("a topic was created in the place of one that a broker holds: %v", err)
	}
	const live, livePartitions = "live", 3
	c.createTopic(c.node(1), live, livePartitions)
	w := startWorkload(t, c.bootstrap(), live, livePartitions, 20*time.Millisecond, "p1", "p2")
	if err := w.h.waitAcks(ctx, livePartitions, time.Time{}, 50); err != nil {
		t.Fatal(err)
	}

	begin := time.Now()
	adoptCertain(ctx, t, c, certain)
	adopted := time.Since(begin)
	grown := map[string]map[int32]int64{}
	for _, a := range certain[:3] { // while they are being copied
		c.waitLed(a.topic, a.partitions)
		grown[a.topic] = fillTopic(t, c.bootstrap(), a.topic, a.partitions, 1<<20)
	}
	var bytes int64
	for _, a := range certain {
		for _, n := range c.nodes {
			c.waitComplete(ctx, n, a.topic, a.ends)
		}
		bytes += a.before.bytes()
	}
	copied := time.Since(begin)
	t.Logf("11 topics, %d MiB: adopted after %s, on all brokers after %s (%.1f MiB/s); %s was the longest pause of a partition that was written to meanwhile",
		bytes>>20, adopted.Round(10*time.Millisecond), copied.Round(10*time.Millisecond), float64(bytes)/(1<<20)/copied.Seconds(),
		ms(w.h.longestGap([]int32{0, 1, 2}, begin, time.Now())))
	c.waitHealthy()
	for _, a := range certain {
		c.waitLed(a.topic, a.partitions)
		a.same(ctx, t, "through the proxies", c.bootstrap()...)
		a.untouched(t, true)
	}
	group.goOn(ctx, t, c.bootstrap(), grown[group.a.topic])
	c.verify()
	c.trusted(ctx)

	outcomes, err := adopt(ctx, t, c.node(3), "conflict", "--from", "2")
	if err != nil || !slices.Equal(outcomes["conflict"].Result.Aside, []int{1}) {
		t.Fatalf("adopt the topic in conflict from node 2: %+v (%v)", outcomes, err)
	}
	c.waitLed("conflict", conflict.partitions)
	conflict.same(ctx, t, "through the proxies", c.bootstrap()...)
	c.waitComplete(ctx, c.node(3), "conflict", conflict.ends)
	keptAside(ctx, t, c, aside, conflict)
	if _, err := c.node(1).cli(ctx, "rebuild", "conflict", "--force"); err != nil {
		t.Fatal(err)
	}
	c.waitComplete(ctx, c.node(1), "conflict", conflict.ends)
	c.waitHealthy()
	finishLive(ctx, t, c, w, live, livePartitions)
	c.verify()
	withNodeTwoDead(ctx, t, c, all)
}

// adoptCertain adopts everything that needs no choice, and nothing else.
func adoptCertain(ctx context.Context, t *testing.T, c *cluster, certain []*adoptee) {
	t.Helper()
	outcomes, err := adopt(ctx, t, c.node(1), "--all")
	if err == nil || !strings.Contains(outcomes["conflict"].Error, "--from") {
		t.Errorf("the topic in conflict was adopted without a choice: %+v (%v)", outcomes["conflict"], err)
	}
	if o := outcomes["same"]; !slices.Equal(o.Result.Holders, []int{2, 3}) {
		t.Errorf("same records on two brokers: %+v", o)
	}
	for _, a := range certain {
		if o := outcomes[a.topic]; o.Error != "" {
			t.Errorf("adopt %s: %s", a.topic, o.Error)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// keptAside fails the test unless the losing copy of the conflict is on its disk
// as it was, byte for byte, also after its node was killed and came back, while
// the topic takes records.
func keptAside(ctx context.Context, t *testing.T, c *cluster, aside, conflict *adoptee) {
	t.Helper()
	aside.same(ctx, t, "the copy kept aside", aside.on.broker.addr())
	aside.untouched(t, false)
	c.killNode(aside.on.id)
	c.restartNode(aside.on.id)
	waitFor(t, "the node that keeps its copy aside to be back", healthyWithin, aside.on.ready)
	c.waitLed(conflict.topic, conflict.partitions)
	fillTopic(t, c.bootstrap(), conflict.topic, conflict.partitions, 1<<20)
	aside.same(ctx, t, "the copy kept aside, after a restart", aside.on.broker.addr())
	aside.untouched(t, false)
	conflict.untouched(t, true)
}

// finishLive ends the clients that ran all the time, and checks what they saw.
func finishLive(ctx context.Context, t *testing.T, c *cluster, w *workload, topic string, partitions int32) {
	t.Helper()
	if err := w.stopProducing(ctx); err != nil {
		t.Fatalf("wait for the last answers: %v", err)
	}
	if err := w.waitConsumed(ctx); err != nil {
		t.Errorf("the consumer did not reach the last acknowledged record: %v", err)
	}
	c.waitBrokersHold(c.nodes, topic, w.h.ends())
	w.h.check(c.readBrokers(c.nodes, topic, partitions), partitions).report(t)
	sent, acked := w.h.counts()
	t.Logf("%d records sent through the proxies meanwhile, %d acknowledged", sent, acked)
}

// withNodeTwoDead fails the test unless everything is there without the node
// that was the only one to have some of it.
func withNodeTwoDead(ctx context.Context, t *testing.T, c *cluster, all []*adoptee) {
	t.Helper()
	for _, n := range c.nodes {
		for _, a := range all {
			a.same(ctx, t, fmt.Sprintf("broker of node %d", n.id), n.broker.addr())
		}
	}
	c.killNode(2)
	alive := []string{c.node(1).kafkaAddr(), c.node(3).kafkaAddr()}
	for _, a := range all {
		c.waitLed(a.topic, a.partitions)
		a.same(ctx, t, "with node 2 dead", alive...)
	}
	last := all[len(all)-1]
	fillTopic(t, alive, last.topic, last.partitions, 1<<20)
	c.restartNode(2)
	c.waitHealthy()
	c.verify()
}

// TestAdoptionKilled kills nodes with kill -9 while an adopted topic is copied:
// one that copies, then the only one that has it. What it had, and what was
// acknowledged meanwhile, is on all brokers in the end.
func TestAdoptionKilled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	a := &adoptee{topic: "old", partitions: 3}
	c := newClusterWith(t, clusterOpts{
		settings: func(*node) []string { return []string{"recovery.copy_bytes_per_second=1MiB", "topics.adopt=auto"} },
		seed: func(c *cluster) {
			a.on = c.node(2)
			if err := createTopic(ctx, a.on.broker.addr(), a.topic, a.partitions, 1); err != nil {
				t.Fatal(err)
			}
			fillTopic(t, []string{a.on.broker.addr()}, a.topic, a.partitions, 12<<20)
			a.note(ctx, t)
		}})
	waitFor(t, "the topic to be adopted without being asked, and copied in part", time.Minute, func(ctx context.Context) error {
		end, err := endOffset(ctx, c.node(3).broker.addr(), a.topic, 0)
		if err == nil && end == 0 {
			err = fmt.Errorf("the copy ends at %d of %d", end, a.ends[0])
		}
		return err
	})
	c.killNode(3)
	c.waitLed(a.topic, a.partitions) // by the node that has it
	more := fillTopic(t, []string{c.node(1).kafkaAddr(), c.node(2).kafkaAddr()}, a.topic, a.partitions, 1<<20)
	before, err := endOffset(ctx, c.node(1).broker.addr(), a.topic, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.killNode(2)
	c.restartNode(2)
	c.restartNode(3)
	c.waitHealthyWithin(2 * time.Minute)
	t.Logf("node 1 had %d of %d offsets of partition 0 when the only holder was killed", before, a.ends[0])
	for _, n := range c.nodes {
		c.waitComplete(ctx, n, a.topic, more)
		a.same(ctx, t, fmt.Sprintf("broker of node %d", n.id), n.broker.addr())
	}
	a.same(ctx, t, "through the proxies", c.bootstrap()...)
	c.verify()
	c.trusted(ctx)
}
