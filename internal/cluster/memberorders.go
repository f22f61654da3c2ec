package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"lockstep/fsm"
	"lockstep/transport"
)

// methodTransfer asks a group's leader to hand over.
const methodTransfer = methodAnnounce + 24

// orderTimeout bounds one order of an operator.
const orderTimeout = 10 * time.Second

// AddNode awaits a node at a raft address or, without one, takes the removal of
// a node back that has not left yet. Any goroutine, on any node.
func (c *Cluster) AddNode(ctx context.Context, id int32, address string) error {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	if err := c.catalogUpToDate(ctx); err != nil {
		return fmt.Errorf("the catalog has no leader that can be reached: %w", err)
	}
	_, nodes := c.catalogNodes()
	n := nodes[id]
	switch leaving := n != nil && n.State == fsm.NodeLeaving; {
	case leaving && address != "":
		return fmt.Errorf("node %d is leaving: wait until it is gone, or let it stay: the same order without --address", id)
	case leaving:
		c.log.Info("a removal is taken back", "node", id)
		return c.order(ctx, fsm.KindKeepNode, fsm.KeepNode{ID: id, Since: n.Since})
	case address == "":
		return fmt.Errorf("node %d is not leaving: to let a node in, say where it is (--address HOST:PORT)", id)
	}
	if other := c.livesAt(address, id, nodes); other != 0 {
		return fmt.Errorf("node %d is at %s: give node %d another address, or take node %d out first", other, address, id, other)
	}
	return c.order(ctx, fsm.KindAddNode, fsm.AddNode{ID: id, Raft: address})
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
// well and hold sound copies of everything.
func (c *Cluster) RemoveNode(ctx context.Context, id int32, again bool) error {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	if err := c.catalogUpToDate(ctx); err != nil {
		return fmt.Errorf("the catalog has no leader that can be reached: %w", err)
	}
	if err := c.mayLeave(id); err != nil {
		return err
	}
	return c.order(ctx, fsm.KindRemoveNode, fsm.RemoveNode{ID: id, Again: again})
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
