package cluster

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"lockstep/fsm"
	"lockstep/internal/node"
)

// A leader hands over when its broker is away, when the node stops, and when
// the group's home node is well again. The home of group g is the g-th node, so
// that leaders are spread.

const (
	balanceEvery = 250 * time.Millisecond
	// handOverPause keeps a group from being handed around when no node is well.
	handOverPause = 2 * time.Second
	// handOverTimeout bounds one transfer of leadership.
	handOverTimeout = 3 * time.Second
	// steadyFor is how long a node must have been well before it is given a
	// group for the sake of one partition.
	steadyFor = time.Second
	// closeBehind is the lag, in entries, up to which a broker counts as
	// having everything; the rest follows in the time a transfer takes.
	closeBehind = 64
)

func (c *Cluster) balanceLoop(ctx context.Context) {
	t := time.NewTicker(balanceEvery)
	defer t.Stop()
	wellSince := make(map[int32]time.Time)
	moved := make(map[uint32]time.Time)
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		c.noteWell(wellSince)
		for _, g := range c.node.Groups() {
			l := g.Leading.Get()
			if l == nil || time.Since(moved[g.ID]) < handOverPause {
				continue
			}
			to, why := c.betterPlace(g, l, wellSince)
			if to == 0 {
				continue
			}
			moved[g.ID] = time.Now()
			if err := c.handOver(ctx, g, to, why); err != nil {
				c.log.Warn("leadership was not handed over", "group", g.ID, "to", to, "why", why, "error", err)
			}
		}
	}
}

func (c *Cluster) handOver(ctx context.Context, g *node.Group, to int32, why string) error {
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	return g.Transfer(ctx, to, why)
}

// noteWell keeps since when each node could lead any group.
func (c *Cluster) noteWell(since map[int32]time.Time) {
	news, _ := c.roster.fresh()
	for _, id := range c.node.Peers() {
		if !well(news[id]) {
			delete(since, id)
		} else if _, ok := since[id]; !ok {
			since[id] = time.Now()
		}
	}
}

func well(a *Announcement) bool {
	return a != nil && a.Broker.Up && !a.Stopping && a.Problem == ""
}

// betterPlace returns the node that should lead the group instead of this one,
// 0 if none.
func (c *Cluster) betterPlace(g *node.Group, l *node.Leadership, wellSince map[int32]time.Time) (int32, string) {
	news, _ := c.roster.fresh()
	if c.leaves() {
		if to := c.bestOther(g, news); to != 0 {
			return to, "node " + itoa(c.cfg.Self) + " leaves the cluster"
		}
		return 0, ""
	}
	own := c.cfg.Broker()
	if !own.Up && time.Since(own.Since) > c.cfg.UnreachableAfter {
		if to := c.bestOther(g, news); to != 0 {
			return to, "the broker of node " + itoa(c.cfg.Self) + " is unreachable"
		}
		return 0, ""
	}
	if mine := news[c.cfg.Self]; mine != nil && own.Up && mine.Groups[g.ID].Unsound > 0 {
		return c.sounderPlace(g, &mine.Groups[g.ID], news, wellSince)
	}
	if c.unwanted(g) {
		to := c.bestOther(g, news)
		if to != 0 && c.places()[g.ID].Has(to) && c.caughtUp(g, news[to]) {
			return to, "node " + itoa(c.cfg.Self) + " gives the group up"
		}
		return 0, ""
	}
	home := c.home(g)
	delay := c.cfg.RebalanceDelay
	g.Read(func(s *fsm.Group) {
		if len(s.Partitions) == 0 {
			delay = 0 // nobody is served from here yet: nothing is disturbed
		}
	})
	if home == c.cfg.Self || time.Since(l.Since) < delay {
		return 0, ""
	}
	since, ok := wellSince[home]
	if !ok || time.Since(since) < delay || !c.caughtUp(g, news[home]) || news[home].Groups[g.ID].Unsound > 0 {
		return 0, ""
	}
	return home, "node " + itoa(home) + " is the group's home and is well"
}

