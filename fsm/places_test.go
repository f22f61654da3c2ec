package fsm

import (
	"bytes"
	"slices"
	"testing"
)

func placed(t *testing.T, m *Group, group uint32, nodes ...int32) {
	t.Helper()
	p := m.Catalog.Places[group]
	if p == nil || !slices.Equal(p.Nodes, nodes) {
		t.Fatalf("group %d is placed %+v, want it on %v", group, p, nodes)
	}
}

// A group has its place from an order on. Seats go to others when a node goes
// for good, wait for one that is replaced, and are filled when one comes.
func TestPlaces(t *testing.T) {
	m := newMachine(t, CatalogGroup)
	must := func(kind Kind, args any) { t.Helper(); expect(t, one(t, m.Group, kind, args), "") }
	refused := func(why string, kind Kind, args any) { t.Helper(); expect(t, one(t, m.Group, kind, args), why) }
	for id := int32(1); id <= 4; id++ {
		must(KindRegisterNode, RegisterNode{Node: CatalogNode{ID: id, Incarnation: incA, Raft: "r:1"}})
	}
	before := m.Encode()
	if before[3] != accessStateVersion {
		t.Errorf("a state without places has version %d: builds from before cannot read it", before[3])
	}
	refused("stays on every node", KindPlaceGroup, PlaceGroup{Group: 0, Nodes: []int32{1, 2, 3}, Factor: 3})
	refused("odd number", KindPlaceGroup, PlaceGroup{Group: 1, Nodes: []int32{1, 2}, Factor: 2})
	refused("needs 3 nodes", KindPlaceGroup, PlaceGroup{Group: 1, Nodes: []int32{1, 2}, Factor: 3})
	refused("in order", KindPlaceGroup, PlaceGroup{Group: 1, Nodes: []int32{3, 2, 1}, Factor: 3})
	refused("no member", KindPlaceGroup, PlaceGroup{Group: 1, Nodes: []int32{1, 1, 2}, Factor: 3})
	refused("no member", KindPlaceGroup, PlaceGroup{Group: 1, Nodes: []int32{1, 2, 9}, Factor: 3})
	must(KindPlaceGroup, PlaceGroup{Group: 1, Nodes: []int32{1, 2, 3}, Factor: 3})
	refused("look again", KindPlaceGroup, PlaceGroup{Group: 1, Nodes: []int32{2, 3, 4}, Factor: 3})
	must(KindPlaceGroup, PlaceGroup{Group: 2, Nodes: []int32{1, 2, 4}, Factor: 3})
	placed(t, m.Group, 1, 1, 2, 3)

	topic := one(t, m.Group, KindCreateTopic, CreateTopic{Name: "t", Partitions: 5, Groups: 3}).Topic
	if groups := m.Catalog.Topics[topic].Groups; slices.Contains(groups, CatalogGroup) || !slices.Contains(groups, 1) || !slices.Contains(groups, 2) {
		t.Errorf("partitions went to groups %v", groups)
	}
	refused("adopted while", KindReserveTopic, ReserveTopic{Name: "old"})

	must(KindRemoveNode, RemoveNode{ID: 1, Again: true})
	placed(t, m.Group, 1, 1, 2, 3)
	refused("one at a time", KindPlaceGroup, PlaceGroup{Group: 2, Nodes: []int32{2, 3, 4}, Factor: 3, Since: m.Catalog.Places[2].Since})
	must(KindNodeLeft, NodeLeft{ID: 1, Since: m.Catalog.Nodes[1].Since})
	must(KindRegisterNode, RegisterNode{Node: CatalogNode{ID: 1, Incarnation: incB, Raft: "r:1"}})
	must(KindNodeJoined, NodeJoined{ID: 1, Since: m.Catalog.Nodes[1].Since})
	placed(t, m.Group, 1, 1, 2, 3)

	must(KindRemoveNode, RemoveNode{ID: 1})
	placed(t, m.Group, 1, 2, 3, 4)
	placed(t, m.Group, 2, 2, 3, 4)
	must(KindNodeLeft, NodeLeft{ID: 1, Since: m.Catalog.Nodes[1].Since})
	must(KindRemoveNode, RemoveNode{ID: 2})
	placed(t, m.Group, 1, 3, 4)
	must(KindNodeLeft, NodeLeft{ID: 2, Since: m.Catalog.Nodes[2].Since})
	must(KindAddNode, AddNode{ID: 5, Raft: "r:5"})
	must(KindRegisterNode, RegisterNode{Node: CatalogNode{ID: 5, Incarnation: incA, Raft: "r:5"}})
	placed(t, m.Group, 1, 3, 4, 5)

	after := m.Encode()
	again, err := DecodeGroup(after)
	if err != nil || after[3] != placesStateVersion || !bytes.Equal(again.Encode(), after) {
		t.Fatalf("a state with places does not come back: %v", err)
	}
	placed(t, again, 1, 3, 4, 5)
}
