package fsm

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
)

// dumpCatalog writes the whole catalog in a fixed order.
func dumpCatalog(c *Catalog) string {
	s := fmt.Sprintf("catalog version %d topic %d producer %d gen %d\n", c.Version, c.nextTopic, c.nextProducer, c.coordinatorGen)
	for _, v := range []any{c.Nodes, c.Topics, c.byName, c.Coordinators, c.Rebuilds, consumersOf(c), accessOf(c)} {
		raw, err := json.Marshal(v) // sorts the keys of maps
		if err != nil {
			panic(err)
		}
		s += string(raw) + "\n"
	}
	return s
}

// consumersOf is what is committed, as a document: keys that are structs are none.
func consumersOf(c *Catalog) map[string][]string {
	out := make(map[string][]string)
	for name, g := range c.Consumers {
		out[name] = append(out[name], fmt.Sprint("live ", g.LiveMs))
		for _, tp := range g.sorted() {
			out[name] = append(out[name], fmt.Sprintf("%s %+v", tp, g.Offsets[tp]))
		}
	}
	return out
}

func (m *machine) want(what string, cmd Command, verdict Verdict, code int16) Result {
	m.t.Helper()
	before, version := dumpCatalog(m.Catalog), m.Catalog.Version
	r := m.one(cmd)
	if r.Verdict != verdict || r.Code != code {
		m.t.Fatalf("%s: verdict %d, code %d (%s); want %d, %d", what, r.Verdict, r.Code, r.Message, verdict, code)
	}
	if after := dumpCatalog(m.Catalog); verdict == Rejected && after != before {
		m.t.Fatalf("%s: rejected, but the catalog changed from\n%s\nto\n%s", what, before, after)
	}
	if m.Catalog.Version != version && m.Catalog.Version != m.Index {
		m.t.Fatalf("%s: version %d at index %d", what, m.Catalog.Version, m.Index)
	}
	return r
}

func TestTopicLife(t *testing.T) {
	m := newMachine(t, CatalogGroup)
	create := Control(KindCreateTopic, CreateTopic{Name: "a", Partitions: 4, Groups: 3, Config: map[string]string{"k": "v"}})
	id := m.want("create", create, Done, 0).Topic
	if r := m.want("create again", create, Rejected, 36); r.Topic != id {
		t.Errorf("the existing topic's id is %d, told %d", id, r.Topic)
	}
	other := m.want("create another", Control(KindCreateTopic, CreateTopic{Name: "b", Partitions: 2, Groups: 3}), Done, 0).Topic
	if got, want := m.Catalog.Topics[id].Groups, []uint32{0, 1, 2, 0}; !slices.Equal(got, want) {
		t.Errorf("groups of the first topic: %v, want %v", got, want)
	}
	if got, want := m.Catalog.Topics[other].Groups, []uint32{1, 2}; !slices.Equal(got, want) {
		t.Errorf("groups of the second topic: %v, want %v", got, want)
	}

	opened := func(n int32) Command { return Control(KindTopicOpened, TopicOpened{Topic: id, Partitions: n}) }
	state := func(want TopicState, partitions int32) {
		t.Helper()
		if got := m.Catalog.Topics[id]; got.State != want || got.Opened != partitions {
			t.Fatalf("topic is %s with %d partitions opened, want %s with %d", got.State, got.Opened, want, partitions)
		}
	}
	state(TopicOpening, 0)
	kept := m.Catalog.Topics[id]
	m.want("more than there are", opened(5), Done, 0)
	state(TopicOpening, 0)
	m.want("half", opened(2), Done, 0)
	state(TopicOpening, 2)
	m.want("all", opened(4), Done, 0)
	state(TopicLive, 4)
	m.want("late news", opened(2), Done, 0)
	state(TopicLive, 4)
	if kept.State != TopicOpening || kept.Opened != 0 {
		t.Error("a topic that a reader kept was changed in place")
	}

	more := func(n int32) Command {
		return Control(KindCreatePartitions, CreatePartitions{Topic: id, Total: n, Groups: 3})
	}
	m.want("no more partitions", more(4), Rejected, 37)
	m.want("six partitions", more(6), Done, 0)
	state(TopicOpening, 4)
	if got, want := m.Catalog.Topics[id].Groups, []uint32{0, 1, 2, 0, 1, 2}; !slices.Equal(got, want) {
		t.Errorf("groups after growing: %v, want %v", got, want)
	}
	m.want("opened", opened(6), Done, 0)
	state(TopicLive, 6)

	closed := Control(KindTopicClosed, TopicClosed{Topic: id})
	m.want("closed before it is deleted", closed, Done, 0)
	state(TopicLive, 6)
	m.want("delete", Control(KindDeleteTopic, DeleteTopic{Topic: id}), Done, 0)
	m.want("delete again", Control(KindDeleteTopic, DeleteTopic{Topic: id}), Done, 0)
	state(TopicDeleting, 6)
	m.want("opened while it is deleted", opened(6), Done, 0)
	state(TopicDeleting, 6)
	m.want("grow while it is deleted", more(9), Rejected, 3)
	if r := m.want("create while it is deleted", create, Rejected, 36); r.Topic != 0 {
		t.Error("a topic that is going is no answer to who wants it created")
	}
	if m.Catalog.Over(id) {
		t.Error("a topic that is being deleted is not over")
	}
	m.want("closed", closed, Done, 0)
	if c := again(t, m.Group).Catalog; !m.Catalog.Over(id) || !c.Over(id) || c.Over(other) || c.Over(other+1) {
		t.Error("the topic is over, the other one is not, and none to come")
	}
	m.want("closed again", closed, Done, 0)
	if m.Catalog.Topics[id] != nil || m.Catalog.TopicByName("a") != nil {
		t.Fatal("the topic is still there")
	}
	m.want("delete what is gone", Control(KindDeleteTopic, DeleteTopic{Topic: id}), Rejected, 3)
	if again := m.want("create anew", create, Done, 0).Topic; again <= other {
		t.Errorf("the new topic has id %d, which is not new", again)
	}
}

