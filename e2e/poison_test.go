//go:build e2e

package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// poisonMarker makes the test build take a batch unchecked.
const poisonMarker = "lockstep.test.poison"

// record is one record as it is encoded in a batch.
func record(offsetDelta int32, value string) []byte {
	r := kmsg.NewRecord()
	r.OffsetDelta, r.Value = offsetDelta, []byte(value)
	r.Length = int32(len(r.AppendTo(nil)) - 1)
	return r.AppendTo(nil)
}

// poisons are batches that no broker may take, by what is wrong with them. Their
// headers are in order: that is what the state machine rests on.
var poisons = map[string]struct {
	records    []byte
	count      int32
	attributes int16
	code       int16 // Kafka 4.3's answer
}{
	"garbage":                             {records: []byte(poisonMarker + " and no records"), count: 1, code: 87},
	"a record fewer than the header says": {records: append(record(0, poisonMarker), record(1, "b")...), count: 3, code: 87},
	"a record more than the header says":  {records: append(record(0, poisonMarker), record(1, "b")...), count: 1, code: 87},
	"gzip, a record fewer":                {records: append(gzipped(append(record(0, "a"), record(1, "b")...)), poisonMarker...), count: 3, attributes: 1, code: 87},
	"gzip that is none":                   {records: []byte(poisonMarker + " and no gzip"), count: 1, attributes: 1, code: -1},
	"snappy that is none":                 {records: []byte(poisonMarker + " and no snappy"), count: 1, attributes: 2, code: -1},
	"lz4 that is none":                    {records: []byte(poisonMarker + " and no lz4"), count: 1, attributes: 3, code: -1},
	"zstd that is none":                   {records: []byte(poisonMarker + " and no zstd"), count: 1, attributes: 4, code: -1},
	"an unknown codec":                    {records: []byte(poisonMarker + " and no codec"), count: 1, attributes: 5, code: -1},
}

func gzipped(raw []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(raw)
	_ = w.Close()
	return b.Bytes()
}

// poisoned returns a batch of poisons, of no idempotent producer.
func poisoned(name string) []byte {
	p := poisons[name]
	b := kmsg.NewRecordBatch()
	b.Magic, b.PartitionLeaderEpoch, b.Attributes = 2, -1, p.attributes
	b.LastOffsetDelta, b.NumRecords = p.count-1, p.count
	b.FirstTimestamp = time.Now().UnixMilli()
	b.MaxTimestamp = b.FirstTimestamp
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = -1, -1, -1
	b.Records = p.records
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], castagnoli))
	return raw
}

// TestKafkaRefusesPoison holds a real broker to how it refuses what it cannot
// read: with a code that says that the batch is at fault, or where it has no code
// for that, with UNKNOWN_SERVER_ERROR every time. None may be taken.
func TestKafkaRefusesPoison(t *testing.T) {
	b := newBroker(t, runDir(t)+"/kafka", 11)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	const topic = "facts"
	if err := createLocalTopic(ctx, b.addr(), topic, 1); err != nil {
		t.Fatal(err)
	}
	for name, p := range poisons {
		for range 2 {
			base, code, _, err := rawProduceBytes(ctx, b.addr(), topic, 0, poisoned(name), 5*time.Second)
			if err != nil || code != p.code {
				t.Errorf("%s: base offset %d, error %v, %v; want %v", name, base, kerr.ErrorForCode(code), err, kerr.ErrorForCode(p.code))
			}
		}
	}
	if end, err := endOffset(ctx, b.addr(), topic, 0); err != nil || end != 0 {
		t.Errorf("the log ends at %d, %v: something was taken", end, err)
	}
}

// poisonRun is a cluster under load that is given poison. The partitions of the
// other topic have clients of their own: Kafka answers a Produce request as a
// whole, and what shares one with the poisoned partition waits with it. Its
// methods are called from the test goroutine only.
type poisonRun struct {
	t      *testing.T
	ctx    context.Context
	c      *cluster
	w      *workload // of the poisoned topic's one partition
	others *workload
}

const (
	poisonTopic = "poisoned"
	otherTopic  = "others"
	otherParts  = 6
)

// settle returns when every partition goes on.
func (r *poisonRun) settle() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, settleWithin)
	defer cancel()
	now := time.Now()
	if err := errors.Join(r.w.h.waitAcks(ctx, 1, now, 10), r.others.h.waitAcks(ctx, otherParts, now, 10)); err != nil {
		r.t.Fatal(err)
	}
}

// gaps are the longest pauses since begin, of the poisoned partition and of the
// other one that waited longest.
func (r *poisonRun) gaps(begin time.Time) (own, others time.Duration) {
	now := time.Now()
	return r.w.h.worstGap([]int32{0}, begin, now), r.others.h.worstGap([]int32{0, 1, 2, 3, 4, 5}, begin, now)
}

// leader returns the leader of the partition that gets the poison.
func (r *poisonRun) leader() (n *node) {
	r.t.Helper()
	waitFor(r.t, "a leader", 30*time.Second, func(ctx context.Context) error {
		led, err := partitionLeaders(ctx, r.c.nodes[0], poisonTopic, 1)
		if err == nil {
			n = r.c.node(led[0])
		}
		return err
	})
	return n
}

