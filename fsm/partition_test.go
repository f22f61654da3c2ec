package fsm

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"

	"lockstep/kafkawire"
)

func TestPartitionGivesOffsetsSequencesAndTheHash(t *testing.T) {
	m := openMachine(t)
	var offset, hash uint64
	var seq int32
	for i, count := range []int32{1, 5, 1, 300} {
		b := makeBatch(batchSpec{count: count, size: 10 + i, fill: byte(i)})
		r := m.one(AppendCommand(testTP, b))
		crc := kafkawire.Batch(kafkawire.Stamp(nil, b, ApplierProducerBase+7, 0, seq)).CRC()
		if r.Verdict != Appended || r.TP != testTP || r.BaseOffset != int64(offset) || r.Count != count || r.Sequence != seq || r.CRC != crc || r.Below != hash {
			t.Fatalf("batch %d: %+v, want offset %d, sequence %d, crc %x", i, r, offset, seq, crc)
		}
		hash = ChainHash(hash, int64(offset), len(b), crc)
		offset += uint64(count)
		seq += count
	}
	p := m.Partitions[testTP]
	if p.NextOffset != int64(offset) || p.Sequence != seq || p.Hash != hash {
		t.Errorf("partition ends at offset %d, sequence %d, hash %x; want %d, %d, %x", p.NextOffset, p.Sequence, p.Hash, offset, seq, hash)
	}
}

func TestChainHashTellsOrderAndEveryField(t *testing.T) {
	seen := map[uint64]string{0: "the empty log"}
	note := func(what string, h uint64) {
		t.Helper()
		if old, ok := seen[h]; ok {
			t.Errorf("%s hashes like %s", what, old)
		}
		seen[h] = what
	}
	a := ChainHash(0, 0, 100, 1)
	note("one batch", a)
	note("another offset", ChainHash(0, 1, 100, 1))
	note("another length", ChainHash(0, 0, 101, 1))
	note("another crc", ChainHash(0, 0, 100, 2))
	note("two", ChainHash(a, 1, 100, 2))
	note("two in the other order", ChainHash(ChainHash(0, 1, 100, 2), 0, 100, 1))
}

// The rules are Kafka's: ProducerAppendInfo.checkProducerEpoch and
// checkSequence, ProducerStateEntry.findDuplicateBatch.
func TestProducerRules(t *testing.T) {
	const pid = ClientProducerBase
	type step struct {
		epoch      int16
		seq, count int32
		verdict    Verdict
		code       int16
		offset     int64 // Appended, Duplicate
		dupCount   int32 // Duplicate: of the original
	}
	ok := func(epoch int16, seq, count int32, offset int64) step {
		return step{epoch: epoch, seq: seq, count: count, verdict: Appended, offset: offset}
	}
	dup := func(epoch int16, seq, count int32, offset int64) step {
		return step{epoch: epoch, seq: seq, count: count, verdict: Duplicate, offset: offset, dupCount: count}
	}
	no := func(epoch int16, seq, count int32, code int16) step {
		return step{epoch: epoch, seq: seq, count: count, verdict: Rejected, code: code}
	}
	cases := map[string][]step{
		"in order":                        {ok(0, 0, 2, 0), ok(0, 2, 3, 2), ok(0, 5, 1, 5)},
		"new producer begins at 0":        {no(4, 777, 2, 45), ok(4, 0, 2, 0), ok(4, 2, 1, 2)},
		"forgotten producer, any":         {ok(4, 777, 2, 0), ok(4, 779, 1, 2)},
		"repeat of the last":              {ok(0, 0, 2, 0), dup(0, 0, 2, 0), ok(0, 2, 1, 2)},
		"repeat of the fifth last":        {ok(0, 0, 1, 0), ok(0, 1, 1, 1), ok(0, 2, 1, 2), ok(0, 3, 1, 3), ok(0, 4, 1, 4), dup(0, 0, 1, 0)},
		"repeat of the sixth last":        {ok(0, 0, 1, 0), ok(0, 1, 1, 1), ok(0, 2, 1, 2), ok(0, 3, 1, 3), ok(0, 4, 1, 4), ok(0, 5, 1, 5), no(0, 0, 1, 45), dup(0, 1, 1, 1)},
		"gap":                             {ok(0, 0, 2, 0), no(0, 3, 1, 45), ok(0, 2, 1, 2)},
		"overlap is no repeat":            {ok(0, 0, 2, 0), no(0, 0, 3, 45), no(0, 1, 1, 45)},
		"older epoch":                     {ok(3, 0, 1, 0), no(2, 1, 1, 47), no(2, 0, 1, 47), ok(3, 1, 1, 1)},
		"newer epoch begins at 0":         {ok(0, 0, 2, 0), no(1, 2, 1, 45), ok(1, 0, 1, 2), ok(1, 1, 1, 3), no(0, 2, 1, 47)},
		"newer epoch forgets the batches": {ok(0, 0, 1, 0), ok(1, 0, 1, 1), dup(1, 0, 1, 1), ok(1, 1, 1, 2)},
		"refused newer epoch leaves none": {ok(0, 0, 1, 0), no(1, 5, 1, 45), ok(0, 1, 1, 1)},
		"forgotten, wrap":                 {ok(0, math.MaxInt32-1, 1, 0), ok(0, math.MaxInt32, 1, 1), ok(0, 0, 1, 2), dup(0, math.MaxInt32, 1, 1)},
		"forgotten, wrap inside a batch":  {ok(0, math.MaxInt32-1, 4, 0), ok(0, 2, 1, 4), dup(0, math.MaxInt32-1, 4, 0), no(0, 1, 1, 45)},
	}
	for name, steps := range cases {
		t.Run(name, func(t *testing.T) {
			m := openMachine(t)
			// As if another producer had been pushed out before.
			m.Partitions[testTP].forgot = strings.HasPrefix(name, "forgotten")
			for i, s := range steps {
				before := dump(m.Group)
				r := m.send(batchSpec{pid: pid, epoch: s.epoch, seq: s.seq, count: s.count})
				if r.Verdict != s.verdict || r.Code != s.code || s.verdict != Rejected && r.BaseOffset != s.offset {
					t.Fatalf("step %d: verdict %d code %d offset %d, want %+v", i, r.Verdict, r.Code, r.BaseOffset, s)
				}
				if s.verdict == Duplicate && r.Count != s.dupCount {
					t.Fatalf("step %d: the original has %d records, told %d", i, s.dupCount, r.Count)
				}
				if after := dump(m.Group); s.verdict != Appended && after != before {
					t.Fatalf("step %d: nothing was appended, but the state changed from\n%s\nto\n%s", i, before, after)
				}
			}
		})
	}
}

