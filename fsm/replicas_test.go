package fsm

import (
	"bytes"
	"fmt"
	"math/rand"
	"testing"
)

// TestReplicasAgree feeds the same random entries to two state machines, one of
// which is encoded and decoded at random points, and to copies that follow one
// partition each, made at random points. All must give the same verdicts and
// end in the same state.
func TestReplicasAgree(t *testing.T) {
	done := make(map[Kind]int)
	var appended, duplicates, rejected int
	for seed := range int64(10) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			counts := replicasAgree(t, rand.New(rand.NewSource(seed)), done)
			appended, duplicates, rejected = appended+counts[Appended], duplicates+counts[Duplicate], rejected+counts[Rejected]
		})
	}
	if appended < 5000 || duplicates < 400 || rejected < 400 {
		t.Errorf("too little happened: %d appended, %d duplicates, %d rejected", appended, duplicates, rejected)
	}
	for _, k := range []Kind{KindOpen, KindClose, KindLogStart, KindCut, KindRecover, KindCreateTopic, KindTopicOpened, KindDeleteTopic,
		KindTopicClosed, KindAllocateProducers, KindTakeRebuild, KindEndRebuild, KindCommitOffsets, KindDeleteGroup, KindDeleteOffsets,
		KindCreateACLs, KindDeleteACLs, KindAlterQuotas} {
		if done[k] < 10 {
			t.Errorf("kind %d took effect %d times only", k, done[k])
		}
	}
}

func replicasAgree(t *testing.T, rnd *rand.Rand, done map[Kind]int) map[Verdict]int {
	group := uint32(rnd.Intn(2))
	a, b := NewGroup(group), NewGroup(group)
	gen := &generator{rnd: rnd, state: a, last: make(map[TP]batchSpec), log: make(map[TP][]placedAt)}
	only := make(map[TP]*Group)
	counts := make(map[Verdict]int)
	for index := uint64(1); index <= 800; index++ {
		if rnd.Intn(20) == 0 { // Raft's own
			continue
		}
		data := gen.entry(index)
		ra := applyTo(t, a, index, data)
		rb := applyTo(t, b, index, append([]byte(nil), data...))
		for i := range ra {
			if x, y := show(&ra[i]), show(&rb[i]); x != y {
				t.Fatalf("index %d command %d:\n%s\n%s", index, i, x, y)
			}
			counts[ra[i].Verdict]++
			if ra[i].Verdict == Done {
				done[ra[i].Kind]++
			}
			gen.saw(index, &ra[i])
		}
		for tp, g := range only {
			for i, ro := range applyTo(t, g, index, data) {
				if follows(&ra[i]) && ra[i].TP == tp && show(&ro) != show(&ra[i]) {
					t.Fatalf("index %d command %d, %s alone:\n%s\n%s", index, i, tp, show(&ro), show(&ra[i]))
				}
			}
		}
		if rnd.Intn(25) == 0 {
			b = again(t, b)
		}
		if tp := gen.tp(); rnd.Intn(30) == 0 {
			only[tp] = b.Only(tp)
		}
	}
	if dump(a) != dump(b) || !bytes.Equal(a.Encode(), b.Encode()) {
		t.Fatalf("two replicas differ:\n%s\n%s", dump(a), dump(b))
	}
	for tp, g := range only {
		p, q := a.Partitions[tp], g.Partitions[tp]
		if (p == nil) != (q == nil) || p != nil && dumpPartition(p) != dumpPartition(q) || g.Level != a.Level || g.ClockMs != a.ClockMs || g.Recovery != a.Recovery {
			t.Errorf("%s alone differs", tp)
		}
		if p != nil && (len(g.Topics) != 1 || fmt.Sprint(*g.Topics[tp.Topic]) != fmt.Sprint(*a.Topics[tp.Topic])) || p == nil && len(g.Topics) != 0 {
			t.Errorf("%s alone has topics %v", tp, g.Topics)
		}
		if len(g.Partitions) > 1 {
			t.Errorf("%s alone follows %d partitions", tp, len(g.Partitions))
		}
	}
	if len(only) < 3 {
		t.Errorf("too little happened: %d copies", len(only))
	}
	return counts
}

// follows says whether a result is one partition's.
func follows(r *Result) bool {
	return r.Kind == KindAppend || r.Kind == KindLogStart || r.Kind == KindCut
}

