package fsm

import (
	"maps"
	"testing"
)

func TestOneNodeRebuildsATopic(t *testing.T) {
	m := newMachine(t, CatalogGroup)
	create := func(name string) uint64 {
		return m.want("create", Control(KindCreateTopic, CreateTopic{Name: name, Partitions: 1, Groups: 1}), Done, 0).Topic
	}
	a, b := create("a"), create("b")
	take := func(topic uint64, node int32) Command {
		return Control(KindTakeRebuild, TakeRebuild{Topic: topic, Node: node})
	}
	end := func(topic uint64, node int32) Command {
		return Control(KindEndRebuild, EndRebuild{Topic: topic, Node: node})
	}
	holds := func(want map[uint64]int32) {
		t.Helper()
		if !maps.Equal(m.Catalog.Rebuilds, want) {
			t.Fatalf("leases %v, want %v", m.Catalog.Rebuilds, want)
		}
		again(t, m.Group)
	}
	m.want("no such topic", take(99, 1), Rejected, 3)
	none := m.Catalog.Rebuilds
	m.want("free", take(a, 1), Done, 0)
	if len(none) != 0 {
		t.Error("leases that a reader kept were changed in place")
	}
	if m.Catalog.Version != m.Index {
		t.Error("a lease taken is no new version")
	}
	version := m.Catalog.Version
	m.want("its own", take(a, 1), Done, 0)
	m.want("another's", take(a, 2), Rejected, CodeBusy)
	m.want("another's, given back", end(a, 2), Done, 0)
	m.want("nobody's, given back", end(b, 1), Done, 0)
	if m.Catalog.Version != version {
		t.Error("no news is a new version")
	}
	m.want("another topic", take(b, 2), Done, 0)
	holds(map[uint64]int32{a: 1, b: 2})
	m.want("given back", end(a, 1), Done, 0)
	holds(map[uint64]int32{b: 2})
	m.want("free again", take(a, 3), Done, 0)

	m.want("delete", Control(KindDeleteTopic, DeleteTopic{Topic: a}), Done, 0)
	m.want("of a topic that goes", take(a, 3), Rejected, 3)
	holds(map[uint64]int32{a: 3, b: 2})
	m.want("closed", Control(KindTopicClosed, TopicClosed{Topic: a}), Done, 0)
	holds(map[uint64]int32{b: 2})
	if other := newMachine(t, 1); other.one(take(b, 1)).Verdict != Rejected {
		t.Error("a lease in a group without a catalog")
	}
}

// A node that lost its disk stays a stranger when the log that registered it is
// gone into a snapshot (design-review, finding 3).
func TestNodesKeepTheirIncarnationThroughASnapshot(t *testing.T) {
	m := newMachine(t, CatalogGroup)
	register := func(inc string) Command {
		return Control(KindRegisterNode, RegisterNode{Node: CatalogNode{ID: 2, Incarnation: inc, Listeners: map[string]string{"PLAINTEXT": "a:1"}}})
	}
	m.want("first", register("x"), Done, 0)
	m.Group = again(t, m.Group)
	m.want("another disk", register("y"), Rejected, 42)
	m.want("its own", register("x"), Done, 0)
}
