package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"lockstep/fsm"
	"lockstep/internal/node"
)

// defaultFactor is replication.factor's default.
const defaultFactor = 3

// PlacementReport is where the groups are, and where lockstep rebalance would
// have them.
type PlacementReport struct {
	Factor int              `json:"factor"` // replication.factor of the node that was asked
	Groups []GroupPlacement `json:"groups"`
}

// GroupPlacement is one group of a PlacementReport.
type GroupPlacement struct {
	Group  uint32  `json:"group"`
	Votes  []int32 `json:"votes"`            // nodes that hold it
	Learns []int32 `json:"learns,omitempty"` // nodes that are being filled
	// Ordered are the nodes that are to hold it, nothing if that is every node.
	Ordered []int32 `json:"ordered,omitempty"`
	Since   uint64  `json:"since,omitempty"` // of the order
	Moving  bool    `json:"moving,omitempty"`
	// Target is where a rebalance would order it.
	Target []int32 `json:"target"`
	// Again: it is to be ordered, because it has no place, or another one.
	Again bool `json:"again,omitempty"`
}

// Placement reports on every group but the catalog's. Any goroutine.
func (c *Cluster) Placement() PlacementReport {
	out := PlacementReport{Factor: c.cfg.ReplicationFactor, Groups: []GroupPlacement{}}
	_, nodes := c.catalogNodes()
	places := c.places()
	news, _ := c.roster.fresh()
	var members []int32
	racks := make(map[int32]string)
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		if nodes[id].State == fsm.NodeMember {
			members = append(members, id)
			racks[id] = nodes[id].Rack
		}
	}
	now := make(map[uint32][]int32)
	for _, g := range c.node.Groups() {
		if g.ID == fsm.CatalogGroup {
			continue
		}
		r := c.placementOf(g, places[g.ID], news)
		if now[g.ID] = r.Ordered; places[g.ID] == nil {
			now[g.ID] = members
		}
		out.Groups = append(out.Groups, r)
	}
	targets := planPlaces(now, members, racks, out.Factor)
	for i := range out.Groups {
		r := &out.Groups[i]
		r.Target = targets[r.Group]
		p := places[r.Group]
		r.Again = p == nil || p.Factor != out.Factor || !slices.Equal(p.Nodes, r.Target)
	}
	return out
}

func (c *Cluster) placementOf(g *node.Group, p *fsm.Placement, news map[int32]*Announcement) GroupPlacement {
	r := GroupPlacement{Group: g.ID}
	_, said := announcedLeader(g.ID, news)
	if said != nil {
		for _, id := range slices.Sorted(maps.Keys(said.Servers)) {
			if said.Servers[id] {
				r.Votes = append(r.Votes, id)
			} else {
				r.Learns = append(r.Learns, id)
			}
		}
	}
	if p != nil {
		r.Ordered, r.Since = p.Nodes, p.Since
		r.Moving = said == nil || said.Settled < p.Since || len(r.Learns) > 0 || !slices.Equal(r.Votes, p.Nodes)
	}
	return r
}

// planPlaces places groups on factor of the members each. A group is in as many racks
// as it can be, and as evenly, so that the loss of one takes no more of it than it
// must; within that, every member holds as many groups as any other, or one less,
// where racks of different sizes allow it, and as few as possible move. A member
// without a rack is in one of its own.
func planPlaces(now map[uint32][]int32, members []int32, racks map[int32]string, factor int) map[uint32][]int32 {
	p := plan{members: members, racks: racks, load: make(map[int32]int), out: make(map[uint32][]int32)}
	groups := slices.Sorted(maps.Keys(now))
	for _, g := range groups {
		for range min(factor, len(members)) {
			p.seat(g, now[g])
		}
	}
	for p.even(groups) {
	}
	for _, ids := range p.out {
		slices.Sort(ids)
	}
	return p.out
}

// plan is where planPlaces is.
type plan struct {
	members []int32
	racks   map[int32]string
	load    map[int32]int // groups, by node
	out     map[uint32][]int32
}

// inRackOf counts the nodes among ids, but for one, that are in a node's rack.
func (p *plan) inRackOf(id int32, ids []int32, but int32) (n int) {
	for _, other := range ids {
		if other != but && p.racks[id] != "" && p.racks[other] == p.racks[id] {
			n++
		}
	}
	return n
}

// seat gives a group one more node: of the racks that have least of it, one that has
// it now, if any, and of those the one that holds the fewest groups.
func (p *plan) seat(g uint32, now []int32) {
	rest := slices.DeleteFunc(slices.Clone(p.members), func(id int32) bool { return slices.Contains(p.out[g], id) })
	moves := func(id int32) int {
		if slices.Contains(now, id) {
			return 0
		}
		return 1
	}
	best := slices.MinFunc(rest, func(a, b int32) int {
		return cmp.Or(cmp.Compare(p.inRackOf(a, p.out[g], 0), p.inRackOf(b, p.out[g], 0)),
			cmp.Compare(moves(a), moves(b)), cmp.Compare(p.load[a], p.load[b]), cmp.Compare(a, b))
	})
	p.out[g] = append(p.out[g], best)
	p.load[best]++
}

// even moves one seat from a node to another that holds at least two groups less, if
// that brings no more of a group into one rack. It reports false if there is nothing
// to move.
func (p *plan) even(groups []uint32) bool {
	byLoad := slices.SortedFunc(slices.Values(p.members), func(a, b int32) int { return cmp.Or(cmp.Compare(p.load[a], p.load[b]), cmp.Compare(a, b)) })
	for _, most := range slices.Backward(byLoad) {
		for _, least := range byLoad {
			if p.load[most]-p.load[least] < 2 {
				break
			}
			for _, g := range groups {
				i := slices.Index(p.out[g], most)
				if i < 0 || slices.Contains(p.out[g], least) || p.inRackOf(least, p.out[g], most) > p.inRackOf(most, p.out[g], most) {
					continue
				}
				p.out[g][i] = least
				p.load[most]--
				p.load[least]++
				return true
			}
		}
	}
	return false
}

// PlaceGroup orders a group to a set of nodes, from the place that was seen
// (since, 0 if there was none). It returns when the order is taken: the group
// moves then. It is refused unless all of the nodes are well. Any goroutine, on
// any node.
func (c *Cluster) PlaceGroup(ctx context.Context, group uint32, nodes []int32, since uint64) error {
	if c.node.Group(group) == nil {
		return fmt.Errorf("there is no group %d", group)
	}
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	if err := c.catalogUpToDate(ctx); err != nil {
		return fmt.Errorf("the catalog has no leader that can be reached: %w", err)
	}
	news, _ := c.roster.fresh()
	var bad []error
	for _, id := range nodes {
		if why := unfit(news[id]); why != "" {
			bad = append(bad, fmt.Errorf("node %d %s", id, why))
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("group %d cannot go there: %w; mend that first", group, errors.Join(bad...))
	}
	return c.order(ctx, fsm.KindPlaceGroup, fsm.PlaceGroup{Group: group, Nodes: nodes, Factor: c.cfg.ReplicationFactor, Since: since})
}
