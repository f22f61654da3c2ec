package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// offsetsMachine is a catalog with a topic of three partitions, whose id is 1,
// and slot 5 coordinated by node 1.
func offsetsMachine(t *testing.T) *machine {
	m := newMachine(t, CatalogGroup)
	m.one(Control(KindCreateTopic, CreateTopic{Name: "orders", Partitions: 3, Groups: 2}))
	m.move(1)
	return m
}

// move gives slot 5 to a node and returns its new epoch.
func (m *machine) move(node int32) int64 {
	m.t.Helper()
	var old int64
	if len(m.Catalog.Coordinators) > 0 {
		old = m.Catalog.Coordinators[5].Epoch
	}
	m.one(Control(KindAssignCoordinators, AssignCoordinators{Slots: []SlotAssignment{{Slot: 5, Node: node, Epoch: old}}}))
	return m.Catalog.Coordinators[5].Epoch
}

// commit commits one offset of orders/0 and returns its code.
func (m *machine) commit(group string, epoch, offset int64) int16 {
	m.t.Helper()
	return m.commitInTurn(group, epoch, 1, offset)
}

func (m *machine) commitInTurn(group string, epoch, turn, offset int64) int16 {
	m.t.Helper()
	r := m.one(CommitCommand([]OffsetCommit{{Group: group, Slot: 5, Epoch: epoch, Turn: turn, Member: true, RetentionMs: -1,
		Offsets: []OffsetToCommit{{TP{1, 0}, offset, ""}}}}))
	if r.Verdict != Done {
		m.t.Fatalf("commit: %+v", r)
	}
	if r.Codes == nil {
		return 0
	}
	return r.Codes[0]
}

func (m *machine) committed(group string) string {
	return fmt.Sprint(consumersOf(m.Catalog)[group])
}

// TestPausedCoordinatorMovesNothingBack: a commit that was validated under an
// epoch that is over changes nothing, whenever it arrives.
func TestPausedCoordinatorMovesNothingBack(t *testing.T) {
	m := offsetsMachine(t)
	first := m.Catalog.Coordinators[5].Epoch
	if code := m.commit("g", first, 10); code != 0 {
		t.Fatalf("code %d", code)
	}
	second := m.move(2)
	if code := m.commit("g", second, 20); code != 0 {
		t.Fatalf("code %d", code)
	}
	before := m.committed("g")
	if code := m.commit("g", first, 11); code != codeNotCoordinator {
		t.Errorf("the paused coordinator's commit: code %d", code)
	}
	third := m.move(1) // and back: the old validation is as stale as before
	if code := m.commit("g", first, 12); code != codeNotCoordinator {
		t.Errorf("the commit of an earlier time as coordinator: code %d", code)
	}
	for _, r := range []Result{
		m.one(Control(KindDeleteGroup, DeleteGroup{Group: []byte("g"), Slot: 5, Epoch: second})),
		m.one(Control(KindDeleteOffsets, DeleteOffsets{Group: []byte("g"), Slot: 5, Epoch: second, Partitions: []TP{{1, 0}}})),
	} {
		if r.Verdict != Rejected || r.Code != codeNotCoordinator {
			t.Errorf("kind %d: %+v", r.Kind, r)
		}
	}
	if after := m.committed("g"); after != before {
		t.Errorf("committed %s, was %s", after, before)
	}
	if code := m.commit("g", third, 21); code != 0 || m.Catalog.Consumers["g"].Offsets[TP{1, 0}].Offset != 21 {
		t.Errorf("the coordinator in office: code %d, %s", code, m.committed("g"))
	}
	for _, epoch := range []int64{0, third + 1} {
		if code := m.commit("g", epoch, 1); code != codeNotCoordinator {
			t.Errorf("epoch %d: code %d", epoch, code)
		}
	}
}