// home is the node that leads a group when all are well, 0 if nobody could.
func (c *Cluster) home(g *node.Group) int32 {
	ids := c.wanted(g.ID, c.staying(g.Voters()))
	if len(ids) == 0 {
		return 0
	}
	return ids[int(g.ID)%len(ids)]
}

// sounderPlace returns a node that has sound copies of more of the group's
// partitions than this one, 0 if there is none. Leadership only ever goes to
// strictly fewer, and home only to none: three nodes that each lack another
// partition stay where they are, and the group is not handed around.
func (c *Cluster) sounderPlace(g *node.Group, mine *GroupReport, news map[int32]*Announcement, wellSince map[int32]time.Time) (int32, string) {
	to := c.bestOther(g, news)
	if to == 0 || !c.caughtUp(g, news[to]) || news[to].Groups[g.ID].Unsound >= mine.Unsound {
		return 0, ""
	}
	if since, ok := wellSince[to]; !ok || time.Since(since) < steadyFor {
		return 0, ""
	}
	why := "node " + itoa(c.cfg.Self) + " has no sound copy of " + itoa(int32(mine.Unsound)) + " partitions of it"
	if len(mine.Quarantined) > 0 {
		why = "node " + itoa(c.cfg.Self) + " quarantines " + mine.Quarantined[0]
	}
	return to, why
}

// OthersTrusted says whether a majority of the other nodes' brokers hold
// everything of a group up to an index through a power cut, as far as was heard
// within the lease. A node that has no sound copy of one of the group's
// partitions does not count. Any goroutine.
func (c *Cluster) OthersTrusted(group uint32, index uint64) bool {
	g := c.node.Group(group)
	return g != nil && c.othersTrusted(g.Voters(), group, index)
}

func (c *Cluster) othersTrusted(voters []int32, group uint32, index uint64) bool {
	news, _ := c.roster.fresh()
	trusted := 0
	for _, id := range voters {
		a := news[id]
		if id == c.cfg.Self || !well(a) || int(group) >= len(a.Groups) {
			continue
		}
		if rep := &a.Groups[group]; rep.Unsound == 0 && rep.Trusted >= index {
			trusted++
		}
	}
	return 2*trusted > len(voters)-1
}

// caughtUp says whether a node's broker has what is applied here, or nearly.
func (c *Cluster) caughtUp(g *node.Group, a *Announcement) bool {
	if a == nil {
		return false
	}
	rep := a.Groups[g.ID]
	return rep.Role == "follower" && rep.Broker+closeBehind >= g.Log().Applied().Get()
}

// bestOther is the well node that has sound copies of most of the group, and
// among those the one whose broker is furthest.
func (c *Cluster) bestOther(g *node.Group, news map[int32]*Announcement) int32 {
	var best int32
	var its *GroupReport
	for _, id := range c.wanted(g.ID, slices.DeleteFunc(c.staying(g.Voters()), func(id int32) bool { return id == c.cfg.Self })) {
		a := news[id]
		if !well(a) || a.Groups[g.ID].Role != "follower" {
			continue
		}
		rep := &a.Groups[g.ID]
		if its == nil || cmp.Or(cmp.Compare(its.Unsound, rep.Unsound), cmp.Compare(rep.Broker, its.Broker)) > 0 {
			best, its = id, rep
		}
	}
	return best
}

// HandOver gives every group that this node leads to a node that is well, for
// a planned stop. Clients are told nothing but the truth meanwhile.
func (c *Cluster) HandOver(ctx context.Context) {
	c.stopping.Store(true)
	c.tell()
	for _, g := range c.node.Groups() {
		if r := g.Raft(); r == nil || r.State() != raft.Leader {
			continue
		}
		news, _ := c.roster.fresh()
		to := c.bestOther(g, news)
		if to == 0 {
			c.log.Warn("no other node is well: the group will have to elect", "group", g.ID)
			continue
		}
		if err := c.handOver(ctx, g, to, "node "+itoa(c.cfg.Self)+" stops"); err != nil {
			c.log.Warn("leadership was not handed over", "group", g.ID, "to", to, "error", err)
		}
	}
	c.tell()
}