func applyTo(t *testing.T, g *Group, index uint64, data []byte) []Result {
	t.Helper()
	results, err := g.Apply(index, data)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// show writes a result without what is only a pointer.
func show(r *Result) string {
	return fmt.Sprint(r.Kind, r.Verdict, r.Code, r.Message, r.TP, len(r.Batch), r.BaseOffset, r.Count, r.Sequence, r.Epoch, r.CRC, r.Below,
		r.Opened, r.Closed, r.Topic, r.FirstN)
}

// generator makes entries in which every rule is met now and then.
type generator struct {
	rnd   *rand.Rand
	state *Group // that the entries are for: looked at, never changed
	level uint64
	last  map[TP]batchSpec
	log   map[TP][]placedAt // what stands in each partition
}

// placedAt is a batch in a log: what a cut there must name.
type placedAt struct {
	index        uint64
	base         int64
	sequence     int32
	before, hash uint64 // of the log before and after it
}

// saw keeps the log of the partitions.
func (g *generator) saw(index uint64, r *Result) {
	switch {
	case r.Verdict == Appended:
		log := g.log[r.TP]
		var before uint64
		if len(log) > 0 {
			before = log[len(log)-1].hash
		}
		hash := ChainHash(before, r.BaseOffset, len(r.Batch), r.CRC)
		g.log[r.TP] = append(log, placedAt{index, r.BaseOffset, r.Sequence, before, hash})
	case r.Kind == KindCut && r.Verdict == Done:
		log := g.log[r.TP]
		for len(log) > 0 && log[len(log)-1].base >= r.BaseOffset {
			log = log[:len(log)-1]
		}
		g.log[r.TP] = log
	case r.Kind == KindClose:
		for _, tp := range r.Closed {
			delete(g.log, tp)
		}
	}
}

func (g *generator) tp() TP {
	return TP{Topic: uint64(1 + g.rnd.Intn(3)), Partition: int32(g.rnd.Intn(3))}
}

func (g *generator) entry(index uint64) []byte {
	cmds := make([]Command, 1+g.rnd.Intn(5))
	for i := range cmds {
		cmds[i] = g.command(index)
	}
	elapsed := uint32(g.rnd.Intn(1000))
	if g.rnd.Intn(10) == 0 {
		elapsed = g.rnd.Uint32()
	}
	return EncodeEntry(elapsed, cmds)
}

func (g *generator) command(index uint64) Command {
	tp := g.tp()
	switch n := g.rnd.Intn(100); {
	case n < 1:
		return Control(KindClose, Close{Level: g.levelAt(index), Topic: tp.Topic, Name: "t"})
	case n < 14 || index < 4:
		return Control(KindOpen, Open{Level: g.levelAt(index), Topic: tp.Topic, Name: "t", Total: 3, Partitions: []int32{tp.Partition, 0}})
	case n < 22:
		return g.catalogCommand(tp.Topic)
	case n < 25:
		return Control(KindLogStart, g.logStart(tp))
	case n < 28:
		return Control(KindCut, g.cut(tp))
	case n < 29:
		return Control(KindRecover, Recover{Number: g.state.Recovery + int16(g.rnd.Intn(3)-1)})
	}
	return AppendCommand(tp, makeBatch(g.batch(tp)))
}

func (g *generator) catalogCommand(topic uint64) Command {
	if c := g.state.Catalog; c != nil && c.nextTopic > 4 {
		topic += c.nextTopic - 4
	}
	node := int32(1 + g.rnd.Intn(3))
	switch g.rnd.Intn(14) {
	case 0:
		return Control(KindDeleteTopic, DeleteTopic{Topic: topic})
	case 1:
		return Control(KindTopicClosed, TopicClosed{Topic: topic})
	case 2:
		return Control(KindAllocateProducers, AllocateProducers{Count: int64(g.rnd.Intn(3))})
	case 3:
		return Control(KindTopicOpened, TopicOpened{Topic: topic, Partitions: 3})
	case 4:
		return Control(KindTakeRebuild, TakeRebuild{Topic: topic, Node: node})
	case 5:
		return Control(KindEndRebuild, EndRebuild{Topic: topic, Node: node})
	case 6:
		return Control(KindAssignCoordinators, AssignCoordinators{Slots: []SlotAssignment{{Slot: g.rnd.Intn(CoordinatorSlots), Node: node}}})
	case 9, 10, 11, 12, 13:
		return g.offsetsCommand(topic)
	case 7:
		return Control(KindRegisterNode, RegisterNode{Node: CatalogNode{ID: node, Incarnation: "i", Rack: fmt.Sprint(g.rnd.Intn(3))}})
	}
	return Control(KindCreateTopic, CreateTopic{Name: fmt.Sprint("t", g.rnd.Intn(5)), Partitions: 3, Groups: 2, Config: map[string]string{"k": "v"}})
}

// offsetsCommand is of one of four groups in a slot that has been assigned.
func (g *generator) offsetsCommand(topic uint64) Command {
	name := fmt.Sprint("g", g.rnd.Intn(4))
	slot, epoch := g.rnd.Intn(CoordinatorSlots), int64(0)
	if c := g.state.Catalog; c != nil {
		for n, s := range c.Coordinators {
			if s.Epoch != 0 {
				slot, epoch = n, s.Epoch
			}
		}
		for id := range c.nextTopic {
			if c.Topics[id] != nil {
				topic = id
			}
		}
	}
	tp := TP{topic, int32(g.rnd.Intn(4))}
	switch g.rnd.Intn(12) {
	case 8, 11:
		return g.accessCommand(numbered(0, 10)[g.rnd.Intn(10)])
	case 0, 4, 9:
		return Control(KindDeleteGroup, DeleteGroup{Group: []byte(name), Slot: slot, Epoch: epoch})
	case 1, 5, 10:
		return Control(KindDeleteOffsets, DeleteOffsets{Group: []byte(name), Slot: slot, Epoch: epoch, Partitions: []TP{tp}})
	case 2:
		return Control(KindTouchGroups, TouchGroups{Groups: [][]byte{[]byte(name)}})
	case 3:
		return Control(KindExpireOffsets, ExpireOffsets{RetentionMs: g.rnd.Int63n(200_000)})
	}
	return CommitCommand([]OffsetCommit{{Group: name, Slot: slot, Epoch: epoch, Member: g.rnd.Intn(2) == 0, RetentionMs: -1,
		Offsets: []OffsetToCommit{{tp, g.rnd.Int63n(100), ""}, {TP{topic, 0}, g.rnd.Int63n(100), "m"}}}})
}

func (g *generator) accessCommand(acl ACL) Command {
	switch g.rnd.Intn(3) {
	case 0:
		return Control(KindCreateACLs, CreateACLs{ACLs: []ACL{acl, anACL("all")}})
	case 1:
		return Control(KindDeleteACLs, DeleteACLs{ACLs: []ACL{acl}})
	}
	return Control(KindAlterQuotas, AlterQuotas{Changes: []QuotaChange{{Quota: aQuota(acl.Name), Value: g.rnd.Float64()},
		{Quota: aQuota("t1"), Gone: true}}})
}

func (g *generator) logStart(tp TP) LogStart {
	a := LogStart{TP: tp, Offset: g.rnd.Int63n(100)}
	if p := g.state.Partitions[tp]; p != nil {
		a.Offset = p.LogStart + g.rnd.Int63n(p.NextOffset-p.LogStart+3) - 1
	}
	return a
}

// cut is mostly one that has an effect.
func (g *generator) cut(tp TP) Cut {
	a := Cut{TP: tp, Index: 1, Offset: g.rnd.Int63n(10)}
	if log := g.log[tp]; len(log) > 0 {
		b := log[len(log)-1-g.rnd.Intn(min(len(log), 12))]
		a = Cut{TP: tp, Index: b.index, Offset: b.base, Hash: b.before, Sequence: b.sequence}
	}
	if g.rnd.Intn(8) == 0 {
		a.Offset++
	}
	return a
}

// levelAt is now and then one that is behind.
func (g *generator) levelAt(index uint64) uint64 {
	if g.rnd.Intn(5) == 0 {
		return g.level - min(g.level, 1)
	}
	g.level = index
	return index
}

// batch is mostly the one that its producer would send next.
func (g *generator) batch(tp TP) batchSpec {
	s := batchSpec{count: int32(1 + g.rnd.Intn(4)), size: g.rnd.Intn(50), fill: byte(g.rnd.Intn(256))}
	if g.rnd.Intn(4) == 0 {
		return s
	}
	s.pid = 100 + int64(g.rnd.Intn(40)/39)
	if p := g.state.Partitions[tp]; p != nil && p.producers[s.pid] != nil {
		pr := p.producers[s.pid].Value.(*producer)
		s.epoch, s.seq = pr.epoch, addSequence(pr.lastSeq, 1)
	}
	switch g.rnd.Intn(14) {
	case 0, 1:
		if last, ok := g.last[tp]; ok {
			return last
		}
	case 2:
		s.seq++ // a gap
	case 3:
		s.epoch += int16(g.rnd.Intn(3) - 1)
		s.epoch, s.seq = max(s.epoch, 0), 0
	case 4:
		s.seq = 1<<31 - 2
	}
	g.last[tp] = s
	return s
}

// TestOnlySharesNothing changes a copy and looks at the original.
func TestOnlySharesNothing(t *testing.T) {
	m := openMachine(t)
	for i := range int32(7) {
		m.send(batchSpec{pid: 100, seq: i})
		m.send(batchSpec{pid: 200, seq: i})
	}
	m.send(batchSpec{size: CheckpointBytes})
	before := dump(m.Group)
	only := &machine{t, m.Only(testTP)}
	if dumpPartition(only.Partitions[testTP]) != dumpPartition(m.Partitions[testTP]) {
		t.Fatal("the copy is another")
	}
	only.one(Control(KindRecover, Recover{Number: 1})) // changes a checkpoint
	for i := range int32(9) {
		only.send(batchSpec{pid: 100, seq: 7 + i})
		only.send(batchSpec{pid: 300, seq: i})
	}
	only.one(Control(KindClose, Close{Level: 9, Topic: testTP.Topic, Name: "t"}))
	if after := dump(m.Group); after != before {
		t.Errorf("changing the copy changed the original from\n%s\nto\n%s", before, after)
	}
	if other := m.Only(TP{99, 0}); len(other.Partitions) != 0 {
		t.Error("a copy of a partition that is not open holds one")
	}
}
