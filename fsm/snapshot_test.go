package fsm

import (
	"bytes"
	"container/list"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"math"
	"os"
	"strings"
	"testing"
	"testing/quick"
)

// again encodes a group and decodes it; the copy must be the same.
func again(t testing.TB, g *Group) *Group {
	t.Helper()
	raw := g.Encode()
	c, err := DecodeGroup(raw)
	if err != nil {
		t.Fatal(err)
	}
	if dump(c) != dump(g) || c.ID != g.ID || c.Index != g.Index || c.ClockMs != g.ClockMs {
		t.Fatalf("encoded and decoded:\n%s\nbefore:\n%s", dump(c), dump(g))
	}
	if b := c.Encode(); !bytes.Equal(b, raw) {
		t.Fatalf("one state has two encodings:\n%x\n%x", raw, b)
	}
	return c
}

func TestStatesSurviveTheCodec(t *testing.T) {
	for _, group := range []uint32{CatalogGroup, 1} {
		m := newMachine(t, group)
		again(t, m.Group)
		for _, raw := range someEntries() {
			if _, err := m.Apply(m.Index+1, raw); err != nil {
				t.Fatal(err)
			}
			again(t, m.Group)
		}
	}
}

// fullState is a state in which every field of the encoding has something.
func fullState(t testing.TB) *Group {
	m := newMachine(t, CatalogGroup)
	for _, raw := range someEntries() {
		if _, err := m.Apply(m.Index+1, raw); err != nil {
			t.Fatal(err)
		}
	}
	m.one(Control(KindCreateTopic, CreateTopic{Name: "kept", Partitions: 2, Groups: 2, Config: map[string]string{"k": "v"}}))
	m.one(Control(KindTakeRebuild, TakeRebuild{Topic: 2, Node: 1}))
	m.one(Control(KindOpen, Open{Level: 9, Topic: 2, Name: "kept", Total: 2, Partitions: []int32{0}}))
	for i := range int32(8) {
		m.entry(1000, AppendCommand(testTP, makeBatch(batchSpec{pid: 500, seq: i, size: 10})), AppendCommand(testTP, makeBatch(batchSpec{pid: 501, seq: 2 * i, count: 2})))
	}
	m.one(AppendCommand(testTP, makeBatch(batchSpec{size: CheckpointBytes})))
	m.send(batchSpec{pid: 502, epoch: 3, seq: 0, count: 9})
	m.Partitions[testTP].forgot = true
	m.one(Control(KindAssignCoordinators, AssignCoordinators{Slots: []SlotAssignment{{Slot: 7, Node: 3}}}))
	epoch := m.Catalog.Coordinators[7].Epoch
	m.entry(1000, CommitCommand([]OffsetCommit{
		{Group: "group-b", Slot: 7, Epoch: epoch, Member: true, RetentionMs: -1, Offsets: []OffsetToCommit{{TP{2, 0}, 8, "note"}, {TP{2, 1}, -1, ""}}},
		{Group: "group-a", Slot: 7, Epoch: epoch, RetentionMs: 5000, Offsets: []OffsetToCommit{{TP{2, 1}, 1 << 40, ""}}},
	}))
	m.entry(1000)
	m.one(Control(KindCreateACLs, CreateACLs{ACLs: []ACL{anACL("kept"), {Resource: 4, Name: "kafka-cluster", Pattern: 3, Principal: "User:CN=x,O=y", Host: "10.0.0.1", Operation: 7, Permission: 2}}}))
	m.one(Control(KindAlterQuotas, AlterQuotas{Changes: []QuotaChange{
		{Quota: aQuota("u"), Value: 0.5},
		{Quota: Quota{UserIs: NameDefault, ClientIs: NameGiven, Client: "c", Key: "request_percentage"}, Value: 200},
		{Quota: Quota{ClientIs: NameDefault, Key: "consumer_byte_rate"}, Gone: true},
	}}))
	return m.Group
}

