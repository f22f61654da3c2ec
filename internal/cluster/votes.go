package cluster

import (
	"fmt"
	"sync"

	"lockstep/fsm"
	"lockstep/internal/node"
)

// settlements is up to which index of the catalog this node, leading a group,
// saw nothing left to change in its configuration.
type settlements struct {
	mu    sync.Mutex
	at    map[uint32]uint64   // by group
	marks map[uint32]voteMark // by group
}

// voteMark is what was applied in a group when its leader first looked at a node
// that is to vote.
type voteMark struct {
	incarnation string
	index       uint64
}

// hadAll says whether a node's broker is nearly there and has had everything that
// was applied when this leader first looked: one that takes appends all the time
// never has all of now, and one that has begun nothing is nearly there, too, in a
// quiet group.
func (s *settlements) hadAll(group uint32, incarnation string, near bool, broker, applied uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.marks[group]
	if !ok || m.incarnation != incarnation {
		m = voteMark{incarnation, applied}
		s.marks[group] = m
	}
	if !near || broker < m.index {
		return false
	}
	delete(s.marks, group)
	return true
}

// leave forgets what was seen in an office.
func (s *settlements) leave(group uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at[group] = 0
	delete(s.marks, group)
}

func (s *settlements) get(group uint32) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at[group]
}

func (s *settlements) set(group uint32, index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at[group] = index
}

// mayRemove refuses what would leave the group without a majority that is here.
// A leader is not removed: it hands over first (betterPlace).
func (c *Cluster) mayRemove(g *node.Group, servers []node.Server, gone node.Server) error {
	if gone.Node == c.cfg.Self {
		return fmt.Errorf("node %d leads the group: it hands over first", c.cfg.Self)
	}
	news, _ := c.roster.fresh()
	if err := c.catalogLast(g, gone.Node, news); err != nil {
		return err
	}
	if !gone.Voter {
		return nil
	}
	voters, here := 0, 0
	for _, s := range servers {
		if !s.Voter || s.ID == gone.ID {
			continue
		}
		voters++
		if s.Node == c.cfg.Self || c.follows(g, news[s.Node]) {
			here++
		}
	}
	if 2*here <= voters {
		return fmt.Errorf("remove node %d: of the %d that would be left to vote only %d are here", gone.Node, voters, here)
	}
	return nil
}

// catalogLast keeps a node that leaves in the catalog's group until the others
// are without it. Whoever is out of that group reads in no catalog that it is to
// hand over: it might lead another one for ever.
func (c *Cluster) catalogLast(g *node.Group, id int32, news map[int32]*Announcement) error {
	if _, nodes := c.catalogNodes(); g.ID != fsm.CatalogGroup || nodes[id] == nil || nodes[id].State != fsm.NodeLeaving {
		return nil
	}
	for _, other := range c.node.Groups() {
		if other.ID == fsm.CatalogGroup {
			continue
		}
		_, said := announcedLeader(other.ID, news)
		if said == nil {
			return fmt.Errorf("remove node %d: nobody is heard to lead group %d, which may have it still", id, other.ID)
		}
		if _, in := said.Servers[id]; in {
			return fmt.Errorf("remove node %d: group %d has it still", id, other.ID)
		}
	}
	return nil
}

func (c *Cluster) follows(g *node.Group, a *Announcement) bool {
	return a != nil && int(g.ID) < len(a.Groups) && a.Groups[g.ID].Role == "follower"
}

// mayVote lets a node vote when its broker has what is committed: a vote is a
// copy, and a majority of copies is what a record survives on. In a quiet group
// everything is within a few entries: the broker must have had the last one of when
// this leader first looked, and no partition may be on its way still.
// What its predecessor announced a moment ago says nothing.
func (c *Cluster) mayVote(g *node.Group, n *fsm.CatalogNode) error {
	id := n.ID
	news, _ := c.roster.fresh()
	a := news[id]
	if !well(a) || a.Incarnation != n.Incarnation {
		return fmt.Errorf("let node %d vote: it, or its broker, is not well", id)
	}
	rep := &a.Groups[g.ID]
	near := c.caughtUp(g, a)
	switch {
	case rep.Unsound > 0 || len(rep.Troubled) > 0:
		return fmt.Errorf("let node %d vote: its broker does not have everything yet: partitions are being opened, compared or copied", id)
	case !c.settles.hadAll(g.ID, n.Incarnation, near, rep.Broker, g.Log().Applied().Get()):
		return fmt.Errorf("let node %d vote: its broker does not have everything yet", id)
	}
	return nil
}
