package fsm

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// NodeState is where a node is in its life in the cluster.
type NodeState string

// A node is awaited from the operator's word until it comes, joining until
// every group has it as a voter, a member then, leaving until no group has it,
// and gone afterwards. One that is leaving may be kept: it is joining again. The
// founders begin as members.
const (
	NodeMember  NodeState = ""
	NodeAwaited NodeState = "awaited"
	NodeJoining NodeState = "joining"
	NodeLeaving NodeState = "leaving"
	NodeGone    NodeState = "gone"
)

// serverTail is how much of an incarnation is in a Raft server id.
const serverTail = 16

// RaftServer is the node's id in the groups' configurations. That of a founder
// is its decimal id. A node that came later has its incarnation in it, too: a
// configuration from before speaks of another one under the same node id, which
// a node that catches up must not take for itself (a founder that was replaced
// would find itself the only voter, and elect itself).
func (n *CatalogNode) RaftServer() string {
	id := strconv.Itoa(int(n.ID))
	if !n.Later {
		return id
	}
	return id + "." + n.Incarnation[:min(serverTail, len(n.Incarnation))]
}

// Takes says whether the groups are to have the node in their configurations.
func (n *CatalogNode) Takes() bool { return n.State == NodeMember || n.State == NodeJoining }

// AddNode awaits a node: the next incarnation that comes under that id, other
// than one that was there before, is let in.
type AddNode struct {
	ID   int32  `json:"id"`
	Raft string `json:"raft"` // host:port of its internode port
}

// RemoveNode takes a node out of all groups. With Again it is awaited after
// that, with an empty data_dir.
type RemoveNode struct {
	ID    int32 `json:"id"`
	Again bool  `json:"again,omitempty"`
}

// KindKeepNode is a command of the catalog: a removal is taken back. The number
// is part of the log's format and never reused.
const KindKeepNode Kind = 31

// KeepNode takes the removal of a node back that has not left yet. Since is the
// index of that order.
type KeepNode struct {
	ID    int32  `json:"id"`
	Since uint64 `json:"since"`
}

// NodeLeft says that no group has a leaving node any more. Since is the index
// of the order, so that a late word about an earlier one changes nothing.
type NodeLeft struct {
	ID    int32  `json:"id"`
	Since uint64 `json:"since"`
}

// NodeJoined says that every group has a joining node as a voter.
type NodeJoined struct {
	ID    int32  `json:"id"`
	Since uint64 `json:"since"`
}

// onTheWay returns a node other than id that is joining or leaving: changes of
// the membership go one at a time.
func (c *Catalog) onTheWay(id int32) *CatalogNode {
	var found *CatalogNode
	for _, n := range c.Nodes {
		if n.ID != id && (n.State == NodeJoining || n.State == NodeLeaving) && (found == nil || n.ID < found.ID) {
			found = n
		}
	}
	return found
}

// editNode replaces a node by a changed copy.
func (c *Catalog) editNode(n *CatalogNode, f func(*CatalogNode)) {
	cp := *n
	f(&cp)
	nodes := maps.Clone(c.Nodes)
	nodes[n.ID] = &cp
	c.Nodes = nodes
}

func (c *Catalog) addNode(index uint64, a *AddNode) (Result, bool) {
	if a.ID < 1 || a.Raft == "" {
		return rejected(codeInvalidRequest, "a node needs an id from 1 up and the host:port of its internode port"), false
	}
	old := c.Nodes[a.ID]
	switch {
	case old == nil:
		old = &CatalogNode{ID: a.ID}
	case old.State == NodeAwaited && old.Raft == a.Raft:
		return Result{}, false
	case old.State == NodeLeaving:
		return rejected(codeInvalidRequest, "node %d is leaving: wait until it is gone", a.ID), false
	case old.Takes():
		return rejected(codeInvalidRequest, "node %d is in the cluster already; to replace its machine or its disk, use members replace", a.ID), false
	}
	c.editNode(old, func(n *CatalogNode) {
		*n = CatalogNode{ID: a.ID, Raft: a.Raft, State: NodeAwaited, Former: old.Former, Since: index}
	})
	return Result{}, true
}

func (c *Catalog) removeNode(index uint64, a *RemoveNode) (Result, bool) {
	n := c.Nodes[a.ID]
	if n == nil || n.State == NodeGone {
		return rejected(codeInvalidRequest, "node %d is not in the cluster", a.ID), false
	}
	if n.State == NodeLeaving && n.Again == a.Again {
		return Result{}, false
	}
	if n.State == NodeAwaited {
		if a.Again {
			return Result{}, false
		}
		c.editNode(n, func(n *CatalogNode) { n.State, n.Since = NodeGone, index })
		c.vacate(index, a.ID)
		return Result{}, true
	}
	if other := c.onTheWay(a.ID); other != nil {
		return rejected(codeInvalidRequest, "node %d is %s: changes go one at a time", other.ID, other.State), false
	}
	rest := 0
	for _, o := range c.Nodes {
		if o.ID != a.ID && o.State == NodeMember {
			rest++
		}
	}
	if rest == 0 {
		return rejected(codeInvalidRequest, "node %d is the last member", a.ID), false
	}
	c.editNode(n, func(n *CatalogNode) { n.State, n.Again, n.Since = NodeLeaving, a.Again, index })
	if !a.Again {
		c.vacate(index, a.ID)
	}
	return Result{}, true
}