// TestStateFormat pins the bytes: a node starts from a snapshot that another
// build took. Do not change the file without a new StateVersion.
func TestStateFormat(t *testing.T) {
	const file = "testdata/state-v3.hex"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	g := fullState(t)
	if got := g.Encode(); !bytes.Equal(got, want) {
		t.Errorf("%s has other bytes than a state of this build:\n%x", file, got)
	}
	c, err := DecodeGroup(want)
	if err != nil {
		t.Fatal(err)
	}
	if dump(c) != dump(g) || c.Index != g.Index || c.ClockMs != g.ClockMs {
		t.Errorf("%s is\n%s\nwant\n%s", file, dump(c), dump(g))
	}
}

// States that earlier builds wrote are read: the first has no committed offsets,
// neither has an ACL or a quota.
func TestOlderStatesAreRead(t *testing.T) {
	for file, groups := range map[string]int{"testdata/state-v1.hex": 0, "testdata/state-v2.hex": 2} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		old, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
		if err != nil {
			t.Fatal(err)
		}
		g, err := DecodeGroup(old)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		c := g.Catalog
		if c.TopicByName("kept") == nil || len(c.Consumers) != groups || len(g.Partitions) != 2 || len(c.Access.ACLs)+len(c.Access.Quotas) != 0 {
			t.Errorf("%s: %s", file, dump(g))
		}
		again(t, g)
	}
}

// seal puts a state's checksum behind it.
func seal(body []byte) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(body), crc32.Checksum(body, castagnoli))
}

func TestBrokenStatesAreRefused(t *testing.T) {
	raw := fullState(t).Encode()
	for n := range raw {
		if _, err := DecodeGroup(raw[:n]); !errors.Is(err, ErrCorruptState) {
			t.Fatalf("the first %d bytes: %v", n, err)
		}
		flipped := bytes.Clone(raw)
		flipped[n] ^= 0x10
		if _, err := DecodeGroup(flipped); !errors.Is(err, ErrCorruptState) && !errors.Is(err, ErrUnknownState) {
			t.Fatalf("a flipped bit in byte %d: %v", n, err)
		}
	}
	if _, err := DecodeGroup(append(bytes.Clone(raw), 0)); !errors.Is(err, ErrCorruptState) {
		t.Errorf("a byte too much: %v", err)
	}
	body := raw[:len(raw)-4]
	if _, err := DecodeGroup(seal(append(bytes.Clone(body), 0))); !errors.Is(err, ErrCorruptState) {
		t.Errorf("a byte too much, with its checksum: %v", err)
	}
	tomorrow := bytes.Clone(body)
	tomorrow[3] = StateVersion + 1
	if _, err := DecodeGroup(seal(tomorrow)); !errors.Is(err, ErrUnknownState) {
		t.Errorf("another version: %v", err)
	}
}

// Bytes with a good checksum that Encode did not write are refused, or are
// some state's only encoding.
func TestOneStateHasOneEncoding(t *testing.T) {
	raw := fullState(t).Encode()
	body := raw[:len(raw)-4]
	refused := 0
	for n := range body {
		for _, v := range []byte{0, 0xff, body[n] + 1} {
			other := bytes.Clone(body)
			other[n] = v
			if checkDecode(t, seal(other)) == nil {
				refused++
			}
		}
		if checkDecode(t, seal(body[:n])) != nil {
			t.Fatalf("the first %d bytes are a state", n)
		}
	}
	if refused < len(body) {
		t.Errorf("only %d of %d changes were refused", refused, 3*len(body))
	}
}

