package fsm

import (
	"fmt"
	"math/rand"
	"slices"
	"testing"
)

// cutAt is the command that takes the batch of a result, and what follows, out
// of the log again.
func (m *machine) cutAt(index uint64, r Result, before uint64) Command {
	return Control(KindCut, Cut{TP: r.TP, Index: index, Offset: r.BaseOffset, Hash: before, Sequence: r.Sequence})
}

// wantRefused applies a command that must change nothing.
func (m *machine) wantRefused(what string, cmd Command, code int16) {
	m.t.Helper()
	before := dump(m.Group)
	r := m.one(cmd)
	if r.Verdict != Rejected || r.Code != code || r.Message == "" {
		m.t.Errorf("%s: %+v, want code %d", what, r, code)
	}
	if after := dump(m.Group); after != before {
		m.t.Errorf("%s was refused, but the state changed from\n%s\nto\n%s", what, before, after)
	}
}

func TestCutRollsBack(t *testing.T) {
	m := openMachine(t)
	m.send(batchSpec{count: 3})
	m.send(batchSpec{pid: 100, count: 2})
	want := *m.Partitions[testTP]
	refused := m.send(batchSpec{pid: 100, seq: 2, count: 4})
	index := m.Index
	m.send(batchSpec{count: 3})
	good := Cut{TP: testTP, Index: index, Offset: 5, Hash: want.Hash, Sequence: 5}
	for what, edit := range map[string]func(*Cut){
		"no entry":              func(c *Cut) { c.Index = 0 },
		"an entry to come":      func(c *Cut) { c.Index = m.Index + 100 },
		"another sequence":      func(c *Cut) { c.Sequence = 4 },
		"within a kept batch":   func(c *Cut) { c.Offset, c.Sequence = 6, 6 },
		"within an older batch": func(c *Cut) { c.Offset, c.Sequence = 4, 4 },
		"within the last batch": func(c *Cut) { c.Offset, c.Sequence = 10, 10 },
	} {
		c := good
		edit(&c)
		m.wantRefused(what, Control(KindCut, c), codeInvalidRequest)
	}
	for _, offset := range []int64{12, 13, 1 << 62, -1} {
		c := good
		c.Offset, c.Sequence = offset, int32(offset)
		m.wantRefused(fmt.Sprint("offset ", offset), Control(KindCut, c), codeOffsetOutOfRange)
	}
	c := good
	c.TP.Partition++
	m.wantRefused("another partition", Control(KindCut, c), codeUnknownTopic)

	r := m.one(m.cutAt(index, refused, want.Hash))
	if r.Verdict != Done || r.TP != testTP || r.BaseOffset != 5 || r.Sequence != 5 || r.Epoch != 0 {
		t.Fatalf("%+v", r)
	}
	p := m.Partitions[testTP]
	if p.NextOffset != 5 || p.Sequence != 5 || p.Hash != want.Hash || p.LastBatch != (Placed{}) {
		t.Errorf("the partition is now %s", dumpPartition(p))
	}
	if want := []Checkpoint{{Offset: 5, Hash: want.Hash, Sequence: 5}}; !slices.Equal(p.Checkpoints, want) {
		t.Errorf("checkpoints %v, want %v", p.Checkpoints, want)
	}
	m.wantRefused("the cut again", m.cutAt(index, refused, want.Hash), codeInvalidRequest)
	if r := m.send(batchSpec{pid: 100, seq: 2, count: 4}); r.Verdict != Appended || r.BaseOffset != 5 || r.Sequence != 5 {
		t.Errorf("the refused batch, sent again: %+v", r)
	}
	m.wantRefused("the cut again, after an append there", m.cutAt(index, refused, want.Hash), codeInvalidRequest)
	wrong := m.cutAt(m.Index, refused, want.Hash+1)
	m.wantRefused("another hash than the checkpoint's", wrong, codeInvalidRequest)
	if r := m.one(m.cutAt(m.Index-3, refused, want.Hash)); r.Verdict != Done {
		t.Errorf("a cut of what came after the cut: %+v", r)
	}
}

func TestCutIsNeverBelowTheLogStart(t *testing.T) {
	m := openMachine(t)
	m.send(batchSpec{count: 3})
	index, before := m.Index+1, m.Partitions[testTP].Hash
	r := m.send(batchSpec{count: 3})
	m.one(Control(KindLogStart, LogStart{TP: testTP, Offset: 4}))
	m.wantRefused("below the log start", m.cutAt(index, r, before), codeOffsetOutOfRange)
}