var refusedOffset = regexp.MustCompile(`refuses a committed batch for good.* offset=(\d+) `)

// refused returns when a node, whose log had so many lines that say so before,
// says of another batch that its broker refuses it, and where.
func (r *poisonRun) refused(n *node, before int) (offset string) {
	r.t.Helper()
	waitFor(r.t, "a refusal", 30*time.Second, func(context.Context) error {
		lines := n.logLines("refuses a committed batch for good")
		if len(lines) <= before {
			return fmt.Errorf("node %d says nothing", n.id)
		}
		m := refusedOffset.FindStringSubmatch(lines[len(lines)-1])
		if m == nil {
			r.t.Fatalf("no offset in %q", lines[len(lines)-1])
		}
		offset = m[1]
		return nil
	})
	return offset
}

// cutEverywhere returns when every node took the batch at an offset out.
func (r *poisonRun) cutEverywhere(offset string) {
	r.t.Helper()
	waitFor(r.t, "the cut at offset "+offset, 30*time.Second, func(context.Context) error {
		for _, n := range r.c.nodes {
			if !slices.ContainsFunc(n.logLines("was cut out of the log, with what followed it"), func(s string) bool {
				return strings.HasSuffix(s, " offset="+offset)
			}) {
				return fmt.Errorf("node %d did not", n.id)
			}
		}
		return nil
	})
}

// TestPoisonedBatch: a batch that the checks let through and every broker refuses
// delays its own partition only, and is cut; its producer is told; nothing
// acknowledged is touched; a kill in between changes nothing. A batch that one
// broker alone refuses costs that broker its copy, until it is made anew.
func TestPoisonedBatch(t *testing.T) {
	c := newClusterWith(t, clusterOpts{program: &sabotaged})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c.createTopic(c.node(1), poisonTopic, 1)
	c.createTopic(c.node(1), otherTopic, otherParts)
	r := &poisonRun{t: t, ctx: ctx, c: c}
	r.w = startWorkload(t, c.bootstrap(), poisonTopic, 1, 20*time.Millisecond, "p1")
	r.others = startWorkload(t, c.bootstrap(), otherTopic, otherParts, 20*time.Millisecond, "p2")
	r.settle()
	begin := time.Now()
	if err := r.others.h.waitAcks(ctx, otherParts, begin, 200); err != nil {
		t.Fatal(err)
	}
	own, others := r.gaps(begin)
	t.Logf("longest gaps without poison: %s, others %s", ms(own), ms(others))

	for _, name := range []string{"garbage", "gzip that is none"} {
		r.poison(name)
	}
	r.killed()
	r.oneRefuses()

	flush, cancelFlush := context.WithTimeout(ctx, time.Minute)
	defer cancelFlush()
	for _, w := range []*workload{r.w, r.others} {
		if err := w.stopProducing(flush); err != nil {
			t.Errorf("wait for the last answers: %v", err)
		}
	}
	for topic, w := range map[string]*workload{poisonTopic: r.w, otherTopic: r.others} {
		parts := int32(len(w.h.ends()))
		c.waitBrokersHold(c.nodes, topic, w.h.ends())
		w.h.check(c.readBrokers(c.nodes, topic, parts), parts).report(t)
	}
	c.verify()
}

// poisonLimit is the longest pause that poison may give to other partitions. The
// poisoned one itself waits longer where the broker says UNKNOWN_SERVER_ERROR.
const poisonLimit = time.Second

func (r *poisonRun) poison(name string) {
	t, want := r.t, poisons[name].code
	t.Helper()
	lead := r.leader()
	before := len(lead.logLines("refuses a committed batch for good"))
	counted := map[int]float64{}
	for _, n := range r.c.nodes {
		counted[n.id] = metric(t, n, `lockstep_recoveries_total{path="cut"}`)
	}
	begin := time.Now()
	_, code, msg, err := rawProduceBytes(r.ctx, lead.kafkaAddr(), poisonTopic, 0, poisoned(name), 25*time.Second)
	if err != nil || code != want {
		t.Fatalf("%s: answered %v %q, %v; want %v", name, kerr.ErrorForCode(code), msg, err, kerr.ErrorForCode(want))
	}
	answered := time.Since(begin)
	offset := r.refused(lead, before)
	r.cutEverywhere(offset)
	r.settle()
	own, others := r.gaps(begin)
	if others > poisonLimit {
		t.Errorf("%s: another partition paused for %s, want at most %s", name, ms(others), poisonLimit)
	}
	for _, n := range r.c.nodes {
		if now := metric(t, n, `lockstep_recoveries_total{path="cut"}`); now != counted[n.id]+1 {
			t.Errorf("%s: node %d counts %v cuts, before it were %v", name, n.id, now, counted[n.id])
		}
	}
	t.Logf("%s at offset %s: producer told %v after %s; longest gap of its partition %s, of others %s",
		name, offset, kerr.ErrorForCode(code), ms(answered), ms(own), ms(others))
}

