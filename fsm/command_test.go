package fsm

import (
	"bytes"
	"errors"
	"testing"
)

// someEntries are valid entries of every kind.
func someEntries() [][]byte {
	batch := makeBatch(batchSpec{pid: 100, count: 2, size: 20})
	return [][]byte{
		EncodeEntry(0, nil),
		EncodeEntry(1<<32-1, []Command{AppendCommand(TP{1 << 63, 1<<31 - 1}, batch)}),
		EncodeEntry(7, []Command{
			Control(KindOpen, Open{Level: 3, Topic: 7, Name: "t", Total: 4, Partitions: []int32{3, 1}, Config: map[string]string{"a": "b"}}),
			AppendCommand(testTP, batch), AppendCommand(testTP, batch),
			Control(KindClose, Close{Level: 4, Topic: 7, Name: "t"}),
		}),
		EncodeEntry(9, []Command{
			Control(KindOpen, Open{Level: 5, Topic: 7, Name: "t", Total: 4, Partitions: []int32{3}}),
			AppendCommand(testTP, batch), Control(KindLogStart, LogStart{TP: testTP, Offset: 1}),
			AppendCommand(testTP, makeBatch(batchSpec{pid: 100, seq: 2})),
			Control(KindCut, Cut{TP: testTP, Index: 1, Offset: 2, Hash: 1<<64 - 1, Sequence: 2}),
			Control(KindRecover, Recover{Number: 3}),
		}),
		EncodeEntry(0, []Command{
			Control(KindRegisterNode, RegisterNode{Node: CatalogNode{ID: 1, Incarnation: "x", Listeners: map[string]string{"P": "h:1"}}}),
			Control(KindCreateTopic, CreateTopic{Name: "t", Partitions: 3, Groups: 2}),
			Control(KindTopicOpened, TopicOpened{Topic: 1, Partitions: 3}),
			Control(KindCreatePartitions, CreatePartitions{Topic: 1, Total: 5, Groups: 2}),
			Control(KindTakeRebuild, TakeRebuild{Topic: 1, Node: 3}), Control(KindEndRebuild, EndRebuild{Topic: 1, Node: 3}),
			Control(KindDeleteTopic, DeleteTopic{Topic: 1}), Control(KindTopicClosed, TopicClosed{Topic: 1}),
			Control(KindAllocateProducers, AllocateProducers{Count: 10}),
			Control(KindAssignCoordinators, AssignCoordinators{Slots: []SlotAssignment{{Slot: 1, Node: 2}}}),
		}),
		EncodeEntry(4, []Command{
			CommitCommand(nil), CommitCommand(someCommits()),
			Control(KindTouchGroups, TouchGroups{Groups: [][]byte{[]byte("g"), {0xff}}}),
			Control(KindDeleteOffsets, DeleteOffsets{Group: []byte("g"), Slot: 1, Epoch: 1, Partitions: []TP{{1, 0}}}),
			Control(KindDeleteGroup, DeleteGroup{Group: []byte("g"), Slot: 1, Epoch: 1}),
			Control(KindExpireOffsets, ExpireOffsets{RetentionMs: 1000}),
		}),
		EncodeEntry(2, []Command{
			Control(KindCreateACLs, CreateACLs{ACLs: []ACL{anACL("a"), anACL("b")}}), Control(KindDeleteACLs, DeleteACLs{ACLs: []ACL{anACL("b")}}),
			Control(KindAlterQuotas, AlterQuotas{Changes: []QuotaChange{{Quota: aQuota("u"), Value: 1024}, {Quota: aQuota("v"), Gone: true}}}),
		}),
	}
}

// someCommits has something in every field.
func someCommits() []OffsetCommit {
	return []OffsetCommit{
		{Group: "g", Slot: 1, Epoch: 1, Member: true, RetentionMs: -1, Offsets: []OffsetToCommit{{TP{1, 0}, 5, "m"}, {TP{2, 1}, -1, ""}}},
		{Group: "\xff\x00", Slot: CoordinatorSlots - 1, Epoch: 1 << 62, RetentionMs: 1000, Offsets: []OffsetToCommit{{TP{1 << 63, 1<<31 - 1}, 1<<63 - 1, "\xfe"}}},
		{},
	}
}

func TestEntriesSurviveTheCodec(t *testing.T) {
	for i, raw := range someEntries() {
		elapsed, cmds, err := DecodeEntry(raw)
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		if again := EncodeEntry(elapsed, cmds); !bytes.Equal(again, raw) {
			t.Errorf("entry %d: %x became %x", i, raw, again)
		}
		size := 0
		for _, c := range cmds {
			size += c.Size()
		}
		if len(raw) > 6+size {
			t.Errorf("entry %d of %d bytes: its commands say %d", i, len(raw), size)
		}
	}
}

