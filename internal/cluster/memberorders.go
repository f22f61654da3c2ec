package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/transport"
)

// methodTransfer asks a group's leader to hand over.
const methodTransfer = methodAnnounce + 24

// orderTimeout bounds one order of an operator.
const orderTimeout = 10 * time.Second

// AddNode awaits a node at a raft address or, without one, takes the removal of
// a node back that has not left yet. It returns what the operator should know of an
// order that was taken. Any goroutine, on any node.
func (c *Cluster) AddNode(ctx context.Context, id int32, address string) (warnings []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	if err := c.catalogUpToDate(ctx); err != nil {
		return nil, fmt.Errorf("the catalog has no leader that can be reached: %w", err)
	}
	_, nodes := c.catalogNodes()
	n := nodes[id]
	switch leaving := n != nil && n.State == fsm.NodeLeaving; {
	case leaving && address != "":
		return nil, fmt.Errorf("node %d is leaving: wait until it is gone, or let it stay: the same order without --address", id)
	case leaving:
		warnings, err := c.knowsKeepNode(nodes)
		if err != nil {
			return nil, err
		}
		c.log.Info("a removal is taken back", "node", id)
		return warnings, c.order(ctx, fsm.KindKeepNode, fsm.KeepNode{ID: id, Since: n.Since})
	case address == "":
		return nil, fmt.Errorf("node %d is not leaving: to let a node in, say where it is (--address HOST:PORT)", id)
	}
	if other := c.livesAt(address, id, nodes); other != 0 {
		return nil, fmt.Errorf("node %d is at %s: give node %d another address, or take node %d out first", other, address, id, other)
	}
	return nil, c.order(ctx, fsm.KindAddNode, fsm.AddNode{ID: id, Raft: address})
}

// knowsKeepNode refuses what a node that is heard of would stop at, and warns of
// those that are away: the order is for when one of them does not come back.
// The leader that takes the order may be of the older build itself.
func (c *Cluster) knowsKeepNode(nodes map[int32]*fsm.CatalogNode) (warnings []string, err error) {
	news, _ := c.roster.fresh()
	for _, id := range slices.Sorted(maps.Keys(news)) {
		if a := news[id]; a.older() {
			return nil, fmt.Errorf("node %d is of an older build (%s), which does not know this order and would stop at it: upgrade it first", id, a.Version)
		}
	}
	heard, _ := heardBySome(news)
	last := c.roster.last()
	for _, id := range c.listed(nodes) {
		switch {
		case news[id] != nil:
		case last[id] != nil && !last[id].older():
		case last[id] == nil && time.Since(c.began) < lease:
			return nil, fmt.Errorf("this node has just started and has not heard of node %d yet: give the order again in a moment", id)
		case heard[id]:
			return nil, fmt.Errorf("node %d is heard of by others but not by this node, which cannot tell whether it is of an older build: give the order to another node, or again in a moment", id)
		default:
			c.log.Warn("a removal is taken back while a node is away: if it is of an older build, it will stop at that order",
				"node", id, "next", "upgrade it before it starts again")
			warnings = append(warnings, fmt.Sprintf("node %d is away: if it is of an older build, it will stop at this order; upgrade it before it starts again", id))
		}
	}
	return warnings, nil
}

// livesAt returns a node other than id that is in the cluster with that raft
// address, 0 if there is none.
func (c *Cluster) livesAt(address string, id int32, nodes map[int32]*fsm.CatalogNode) int32 {
	for _, other := range c.listed(nodes) {
		at := c.node.Address(other)
		if n := nodes[other]; n != nil && n.Raft != "" {
			at = n.Raft
		}
		if other != id && at == address {
			return other
		}
	}
	return 0
}

// RemoveNode begins to take a node out; with again its place is kept for a new
// incarnation of it. It is refused unless a majority of those that stay are
// well and hold sound copies of everything. It returns what the operator should
// know of an order that was taken. Any goroutine, on any node.
func (c *Cluster) RemoveNode(ctx context.Context, id int32, again bool) (warnings []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	if err := c.catalogUpToDate(ctx); err != nil {
		return nil, fmt.Errorf("the catalog has no leader that can be reached: %w", err)
	}
	if err := c.mayLeave(id); err != nil {
		return nil, err
	}
	refused := c.refusedWithout(id)
	if err := c.order(ctx, fsm.KindRemoveNode, fsm.RemoveNode{ID: id, Again: again}); err != nil {
		return nil, err
	}
	if len(refused) > 0 {
		parts := strings.Join(refused, ", ")
		c.log.Warn("a node that is not heard of is taken out while batches are refused by the brokers of others: what its broker alone has of them is lost",
			"node", id, "partitions", parts, "next", "keep its broker's data until you know that nobody needs it")
		warnings = append(warnings, fmt.Sprintf("node %d is not heard of, and the brokers of others refuse batches of %s: what its broker alone has of them is lost to the cluster; keep its broker's data until you know that nobody needs it", id, parts))
	}
	return warnings, nil
}

