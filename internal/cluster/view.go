package cluster

import (
	"maps"
	"net"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"lockstep/fsm"
	"lockstep/internal/mutant"
	"lockstep/internal/node"
	"lockstep/proxy"
)

// snapshot is a view with what this room needs beside it.
type snapshot struct {
	view    *proxy.View
	routes  map[uint64][]uint32 // group by partition, by topic id
	catalog uint64              // version of the catalog it was built from
	leaders []int32             // by group: the leader that clients can trust, -1 if none
	expires time.Time           // when the first announcement in it does

	doubtOnce sync.Once // guards doubt
	doubt     *proxy.View
}

// same says whether clients would see no difference.
func (s *snapshot) same(old *snapshot) bool {
	return old != nil && s.catalog == old.catalog && slices.Equal(s.leaders, old.leaders) && reflect.DeepEqual(s.view, old.view)
}

// View implements proxy.Cluster. After a suspension of this process it names
// this node as no partition's leader until a majority has confirmed that.
func (c *Cluster) View() *proxy.View {
	s := c.view.Get()
	if !c.awake.believed() {
		return s.doubtful()
	}
	return s.view
}

// Changed implements proxy.Cluster.
func (c *Cluster) Changed() (*proxy.View, <-chan struct{}) {
	s, changed := c.view.Changed()
	return s.view, changed
}

// build puts together what this node knows now.
func (c *Cluster) build() *snapshot {
	news, expires := c.roster.fresh()
	s := &snapshot{expires: expires, routes: make(map[uint64][]uint32)}
	v := &proxy.View{ClusterID: c.cfg.ClusterID, Self: c.cfg.Self, Controller: -1, Topics: make(map[string]*proxy.Topic)}
	s.view = v
	var topics []*fsm.CatalogTopic
	var nodes []*fsm.CatalogNode
	c.node.Catalog().Read(func(g *fsm.Group) {
		s.catalog = g.Catalog.Version
		for _, t := range g.Catalog.Topics {
			topics = append(topics, t)
		}
		for _, n := range g.Catalog.Nodes {
			nodes = append(nodes, n)
		}
		v.Coordinators = coordinators(g.Catalog.Coordinators)
		v.CoordinatorEpochs = c.offices.held(g.Catalog.Coordinators, c.cfg.Self)
	})
	slices.SortFunc(nodes, func(a, b *fsm.CatalogNode) int { return int(a.ID) - int(b.ID) })
	var replicas, isr []int32
	for _, n := range nodes {
		a := news[n.ID]
		alive := a != nil && !a.Stopping || n.ID == c.cfg.Self
		v.Nodes = append(v.Nodes, proxy.Node{ID: n.ID, Rack: n.Rack, Alive: alive, Listeners: endpoints(n.Listeners)})
		replicas = append(replicas, n.ID)
		if a != nil && a.Broker.Up {
			isr = append(isr, n.ID)
		}
		if alive && v.Controller < 0 {
			v.Controller = n.ID
		}
	}
	notReady := make(map[fsm.TP]struct{})
	for _, g := range c.node.Groups() {
		leader, report := c.leaderOf(g, news)
		s.leaders = append(s.leaders, leader)
		for _, tp := range c.unready(g, leader, report) {
			notReady[tp] = struct{}{}
		}
		if g.ID == fsm.CatalogGroup {
			v.CatalogReady = c.caught.reached(leader, report, g.Log().Applied().Get())
		}
	}
	if l := s.leaders[fsm.CatalogGroup]; l >= 0 {
		v.Controller = l
	}
	for _, t := range topics {
		if t.State == fsm.TopicDeleting || t.Opened == 0 {
			continue
		}
		s.routes[t.ID] = t.Groups
		v.Topics[t.Name] = s.showTopic(t, replicas, isr, notReady)
	}
	return s
}

// unready lists the partitions of a group that its leader cannot serve: as it
// said, or, of this node, as it is now.
func (c *Cluster) unready(g *node.Group, leader int32, said *GroupReport) []fsm.TP {
	switch {
	case said == nil:
		return nil
	case leader == c.cfg.Self:
		if l := g.Leading.Get(); l != nil {
			return c.notReady(g, l)
		}
	}
	return said.NotReady
}

// catalogMark is how far this node must have followed the catalog before it
// may say that a topic is unknown: what its leader had applied when it was
// first heard of. Until then the catalog here may be yesterday's.
type catalogMark struct {
	leader  int32
	term    uint64
	applied uint64
}

func (m *catalogMark) reached(leader int32, said *GroupReport, applied uint64) bool {
	if leader < 0 || said == nil {
		*m = catalogMark{}
		return false
	}
	if m.leader != leader || m.term != said.Term {
		*m = catalogMark{leader, said.Term, said.Applied}
	}
	return applied >= m.applied
}

func (s *snapshot) showTopic(t *fsm.CatalogTopic, replicas, isr []int32, notReady map[fsm.TP]struct{}) *proxy.Topic {
	out := &proxy.Topic{ID: t.ID, Name: t.Name, Config: t.Config, Partitions: make([]proxy.Partition, t.Opened)}
	for n := range out.Partitions {
		p := proxy.Partition{Leader: -1, Replicas: replicas, ISR: isr}
		if g := t.Groups[n]; int(g) < len(s.leaders) {
			p.Leader = s.leaders[g]
		}
		if _, bad := notReady[fsm.TP{Topic: t.ID, Partition: int32(n)}]; bad {
			p.Leader = -1
		}
		out.Partitions[n] = p
	}
	return out
}

// leaderOf returns the leader of a group that clients can trust, and what it
// said: the one in office with the highest term of whom this node has heard
// within the lease. Of itself a node believes its own Raft only, and so it does
// of others once its own Raft has a say.
func (c *Cluster) leaderOf(g *node.Group, news map[int32]*Announcement) (int32, *GroupReport) {
	leader, term := int32(-1), uint64(0)
	var said *GroupReport
	for id, a := range news {
		if a.Stopping || int(g.ID) >= len(a.Groups) {
			continue
		}
		rep := &a.Groups[g.ID]
		if rep.Leading && rep.Term > term {
			leader, term, said = id, rep.Term, rep
		}
	}
	if r := g.Raft(); r != nil && !mutant.On(mutant.ServeWhenDeposed) {
		own := g.Leading.Get() != nil
		if (leader == c.cfg.Self) != own || g.Leader.Get() != leader {
			return -1, nil
		}
	}
	return leader, said
}

func coordinators(slots []fsm.CoordinatorSlot) []int32 {
	out := make([]int32, len(slots))
	for i, s := range slots {
		out[i] = s.Node
		if s.Node == 0 {
			out[i] = -1
		}
	}
	return out
}

func endpoints(listeners map[string]string) map[string]proxy.Endpoint {
	out := make(map[string]proxy.Endpoint, len(listeners))
	for _, name := range slices.Sorted(maps.Keys(listeners)) {
		host, port, err := net.SplitHostPort(listeners[name])
		if err != nil {
			continue
		}
		n, err := strconv.ParseInt(port, 10, 32)
		if err != nil {
			continue
		}
		out[name] = proxy.Endpoint{Host: host, Port: int32(n)}
	}
	return out
}
