package fsm

import (
	"fmt"
	"math/rand"
	"testing"
)

// TestReplicasAgree feeds the same random entries to two state machines and to
// copies that follow one partition each, made at random points. All must give
// the same verdicts and end in the same state.
func TestReplicasAgree(t *testing.T) {
	for seed := range int64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { replicasAgree(t, rand.New(rand.NewSource(seed))) })
	}
}

func replicasAgree(t *testing.T, rnd *rand.Rand) {
	gen := &generator{rnd: rnd, next: make(map[TP]int32), last: make(map[TP]batchSpec)}
	group := uint32(rnd.Intn(2))
	a, b := NewGroup(group), NewGroup(group)
	only := make(map[TP]*Group)
	var appended, duplicates, rejected int
	for index := uint64(1); index <= 400; index++ {
		if rnd.Intn(20) == 0 { // Raft's own
			continue
		}
		data := gen.entry(index)
		ra, err := a.Apply(index, data)
		if err != nil {
			t.Fatal(err)
		}
		rb, err := b.Apply(index, append([]byte(nil), data...))
		if err != nil {
			t.Fatal(err)
		}
		for i := range ra {
			if x, y := show(&ra[i]), show(&rb[i]); x != y {
				t.Fatalf("index %d command %d:\n%s\n%s", index, i, x, y)
			}
			switch ra[i].Verdict {
			case Appended:
				appended++
			case Duplicate:
				duplicates++
			case Rejected:
				rejected++
			}
		}
		for tp, g := range only {
			ro, err := g.Apply(index, data)
			if err != nil {
				t.Fatal(err)
			}
			for i := range ro {
				if ra[i].Kind == KindAppend && ra[i].TP == tp && show(&ro[i]) != show(&ra[i]) {
					t.Fatalf("index %d command %d, %s alone:\n%s\n%s", index, i, tp, show(&ro[i]), show(&ra[i]))
				}
			}
		}
		if tp := gen.tp(); rnd.Intn(30) == 0 {
			only[tp] = b.Only(tp)
		}
	}
	if dump(a) != dump(b) || a.Index != b.Index || a.ClockMs != b.ClockMs {
		t.Fatalf("two replicas differ:\n%s\n%s", dump(a), dump(b))
	}
	for tp, g := range only {
		p, q := a.Partitions[tp], g.Partitions[tp]
		if (p == nil) != (q == nil) || p != nil && dumpPartition(p) != dumpPartition(q) || g.Level != a.Level || g.ClockMs != a.ClockMs {
			t.Errorf("%s alone differs", tp)
		}
		if len(g.Partitions) > 1 {
			t.Errorf("%s alone follows %d partitions", tp, len(g.Partitions))
		}
	}
	if appended < 50 || duplicates < 5 || rejected < 5 || len(only) < 3 {
		t.Errorf("too little happened: %d appended, %d duplicates, %d rejected, %d copies", appended, duplicates, rejected, len(only))
	}
}

// show writes a result without what is only a pointer.
func show(r *Result) string {
	return fmt.Sprint(r.Kind, r.Verdict, r.Code, r.Message, r.TP, len(r.Batch), r.BaseOffset, r.Count, r.Sequence, r.CRC,
		r.Opened, r.Closed, r.Topic, r.FirstN)
}

// generator makes entries in which every rule is met now and then.
type generator struct {
	rnd   *rand.Rand
	level uint64
	next  map[TP]int32 // the sequence that the partition's producer would send next
	last  map[TP]batchSpec
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
	case n < 2:
		return Control(KindClose, Close{Level: g.levelAt(index), Topic: tp.Topic, Name: "t"})
	case n < 14 || index < 4:
		return Control(KindOpen, Open{Level: g.levelAt(index), Topic: tp.Topic, Name: "t", Total: 3, Partitions: []int32{tp.Partition, 0}})
	case n < 17:
		return Control(KindCreateTopic, CreateTopic{Name: fmt.Sprint("t", g.rnd.Intn(5)), Partitions: 3, Groups: 2})
	case n < 18:
		return Control(KindDeleteTopic, DeleteTopic{Topic: tp.Topic})
	case n < 19:
		return Control(KindTopicClosed, TopicClosed{Topic: tp.Topic})
	case n < 20:
		return Control(KindAllocateProducers, AllocateProducers{Count: int64(g.rnd.Intn(3))})
	}
	return AppendCommand(tp, makeBatch(g.batch(tp)))
}

// levelAt is now and then one that is behind.
func (g *generator) levelAt(index uint64) uint64 {
	if g.rnd.Intn(5) == 0 {
		return g.level - min(g.level, 1)
	}
	g.level = index
	return index
}

func (g *generator) batch(tp TP) batchSpec {
	s := batchSpec{count: int32(1 + g.rnd.Intn(4)), size: g.rnd.Intn(50), fill: byte(g.rnd.Intn(256))}
	if g.rnd.Intn(4) == 0 {
		return s
	}
	s.pid, s.seq = 100+int64(g.rnd.Intn(40)/39), g.next[tp]
	switch g.rnd.Intn(14) {
	case 0, 1:
		if last, ok := g.last[tp]; ok {
			return last
		}
	case 2:
		s.seq++ // a gap
	case 3:
		s.epoch = int16(g.rnd.Intn(3))
		s.seq = 0
	case 4:
		s.seq = 1<<31 - 2
	}
	g.next[tp], g.last[tp] = addSequence(s.seq, s.count), s
	return s
}

// TestOnlySharesNothing changes a copy and looks at the original.
func TestOnlySharesNothing(t *testing.T) {
	m := openMachine(t)
	for i := range int32(7) {
		m.send(batchSpec{pid: 100, seq: i})
		m.send(batchSpec{pid: 200, seq: i})
	}
	before := dump(m.Group)
	only := &machine{t, m.Only(testTP)}
	if dumpPartition(only.Partitions[testTP]) != dumpPartition(m.Partitions[testTP]) {
		t.Fatal("the copy is another")
	}
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