func TestEveryKindIsUnderstood(t *testing.T) {
	m := newMachine(t, CatalogGroup)
	for i, raw := range someEntries() {
		results, err := m.Apply(m.Index+1, raw)
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		for _, r := range results {
			if r.Code == codeInvalidRequest {
				t.Errorf("entry %d: kind %d was not understood: %s", i, r.Kind, r.Message)
			}
		}
	}
}

// What is not understood in full is refused before anything has changed: what
// stands before it in the entry too.
func TestApplyRefusesWhatItDoesNotKnow(t *testing.T) {
	first := AppendCommand(testTP, makeBatch(batchSpec{}))
	raw := func(k Kind, body string) []byte {
		return EncodeEntry(5, []Command{first, {Kind: k, Body: []byte(body)}})
	}
	cases := map[string]struct {
		data []byte
		want error
	}{
		"empty":                {nil, ErrCorruptEntry},
		"version 0":            {[]byte{0, 0}, ErrUnknownCommand},
		"version 2":            {[]byte{2, 0}, ErrUnknownCommand},
		"no clock":             {[]byte{1}, ErrCorruptEntry},
		"clock cut off":        {[]byte{1, 0x80}, ErrCorruptEntry},
		"clock too large":      {[]byte{1, 0xff, 0xff, 0xff, 0xff, 0x1f}, ErrCorruptEntry},
		"clock not canonical":  {[]byte{1, 0x81, 0x00}, ErrCorruptEntry},
		"length missing":       {[]byte{1, 0, byte(KindAppend)}, ErrCorruptEntry},
		"length beyond":        {[]byte{1, 0, byte(KindAppend), 9}, ErrCorruptEntry},
		"length huge":          {[]byte{1, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, ErrCorruptEntry},
		"length not canonical": {[]byte{1, 0, byte(KindClose), 0x82, 0x00, '{', '}'}, ErrCorruptEntry},
		"kind 0":               {raw(0, "{}"), ErrUnknownCommand},
		"kind of tomorrow":     {raw(99, "{}"), ErrUnknownCommand},
		"the next kind":        {raw(KindConfig+1, "{}"), ErrUnknownCommand},
		"35, not given out":    {raw(KindReserveTopic+1, "{}"), ErrUnknownCommand},
		"recovery too large":   {raw(KindRecover, `{"number":32768}`), ErrCorruptEntry},
		"cut, unknown field":   {raw(KindCut, `{"tp":{"Topic":7,"Partition":3},"all":true}`), ErrCorruptEntry},
		"log start, not JSON":  {raw(KindLogStart, `4`), ErrCorruptEntry},
		"unknown field":        {raw(KindClose, `{"level":1,"topic":7,"name":"t","force":true}`), ErrCorruptEntry},
		"not JSON":             {raw(KindClose, `level`), ErrCorruptEntry},
		"no body":              {raw(KindClose, ``), ErrCorruptEntry},
		"two documents":        {raw(KindClose, `{"topic":7}{"topic":8}`), ErrCorruptEntry},
		"garbage after":        {raw(KindDeleteTopic, `{"topic":7}x`), ErrCorruptEntry},
		"number too large":     {raw(KindOpen, `{"total":3000000000}`), ErrCorruptEntry},
		"append of nothing":    {raw(KindAppend, ""), ErrCorruptEntry},
		"partition too large":  {raw(KindAppend, "\x07\xff\xff\xff\xff\x0f"+string(makeBatch(batchSpec{}))), ErrCorruptEntry},
		"append, no batch":     {raw(KindAppend, "\x07\x03"), ErrCorruptEntry},
		"append, cut batch":    {raw(KindAppend, "\x07\x03"+string(makeBatch(batchSpec{})[:60])), ErrCorruptEntry},
		"append, two batches":  {raw(KindAppend, "\x07\x03"+string(makeBatch(batchSpec{}))+string(makeBatch(batchSpec{}))), ErrCorruptEntry},
		"append, magic 1":      {raw(KindAppend, "\x07\x03"+string(makeBatch(batchSpec{mutate: func(b []byte) { b[16] = 1 }}))), ErrCorruptEntry},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := openMachine(t)
			index, clock, before := m.Index, m.ClockMs, dump(m.Group)
			results, err := m.Apply(m.Index+1, c.data)
			if !errors.Is(err, c.want) || results != nil {
				t.Errorf("got %v, %v; want %v", results, err, c.want)
			}
			if m.Index != index || m.ClockMs != clock || dump(m.Group) != before {
				t.Error("the state changed")
			}
			if r := m.send(batchSpec{}); r.BaseOffset != 0 {
				t.Errorf("the next batch stands at %d", r.BaseOffset)
			}
		})
	}
}

