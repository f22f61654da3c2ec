package fsm

import (
	"bytes"
	"math"
	"slices"
	"testing"

	"lockstep/kafkawire"
)

// adoptedLog is two batches of strangers from an offset on, as a broker holds
// them, and what they are adopted as.
func adoptedLog(topic uint64, start int64) ([]byte, AdoptedPartition) {
	p := AdoptedPartition{Start: start, End: start}
	var raw []byte
	for _, s := range []batchSpec{{pid: 17, epoch: 3, seq: 40, count: 3, size: 20, fill: 1}, {count: 2, size: 30, fill: 2}} {
		b := makeBatch(s)
		copy(b[:8], appendOffset(nil, p.End))
		raw = append(raw, b...)
		stamped := kafkawire.Batch(slices.Clone(b))
		kafkawire.StampInPlace(stamped, ApplierProducerID(topic), 0, AdoptedSequence(p.End))
		p.Hash = ChainHash(p.Hash, p.End, len(stamped), stamped.CRC())
		p.Last = Placed{Base: p.End, Count: b.Count(), CRC: stamped.CRC(), Sequence: AdoptedSequence(p.End)}
		p.End += int64(b.Count())
		p.Checkpoints = append(p.Checkpoints, Checkpoint{Offset: p.End, Hash: p.Hash, Sequence: AdoptedSequence(p.End)})
	}
	return raw, p
}

func appendOffset(b []byte, offset int64) []byte {
	for i := 56; i >= 0; i -= 8 {
		b = append(b, byte(offset>>i))
	}
	return b
}

func TestAnAdoptedPartitionGoesOnWhereItsLogEnds(t *testing.T) {
	for _, start := range []int64{0, 100, math.MaxInt32 - 2} {
		_, p := adoptedLog(testTP.Topic, start)
		m := newMachine(t, 1)
		m.entry(0, Control(KindRecover, Recover{Number: 2}))
		open := Open{Level: 1, Topic: testTP.Topic, Name: "t", Total: 4, Partitions: []int32{3},
			Adopted: &Adopted{Holders: []string{"a"}, Partitions: []AdoptedPartition{{}, {}, {}, p}}}
		if r := m.one(Control(KindOpenAdopted, open)); r.Verdict != Done || !slices.Equal(r.Opened, []TP{testTP}) {
			t.Fatalf("open: %+v", r)
		}
		got := m.Partitions[testTP]
		if got.NextOffset != p.End || got.LogStart != start || got.Hash != p.Hash || got.LastBatch != p.Last {
			t.Errorf("it begins as %+v, want %+v", got, p)
		}
		if got.Epoch != 2 || got.EpochStart != p.End || got.Sequence != 0 {
			t.Errorf("after two recoveries it begins with epoch %d from %d, sequence %d", got.Epoch, got.EpochStart, got.Sequence)
		}
		if birth := open.Birth(testTP, 2); dump(&Group{Partitions: map[TP]*Partition{testTP: birth}}) != dump(&Group{Partitions: map[TP]*Partition{testTP: got}}) {
			t.Error("its birth is not what was opened")
		}
		// A producer from before may go on with any sequence.
		r := m.send(batchSpec{pid: 1 << 41, seq: 77, size: 9})
		if r.Verdict != Appended || r.BaseOffset != p.End || r.Below != p.Hash {
			t.Errorf("the next batch: %+v", r)
		}
		again(t, m.Group)
		// The Open stays with the topic through a change of its settings.
		m.one(Control(KindConfig, Config{Level: 2, Topic: testTP.Topic, Name: "t", Revision: 9}))
		if m.Topics[testTP.Topic].AdoptedEnd(3) != p.End {
			t.Error("new settings made it forget where it was adopted")
		}
	}
}

func TestWithoutRecoverySequencesGoOn(t *testing.T) {
	_, p := adoptedLog(testTP.Topic, math.MaxInt32-2)
	m := newMachine(t, 1)
	m.one(Control(KindOpenAdopted, Open{Level: 1, Topic: testTP.Topic, Name: "t", Total: 4, Partitions: []int32{3},
		Adopted: &Adopted{Holders: []string{"a"}, Partitions: []AdoptedPartition{{}, {}, {}, p}}}))
	if r := m.send(batchSpec{size: 5}); r.Epoch != 0 || r.Sequence != AdoptedSequence(p.End) || r.Sequence != 2 {
		t.Errorf("the next batch has epoch %d sequence %d at offset %d", r.Epoch, r.Sequence, r.BaseOffset)
	}
}

func TestAsCommittedStampsWhatOthersWroteBelowTheEnd(t *testing.T) {
	raw, p := adoptedLog(7, 100)
	before := bytes.Clone(raw)
	got := AsCommitted(7, p.End, raw)
	if !bytes.Equal(raw, before) {
		t.Error("it wrote to what it was given")
	}
	hash, rest := uint64(0), got
	for len(rest) > 0 {
		b, next, err := kafkawire.ParseBatch(rest)
		if err != nil {
			t.Fatal(err)
		}
		if !b.ChecksumOK() || b.ProducerID() != ApplierProducerID(7) || b.ProducerEpoch() != 0 || b.BaseSequence() != AdoptedSequence(b.BaseOffset()) {
			t.Errorf("the batch at %d has producer %d epoch %d sequence %d, checksum right: %t", b.BaseOffset(), b.ProducerID(), b.ProducerEpoch(), b.BaseSequence(), b.ChecksumOK())
		}
		hash = ChainHash(hash, b.BaseOffset(), len(b), b.CRC())
		rest = next
	}
	if hash != p.Hash {
		t.Errorf("its hash is %016x, want %016x", hash, p.Hash)
	}
	if again := AsCommitted(7, p.End, got); &again[0] != &got[0] {
		t.Error("what has the identity was copied once more")
	}
	if above := AsCommitted(7, 100, raw); !bytes.Equal(above, before) {
		t.Error("a batch above the end was stamped: a stranger's write would go unnoticed")
	}
	inside := AsCommitted(7, p.End-1, raw)
	if last := inside[len(inside)-61-30:]; !bytes.Equal(last, before[len(before)-61-30:]) {
		t.Error("a batch that passes over the end was stamped")
	}
	damaged := bytes.Clone(raw)
	damaged[70]++
	if got := AsCommitted(7, p.End, damaged); !bytes.Equal(got[:81], damaged[:81]) {
		t.Error("a damaged batch got a checksum that fits")
	}
	if got := AsCommitted(7, p.End, raw[:len(raw)-5]); !bytes.Equal(got[81:], raw[81:len(raw)-5]) {
		t.Error("half a batch was changed")
	}
}

