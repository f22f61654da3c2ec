//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
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
		got, err := int64(-1), error(nil)
		for _, addr := range bootstrap { // one of them leads
			if got, err = listOffset(ctx, addr, a.topic, p, -2); err == nil {
				break
			}
		}
		if err != nil || got != start {
			t.Errorf("%s: %s/%d begins at %d, was %d before (%v)", who, a.topic, p, got, start, err)
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

// makeAdoptees fills twelve topics on the brokers: ten that one broker has,
// the first of them with its beginning deleted; one that two have with the same
// records; and one with other records on a second broker.
func makeAdoptees(ctx context.Context, t *testing.T, c *cluster) (all []*adoptee, aside *adoptee) {
	t.Helper()
	each := int64(envInt(t, "ADOPT_BYTES", 24<<20)) / 12
	make1 := func(topic string, on *node, partitions int32) *adoptee {
		if err := createTopic(ctx, on.broker.addr(), topic, partitions, 1); err != nil {
			t.Fatal(err)
		}
		return &adoptee{topic: topic, on: on, partitions: partitions}
	}
	for i := range 10 {
		a := make1(fmt.Sprintf("old-%02d", i), c.nodes[i%3], int32(1+i%4))
		if i == 0 {
			a.topic, a.partitions = "begun", 3
			make1(a.topic, a.on, a.partitions)
		}
		fillTopic(t, []string{a.on.broker.addr()}, a.topic, a.partitions, each)
		all = append(all, a)
	}
	begun := all[0]
	begun.note(ctx, t)
	for p, start := range map[int32]int64{0: begun.ends[0]/2 + 1, 1: begun.ends[1] - 1, 2: begun.ends[2]} {
		if err := deleteRecords(ctx, begun.on.broker.addr(), begun.topic, p, start); err != nil {
			t.Fatal(err)
		}
	}
	same := make1("same", c.node(2), 2)
	make1("same", c.node(3), 2)
	fillSame(ctx, t, c.node(2), same)
	fillSame(ctx, t, c.node(3), same)
	conflict := make1("conflict", c.node(2), 2)
	aside = make1("conflict", c.node(1), 2)
	fillTopic(t, []string{conflict.on.broker.addr()}, "conflict", 2, each)
	fillTopic(t, []string{aside.on.broker.addr()}, "conflict", 2, each/2)
	aside.note(ctx, t)
	all = append(all, same, conflict)
	for _, a := range all {
		a.note(ctx, t)
	}
	commitOld(ctx, t, begun, begun.starts[0]+3)
	return all, aside
}

// oldGroup committed an offset of partition 0 before any proxy was there.
const oldGroup = "readers"

func commitOld(ctx context.Context, t *testing.T, a *adoptee, offset int64) {
	t.Helper()
	req := kmsg.NewPtrOffsetCommitRequest()
	req.SetVersion(5)
	req.Group, req.Generation = oldGroup, -1
	tp, p := kmsg.NewOffsetCommitRequestTopic(), kmsg.NewOffsetCommitRequestTopicPartition()
	p.Offset = offset
	tp.Topic, tp.Partitions = a.topic, append(tp.Partitions, p)
	req.Topics = append(req.Topics, tp)
	waitFor(t, "the broker to take a commit", time.Minute, func(ctx context.Context) error {
		find := kmsg.NewPtrFindCoordinatorRequest() // it makes its topic of offsets when it is asked
		find.SetVersion(3)
		find.CoordinatorKey = oldGroup
		if _, err := rawCall[*kmsg.FindCoordinatorResponse](ctx, a.on.broker.addr(), find); err != nil {
			return err
		}
		resp, err := rawCall[*kmsg.OffsetCommitResponse](ctx, a.on.broker.addr(), req)
		if err != nil {
			return err
		}
		return kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
	})
}

// committedOld waits for what the cluster says that the old group has committed.
func committedOld(ctx context.Context, t *testing.T, c *cluster, a *adoptee, want int64) {
	t.Helper()
	waitFor(t, "the offsets of a group from before", time.Minute, func(ctx context.Context) error {
		id, err := findCoordinator(ctx, c, oldGroup)
		if err != nil {
			return err
		}
		got, err := committedOffsets(ctx, c.node(id).kafkaAddr(), oldGroup, a.topic, a.partitions)
		if err == nil && (got[0] != want || got[1] != -1) {
			t.Errorf("the group from before has committed %v, want %d of partition 0", got, want)
		}
		return err
	})
}

// fillSame writes the same batches to any broker.
func fillSame(ctx context.Context, t *testing.T, n *node, a *adoptee) {
	t.Helper()
	cl, err := kgo.NewClient(append(clientOpts([]string{n.broker.addr()}), kgo.DefaultProduceTopic(a.topic),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.UnknownTopicRetries(-1))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	at := time.Now().Truncate(time.Hour)
	for i := range 40 {
		r := &kgo.Record{Partition: int32(i) % a.partitions, Key: []byte(strconv.Itoa(i)), Value: []byte(strings.Repeat("v", 100+i)), Timestamp: at}
		if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAdoption starts proxies in front of brokers that hold topics already. What
// one broker has is adopted with its offsets and copied to the others; what two
// have with different records waits for the operator's choice, and the other
// copy stays as it is until it is given up. ADOPT_BYTES is how much there is.
func TestAdoption(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	var all []*adoptee
	var aside *adoptee
	c := newClusterWith(t, clusterOpts{seed: func(c *cluster) { all, aside = makeAdoptees(ctx, t, c) }})
	conflict := all[len(all)-1]

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

	begin := time.Now()
	outcomes, err := adopt(ctx, t, c.node(1), "--all")
	if err == nil || !strings.Contains(outcomes["conflict"].Error, "--from") {
		t.Errorf("the topic in conflict was adopted without a choice: %+v (%v)", outcomes["conflict"], err)
	}
	if o := outcomes["same"]; !slices.Equal(o.Result.Holders, []int{2, 3}) {
		t.Errorf("same records on two brokers: %+v", o)
	}
	for _, a := range all[:len(all)-1] {
		if o := outcomes[a.topic]; o.Error != "" {
			t.Errorf("adopt %s: %s", a.topic, o.Error)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	adopted := time.Since(begin)
	for _, a := range all[:len(all)-1] {
		c.waitLed(a.topic, a.partitions)
		a.same(ctx, t, "through the proxies", c.bootstrap()...)
		for _, n := range c.nodes {
			c.waitComplete(ctx, n, a.topic, a.ends)
		}
	}
	c.waitHealthy()
	committedOld(ctx, t, c, all[0], all[0].starts[0]+3)
	t.Logf("11 topics adopted in %s, read and on all brokers after %s", adopted.Round(10*time.Millisecond), time.Since(begin).Round(100*time.Millisecond))
	c.verify()
	c.trusted(ctx)

	if outcomes, err = adopt(ctx, t, c.node(3), "conflict", "--from", "2"); err != nil || !slices.Equal(outcomes["conflict"].Result.Aside, []int{1}) {
		t.Fatalf("adopt the topic in conflict from node 2: %+v (%v)", outcomes, err)
	}
	c.waitLed("conflict", conflict.partitions)
	conflict.same(ctx, t, "through the proxies", c.bootstrap()...)
	c.waitComplete(ctx, c.node(3), "conflict", conflict.ends)
	aside.same(ctx, t, "the copy kept aside", aside.on.broker.addr())
	if _, err := c.node(1).cli(ctx, "rebuild", "conflict", "--force"); err != nil {
		t.Fatal(err)
	}
	c.waitComplete(ctx, c.node(1), "conflict", conflict.ends)
	c.waitHealthy()
	c.verify()

	for _, a := range all[:3] {
		fillTopic(t, c.bootstrap(), a.topic, a.partitions, 1<<20)
	}
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
	fillTopic(t, alive, "conflict", conflict.partitions, 1<<20)
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