// keepNode lets a node that was leaving stay. Some groups may have given it up
// already: it is joining until all have it as a voter. Its seats in groups that
// have places went to others, and it gets those that are free.
func (c *Catalog) keepNode(index uint64, a *KeepNode) (Result, bool) {
	n := c.Nodes[a.ID]
	switch {
	case n != nil && n.Takes():
		return Result{}, false
	case n == nil || n.State != NodeLeaving:
		return rejected(codeInvalidRequest, "node %d is not leaving", a.ID), false
	case n.Since != a.Since:
		return rejected(codeInvalidRequest, "node %d was ordered out by somebody else meanwhile: look again", a.ID), false
	}
	c.editNode(n, func(n *CatalogNode) { n.State, n.Again, n.Since = NodeJoining, false, index })
	c.seat(index, a.ID)
	return Result{}, true
}

func (c *Catalog) nodeLeft(index uint64, a *NodeLeft) (Result, bool) {
	n := c.Nodes[a.ID]
	if n == nil || n.State != NodeLeaving || n.Since != a.Since {
		return Result{}, false
	}
	c.putOut(n, index)
	return Result{}, true
}

// putOut ends an incarnation's time in the cluster.
func (c *Catalog) putOut(n *CatalogNode, index uint64) {
	next := NodeGone
	if n.Again {
		next = NodeAwaited
	}
	c.editNode(n, func(n *CatalogNode) {
		*n = CatalogNode{ID: n.ID, Raft: n.Raft, State: next, Former: n.Incarnation, Since: index}
	})
	for topic, node := range c.Rebuilds {
		if node == n.ID {
			c.dropRebuild(topic)
		}
	}
}

func (c *Catalog) nodeJoined(index uint64, a *NodeJoined) (Result, bool) {
	n := c.Nodes[a.ID]
	if n == nil || n.State != NodeJoining || n.Since != a.Since {
		return Result{}, false
	}
	c.editNode(n, func(n *CatalogNode) { n.State, n.Since = NodeMember, index })
	return Result{}, true
}

// registerNode enters a founder or an awaited node, or brings a node's
// addresses up to date.
func (c *Catalog) registerNode(index uint64, a *CatalogNode) (Result, bool) {
	old := c.Nodes[a.ID]
	n := *a
	n.State, n.Later, n.Former, n.Again, n.Since = NodeMember, false, "", false, 0
	switch {
	case old == nil:
		// A founder: the groups began with it. Nobody asks for another one.
	case old.State == NodeGone || old.State == NodeAwaited && old.Former != "" && old.Former == a.Incarnation:
		return rejected(codeInvalidRequest, "%s", old.refusal(a.Incarnation)), false
	case old.State == NodeAwaited:
		if other := c.onTheWay(a.ID); other != nil {
			return rejected(codeInvalidRequest, "node %d is %s: this one is let in after that", other.ID, other.State), false
		}
		n.State, n.Later, n.Former, n.Since = NodeJoining, true, old.Former, index
	case old.Incarnation != a.Incarnation:
		return rejected(codeInvalidRequest, "node %d is registered with incarnation %s", a.ID, old.Incarnation), false
	case old.Rack == n.Rack && old.Admin == n.Admin && old.Raft == n.Raft && maps.Equal(old.Listeners, n.Listeners):
		return Result{}, false
	default:
		n.State, n.Later, n.Former, n.Again, n.Since = old.State, old.Later, old.Former, old.Again, old.Since
	}
	c.editNode(&n, func(*CatalogNode) {})
	if n.State == NodeJoining {
		c.seat(index, n.ID)
	}
	return Result{}, true
}

// refusal says why an incarnation of a node that is gone, or was before, is
// not let in, and what to do.
func (n *CatalogNode) refusal(incarnation string) string {
	switch {
	case n.State == NodeGone:
		return fmt.Sprintf("node %d was removed from the cluster; stop it, or let it in again: empty its data_dir and its broker, then lockstep members add %d --address HOST:PORT", n.ID, n.ID)
	case n.Former != "" && n.Former == incarnation:
		return fmt.Sprintf("node %d was removed with this data_dir: empty it, then start the node again", n.ID)
	}
	return ""
}

// Refusal says why the catalog shuts an incarnation of the node out, empty if
// it does not.
func (n *CatalogNode) Refusal(incarnation string) string { return n.refusal(incarnation) }

// recoverMembers puts everybody but the survivor out, after the quorum was lost.
// A survivor that was on its way out is all there is now: it stays.
func (c *Catalog) recoverMembers(index uint64, survivor int32) bool {
	changed := false
	if n := c.Nodes[survivor]; n != nil && n.State == NodeLeaving {
		c.editNode(n, func(n *CatalogNode) { n.State, n.Again, n.Since = NodeMember, false, index })
		changed = true
	}
	for id, n := range c.Nodes {
		if id != survivor && n.State != NodeGone && n.State != NodeAwaited {
			cp := *n
			cp.Again = false
			c.putOut(&cp, index)
			changed = true
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.Nodes)) {
		if id != survivor {
			c.vacate(index, id)
		}
	}
	return changed
}
