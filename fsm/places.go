package fsm

import (
	"maps"
	"slices"
)

// KindPlaceGroup is a command of the catalog: which nodes hold a group. The
// number is part of the log's format and never reused.
const KindPlaceGroup Kind = 30

// MaxFactor is the most nodes that an order may place a group on.
const MaxFactor = 15

// Placement is which nodes hold a group. A group without one is held by every
// node, as the catalog's always is. A Placement is never modified.
type Placement struct {
	Group uint32 `json:"group"`
	// Nodes are in ascending order. One that is gone, or awaited, has no part
	// in the group, but an awaited one keeps its seat.
	Nodes []int32 `json:"nodes"`
	// Factor is how many nodes are to hold the group, if there are as many.
	Factor int `json:"factor"`
	// Since is the index of the last change.
	Since uint64 `json:"since"`
}

// Has says whether the node is to hold the group; of no place every node is.
func (p *Placement) Has(node int32) bool { return p == nil || slices.Contains(p.Nodes, node) }

// PlaceGroup moves a group to a set of nodes.
type PlaceGroup struct {
	Group  uint32  `json:"group"`
	Nodes  []int32 `json:"nodes"`
	Factor int     `json:"factor"`
	// Since is the place that the proposer saw, 0 if there was none: of two
	// orders at once, the second is refused.
	Since uint64 `json:"since"`
}

func (c *Catalog) placeGroup(index uint64, a *PlaceGroup) (Result, bool) {
	var since uint64
	if old := c.Places[a.Group]; old != nil {
		since = old.Since
	}
	members := 0
	for _, n := range c.Nodes {
		if n.State == NodeMember {
			members++
		}
	}
	switch {
	case a.Group == CatalogGroup:
		return rejected(codeInvalidRequest, "group 0 holds the catalog and stays on every node"), false
	case a.Factor < 1 || a.Factor > MaxFactor || a.Factor%2 == 0:
		return rejected(codeInvalidRequest, "a group is held by an odd number of nodes, 1 to %d", MaxFactor), false
	case since != a.Since:
		return rejected(codeInvalidRequest, "group %d was placed by somebody else meanwhile: look again", a.Group), false
	case len(a.Nodes) != min(a.Factor, members) || !slices.IsSorted(a.Nodes):
		return rejected(codeInvalidRequest, "group %d needs %d nodes, in order", a.Group, min(a.Factor, members)), false
	}
	for i, id := range a.Nodes {
		if n := c.Nodes[id]; n == nil || n.State != NodeMember || i > 0 && a.Nodes[i-1] == id {
			return rejected(codeInvalidRequest, "node %d is no member", id), false
		}
	}
	if other := c.onTheWay(0); other != nil {
		return rejected(codeInvalidRequest, "node %d is %s: changes go one at a time", other.ID, other.State), false
	}
	c.setPlace(&Placement{Group: a.Group, Nodes: a.Nodes, Factor: a.Factor, Since: index})
	return Result{}, true
}

func (c *Catalog) setPlace(p *Placement) {
	places := maps.Clone(c.Places)
	if places == nil {
		places = make(map[uint32]*Placement)
	}
	places[p.Group] = p
	c.Places = places
}

// vacate gives the seats of a node that goes for good to the members that have
// the fewest.
func (c *Catalog) vacate(index uint64, id int32) {
	for _, group := range slices.Sorted(maps.Keys(c.Places)) {
		p := c.Places[group]
		if !p.Has(id) {
			continue
		}
		nodes := slices.DeleteFunc(slices.Clone(p.Nodes), func(n int32) bool { return n == id })
		if heir := c.heir(nodes, id); heir != 0 {
			nodes = append(nodes, heir)
			slices.Sort(nodes)
		}
		c.setPlace(&Placement{Group: group, Nodes: nodes, Factor: p.Factor, Since: index})
	}
}

// heir is the member with the fewest seats that has none in nodes and is not
// the one that goes, 0 if there is none.
func (c *Catalog) heir(nodes []int32, gone int32) (heir int32) {
	seats := make(map[int32]int)
	for _, p := range c.Places {
		for _, id := range p.Nodes {
			seats[id]++
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.Nodes)) {
		if id == gone || c.Nodes[id].State != NodeMember || slices.Contains(nodes, id) {
			continue
		}
		if heir == 0 || seats[id] < seats[heir] {
			heir = id
		}
	}
	return heir
}

// seat gives a node that comes the seats that are free.
func (c *Catalog) seat(index uint64, id int32) {
	for _, group := range slices.Sorted(maps.Keys(c.Places)) {
		p := c.Places[group]
		if len(p.Nodes) >= p.Factor || p.Has(id) {
			continue
		}
		nodes := append(slices.Clone(p.Nodes), id)
		slices.Sort(nodes)
		c.setPlace(&Placement{Group: group, Nodes: nodes, Factor: p.Factor, Since: index})
	}
}

// spread assigns partitions len(have).. to groups, one after the other. Once
// groups have places, the catalog's gets no more partitions: it is on every
// node.
func (c *Catalog) spread(have []uint32, topic uint64, total int32, groups uint32) []uint32 {
	first := uint32(0)
	if len(c.Places) > 0 && groups > 1 {
		first, groups = 1, groups-1
	}
	out := slices.Clone(have)
	for n := uint64(len(have)); n < uint64(total); n++ {
		out = append(out, first+uint32((topic-1+n)%uint64(groups)))
	}
	return out
}

// placesState is the places as they are encoded.
func (c *Catalog) placesState() []Placement {
	var out []Placement
	for _, group := range slices.Sorted(maps.Keys(c.Places)) {
		out = append(out, *c.Places[group])
	}
	return out
}

func (c *Catalog) decodePlaces(r *stateReader, places []Placement) {
	for i := range places {
		p := &places[i]
		if p.Group == CatalogGroup || p.Factor < 1 || p.Factor > MaxFactor || !slices.IsSorted(p.Nodes) {
			r.fail("group %d has the place %v, factor %d", p.Group, p.Nodes, p.Factor)
			return
		}
		if c.Places == nil {
			c.Places = make(map[uint32]*Placement, len(places))
		}
		c.Places[p.Group] = p
	}
}