// A batch that was appended after a cut, in the entry of the cut, can be cut.
func TestCutOfWhatStandsInACutsEntry(t *testing.T) {
	m := openMachine(t)
	first := m.send(batchSpec{})
	results := m.entry(0, m.cutAt(m.Index, first, 0), AppendCommand(testTP, makeBatch(batchSpec{})))
	if results[0].Verdict != Done || results[1].Verdict != Appended || results[1].BaseOffset != 0 {
		t.Fatalf("%+v", results)
	}
	if r := m.one(m.cutAt(m.Index, results[1], 0)); r.Verdict != Done {
		t.Fatalf("%+v", r)
	}
}

// What an idempotent producer may send after its batches were cut, and what it
// is told.
func TestProducersAfterACut(t *testing.T) {
	type step struct {
		epoch   int16
		seq     int32
		verdict Verdict
		code    int16
	}
	// seqs are sent before the cut, from the zero epoch; cut is the one cut.
	cases := map[string]struct {
		seqs   []int32
		cut    int
		forgot bool
		steps  []step
	}{
		"all that there was":            {[]int32{0, 1}, 0, false, []step{{0, 1, Rejected, 45}, {0, 0, Appended, 0}, {0, 1, Appended, 0}, {0, 0, Duplicate, 0}}},
		"the last of some":              {[]int32{0, 1, 2}, 2, false, []step{{0, 1, Duplicate, 0}, {0, 3, Rejected, 45}, {0, 2, Appended, 0}, {0, 3, Appended, 0}}},
		"all that were kept":            {[]int32{0, 1, 2, 3, 4, 5, 6}, 2, false, []step{{0, 1, Rejected, 45}, {0, 3, Rejected, 45}, {0, 2, Appended, 0}, {0, 3, Appended, 0}}},
		"more than were kept":           {[]int32{0, 1, 2, 3, 4, 5, 6}, 1, true, []step{{0, 1, Appended, 0}, {0, 2, Appended, 0}}},
		"the client gives the batch up": {[]int32{0, 1, 2}, 1, false, []step{{1, 2, Rejected, 45}, {1, 0, Appended, 0}, {1, 1, Appended, 0}, {0, 1, Rejected, 47}}},
		"sequences that went round":     {[]int32{0, 1}, 0, false, []step{{0, 1<<31 - 1, Rejected, 45}, {0, 0, Appended, 0}}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := openMachine(t)
			m.send(batchSpec{})
			var cut Command
			for i, seq := range c.seqs {
				before := m.Partitions[testTP].Hash
				r := m.send(batchSpec{pid: 100, seq: seq})
				if r.Verdict != Appended {
					t.Fatalf("%+v", r)
				}
				if i == c.cut {
					cut = m.cutAt(m.Index, r, before)
				}
			}
			if r := m.one(cut); r.Verdict != Done {
				t.Fatalf("%+v", r)
			}
			m.Group = again(t, m.Group)
			if got := m.Partitions[testTP].forgot; got != c.forgot {
				t.Errorf("forgot %t, want %t", got, c.forgot)
			}
			for i, s := range c.steps {
				if r := m.send(batchSpec{pid: 100, epoch: s.epoch, seq: s.seq}); r.Verdict != s.verdict || r.Code != s.code {
					t.Errorf("step %d: %+v, want %+v", i, r, s)
				}
			}
		})
	}
}

// A producer that was forgotten before begins in the middle: what came before
// that may stand anywhere below.
func TestProducerThatBeganAnywhereIsForgottenByADeepCut(t *testing.T) {
	for name, c := range map[string]struct {
		at      int // of the batches, which one is cut
		verdict Verdict
	}{
		"at its first batch": {1, Rejected},
		"below it":           {0, Appended},
	} {
		t.Run(name, func(t *testing.T) {
			m := openMachine(t)
			m.Partitions[testTP].forgot = true
			first := m.send(batchSpec{})
			index := m.Index
			cut := m.cutAt(index, first, 0)
			if before := m.Partitions[testTP].Hash; c.at == 1 {
				r := m.send(batchSpec{pid: 100, seq: 77})
				cut = m.cutAt(m.Index, r, before)
			} else {
				m.send(batchSpec{pid: 100, seq: 77})
			}
			if r := m.one(cut); r.Verdict != Done {
				t.Fatalf("%+v", r)
			}
			if r := m.send(batchSpec{pid: 100, seq: 70}); r.Verdict != c.verdict {
				t.Errorf("%+v, want verdict %d", r, c.verdict)
			}
		})
	}
}

