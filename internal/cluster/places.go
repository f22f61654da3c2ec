package cluster

import (
	"maps"
	"slices"

	"lockstep/fsm"
	"lockstep/internal/node"
)

// Where a group has a place in the catalog, only the nodes named there hold
// it. The others keep their Raft instance, idle: nobody sends it anything, and
// it votes for nobody. What they know of the group is its leader's word.

// roleAway is the role of a node that does not hold a group.
const roleAway = "away"

// places are the groups that not every node holds. They are not to be changed.
func (c *Cluster) places() (places map[uint32]*fsm.Placement) {
	c.node.Catalog().Read(func(g *fsm.Group) { places = g.Catalog.Places })
	return places
}

// Away says whether this node does not hold the group. Any goroutine.
func (c *Cluster) Away(g *node.Group) bool {
	if c.places()[g.ID] == nil {
		return false
	}
	news, _ := c.roster.fresh()
	return c.awayFrom(g, news)
}

// awayFrom is Away of a group that has a place: as its leader says or, without
// one, as this node's own Raft does, which may have missed its removal.
func (c *Cluster) awayFrom(g *node.Group, news map[int32]*Announcement) bool {
	if g.Leading.Get() != nil {
		return false
	}
	if _, said := announcedLeader(g.ID, news); said != nil && len(said.Servers) > 0 {
		_, in := said.Servers[c.cfg.Self]
		return !in
	}
	return !slices.ContainsFunc(g.Servers(), func(s node.Server) bool { return s.Node == c.cfg.Self })
}

// announcedLeader is who says that it leads a group, in the highest term; -1 if
// nobody does.
func announcedLeader(group uint32, news map[int32]*Announcement) (leader int32, said *GroupReport) {
	leader = -1
	for id, a := range news {
		if a.Stopping || int(group) >= len(a.Groups) {
			continue
		}
		if rep := &a.Groups[group]; rep.Leading && (said == nil || rep.Term > said.Term) {
			leader, said = id, rep
		}
	}
	return leader, said
}

// placedLeader is leaderOf a group that this node does not hold. Whoever here
// wants to reach the leader is told of it, too.
func (c *Cluster) placedLeader(g *node.Group, news map[int32]*Announcement) (int32, *GroupReport) {
	leader, said := announcedLeader(g.ID, news)
	g.Hear(max(leader, 0))
	return leader, said
}

// holders are the nodes among shown that hold a group: its voters, as its
// leader says, or those that are to be.
func holders(p *fsm.Placement, said *GroupReport, shown []int32) []int32 {
	return slices.DeleteFunc(slices.Clone(shown), func(id int32) bool {
		if said != nil && len(said.Servers) > 0 {
			return !said.Servers[id]
		}
		return !p.Has(id)
	})
}

// wanted drops from ids the nodes that are not to hold the group. If that
// leaves nobody, all of them stay.
func (c *Cluster) wanted(group uint32, ids []int32) []int32 {
	p := c.places()[group]
	if p == nil {
		return ids
	}
	out := slices.DeleteFunc(slices.Clone(ids), func(id int32) bool { return !p.Has(id) })
	if len(out) == 0 {
		return ids
	}
	return out
}

// unwanted says whether this node is to give a group up to others that have it
// already.
func (c *Cluster) unwanted(g *node.Group) bool {
	p := c.places()[g.ID]
	return p != nil && !p.Has(c.cfg.Self)
}

// placedMajority returns a group that would be left without a sound majority
// when a node goes, and false; true if there is none.
func (c *Cluster) placedMajority(id int32, news map[int32]*Announcement) (group uint32, ok bool) {
	places := c.places()
	for _, group := range slices.Sorted(maps.Keys(places)) {
		p := places[group]
		if !p.Has(id) || len(p.Nodes) == 1 {
			continue
		}
		sound := 0
		for _, other := range p.Nodes {
			if other != id && unfit(news[other]) == "" {
				sound++
			}
		}
		if 2*sound <= len(p.Nodes)-1 {
			return group, false
		}
	}
	return 0, true
}

// placedIn are the replicas of a group that has a place, else nil.
func (f *topicsFrom) placedIn(group uint32) []int32 {
	if int(group) >= len(f.placed) {
		return nil
	}
	return f.placed[group]
}