// killed kills the leader of the poisoned partition when it and another node
// refuse the batch. The third node is down until then: it must be asked too.
func (r *poisonRun) killed() {
	t := r.t
	t.Helper()
	lead := r.leader()
	two := r.c.others(lead.id)
	awake, away := two[0], two[1]
	before := map[int]int{}
	for _, n := range r.c.nodes {
		before[n.id] = len(n.logLines("refuses a committed batch for good"))
	}
	kill := func(n *node) {
		t.Helper()
		if err := n.proc.kill9(); err != nil {
			t.Fatal(err)
		}
	}
	kill(away)
	lead, other := r.leaderAmong(lead, awake)
	gone := make(chan error, 1)
	go func() {
		_, code, _, err := rawProduceBytes(r.ctx, lead.kafkaAddr(), poisonTopic, 0, poisoned("garbage"), 25*time.Second)
		if err == nil {
			err = fmt.Errorf("answered %w", kerr.ErrorForCode(code))
		}
		gone <- err
	}()
	offset := r.refused(lead, before[lead.id])
	if same := r.refused(other, before[other.id]); same != offset {
		t.Fatalf("refused at offset %s on node %d, %s on node %d", offset, lead.id, same, other.id)
	}
	if slices.ContainsFunc(lead.logLines("was cut out of the log, with what followed it"), func(s string) bool { return strings.HasSuffix(s, " offset="+offset) }) {
		t.Fatal("cut although one node could not be asked")
	}
	kill(lead)
	t.Logf("killed the leader after the refusal at offset %s: its producer got %v", offset, <-gone)
	begin := time.Now()
	lead.startProxy(t)
	away.startProxy(t)
	r.c.waitHealthy()
	r.cutEverywhere(offset)
	r.settle()
	t.Logf("cut, healthy and going on %s after both were started", ms(time.Since(begin)))
}

// leaderAmong returns which of two nodes leads the partition, and the other.
func (r *poisonRun) leaderAmong(a, b *node) (lead, other *node) {
	r.t.Helper()
	waitFor(r.t, "a leader", 30*time.Second, func(ctx context.Context) error {
		led, err := partitionLeaders(ctx, a, poisonTopic, 1)
		if err != nil {
			return err
		}
		switch lead, other = a, b; led[0] {
		case a.id:
			return nil
		case b.id:
			lead, other = b, a
			return nil
		}
		return fmt.Errorf("node %d leads, which is down", led[0])
	})
	return lead, other
}

// oneRefuses has somebody change a setting of the topic on a follower's broker,
// so that it alone refuses a batch.
func (r *poisonRun) oneRefuses() {
	t := r.t
	t.Helper()
	lead := r.leader()
	n := r.c.others(lead.id)[0]
	if err := setTopic(r.ctx, n.broker.addr(), poisonTopic, "max.message.bytes", "50000"); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	b := batch{producerID: -1, epoch: -1, sequence: -1}
	for range 1000 {
		b.values = append(b.values, payload("large", r.w.h.sent("large", 0), 0))
	}
	base, code, err := rawProduce(r.ctx, lead.kafkaAddr(), poisonTopic, 0, b)
	if err != nil || code != 0 {
		t.Fatalf("a batch that one broker refuses: answered %v, %v", kerr.ErrorForCode(code), err)
	}
	for i := range b.values {
		r.w.h.ack("large", i, base+int64(i), time.Now())
	}
	acked := time.Since(begin)
	waitFor(t, "a quarantine", 30*time.Second, func(context.Context) error {
		if len(n.logLines("partition quarantined")) == 0 {
			return fmt.Errorf("node %d keeps its copy", n.id)
		}
		return nil
	})
	noticed := time.Since(begin)
	if got := metric(t, n, `lockstep_quarantines_total{cause="refused"}`); got != 1 {
		t.Errorf("node %d counts %v quarantines because of a refusal, want 1: %v", n.id, got, n.logLines("partition quarantined"))
	}
	r.settle()
	r.c.waitHealthy()
	t.Logf("refused by node %d alone: acknowledged after %s, out of service after %s, rebuilt and healthy after %s",
		n.id, ms(acked), ms(noticed), ms(time.Since(begin)))
}

// setTopic changes one setting of a topic at one broker.
func setTopic(ctx context.Context, addr, topic, name, value string) error {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.SetVersion(1)
	res := kmsg.NewIncrementalAlterConfigsRequestResource()
	res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	c.Name, c.Op, c.Value = name, kmsg.IncrementalAlterConfigOpSet, &value
	res.Configs = append(res.Configs, c)
	req.Resources = append(req.Resources, res)
	resp, err := rawCall[*kmsg.IncrementalAlterConfigsResponse](ctx, addr, req)
	if err != nil {
		return err
	}
	if len(resp.Resources) != 1 || resp.Resources[0].ErrorCode != 0 {
		return fmt.Errorf("set %s of topic %s at %s: %+v", name, topic, addr, resp.Resources)
	}
	return nil
}