func TestATopicIsAdoptedUnderTheIdReservedForIt(t *testing.T) {
	m := newMachine(t, CatalogGroup)
	reserve := func(name string) Command { return Control(KindReserveTopic, ReserveTopic{Name: name}) }
	adopt := func(id uint64, name string, p AdoptedPartition) Command {
		return Control(KindAdoptTopic, AdoptTopic{Topic: id, Name: name, Groups: 3, Config: map[string]string{"retention.ms": "5"},
			Adopted: &Adopted{Holders: []string{"a"}, Partitions: []AdoptedPartition{p, p}}})
	}
	first := m.want("reserve", reserve("a"), Done, 0).Topic
	id := m.want("reserve again", reserve("a"), Done, 0).Topic
	again(t, m.Group)
	_, p := adoptedLog(id, 0)
	m.want("under an older reservation", adopt(first, "a", p), Rejected, CodeNotReserved)
	m.want("under another name", adopt(id, "b", p), Rejected, CodeNotReserved)
	for name, edit := range map[string]func(*AdoptedPartition){
		"start above end":         func(p *AdoptedPartition) { p.Start = p.End + 1 },
		"last batch elsewhere":    func(p *AdoptedPartition) { p.Last.Base++ },
		"last batch's sequence":   func(p *AdoptedPartition) { p.Last.Sequence++ },
		"checkpoints in a mess":   func(p *AdoptedPartition) { slices.Reverse(p.Checkpoints) },
		"checkpoint below":        func(p *AdoptedPartition) { p.Start = 4 },
		"another hash at the end": func(p *AdoptedPartition) { p.Hash++ },
	} {
		bad := p
		bad.Checkpoints = slices.Clone(p.Checkpoints)
		edit(&bad)
		m.want(name, adopt(id, "a", bad), Rejected, codeInvalidRequest)
	}
	m.want("adopt", adopt(id, "a", p), Done, 0)
	m.want("once more", adopt(id, "a", p), Rejected, CodeNotReserved)
	m.want("a name that is taken", reserve("a"), Rejected, codeTopicExists)
	top := m.Catalog.TopicByName("a")
	if top == nil || top.ID != id || len(top.Groups) != 2 || top.Adopted == nil || top.Revision != 1 || top.State != TopicOpening {
		t.Fatalf("the catalog has %+v", top)
	}
	again(t, m.Group)

	m.entry(7)
	id = m.want("reserve", reserve("c"), Done, 0).Topic
	_, p = adoptedLog(id, 5)
	m.want("adopt with offsets", Control(KindAdoptTopic, AdoptTopic{Topic: id, Name: "c", Groups: 3,
		Adopted: &Adopted{Holders: []string{"a"}, Partitions: []AdoptedPartition{p}},
		Offsets: []AdoptedOffset{{Group: []byte("g\xff"), Offset: 8, Metadata: []byte("m")}, {Group: []byte("h"), Partition: 1, Offset: 8},
			{Group: []byte("h"), Offset: -1}}}), Done, 0)
	want := CommittedOffset{Offset: 8, Metadata: "m", CommitMs: m.ClockMs}
	if g := m.Catalog.Consumers["g\xff"]; g == nil || g.Offsets[TP{Topic: id}] != want || len(m.Catalog.Consumers) != 1 {
		t.Errorf("committed offsets: %+v", m.Catalog.Consumers)
	}
	again(t, m.Group)

	stale := m.want("reserve", reserve("b"), Done, 0).Topic
	m.want("created meanwhile", Control(KindCreateTopic, CreateTopic{Name: "b", Partitions: 1, Groups: 1}), Done, 0)
	m.want("a reservation that ended", adopt(stale, "b", p), Rejected, CodeNotReserved)
	m.want("for an open group", Control(KindOpenAdopted, Open{Level: 99, Topic: 50, Name: "z", Total: 1, Partitions: []int32{0},
		Adopted: &Adopted{Partitions: []AdoptedPartition{{Start: 3}}}}), Rejected, codeInvalidRequest)
}

func FuzzAsCommitted(f *testing.F) {
	raw, p := adoptedLog(7, 100)
	f.Add(raw, p.End)
	f.Add(raw[:len(raw)-3], int64(103))
	f.Fuzz(func(t *testing.T, raw []byte, end int64) {
		before := bytes.Clone(raw)
		got := AsCommitted(7, end, raw)
		if !bytes.Equal(raw, before) || len(got) != len(raw) {
			t.Fatal("it changed what it was given, or the length")
		}
		if again := AsCommitted(7, end, got); !bytes.Equal(again, got) {
			t.Fatal("done twice it is something else")
		}
		if !bytes.Equal(AsCommitted(7, 0, raw), raw) {
			t.Fatal("it stamped something of a topic that was not adopted")
		}
	})
}