// A client that begins a new epoch gives what is in flight new sequences: the
// epoch is all that counts after a cut, however deep.
func TestProducerAfterACutBelowItsEpoch(t *testing.T) {
	m := openMachine(t)
	first := m.send(batchSpec{pid: 100})
	index := m.Index
	for seq := range int32(6) {
		m.send(batchSpec{pid: 100, seq: 1 + seq})
	}
	m.send(batchSpec{pid: 100, epoch: 1})
	if r := m.one(m.cutAt(index, first, 0)); r.Verdict != Done {
		t.Fatalf("%+v", r)
	}
	for i, s := range []struct {
		epoch int16
		seq   int32
		code  int16
	}{{0, 0, 47}, {1, 1, 45}, {1, 0, 0}, {1, 1, 0}} {
		if r := m.send(batchSpec{pid: 100, epoch: s.epoch, seq: s.seq}); r.Code != s.code {
			t.Errorf("step %d: %+v, want code %d", i, r, s.code)
		}
	}
}

// TestCutThenAppendIsAsIfNeverAppended compares a log from which a random tail
// was cut with one that never had it, when the producers send theirs again.
func TestCutThenAppendIsAsIfNeverAppended(t *testing.T) {
	for seed := range int64(60) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { cutAndAgain(t, rand.New(rand.NewSource(seed))) })
	}
}

// sender is the producers of a random load. They begin a new epoch only with
// nothing in flight: clients give what is in flight new sequences then.
type sender struct {
	rnd      *rand.Rand
	next     map[int64]batchSpec
	inFlight map[int64]int // counted by the test
}

func (s *sender) batch() batchSpec {
	pid := int64(s.rnd.Intn(6))
	b := s.next[pid]
	if pid > 0 {
		b.pid = 100 + pid
	}
	b.count, b.fill = int32(1+s.rnd.Intn(3)), byte(s.rnd.Intn(256))
	if s.rnd.Intn(10) == 0 && s.inFlight[b.pid] == 0 {
		b.epoch, b.seq = b.epoch+1, 0
	}
	after := b
	after.seq = addSequence(b.seq, b.count)
	s.next[pid] = after
	return b
}

func cutAndAgain(t *testing.T, rnd *rand.Rand) {
	load := &sender{rnd: rnd, next: make(map[int64]batchSpec), inFlight: make(map[int64]int)}
	a := openMachine(t)
	if rnd.Intn(2) == 0 {
		a.one(Control(KindRecover, Recover{Number: 3}))
	}
	for range rnd.Intn(40) {
		a.send(load.batch())
	}
	b := &machine{t, again(t, a.Group)}

	// What is cut: at most five batches of each producer.
	var cut []batchSpec
	index, hash := a.Index+1, a.Partitions[testTP].Hash
	var first Result
	for range 1 + rnd.Intn(25) {
		s := load.batch()
		cut = append(cut, s)
		if load.inFlight[s.pid]++; load.inFlight[s.pid] > keptBatches && s.pid > 0 {
			break
		}
		r := a.send(s)
		if r.Verdict != Appended {
			t.Fatalf("%+v", r)
		}
		if len(cut) == 1 {
			first = r
		}
		if rnd.Intn(20) == 0 && s.pid == 0 {
			a.one(Control(KindRecover, Recover{Number: 7}))
			b.one(Control(KindRecover, Recover{Number: 7}))
		}
	}
	if r := a.one(a.cutAt(index, first, hash)); r.Verdict != Done {
		t.Fatalf("%+v", r)
	}
	if rnd.Intn(2) == 0 {
		a.Group = again(t, a.Group)
	}
	// The producers send again, each in its order, then more.
	for range 30 {
		cut = append(cut, load.batch())
	}
	for i, s := range cut {
		x, y := a.send(s), b.send(s)
		if show(&x) != show(&y) || x.Verdict != Appended {
			t.Fatalf("batch %d %+v:\nafter a cut %s\nnever there %s", i, s, show(&x), show(&y))
		}
	}
	p, q := a.Partitions[testTP], b.Partitions[testTP]
	if p.NextOffset != q.NextOffset || p.Sequence != q.Sequence || p.Hash != q.Hash || p.LastBatch != q.LastBatch ||
		p.Epoch != q.Epoch || p.EpochStart != q.EpochStart || p.LogStart != q.LogStart || p.forgot != q.forgot {
		t.Errorf("after a cut:\n%s\nnever there:\n%s", dumpPartition(p), dumpPartition(q))
	}
	for pid, e := range q.producers {
		x, y := *p.producers[pid].Value.(*producer), *e.Value.(*producer)
		if x.epoch != y.epoch || x.lastSeq != y.lastSeq || !slices.Equal(x.kept, y.kept) {
			t.Errorf("producer %d: after a cut %+v, never there %+v", pid, x, y)
		}
	}
}