// States that no log leads to are refused, though every checksum is right: what
// the state machine rests on does not hold in them.
func TestImpossibleStatesAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(g *Group, p *Partition){
		"topics out of order":     func(g *Group, _ *Partition) { g.Topics[2], g.Topics[7] = g.Topics[7], g.Topics[2] },
		"partitions out of order": func(g *Group, p *Partition) { g.Partitions[TP{1, 0}] = p; delete(g.Partitions, p.TP) },
		"partition without topic": func(g *Group, _ *Partition) { delete(g.Topics, 7); g.Topics[9] = &Open{Topic: 9} },
		"topic without partition": func(g *Group, p *Partition) { delete(g.Partitions, p.TP) },
		"log start beyond end":    func(_ *Group, p *Partition) { p.LogStart = p.NextOffset + 1 },
		"epoch start beyond end":  func(_ *Group, p *Partition) { p.EpochStart = p.NextOffset + 1 },
		"last batch elsewhere":    func(_ *Group, p *Partition) { p.LastBatch.Base-- },
		"too many checkpoints": func(_ *Group, p *Partition) {
			p.Checkpoints = nil
			for i := range int64(MaxCheckpoints + 1) {
				p.NextOffset = i + 1
				p.Checkpoints = append(p.Checkpoints, Checkpoint{Offset: i})
			}
			p.LastBatch, p.producers, p.recent = Placed{}, nil, list.New()
		},
		"a checkpoint twice": func(_ *Group, p *Partition) {
			p.Checkpoints = append(p.Checkpoints, p.Checkpoints[len(p.Checkpoints)-1])
		},
		"a checkpoint beyond end": func(_ *Group, p *Partition) { p.Checkpoints[0].Offset = p.NextOffset + 1 },
		"too many producers": func(_ *Group, p *Partition) {
			for i := range int64(MaxProducers) {
				p.recent.PushBack(&producer{id: 1000 + i, gone: -1})
			}
		},
		"a producer twice":          func(_ *Group, p *Partition) { p.recent.PushBack(p.recent.Front().Value) },
		"a producer of later":       func(g *Group, p *Partition) { p.recent.Front().Value.(*producer).usedMs = g.ClockMs + 1 },
		"an empty kept batch":       func(_ *Group, p *Partition) { p.recent.Front().Value.(*producer).kept[0].count = 0 },
		"kept below dropped":        func(_ *Group, p *Partition) { p.recent.Front().Value.(*producer).gone = p.NextOffset - 1 },
		"six kept batches":          func(_ *Group, p *Partition) { p.recent.Front().Value.(*producer).kept = make([]keptBatch, 6) },
		"a catalog elsewhere":       func(g *Group, _ *Partition) { g.ID = 1 },
		"no catalog":                func(g *Group, _ *Partition) { g.Catalog = nil },
		"three slots":               func(g *Group, _ *Partition) { g.Catalog.Coordinators = g.Catalog.Coordinators[:3] },
		"a topic to come":           func(g *Group, _ *Partition) { g.Catalog.nextTopic = 2 },
		"two topics of a name":      func(g *Group, _ *Partition) { g.Catalog.Topics[1] = &CatalogTopic{ID: 1, Name: "kept"} },
		"a topic in its place":      func(g *Group, _ *Partition) { g.Catalog.Topics[2].ID = 1; g.Catalog.Topics[1] = g.Catalog.Topics[2] },
		"nodes out of order":        func(g *Group, _ *Partition) { g.Catalog.Nodes[0] = &CatalogNode{ID: 3} },
		"a recovery below zero":     func(g *Group, _ *Partition) { g.Recovery = -1 },
		"a group without offsets":   func(g *Group, _ *Partition) { clear(g.Catalog.Consumers["group-a"].Offsets) },
		"an offset of no topic":     func(g *Group, _ *Partition) { g.Catalog.Consumers["group-a"].Offsets[TP{9, 0}] = CommittedOffset{} },
		"an offset of no partition": func(g *Group, _ *Partition) { g.Catalog.Consumers["group-a"].Offsets[TP{2, 2}] = CommittedOffset{} },
		"a commit of tomorrow": func(g *Group, _ *Partition) {
			g.Catalog.Consumers["group-a"].Offsets[TP{2, 0}] = CommittedOffset{CommitMs: g.ClockMs + 1}
		},
		"an ACL of tomorrow": func(g *Group, _ *Partition) { g.Catalog.Access.Revision-- },
		"two ACLs at a time": func(g *Group, _ *Partition) { g.Catalog.Access.ACLs[anACL("c")] = Rule{Revision: 1} },
		"an ACL of no time":  func(g *Group, _ *Partition) { g.Catalog.Access.ACLs[anACL("c")] = Rule{} },
		"a quota of no number": func(g *Group, _ *Partition) {
			g.Catalog.Access.Quotas[aQuota("c")] = Rule{Revision: 1, Value: math.NaN()}
		},
		"members tomorrow": func(g *Group, _ *Partition) { g.Catalog.Consumers["group-a"].LiveMs = g.ClockMs + 1 },
		"too much metadata": func(g *Group, _ *Partition) {
			g.Catalog.Consumers["group-a"].Offsets[TP{2, 0}] = CommittedOffset{Metadata: strings.Repeat("x", MaxOffsetMetadata+1)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := fullState(t)
			spoil(g, g.Partitions[testTP])
			if _, err := DecodeGroup(g.Encode()); !errors.Is(err, ErrCorruptState) {
				t.Errorf("%v", err)
			}
		})
	}
}