func TestCommitsGetTheirOwnCodes(t *testing.T) {
	m := offsetsMachine(t)
	epoch := m.Catalog.Coordinators[5].Epoch
	version := m.Catalog.Version
	r := m.one(CommitCommand([]OffsetCommit{
		{Group: "a", Slot: 5, Epoch: epoch, RetentionMs: -1, Offsets: []OffsetToCommit{
			{TP{1, 0}, 1, strings.Repeat("x", MaxOffsetMetadata)}, {TP{1, 3}, 1, ""}, {TP{9, 0}, 1, ""}, {TP{1, 1}, 1, strings.Repeat("x", MaxOffsetMetadata+1)}}},
		{Group: "b", Slot: 5, Epoch: epoch + 1, RetentionMs: -1, Offsets: []OffsetToCommit{{TP{1, 0}, 1, ""}}},
		{Group: "c", Slot: CoordinatorSlots, Epoch: epoch, RetentionMs: -1, Offsets: []OffsetToCommit{{TP{1, 0}, 1, ""}}},
		{Group: strings.Repeat("d", MaxGroupID+1), Slot: 5, Epoch: epoch, RetentionMs: -1, Offsets: []OffsetToCommit{{TP{1, 0}, 1, ""}}},
		{Group: "a", Slot: 5, Epoch: epoch, RetentionMs: -1, Offsets: []OffsetToCommit{{TP{1, 2}, 7, ""}}},
	}))
	want := []int16{0, codeUnknownTopic, codeUnknownTopic, codeMetadataTooLarge, codeNotCoordinator, codeNotCoordinator, codeInvalidGroup, 0}
	if !slices.Equal(r.Codes, want) {
		t.Errorf("codes %v, want %v", r.Codes, want)
	}
	if len(m.Catalog.Consumers) != 1 || len(m.Catalog.Consumers["a"].Offsets) != 2 {
		t.Errorf("%v", consumersOf(m.Catalog))
	}
	if m.Catalog.Version != version {
		t.Error("a commit is no new version of the catalog")
	}
	again(t, m.Group)
}

// TestOffsetsExpire as Kafka's do: so long after the commit, and not before the
// group has been without members for as long.
func TestOffsetsExpire(t *testing.T) {
	const retention = 100_000
	m := offsetsMachine(t)
	epoch := m.Catalog.Coordinators[5].Epoch
	commit := func(group string, p int32, member bool, asked int64) {
		m.entry(0, CommitCommand([]OffsetCommit{{Group: group, Slot: 5, Epoch: epoch, Member: member, RetentionMs: asked,
			Offsets: []OffsetToCommit{{TP{1, p}, 1, ""}}}}))
	}
	kept := func() string {
		m.entry(0, Control(KindExpireOffsets, ExpireOffsets{RetentionMs: retention}))
		var s []string
		for name, g := range m.Catalog.Consumers {
			s = append(s, fmt.Sprint(name, g.sorted()))
		}
		slices.Sort(s)
		return fmt.Sprint(s)
	}
	wait := func(ms int) { // an entry's step is capped
		for ; ms > 0; ms -= 50_000 {
			m.entry(uint32(min(ms, 50_000)))
		}
	}
	commit("group", 0, true, -1)
	commit("simple", 0, false, -1)
	commit("asked", 0, true, 10_000)
	wait(10_000 - 1)
	if got := kept(); got != "[asked[1/0] group[1/0] simple[1/0]]" {
		t.Fatal(got)
	}
	wait(1)
	if got := kept(); got != "[group[1/0] simple[1/0]]" {
		t.Fatal(got)
	}
	wait(50_000)
	m.entry(0, Control(KindTouchGroups, TouchGroups{Groups: [][]byte{[]byte("group"), []byte("nobody")}}))
	commit("simple", 1, false, -1)
	wait(40_000)
	if got := kept(); got != "[group[1/0] simple[1/1]]" {
		t.Fatal(got)
	}
	wait(60_000)
	if got := kept(); got != "[]" {
		t.Fatal(got)
	}
	if r := m.one(Control(KindExpireOffsets, ExpireOffsets{RetentionMs: -1})); r.Verdict != Rejected {
		t.Errorf("%+v", r)
	}
}