// Two producers and two partitions know nothing of each other.
func TestProducersAreSeparate(t *testing.T) {
	m := openMachine(t)
	m.one(Control(KindOpen, Open{Level: 2, Topic: 7, Name: "t", Total: 4, Partitions: []int32{0}}))
	m.send(batchSpec{pid: 100, seq: 0})
	if r := m.send(batchSpec{pid: 101, seq: 0}); r.Verdict != Appended || r.BaseOffset != 1 {
		t.Errorf("another producer: %+v", r)
	}
	if r := m.one(AppendCommand(TP{7, 0}, makeBatch(batchSpec{pid: 100, seq: 0}))); r.Verdict != Appended || r.BaseOffset != 0 {
		t.Errorf("another partition: %+v", r)
	}
	// No producer, no repeats.
	for want := range int64(3) {
		if r := m.send(batchSpec{}); r.Verdict != Appended || r.BaseOffset != want+2 {
			t.Errorf("without a producer: %+v", r)
		}
	}
}

func TestProducersExpireByEntriesAlone(t *testing.T) {
	m := openMachine(t)
	m.send(batchSpec{pid: 100, seq: 0})
	steps := ProducerExpiryMs / MaxElapsedMs
	for range steps {
		m.entry(math.MaxUint32) // counts as MaxElapsedMs, whatever the leader's clock says
	}
	if m.ClockMs != ProducerExpiryMs {
		t.Fatalf("clock stands at %d, want %d", m.ClockMs, ProducerExpiryMs)
	}
	if r := m.send(batchSpec{pid: 100, seq: 50}); r.Code != 45 {
		t.Fatalf("at the limit, not beyond it, the producer is known: %+v", r)
	}
	m.entry(1)
	if r := m.send(batchSpec{pid: 100, seq: 50}); r.Verdict != Appended {
		t.Fatalf("a producer that expired may begin anywhere: %+v", r)
	}
	if r := m.send(batchSpec{pid: 100, seq: 0}); r.Code != 45 {
		t.Fatalf("its batches from before are forgotten: %+v", r)
	}
}

