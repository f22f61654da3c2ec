package fsm

import (
	"slices"
	"strings"
	"testing"
)

const (
	incA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	incB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// A node's way: awaited, joining, member, leaving, gone; and once more under
// another incarnation. The one before is shut out for good.
func TestNodeComesAndGoes(t *testing.T) {
	m := newMachine(t, CatalogGroup)
	must := func(kind Kind, args any) { t.Helper(); expect(t, one(t, m.Group, kind, args), "") }
	refused := func(why string, kind Kind, args any) { t.Helper(); expect(t, one(t, m.Group, kind, args), why) }
	state := func(id int32, want NodeState) *CatalogNode {
		t.Helper()
		n := m.Catalog.Nodes[id]
		if n == nil || n.State != want {
			t.Fatalf("node %d is %+v, want it %q", id, n, want)
		}
		return n
	}
	register := func(id int32, inc string) RegisterNode {
		return RegisterNode{Node: CatalogNode{ID: id, Incarnation: inc, Raft: "r:1", State: NodeMember, Later: false, Since: 99}}
	}
	must(KindRegisterNode, register(1, incA))
	if n := state(1, NodeMember); n.RaftServer() != "1" || n.Since != 0 {
		t.Errorf("a founder is %+v, called %s", n, n.RaftServer())
	}
	refused("last member", KindRemoveNode, RemoveNode{ID: 1})
	refused("already", KindAddNode, AddNode{ID: 1, Raft: "r:1"})
	refused("host:port", KindAddNode, AddNode{ID: 2})

	must(KindAddNode, AddNode{ID: 2, Raft: "r:2"})
	state(2, NodeAwaited)
	must(KindRegisterNode, register(2, incA))
	n := state(2, NodeJoining)
	if n.RaftServer() != "2."+incA[:16] || n.Since == 99 {
		t.Errorf("a later node is %+v, called %s", n, n.RaftServer())
	}
	must(KindAddNode, AddNode{ID: 3, Raft: "r:3"})
	refused("node 2 is joining", KindRegisterNode, register(3, incA))
	refused("one at a time", KindRemoveNode, RemoveNode{ID: 1})
	must(KindNodeJoined, NodeJoined{ID: 2, Since: n.Since + 1}) // of another time: nothing
	state(2, NodeJoining)
	must(KindNodeJoined, NodeJoined{ID: 2, Since: n.Since})
	state(2, NodeMember)

	topic := one(t, m.Group, KindCreateTopic, CreateTopic{Name: "t", Partitions: 1, Groups: 1}).Topic
	must(KindTakeRebuild, TakeRebuild{Topic: topic, Node: 2})
	must(KindRemoveNode, RemoveNode{ID: 2, Again: true})
	since := state(2, NodeLeaving).Since
	refused("wait until it is gone", KindAddNode, AddNode{ID: 2, Raft: "r:2"})
	must(KindNodeLeft, NodeLeft{ID: 2, Since: since})
	if n := state(2, NodeAwaited); n.Former != incA || n.Incarnation != "" {
		t.Errorf("an awaited node is %+v", n)
	}
	if len(m.Catalog.Rebuilds) != 0 {
		t.Error("a node that went keeps a lease")
	}
	refused("empty it", KindRegisterNode, register(2, incA))
	must(KindRegisterNode, register(2, incB))
	must(KindNodeJoined, NodeJoined{ID: 2, Since: state(2, NodeJoining).Since})
	if got := state(2, NodeMember).RaftServer(); got != "2."+incB[:16] {
		t.Errorf("it is called %s", got)
	}
	must(KindRemoveNode, RemoveNode{ID: 1})
	must(KindNodeLeft, NodeLeft{ID: 1, Since: state(1, NodeLeaving).Since})
	state(1, NodeGone)
	refused("members add 1", KindRegisterNode, register(1, incB))
	refused("not in the cluster", KindRemoveNode, RemoveNode{ID: 1})
	must(KindAddNode, AddNode{ID: 1, Raft: "r:1"})
	refused("empty it", KindRegisterNode, register(1, incA))
	same := again(t, m.Group)
	if got, want := string(mustJSON(same.Catalog.state())), string(mustJSON(m.Catalog.state())); got != want {
		t.Errorf("a snapshot holds %s, want %s", got, want)
	}
}

// A removal is taken back as long as the node has not left: it is joining
// again, and the order that it was put out by has no effect any more.
func TestARemovalIsTakenBack(t *testing.T) {
	m := newMachine(t, CatalogGroup)
	must := func(kind Kind, args any) { t.Helper(); expect(t, one(t, m.Group, kind, args), "") }
	refused := func(why string, kind Kind, args any) { t.Helper(); expect(t, one(t, m.Group, kind, args), why) }
	for id := int32(1); id <= 4; id++ {
		must(KindRegisterNode, RegisterNode{Node: CatalogNode{ID: id, Incarnation: incA, Raft: "r:1"}})
	}
	must(KindPlaceGroup, PlaceGroup{Group: 1, Nodes: []int32{1, 2, 3}, Factor: 3})
	must(KindPlaceGroup, PlaceGroup{Group: 2, Nodes: []int32{1, 2, 3}, Factor: 3})
	refused("not leaving", KindKeepNode, KeepNode{ID: 9})
	before := m.Catalog.Version
	must(KindKeepNode, KeepNode{ID: 2}) // a member: no news
	if m.Catalog.Version != before {
		t.Error("what is no news changes the catalog")
	}
	must(KindRemoveNode, RemoveNode{ID: 2})
	order := m.Catalog.Nodes[2].Since
	refused("one at a time", KindRemoveNode, RemoveNode{ID: 3, Again: true})
	refused("look again", KindKeepNode, KeepNode{ID: 2, Since: order - 1})
	must(KindKeepNode, KeepNode{ID: 2, Since: order})
	n := m.Catalog.Nodes[2]
	if n.State != NodeJoining || n.Incarnation != incA || n.RaftServer() != "2" || n.Since != m.Index {
		t.Errorf("it is %+v, called %s", n, n.RaftServer())
	}
	if p := m.Catalog.Places[1]; !slices.Equal(p.Nodes, []int32{1, 3, 4}) {
		t.Errorf("its seat went to another, and is %v", p.Nodes)
	}
	must(KindNodeLeft, NodeLeft{ID: 2, Since: order}) // late: nothing
	refused("one at a time", KindRemoveNode, RemoveNode{ID: 3, Again: true})
	must(KindNodeJoined, NodeJoined{ID: 2, Since: n.Since})
	// Once more, and to be replaced: what was lost in between is replaced first.
	must(KindRemoveNode, RemoveNode{ID: 2, Again: true})
	must(KindKeepNode, KeepNode{ID: 2, Since: m.Catalog.Nodes[2].Since})
	if n := m.Catalog.Nodes[2]; n.Again {
		t.Errorf("it is to come again: %+v", n)
	}
	must(KindNodeJoined, NodeJoined{ID: 2, Since: m.Catalog.Nodes[2].Since})
	must(KindRemoveNode, RemoveNode{ID: 3, Again: true})
	must(KindNodeLeft, NodeLeft{ID: 3, Since: m.Catalog.Nodes[3].Since})
	refused("not leaving", KindKeepNode, KeepNode{ID: 3})
	// A node that is joining is taken back by its removal.
	must(KindRegisterNode, RegisterNode{Node: CatalogNode{ID: 3, Incarnation: incB, Raft: "r:1"}})
	refused("one at a time", KindRemoveNode, RemoveNode{ID: 4, Again: true})
	must(KindRemoveNode, RemoveNode{ID: 3, Again: true})
	must(KindNodeLeft, NodeLeft{ID: 3, Since: m.Catalog.Nodes[3].Since})
	must(KindRemoveNode, RemoveNode{ID: 4, Again: true})
	same := again(t, m.Group)
	if got, want := string(mustJSON(same.Catalog.state())), string(mustJSON(m.Catalog.state())); got != want {
		t.Errorf("a snapshot holds %s, want %s", got, want)
	}
}

func expect(t *testing.T, r Result, why string) {
	t.Helper()
	if (why == "") != (r.Verdict == Done) || !strings.Contains(r.Message, why) {
		t.Errorf("the verdict is %+v, want %q", r, why)
	}
}

// After a recovery from a lost quorum the survivor is alone; whoever was there
// before comes back as somebody new.
func TestRecoveryPutsTheOthersOut(t *testing.T) {
	m := newMachine(t, CatalogGroup)
	for id := int32(1); id <= 3; id++ {
		expect(t, one(t, m.Group, KindRegisterNode, RegisterNode{Node: CatalogNode{ID: id, Incarnation: incA, Raft: "r:1"}}), "")
	}
	expect(t, one(t, m.Group, KindRemoveNode, RemoveNode{ID: 2, Again: true}), "") // it was about to leave
	one(t, m.Group, KindRecover, Recover{Number: 1, Survivor: 2})
	if m.Catalog.Nodes[2].Again {
		t.Error("the survivor is still asked to come back")
	}
	for id, want := range map[int32]NodeState{1: NodeGone, 2: NodeMember, 3: NodeGone} {
		if got := m.Catalog.Nodes[id].State; got != want {
			t.Errorf("node %d is %q, want %q", id, got, want)
		}
	}
	if m.Catalog.Version != m.Index {
		t.Error("nobody is told of the change")
	}
}