// TestOffsetsGo with their topic, their group, or alone.
func TestOffsetsGo(t *testing.T) {
	m := offsetsMachine(t)
	other := m.one(Control(KindCreateTopic, CreateTopic{Name: "other", Partitions: 2, Groups: 2})).Topic
	epoch := m.Catalog.Coordinators[5].Epoch
	for _, group := range []string{"a", "b"} {
		m.one(CommitCommand([]OffsetCommit{{Group: group, Slot: 5, Epoch: epoch, Turn: 1, RetentionMs: -1,
			Offsets: []OffsetToCommit{{TP{1, 0}, 1, ""}, {TP{1, 1}, 1, ""}, {TP{other, 0}, 1, ""}}}}))
	}
	m.commit("c", epoch, 3)
	deleteOffsets := func(tps ...TP) Result {
		return m.one(Control(KindDeleteOffsets, DeleteOffsets{Group: []byte("a"), Slot: 5, Epoch: epoch, Turn: 1, Partitions: tps}))
	}
	deleteGroup := Control(KindDeleteGroup, DeleteGroup{Group: []byte("b"), Slot: 5, Epoch: epoch, Turn: 1})
	if r := deleteOffsets(TP{1, 1}, TP{9, 9}); r.Verdict != Done || len(m.Catalog.Consumers["a"].Offsets) != 2 {
		t.Errorf("%+v, %s", r, m.committed("a"))
	}
	m.one(Control(KindDeleteTopic, DeleteTopic{Topic: 1}))
	if got := fmt.Sprint(m.committed("a"), m.committed("b"), m.committed("c")); strings.Contains(got, "1/") || m.Catalog.Consumers["c"] != nil {
		t.Errorf("after the topic: %s", got)
	}
	if code := m.commit("a", epoch, 4); code != codeUnknownTopic {
		t.Errorf("commit for a topic that goes: code %d", code)
	}
	again(t, m.Group)
	if r := m.one(deleteGroup); r.Verdict != Done || m.Catalog.Consumers["b"] != nil {
		t.Errorf("%+v", r)
	}
	if r := m.one(deleteGroup); r.Verdict != Rejected || r.Code != codeGroupNotFound {
		t.Errorf("%+v", r)
	}
	deleteOffsets(TP{other, 0})
	if r := deleteOffsets(TP{other, 0}); m.Catalog.Consumers["a"] != nil || r.Code != codeGroupNotFound {
		t.Errorf("a group without offsets is left: %+v", r)
	}
}

func TestCommitsSurviveTheCodec(t *testing.T) {
	commits := someCommits()
	cmd := CommitCommand(commits)
	got, err := decodeCommit(cmd.Body)
	if err != nil {
		t.Fatal(err)
	}
	got.Commits[2].Offsets = nil
	if !reflect.DeepEqual(got.Commits, commits) {
		t.Errorf("%+v became %+v", commits, got.Commits)
	}
	for n := range cmd.Body {
		if _, err := decodeCommit(cmd.Body[:n]); !errors.Is(err, ErrCorruptEntry) {
			t.Fatalf("the first %d bytes: %v", n, err)
		}
	}
	if _, err := decodeCommit(append(cmd.Body, 0)); !errors.Is(err, ErrCorruptEntry) {
		t.Errorf("a byte too much: %v", err)
	}
}

