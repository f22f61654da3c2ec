package cluster

import (
	"cmp"
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
	topics  *shownTopics
	leaders []int32   // by group: the leader that clients can trust, -1 if none
	expires time.Time // when the first announcement in it does

	doubtOnce sync.Once // guards doubt
	doubt     *proxy.View
}

// same says whether clients would see no difference.
func (s *snapshot) same(old *snapshot) bool {
	if old == nil || s.topics != old.topics || !slices.Equal(s.leaders, old.leaders) {
		return false
	}
	a, b := *s.view, *old.view
	a.Topics, b.Topics = nil, nil // the same, and many
	return reflect.DeepEqual(a, b)
}

// shownTopics are the topics of a view. They are made anew only when something
// that they show has changed, which with ten thousand partitions is much work.
// Once made it is never changed.
type shownTopics struct {
	from   topicsFrom
	topics map[string]*proxy.Topic
	routes map[uint64][]uint32 // group by partition, by topic id
}

// topicsFrom is what the topics of a view are made of.
type topicsFrom struct {
	version  uint64              // of the catalog
	catalog  []*fsm.CatalogTopic // as of then
	leaders  []int32             // by group
	replicas []int32
	isr      []int32
	placed   [][]int32 // by group: the replicas of one that not every node holds
	notReady []fsm.TP  // in order
}

func (f *topicsFrom) same(old *topicsFrom) bool {
	return f.version == old.version && slices.Equal(f.leaders, old.leaders) && slices.Equal(f.replicas, old.replicas) &&
		slices.Equal(f.isr, old.isr) && slices.EqualFunc(f.placed, old.placed, slices.Equal) && slices.Equal(f.notReady, old.notReady)
}

func compareTP(a, b fsm.TP) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
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

// build puts together what this node knows now. New calls it, and then the
// goroutine of show alone.
func (c *Cluster) build() *snapshot {
	news, expires := c.roster.fresh()
	s := &snapshot{expires: expires}
	v := &proxy.View{ClusterID: c.cfg.ClusterID, Self: c.cfg.Self, Controller: -1}
	s.view = v
	from := topicsFrom{}
	var nodes []*fsm.CatalogNode
	var places map[uint32]*fsm.Placement
	c.node.Catalog().Read(func(g *fsm.Group) {
		from.version = g.Catalog.Version
		if c.shown != nil && c.shown.from.version == from.version {
			from.catalog = c.shown.from.catalog
		} else {
			from.catalog = slices.Collect(maps.Values(g.Catalog.Topics))
		}
		nodes = slices.Collect(maps.Values(g.Catalog.Nodes))
		places = g.Catalog.Places
		v.Coordinators = coordinators(g.Catalog.Coordinators)
		v.CoordinatorEpochs = c.offices.held(g.Catalog.Coordinators, c.cfg.Self)
	})
	slices.SortFunc(nodes, func(a, b *fsm.CatalogNode) int { return int(a.ID) - int(b.ID) })
	for _, n := range nodes {
		if n.State != fsm.NodeMember && n.State != fsm.NodeLeaving && !(n.State == fsm.NodeJoining && c.leadsAny(n.ID, places, news)) {
			continue // clients have no business there
		}
		a := news[n.ID]
		alive := a != nil && !a.Stopping || n.ID == c.cfg.Self
		v.Nodes = append(v.Nodes, proxy.Node{ID: n.ID, Rack: n.Rack, Alive: alive, Listeners: endpoints(n.Listeners)})
		from.replicas = append(from.replicas, n.ID)
		if a != nil && a.Broker.Up {
			from.isr = append(from.isr, n.ID)
		}
		if alive && v.Controller < 0 {
			v.Controller = n.ID
		}
	}
	for _, g := range c.node.Groups() {
		leader, report := c.leaderIn(g, places[g.ID], news)
		if p := places[g.ID]; p != nil {
			from.place(g.ID, holders(p, report, from.replicas))
		}
		s.leaders = append(s.leaders, leader)
		from.notReady = append(from.notReady, c.unready(g, leader, report)...)
		if g.ID == fsm.CatalogGroup {
			v.CatalogReady = c.caught.reached(leader, report, g.Log().Applied().Get())
		}
	}
	if l := s.leaders[fsm.CatalogGroup]; l >= 0 {
		v.Controller = l
	}
	from.leaders = s.leaders
	slices.SortFunc(from.notReady, compareTP)
	if c.shown == nil || !from.same(&c.shown.from) {
		c.shown = from.show()
	}
	s.topics, v.Topics = c.shown, c.shown.topics
	return s
}

// leadsAny says whether a node leads a group: one that is joining may, when its
// removal was taken back.
func (c *Cluster) leadsAny(id int32, places map[uint32]*fsm.Placement, news map[int32]*Announcement) bool {
	return slices.ContainsFunc(c.node.Groups(), func(g *node.Group) bool {
		leader, _ := c.leaderIn(g, places[g.ID], news)
		return leader == id
	})
}

// show makes the topics that clients are told of.
func (f *topicsFrom) show() *shownTopics {
	out := &shownTopics{from: *f, topics: make(map[string]*proxy.Topic, len(f.catalog)), routes: make(map[uint64][]uint32, len(f.catalog))}
	notReady := make(map[fsm.TP]struct{}, len(f.notReady))
	for _, tp := range f.notReady {
		notReady[tp] = struct{}{}
	}
	for _, t := range f.catalog {
		if t.State == fsm.TopicDeleting || t.Opened == 0 {
			continue
		}
		out.routes[t.ID] = t.Groups
		out.topics[t.Name] = f.showTopic(t, notReady)
	}
	return out
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

func (f *topicsFrom) showTopic(t *fsm.CatalogTopic, notReady map[fsm.TP]struct{}) *proxy.Topic {
	out := &proxy.Topic{ID: t.ID, Name: t.Name, Config: t.Config, Partitions: make([]proxy.Partition, t.Opened)}
	for n := range out.Partitions {
		p := proxy.Partition{Leader: -1, Replicas: f.replicas, ISR: f.isr}
		g := t.Groups[n]
		if int(g) < len(f.leaders) {
			p.Leader = f.leaders[g]
		}
		if int(g) < len(f.placed) && f.placed[g] != nil {
			p.Replicas = f.placed[g]
			p.ISR = slices.DeleteFunc(slices.Clone(f.isr), func(id int32) bool { return !slices.Contains(p.Replicas, id) })
		}
		if _, bad := notReady[fsm.TP{Topic: t.ID, Partition: int32(n)}]; bad {
			p.Leader = -1
		}
		out.Partitions[n] = p
	}
	return out
}

// place notes the replicas of a group.
func (f *topicsFrom) place(group uint32, replicas []int32) {
	for int(group) >= len(f.placed) {
		f.placed = append(f.placed, nil)
	}
	f.placed[group] = replicas
}

// leaderIn is leaderOf a group that may have a place. It alone tells the group
// what the others say of its leader.
func (c *Cluster) leaderIn(g *node.Group, p *fsm.Placement, news map[int32]*Announcement) (int32, *GroupReport) {
	if p != nil && c.awayFrom(g, news) {
		return c.placedLeader(g, news)
	}
	g.Hear(0)
	return c.leaderOf(g, news)
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