func TestCatalogRefuses(t *testing.T) {
	m := newMachine(t, CatalogGroup)
	m.want("no name", Control(KindCreateTopic, CreateTopic{Partitions: 1, Groups: 1}), Rejected, 37)
	m.want("no partitions", Control(KindCreateTopic, CreateTopic{Name: "a", Groups: 1}), Rejected, 37)
	m.want("negative partitions", Control(KindCreateTopic, CreateTopic{Name: "a", Partitions: -1, Groups: 1}), Rejected, 37)
	m.want("no groups", Control(KindCreateTopic, CreateTopic{Name: "a", Partitions: 1}), Rejected, 37)
	m.want("too many partitions", Control(KindCreateTopic, CreateTopic{Name: "a", Partitions: 1<<31 - 1, Groups: 1}), Rejected, 37)
	id := m.want("create", Control(KindCreateTopic, CreateTopic{Name: "a", Partitions: 1, Groups: 1}), Done, 0).Topic
	m.want("grow too far", Control(KindCreatePartitions, CreatePartitions{Topic: id, Total: 1<<31 - 1, Groups: 1}), Rejected, 37)
	m.want("grow over no groups", Control(KindCreatePartitions, CreatePartitions{Topic: id, Total: 2}), Rejected, 42)
	m.want("grow nothing", Control(KindCreatePartitions, CreatePartitions{Topic: 99, Total: 2, Groups: 1}), Rejected, 3)
	for _, n := range []int64{0, -1, 1_000_001} {
		m.want("producer ids", Control(KindAllocateProducers, AllocateProducers{Count: n}), Rejected, 42)
	}
	other := newMachine(t, 1)
	if r := other.one(Control(KindCreateTopic, CreateTopic{Name: "a", Partitions: 1, Groups: 1})); r.Verdict != Rejected || r.Code != 42 {
		t.Errorf("a catalog command in another group: %+v", r)
	}
}

func TestNodesKeepTheirIncarnation(t *testing.T) {
	m := newMachine(t, CatalogGroup)
	register := func(inc, addr string) Command {
		return Control(KindRegisterNode, RegisterNode{Node: CatalogNode{ID: 2, Incarnation: inc, Listeners: map[string]string{"PLAINTEXT": addr}}})
	}
	m.want("first", register("x", "a:1"), Done, 0)
	version := m.Catalog.Version
	m.want("no news", register("x", "a:1"), Done, 0)
	if m.Catalog.Version != version {
		t.Error("the same registration again is a new version")
	}
	kept := m.Catalog.Nodes[2]
	m.want("moved", register("x", "b:1"), Done, 0)
	if m.Catalog.Nodes[2].Listeners["PLAINTEXT"] != "b:1" || kept.Listeners["PLAINTEXT"] != "a:1" {
		t.Error("the new address replaces the old, and only in a copy")
	}
	m.want("another disk", register("y", "c:1"), Rejected, 42)
}