func FuzzDecodeCommit(f *testing.F) {
	f.Add(CommitCommand(someCommits()).Body)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := decodeCommit(body)
		if err != nil {
			if a != nil || !errors.Is(err, ErrCorruptEntry) {
				t.Fatalf("%v, %v", a, err)
			}
			return
		}
		if again := CommitCommand(a.Commits).Body; !bytes.Equal(again, body) {
			t.Fatalf("%x became %x", body, again)
		}
		g := NewGroup(CatalogGroup)
		for i, raw := range someEntries() {
			if _, err := g.Apply(uint64(i+1), raw); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := g.Apply(g.Index+1, EncodeEntry(0, []Command{{KindCommitOffsets, body}})); err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeGroup(g.Encode()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestWhatTheNetworkKeptMovesNothingBack: a commit or a deletion that its
// coordinator proposed without hearing of it again, and that arrives after a
// later one, changes nothing; also on a node that starts from a snapshot.
func TestWhatTheNetworkKeptMovesNothingBack(t *testing.T) {
	m := offsetsMachine(t)
	epoch := m.Catalog.Coordinators[5].Epoch
	for _, step := range []struct {
		turn, offset int64
		code         int16
	}{{1000, 10, 0}, {1002, 30, 0}, {1001, 20, codeNotCoordinator}, {1002, 31, 0}, {1003, 32, 0}} {
		if code := m.commitInTurn("g", epoch, step.turn, step.offset); code != step.code {
			t.Errorf("turn %d: code %d, want %d", step.turn, code, step.code)
		}
	}
	restored, err := DecodeGroup(m.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if restored.Catalog.LastTurn() != 1003 {
		t.Errorf("after a snapshot the last turn is %d", restored.Catalog.LastTurn())
	}
	before := m.committed("g")
	for _, r := range []Result{
		m.one(Control(KindDeleteGroup, DeleteGroup{Group: []byte("g"), Slot: 5, Epoch: epoch, Turn: 1002})),
		m.one(Control(KindDeleteOffsets, DeleteOffsets{Group: []byte("g"), Slot: 5, Epoch: epoch, Turn: 1002, Partitions: []TP{{1, 0}}})),
	} {
		if r.Verdict != Rejected || r.Code != codeNotCoordinator {
			t.Errorf("kind %d: %+v", r.Kind, r)
		}
	}
	if after := m.committed("g"); after != before {
		t.Errorf("committed %s, was %s", after, before)
	}
	if code := m.commitInTurn("g", m.move(2), 5, 40); code != 0 { // whose clock is behind
		t.Errorf("the next coordinator's commit: code %d", code)
	}
}

// TestAskedRetentionWaitsForTheMembers: what a client of an old version asks to
// be kept for a short time is kept for as long as its group has members, however
// seldom they commit (GroupMetadata.removeExpiredOffsets).
func TestAskedRetentionWaitsForTheMembers(t *testing.T) {
	m := offsetsMachine(t)
	epoch := m.Catalog.Coordinators[5].Epoch
	m.entry(1000)
	m.entry(0, CommitCommand([]OffsetCommit{{Group: "g", Slot: 5, Epoch: epoch, Member: true, RetentionMs: 10,
		Offsets: []OffsetToCommit{{TP{1, 0}, 7, ""}}}}))
	kept := func() bool {
		m.entry(0, Control(KindExpireOffsets, ExpireOffsets{RetentionMs: 1000, QuietMs: 500}))
		return m.Catalog.Consumers["g"] != nil
	}
	m.entry(400)
	if !kept() {
		t.Error("gone while the group had members")
	}
	m.entry(0, Control(KindTouchGroups, TouchGroups{Groups: [][]byte{[]byte("g")}}))
	m.entry(499)
	if !kept() {
		t.Error("gone although the group was seen with members")
	}
	m.entry(1)
	if kept() {
		t.Error("kept although nobody has been in the group for long enough")
	}
}

// TestMetadataIsMeasuredAsKafkaDoes: in UTF-16 units (String.length), not in
// bytes; what is taken is also read from a state.
func TestMetadataIsMeasuredAsKafkaDoes(t *testing.T) {
	for metadata, want := range map[string]int16{
		strings.Repeat("é", MaxOffsetMetadata):          0,
		strings.Repeat("é", MaxOffsetMetadata+1):        codeMetadataTooLarge,
		strings.Repeat("😀", MaxOffsetMetadata/2):        0,
		strings.Repeat("😀", MaxOffsetMetadata/2) + "x":  codeMetadataTooLarge,
		strings.Repeat("\xff", MaxOffsetMetadata):       0,
		strings.Repeat("\xff", MaxOffsetMetadata) + "x": codeMetadataTooLarge,
	} {
		m := offsetsMachine(t)
		r := m.one(CommitCommand([]OffsetCommit{{Group: "g", Slot: 5, Epoch: m.Catalog.Coordinators[5].Epoch, RetentionMs: -1,
			Offsets: []OffsetToCommit{{TP{1, 0}, 1, metadata}}}}))
		if got := append(r.Codes, 0)[0]; got != want {
			t.Errorf("%d bytes that begin with %q: code %d, want %d", len(metadata), metadata[:4], got, want)
		}
		again(t, m.Group)
	}
}