// checkDecode holds the decoder to its promises for any bytes. It returns nil
// for what is refused.
func checkDecode(t *testing.T, raw []byte) *Group {
	t.Helper()
	g, err := DecodeGroup(raw)
	if err != nil {
		if g != nil || !errors.Is(err, ErrCorruptState) && !errors.Is(err, ErrUnknownState) {
			t.Fatalf("%v, %v", g, err)
		}
		return nil
	}
	if b := g.Encode(); raw[3] == g.stateVersion() && !bytes.Equal(b, raw) {
		t.Fatalf("two encodings of one state:\n%x\n%x", raw, b)
	}
	return g
}

// What a hostile count promises takes no memory.
func TestCountsAreCheckedBeforeMemoryIsTaken(t *testing.T) {
	head := []byte{'L', 'S', 'G', StateVersion, 1, 0, 0, 0, 0, 0}
	huge := binary.AppendUvarint(nil, 1<<40)
	open := appendBytes([]byte{1}, mustJSON(&Open{Topic: 1, Name: "t"}))
	partition := []byte{1, 0, 1, 't', 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0}
	for name, body := range map[string][]byte{
		"topics":      huge,
		"a topic":     append([]byte{1}, huge...),
		"partitions":  append([]byte{0}, huge...),
		"name":        bytes.Join([][]byte{open, {1, 1, 0}, huge, make([]byte, 30)}, nil),
		"checkpoints": bytes.Join([][]byte{open, {1}, partition, huge, make([]byte, 30)}, nil),
		"producers":   bytes.Join([][]byte{open, {1}, partition, {0, 0}, huge, make([]byte, 30)}, nil),
	} {
		raw := seal(append(bytes.Clone(head), body...))
		if _, err := DecodeGroup(raw); err == nil || !strings.Contains(err.Error(), "more than") {
			t.Errorf("%s: %v", name, err)
		}
		allocated := testing.AllocsPerRun(1, func() { checkDecode(t, raw) })
		if allocated > 200 {
			t.Errorf("%s: %v allocations", name, allocated)
		}
	}
	good := bytes.Join([][]byte{head, open, {1}, partition, {0, 0, 0, 0}}, nil)
	if checkDecode(t, seal(good)) == nil {
		_, err := DecodeGroup(seal(good))
		t.Errorf("what the cases are made from is itself refused: %v", err)
	}
	if err := quick.Check(func(b []byte) bool { checkDecode(t, seal(append(bytes.Clone(head), b...))); return true }, nil); err != nil {
		t.Error(err)
	}
}

func FuzzDecodeGroup(f *testing.F) {
	for _, g := range []*Group{NewGroup(0), NewGroup(1), fullState(f)} {
		raw := g.Encode()
		f.Add(raw[4 : len(raw)-4])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > 0 {
			checkDecode(t, body)
		}
		g := checkDecode(t, seal(append([]byte{'L', 'S', 'G', StateVersion}, body...)))
		if g == nil || !young(g) {
			return
		}
		// What was let in must be fit to go on with.
		for i, raw := range someEntries() {
			if _, err := g.Apply(g.Index+1, raw); err != nil {
				t.Fatalf("entry %d: %v", i, err)
			}
		}
		if _, err := DecodeGroup(g.Encode()); err != nil {
			t.Fatalf("after some entries: %v\n%s", err, dump(g))
		}
	})
}

// young says that no number of a state is about to run out.
func young(g *Group) bool {
	ok := g.Index < 1<<60 && g.ClockMs < 1<<60
	for _, p := range g.Partitions {
		ok = ok && p.NextOffset < 1<<60 && p.marks.bytes < 1<<60
	}
	if c := g.Catalog; c != nil {
		ok = ok && c.nextTopic < 1<<60 && c.nextProducer < 1<<60
	}
	return ok
}