// refusedWithout are the partitions of which other nodes' brokers refuse a batch
// that a node may have which is not heard of.
func (c *Cluster) refusedWithout(id int32) []string {
	news, _ := c.roster.fresh()
	if news[id] != nil {
		return nil // it is asked before it is out
	}
	var out []string
	for _, a := range news {
		for i := range a.Groups {
			for _, p := range a.Groups[i].Troubled {
				if apply.State(p.State) == apply.StateRefused {
					out = append(out, p.Topic+"/"+itoa(p.Partition))
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (c *Cluster) mayLeave(id int32) error {
	_, nodes := c.catalogNodes()
	if n := nodes[id]; n == nil || n.State == fsm.NodeAwaited || n.State == fsm.NodeGone {
		return nil // the catalog knows what to say
	}
	news, _ := c.roster.fresh()
	stay, sound := 0, 0
	var bad []error
	for _, other := range c.staying(c.node.Catalog().Voters()) {
		if other == id {
			continue
		}
		stay++
		if why := unfit(news[other]); why != "" {
			bad = append(bad, fmt.Errorf("node %d %s", other, why))
			continue
		}
		sound++
	}
	if group, ok := c.placedMajority(id, news); !ok {
		return fmt.Errorf("without node %d a majority of the others that hold group %d would not be sound: %w; mend that first", id, group, errors.Join(bad...))
	}
	if 2*sound <= stay {
		return fmt.Errorf("without node %d a majority of the other %d would not be sound: %w; mend that first", id, stay, errors.Join(bad...))
	}
	return nil
}

// unfit says why a node cannot be counted on, empty if it can.
func unfit(a *Announcement) string {
	switch {
	case a == nil:
		return "is not heard of"
	case !a.Broker.Up:
		return "has no broker"
	case a.Stopping:
		return "is stopping"
	case a.Problem != "":
		return a.Problem
	}
	for i := range a.Groups {
		if a.Groups[i].Unsound > 0 {
			return fmt.Sprintf("has no sound copy of %d partitions of group %d", a.Groups[i].Unsound, i)
		}
	}
	return ""
}

func (c *Cluster) order(ctx context.Context, kind fsm.Kind, body any) error {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	_, err := c.submit(ctx, fsm.CatalogGroup, kind, body)
	return err
}

// transferOrder is methodTransfer's question.
type transferOrder struct {
	Group uint32 `json:"group"`
	To    int32  `json:"to"` // 0: whoever is best placed
}

// Transfer hands leadership of a group to a node, or with to 0 to the one that
// is best placed. It returns when the new leader is known, or the reason why it
// was not done. Any goroutine, on any node.
func (c *Cluster) Transfer(ctx context.Context, group uint32, to int32) error {
	g := c.node.Group(group)
	if g == nil {
		return fmt.Errorf("there is no group %d", group)
	}
	leader := g.Leader.Get()
	switch leader {
	case 0:
		return fmt.Errorf("group %d has no leader now", group)
	case c.cfg.Self:
		return c.transferHere(ctx, transferOrder{group, to})
	}
	raw, err := json.Marshal(transferOrder{group, to})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	_, err = c.node.Call(ctx, leader, methodTransfer, raw)
	return err
}

func (c *Cluster) transferHere(ctx context.Context, o transferOrder) error {
	g := c.node.Group(o.Group)
	if g == nil || g.Leading.Get() == nil {
		return fmt.Errorf("node %d does not lead group %d", c.cfg.Self, o.Group)
	}
	news, _ := c.roster.fresh()
	to := o.To
	if to == 0 {
		to = c.bestOther(g, news)
	}
	switch {
	case to == c.cfg.Self:
		return nil
	case to == 0:
		return fmt.Errorf("no other node is fit to lead group %d", o.Group)
	}
	if why := unfit(news[to]); why != "" {
		return fmt.Errorf("node %d %s", to, why)
	}
	return c.handOver(ctx, g, to, "an operator asked for it")
}

// heardTransfer answers methodTransfer.
func (c *Cluster) heardTransfer(ctx context.Context, _ transport.Hello, payload []byte) ([]byte, error) {
	var o transferOrder
	if err := json.Unmarshal(payload, &o); err != nil {
		return nil, fmt.Errorf("read an order to hand over: %w", err)
	}
	return nil, c.transferHere(ctx, o)
}