// Entries as the first build of this format wrote them, put together by hand:
// a log is read by every build that comes after.
func TestOldEntriesAreUnderstood(t *testing.T) {
	entry := func(kind Kind, body string) []byte {
		return append([]byte{1, 5, byte(kind), byte(len(body))}, body...)
	}
	batch := string(makeBatch(batchSpec{pid: 100, size: 9}))
	g := NewGroup(CatalogGroup)
	for i, raw := range [][]byte{
		entry(16, `{"node":{"id":1,"incarnation":"x","rack":"r","listeners":{"P":"h:1"},"admin":"a","raft":"b"}}`),
		entry(17, `{"name":"t","partitions":3,"groups":1,"config":{"a":"b"}}`),
		entry(2, `{"level":2,"topic":1,"name":"t","total":3,"partitions":[0,1,2],"config":{"a":"b"}}`),
		entry(18, `{"topic":1,"partitions":3}`),
		entry(22, `{"count":1000}`),
		entry(23, `{"slots":[{"slot":4,"node":1,"epoch":0}]}`),
		entry(1, "\x01\x02"+batch),
		entry(21, `{"topic":1,"total":4,"groups":1}`),
		entry(19, `{"topic":1}`),
		entry(3, `{"level":9,"topic":1,"name":"t"}`),
		entry(20, `{"topic":1}`),
	} {
		if p := g.Partitions[TP{1, 2}]; i == 7 && (p == nil || p.NextOffset != 1) {
			t.Errorf("after an append: %s", dump(g))
		}
		results, err := g.Apply(uint64(i+1), raw)
		if err != nil || len(results) != 1 || results[0].Verdict == Rejected {
			t.Errorf("entry %d: %+v, %v", i, results, err)
		}
		g = again(t, g)
	}
	if g.ClockMs != 55 || len(g.Partitions) != 0 || len(g.Topics) != 0 || len(g.Catalog.Topics) != 0 || len(g.Catalog.Nodes) != 1 || g.Catalog.Coordinators[4].Node != 1 {
		t.Errorf("in the end: %s", dump(g))
	}
}

func TestApplyRefusesAnEntryTwice(t *testing.T) {
	m := openMachine(t)
	for _, index := range []uint64{0, m.Index} {
		if _, err := m.Apply(index, EncodeEntry(0, nil)); !errors.Is(err, ErrOutOfOrder) {
			t.Errorf("index %d after %d: %v", index, m.Index, err)
		}
	}
	if _, err := m.Apply(m.Index+5, EncodeEntry(0, nil)); err != nil {
		t.Errorf("Raft's own entries leave gaps: %v", err)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	for _, raw := range someEntries() {
		f.Add(raw)
	}
	f.Add([]byte{1, 0x80, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		elapsed, cmds, err := DecodeEntry(raw)
		if err != nil {
			if cmds != nil {
				t.Fatal("commands and an error")
			}
			return
		}
		if again := EncodeEntry(elapsed, cmds); !bytes.Equal(again, raw) {
			t.Fatalf("%x became %x", raw, again)
		}
	})
}

// FuzzApply holds every state machine to its promises under entries of any
// bytes: no panic, all or nothing, offsets only grow.
func FuzzApply(f *testing.F) {
	for _, raw := range someEntries() {
		f.Add(uint32(0), raw)
		f.Add(uint32(1), raw)
	}
	f.Fuzz(func(t *testing.T, group uint32, raw []byte) {
		g := NewGroup(group)
		open := Control(KindOpen, Open{Level: 1, Topic: testTP.Topic, Name: "t", Total: 4, Partitions: []int32{testTP.Partition}})
		if _, err := g.Apply(1, EncodeEntry(0, []Command{open})); err != nil {
			t.Fatal(err)
		}
		only := g.Only(testTP)
		before := dump(g)
		results, err := g.Apply(2, raw)
		if err != nil {
			if g.Index != 1 || g.ClockMs != 0 || dump(g) != before {
				t.Fatalf("refused with %v, but the state changed", err)
			}
		}
		if _, onlyErr := only.Apply(2, raw); (onlyErr == nil) != (err == nil) {
			t.Fatalf("%v, and for one partition alone: %v", err, onlyErr)
		}
		for _, r := range results {
			if r.Verdict == Appended && (r.BaseOffset < 0 || r.Count < 1 || r.Sequence < 0) {
				t.Fatalf("%+v", r)
			}
		}
		p, q := g.Partitions[testTP], only.Partitions[testTP]
		if (p == nil) != (q == nil) || p != nil && dumpPartition(p) != dumpPartition(q) {
			t.Fatal("the partition alone is in another state")
		}
		again(t, g) // whatever was let in, a snapshot of it can be read
	})
}