// A leader whose clock is ahead, by an hour or by weeks, expires nobody: it is
// one step of a minute at most, on every node alike (design-review, finding 18).
func TestALeaderAheadExpiresNothing(t *testing.T) {
	for name, ahead := range map[string]uint32{"an hour": 3600_000, "49 days": math.MaxUint32} {
		m := openMachine(t)
		for pid := range int64(20) {
			m.send(batchSpec{pid: 100 + pid})
		}
		m.entry(ahead)
		if m.ClockMs != MaxElapsedMs {
			t.Errorf("%s: the clock went on by %d ms", name, m.ClockMs)
		}
		m.Group = again(t, m.Group)
		for pid := range int64(20) {
			if r := m.send(batchSpec{pid: 100 + pid}); r.Verdict != Duplicate || r.BaseOffset != pid {
				t.Errorf("%s: producer %d was forgotten: %+v", name, pid, r)
			}
		}
		if m.Partitions[testTP].forgot {
			t.Errorf("%s: somebody was forgotten", name)
		}
	}
}

func TestOldestProducerLeavesFirst(t *testing.T) {
	m := openMachine(t)
	for i := range int64(MaxProducers) {
		m.send(batchSpec{pid: 1000 + i, seq: 0})
	}
	m.send(batchSpec{pid: 1000, seq: 1})        // used again: 1001 is now the oldest
	m.send(batchSpec{pid: 1001, seq: 7})        // refused: that is no use
	m.send(batchSpec{pid: 1001, seq: 0})        // a repeat: nor is that
	m.send(batchSpec{pid: 1000 + MaxProducers}) // 1001 leaves
	if n := len(m.Partitions[testTP].producers); n != MaxProducers {
		t.Fatalf("%d producers are remembered, want %d", n, MaxProducers)
	}
	if r := m.send(batchSpec{pid: 1000, seq: 1}); r.Verdict != Duplicate {
		t.Errorf("the producer used last but one was forgotten: %+v", r)
	}
	if r := m.send(batchSpec{pid: 1001, seq: 0}); r.Verdict != Appended {
		t.Errorf("the oldest producer is still known: %+v", r)
	}
}

// What no admission lets through changes nothing, and stops no node: its
// arithmetic would move offsets back.
func TestInadmissibleBatches(t *testing.T) {
	put32 := func(at int, v uint32) func([]byte) {
		return func(b []byte) { binary.BigEndian.PutUint32(b[at:], v) }
	}
	attr := func(v byte) func([]byte) { return func(b []byte) { b[22] = v } }
	cases := map[string]batchSpec{
		"count 0":               {mutate: put32(57, 0)},
		"count negative":        {mutate: func(b []byte) { put32(57, math.MaxUint32)(b); put32(23, math.MaxUint32-1)(b) }},
		"delta above count":     {count: 2, mutate: put32(23, 5)},
		"delta below count":     {count: 2, mutate: put32(23, 0)},
		"transactional":         {pid: 100, mutate: attr(0x10)},
		"control":               {mutate: attr(0x20)},
		"producer, no sequence": {pid: 100, seq: -1},
		"producer, no epoch":    {pid: 100, epoch: -1},
	}
	for name, s := range cases {
		t.Run(name, func(t *testing.T) {
			m := openMachine(t)
			before := dump(m.Group)
			if r := m.send(s); r.Verdict != Rejected || r.Code != 87 || r.Message == "" {
				t.Errorf("%+v, want INVALID_RECORD", r)
			}
			if after := dump(m.Group); after != before {
				t.Errorf("the state changed from\n%s\nto\n%s", before, after)
			}
		})
	}
}

// dump writes a group's whole state but Index and clock, in a fixed order.
func dump(g *Group) string {
	s := fmt.Sprintf("level %d shape %d recovery %d\n", g.Level, g.Shape, g.Recovery)
	for topic := range uint64(20) {
		if o := g.Topics[topic]; o != nil {
			s += fmt.Sprintf("%+v\n", *o)
		}
		for n := range int32(20) {
			if p := g.Partitions[TP{topic, n}]; p != nil {
				s += dumpPartition(p)
			}
		}
	}
	if g.Catalog != nil {
		s += dumpCatalog(g.Catalog)
	}
	return s
}

func dumpPartition(p *Partition) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s %s next %d seq %d hash %x known %d forgot %v\n", p.TP, p.Name, p.NextOffset, p.Sequence, p.Hash, len(p.producers), p.forgot)
	fmt.Fprintf(&s, "  start %d epoch %d from %d last %+v checkpoints %+v %+v cut %d\n", p.LogStart, p.Epoch, p.EpochStart, p.LastBatch, p.Checkpoints, p.marks, p.lastCut)
	for e := p.recent.Front(); e != nil; e = e.Next() {
		pr := e.Value.(*producer)
		if p.producers[pr.id] != e {
			s.WriteString("LOST ")
		}
		fmt.Fprintf(&s, "  %+v\n", *pr)
	}
	return s.String()
}