func TestProducerBlocksNeverOverlap(t *testing.T) {
	m := newMachine(t, CatalogGroup)
	next := ClientProducerBase
	for _, n := range []int64{1, 1000, 1_000_000, 7} {
		if r := m.want("block", Control(KindAllocateProducers, AllocateProducers{Count: n}), Done, 0); r.FirstN != next {
			t.Fatalf("block begins at %d, want %d", r.FirstN, next)
		}
		next += n
	}
}

func TestCoordinatorsMoveFromTheEpochSeen(t *testing.T) {
	m := newMachine(t, CatalogGroup)
	assign := func(slots ...SlotAssignment) {
		t.Helper()
		m.want("assign", Control(KindAssignCoordinators, AssignCoordinators{Slots: slots}), Done, 0)
	}
	assign(SlotAssignment{Slot: CoordinatorSlots, Node: 1}, SlotAssignment{Slot: -1, Node: 1})
	if m.Catalog.Coordinators != nil {
		t.Fatal("a slot that does not exist was assigned")
	}
	assign(SlotAssignment{Slot: 3, Node: 1}, SlotAssignment{Slot: 4, Node: 2})
	kept := m.Catalog.Coordinators
	first, second := kept[3], kept[4]
	if len(kept) != CoordinatorSlots || first.Node != 1 || second.Node != 2 || first.Epoch == second.Epoch || first.Epoch == 0 {
		t.Fatalf("slots are %+v and %+v", first, second)
	}
	assign(SlotAssignment{Slot: 3, Node: 9}) // saw it unassigned
	if m.Catalog.Coordinators[3] != first {
		t.Error("a proposer that is behind moved a slot")
	}
	assign(SlotAssignment{Slot: 3, Node: 3, Epoch: first.Epoch})
	if got := m.Catalog.Coordinators[3]; got.Node != 3 || got.Epoch <= second.Epoch {
		t.Errorf("slot is %+v", got)
	}
	if kept[3] != first {
		t.Error("slots that a reader kept were changed in place")
	}
}

func TestOpenAndCloseAreLevels(t *testing.T) {
	m := newMachine(t, 1)
	open := func(level, topic uint64, parts ...int32) Result {
		t.Helper()
		return m.one(Control(KindOpen, Open{Level: level, Topic: topic, Name: "t", Total: 9, Partitions: parts}))
	}
	closing := func(level, topic uint64) Result {
		t.Helper()
		return m.one(Control(KindClose, Close{Level: level, Topic: topic, Name: "t"}))
	}
	if r := open(5, 1, 4, 2, 0); len(r.Opened) != 3 || m.Shape != 1 {
		t.Fatalf("%+v", r)
	}
	m.one(AppendCommand(TP{1, 2}, makeBatch(batchSpec{count: 3})))
	if r := open(5, 1, 2, 6); !slices.Equal(r.Opened, []TP{{1, 6}}) || m.Partitions[TP{1, 2}].NextOffset != 3 {
		t.Fatalf("opening what is open touched it: %+v", r)
	}
	shape := m.Shape
	if r := open(5, 1, 2); len(r.Opened) != 0 || m.Shape != shape {
		t.Fatalf("%+v", r)
	}
	for i, r := range []Result{open(4, 1, 8), closing(4, 1)} {
		if r.Verdict != Rejected || r.Code != CodeStaleLevel || len(m.Partitions) != 4 || m.Level != 5 {
			t.Fatalf("stale command %d: %+v", i, r)
		}
	}
	open(6, 2, 1)
	if r := closing(7, 1); !slices.Equal(r.Closed, []TP{{1, 0}, {1, 2}, {1, 4}, {1, 6}}) {
		t.Fatalf("closed %v", r.Closed)
	}
	if keys := slices.Collect(maps.Keys(m.Partitions)); !slices.Equal(keys, []TP{{2, 1}}) {
		t.Fatalf("still open: %v", keys)
	}
	if r := closing(7, 1); len(r.Closed) != 0 || r.Verdict != Done {
		t.Fatalf("closing what is closed: %+v", r)
	}
	if r := open(6, 1, 2); r.Code != CodeStaleLevel {
		t.Fatalf("a proposer that saw the topic alive opened it again: %+v", r)
	}
	if r := m.one(AppendCommand(TP{1, 2}, makeBatch(batchSpec{}))); r.Verdict != Rejected || r.Code != 3 {
		t.Fatalf("append to a closed partition: %+v", r)
	}
}