func TestLogStartRises(t *testing.T) {
	m := openMachine(t)
	m.send(batchSpec{count: 10})
	raise := func(offset int64) Command { return Control(KindLogStart, LogStart{TP: testTP, Offset: offset}) }
	for _, s := range []struct{ offset, want int64 }{{4, 4}, {3, 4}, {-1, 4}, {4, 4}, {10, 10}, {0, 10}} {
		if r := m.one(raise(s.offset)); r.Verdict != Done || r.TP != testTP || r.BaseOffset != s.want || m.Partitions[testTP].LogStart != s.want {
			t.Errorf("raised to %d: %+v, log start %d, want %d", s.offset, r, m.Partitions[testTP].LogStart, s.want)
		}
	}
	m.wantRefused("beyond the end", raise(11), codeOffsetOutOfRange)
	m.wantRefused("not open", Control(KindLogStart, LogStart{TP: TP{9, 9}}), codeUnknownTopic)
	if r := m.send(batchSpec{}); r.BaseOffset != 10 {
		t.Errorf("the next batch stands at %d", r.BaseOffset)
	}
}

func TestRecoverBeginsAnEpoch(t *testing.T) {
	m := openMachine(t)
	m.send(batchSpec{pid: 100, count: 4})
	other := m.Only(testTP)
	for _, s := range []struct{ number, want int16 }{{2, 2}, {1, 2}, {2, 2}, {-5, 2}} {
		start, seq := m.Partitions[testTP].EpochStart, m.Partitions[testTP].Sequence
		if s.number > 0 && s.want == s.number && start == 0 {
			start, seq = 4, 0
		}
		m.one(Control(KindRecover, Recover{Number: s.number}))
		if p := m.Partitions[testTP]; m.Recovery != s.want || p.Epoch != s.want || p.EpochStart != start || p.Sequence != seq || p.NextOffset != 4 {
			t.Fatalf("recovery %d: %s", s.number, dump(m.Group))
		}
	}
	// The client's producer is nobody's business here: it goes on.
	r := m.send(batchSpec{pid: 100, seq: 4})
	if r.Verdict != Appended || r.Epoch != 2 || r.Sequence != 0 || r.BaseOffset != 4 {
		t.Fatalf("%+v", r)
	}
	if l := m.Partitions[testTP].LastBatch; l != (Placed{Base: 4, Count: 1, CRC: r.CRC, Sequence: 0, Epoch: 2}) {
		t.Errorf("last batch %+v", l)
	}
	m.one(Control(KindOpen, Open{Level: 2, Topic: 7, Name: "t", Total: 4, Partitions: []int32{0}}))
	if r := m.one(AppendCommand(TP{7, 0}, makeBatch(batchSpec{}))); r.Epoch != 2 {
		t.Errorf("a partition opened after the recovery: %+v", r)
	}
	if _, err := other.Apply(other.Index+1, EncodeEntry(0, []Command{Control(KindRecover, Recover{Number: 2})})); err != nil || other.Partitions[testTP].Epoch != 2 {
		t.Errorf("a copy of one partition: %v, %s", err, dump(other))
	}
}

// A cut behind the beginning of the epoch begins the epoch there: no broker
// takes a new epoch but from sequence 0.
func TestCutBehindARecovery(t *testing.T) {
	m := openMachine(t)
	m.send(batchSpec{count: 4})
	before := m.Partitions[testTP].Hash
	refused := m.send(batchSpec{count: 2})
	index := m.Index
	m.one(Control(KindRecover, Recover{Number: 1}))
	m.send(batchSpec{count: 3})
	if r := m.one(m.cutAt(index, refused, before)); r.Verdict != Done || r.BaseOffset != 4 || r.Sequence != 0 || r.Epoch != 1 {
		t.Fatalf("%+v", r)
	}
	if r := m.send(batchSpec{}); r.BaseOffset != 4 || r.Sequence != 0 || r.Epoch != 1 {
		t.Errorf("%+v", r)
	}
	if p := m.Partitions[testTP]; p.EpochStart != 4 || p.Checkpoints[0].Sequence != 0 {
		t.Errorf("%s", dumpPartition(p))
	}
}
