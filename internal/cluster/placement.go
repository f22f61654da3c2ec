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
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		if nodes[id].State == fsm.NodeMember {
			members = append(members, id)
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
	targets := planPlaces(now, members, out.Factor)
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

// planPlaces places groups on factor of the members each, so that every member
// holds as many as any other, or one less, and as few as possible move.
func planPlaces(now map[uint32][]int32, members []int32, factor int) map[uint32][]int32 {
	load := make(map[int32]int)
	out := make(map[uint32][]int32)
	groups := slices.Sorted(maps.Keys(now))
	for _, g := range groups {
		stay := slices.DeleteFunc(slices.Clone(now[g]), func(id int32) bool { return !slices.Contains(members, id) })
		stay = leastLoaded(stay, load, factor)
		rest := slices.DeleteFunc(slices.Clone(members), func(id int32) bool { return slices.Contains(stay, id) })
		out[g] = append(stay, leastLoaded(rest, load, factor-len(stay))...)
		for _, id := range out[g] {
			load[id]++
		}
	}
	for moved := true; moved; {
		moved = false
		byLoad := slices.SortedFunc(slices.Values(members), func(a, b int32) int { return cmp.Or(cmp.Compare(load[a], load[b]), cmp.Compare(a, b)) })
		if len(byLoad) == 0 || load[byLoad[len(byLoad)-1]]-load[byLoad[0]] < 2 {
			break
		}
		most, least := byLoad[len(byLoad)-1], byLoad[0]
		for _, g := range groups {
			if i := slices.Index(out[g], most); i >= 0 && !slices.Contains(out[g], least) {
				out[g][i] = least
				load[most]--
				load[least]++
				moved = true
				break
			}
		}
	}
	for _, ids := range out {
		slices.Sort(ids)
	}
	return out
}

// leastLoaded are the n of ids that hold the fewest groups.
func leastLoaded(ids []int32, load map[int32]int, n int) []int32 {
	ids = slices.Clone(ids)
	slices.SortStableFunc(ids, func(a, b int32) int { return cmp.Compare(load[a], load[b]) })
	return ids[:min(max(n, 0), len(ids))]
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
