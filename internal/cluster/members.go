package cluster

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"lockstep/fsm"
	"lockstep/internal/node"
)

// Who belongs to the cluster is in the catalog; who votes in a group is in the
// group's own configuration. Each group's leader brings its configuration to
// what the catalog says, one server at a time, from the level (what is, and what
// should be): a leader that dies in between leaves nothing undone for the next.
// When all groups' leaders have nothing left to do, the catalog's leader takes
// the node's next step. docs/architecture.md has the states and crash points.

const (
	// memberEvery is the pause before a change that was not possible is tried
	// again.
	memberEvery = 500 * time.Millisecond
	// memberTimeout bounds one look at whether the catalog is up to date.
	memberTimeout = 5 * time.Second
)

// memberLoop settles the configuration of one group while this node leads it.
func (c *Cluster) memberLoop(ctx context.Context, g *node.Group) {
	t := time.NewTicker(memberEvery)
	defer t.Stop()
	said := ""
	for {
		_, changed := c.node.Catalog().CatalogChanged().Changed()
		_, office := g.Leading.Changed()
		if g.Leading.Get() == nil {
			c.settles.leave(g.ID)
		} else if err := c.settleMembers(ctx, g); err == nil {
			said = ""
		} else if text := err.Error(); text != said && ctx.Err() == nil {
			said = text
			c.log.Info("a change of a group's members waits", "group", g.ID, "reason", text)
		}
		select {
		case <-changed:
		case <-office:
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// settleMembers makes changes until there is none left, or says why one waits.
func (c *Cluster) settleMembers(ctx context.Context, g *node.Group) error {
	for current := false; g.Leading.Get() != nil; {
		// The level is read before the configuration: what was committed under
		// an older one is seen.
		index, nodes, place := c.memberLevel(g.ID)
		next := c.nextChange(g, nodes, place)
		if next == nil {
			if index > c.settles.get(g.ID) {
				c.settles.set(g.ID, index)
			}
			return nil
		}
		c.settles.set(g.ID, 0)
		if !current {
			try, cancel := context.WithTimeout(ctx, memberTimeout)
			err := c.catalogUpToDate(try)
			cancel()
			if err != nil {
				return fmt.Errorf("is the catalog up to date: %w", err)
			}
			current = true
			continue
		}
		current = false
		if err := next.may(); err != nil {
			return err
		}
		if err := next.do(); err != nil {
			return fmt.Errorf("%s: %w", next.what, err)
		}
		c.log.Info("group's members changed", "group", g.ID, "change", next.what)
		c.tell()
	}
	return nil
}

// memberChange is one step of a group's configuration.
type memberChange struct {
	what string
	may  func() error // why it must wait, nil if it need not
	do   func() error
}

func always() error { return nil }

// nextChange is what is to be done next in the group, nil if nothing. Who is
// out of the cluster goes before somebody else comes; who only has no place in
// this group any more, after.
func (c *Cluster) nextChange(g *node.Group, nodes map[int32]*fsm.CatalogNode, place *fsm.Placement) *memberChange {
	servers := g.Servers()
	in := make(map[string]node.Server)
	var last *memberChange // when everybody who comes has a vote
	for _, s := range servers {
		in[s.ID] = s
		n := nodes[s.Node]
		own := n != nil && n.RaftServer() == s.ID
		if n == nil || own && n.Takes() && place.Has(s.Node) {
			continue // one that has not registered yet is a founder
		}
		change := &memberChange{what: "remove node " + itoa(s.Node),
			may: func() error { return c.mayRemove(g, servers, s) },
			do:  func() error { return g.Remove(s.ID) }}
		if place != nil && own && (n.Takes() || n.State == fsm.NodeLeaving) {
			last = cmp.Or(last, change)
			continue
		}
		return change
	}
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		n := nodes[id]
		if !n.Takes() || !place.Has(id) {
			continue
		}
		s, ok := in[n.RaftServer()]
		if !ok || !s.Voter {
			if move := c.freeAddress(g, servers, n, nodes); move != nil {
				return move
			}
		}
		switch {
		case !ok:
			return &memberChange{what: "add node " + itoa(id) + ", without a vote", may: always,
				do: func() error { return g.AddNonvoter(n.RaftServer(), n.Raft) }}
		case !s.Voter:
			return &memberChange{what: "let node " + itoa(id) + " vote",
				may: func() error { return c.mayVote(g, n) },
				do:  func() error { return g.Promote(s.ID, n.Raft) }}
		}
	}
	return last
}

// freeAddress is what must be done first because another server has a node's
// address in the group's configuration, nil if nothing: that is where the other
// one was when it came, and Raft takes no address twice. Nobody is called there
// any more.
func (c *Cluster) freeAddress(g *node.Group, servers []node.Server, n *fsm.CatalogNode, nodes map[int32]*fsm.CatalogNode) *memberChange {
	i := slices.IndexFunc(servers, func(s node.Server) bool { return s.Address == n.Raft && s.ID != n.RaftServer() })
	if i < 0 {
		return nil
	}
	s := servers[i]
	other := nodes[s.Node]
	change := &memberChange{what: "write down where node " + itoa(s.Node) + " is", may: always}
	switch {
	case other == nil || other.RaftServer() != s.ID || other.Raft == "" || other.Raft == s.Address:
		change.may = func() error {
			return fmt.Errorf("node %d has the address of node %d, %s: give one of them another raft.advertise", s.Node, n.ID, n.Raft)
		}
	case s.Voter:
		change.do = func() error { return g.Promote(s.ID, other.Raft) }
	default:
		change.do = func() error { return g.AddNonvoter(s.ID, other.Raft) }
	}
	return change
}

// catalogNodes returns the nodes, and the index up to which the catalog was read.
func (c *Cluster) catalogNodes() (index uint64, nodes map[int32]*fsm.CatalogNode) {
	c.node.Catalog().Read(func(g *fsm.Group) { index, nodes = g.Index, maps.Clone(g.Catalog.Nodes) })
	return index, nodes
}

// memberLevel is catalogNodes, and the place of a group.
func (c *Cluster) memberLevel(group uint32) (index uint64, nodes map[int32]*fsm.CatalogNode, place *fsm.Placement) {
	c.node.Catalog().Read(func(g *fsm.Group) {
		index, nodes, place = g.Index, maps.Clone(g.Catalog.Nodes), g.Catalog.Places[group]
	})
	return index, nodes, place
}

// tendMembers takes a node's next step when all groups are settled. Only the
// catalog's leader calls it.
func (c *Cluster) tendMembers(ctx context.Context) {
	_, nodes := c.catalogNodes()
	for _, n := range nodes {
		if n.State != fsm.NodeJoining && n.State != fsm.NodeLeaving || !c.settledSince(n.Since) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, submitTimeout)
		var err error
		if n.State == fsm.NodeJoining {
			_, err = c.submit(ctx, fsm.CatalogGroup, fsm.KindNodeJoined, fsm.NodeJoined{ID: n.ID, Since: n.Since})
		} else {
			_, err = c.submit(ctx, fsm.CatalogGroup, fsm.KindNodeLeft, fsm.NodeLeft{ID: n.ID, Since: n.Since})
		}
		cancel()
		if err != nil {
			c.log.Debug("cannot take a node's next step yet", "node", n.ID, "state", n.State, "error", err)
			return
		}
		c.log.Info("node's way is through", "node", n.ID, "was", n.State)
	}
}

// settledSince says whether every group's leader has read the catalog up to an
// index and has nothing left to change.
func (c *Cluster) settledSince(index uint64) bool {
	news, _ := c.roster.fresh()
	for _, g := range c.node.Groups() {
		ok := false
		for id, a := range news {
			rep := &a.Groups[g.ID]
			ok = ok || rep.Leading && rep.Settled >= index && g.Leader.Get() == id
		}
		if !ok {
			return false
		}
	}
	return true
}

// staying drops from ids the nodes that the catalog shows out. The order stays.
func (c *Cluster) staying(ids []int32) []int32 {
	_, nodes := c.catalogNodes()
	return slices.DeleteFunc(slices.Clone(ids), func(id int32) bool { return nodes[id] != nil && !nodes[id].Takes() })
}

// leaves says whether this node is on its way out.
func (c *Cluster) leaves() (leaving bool) {
	c.node.Catalog().Read(func(g *fsm.Group) {
		n := g.Catalog.Nodes[c.cfg.Self]
		leaving = n != nil && n.State == fsm.NodeLeaving
	})
	return leaving
}

// everybody is whoever may have a copy of a partition: voters or not.
func (c *Cluster) everybody(tp fsm.TP) []int32 {
	g := c.groupOf(tp.Topic, tp.Partition)
	if g == nil {
		return c.node.Peers()
	}
	servers := g.Servers()
	if servers == nil {
		return c.node.Peers()
	}
	var ids []int32
	for _, s := range servers {
		ids = append(ids, s.Node)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// listed are the nodes that a status shows: those of the catalog that are not
// gone, and founders that have not registered yet.
func (c *Cluster) listed(registered map[int32]*fsm.CatalogNode) []int32 {
	ids := c.node.Peers()
	for id := range registered {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.DeleteFunc(slices.Compact(ids), func(id int32) bool {
		return registered[id] != nil && registered[id].State == fsm.NodeGone
	})
}
