package cluster

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/internal/node"
)

func itoa(n int32) string { return strconv.Itoa(int(n)) }

// Status is what any node can say of the whole cluster (lockstep status).
type Status struct {
	ClusterID string        `json:"cluster_id"`
	NodeID    int32         `json:"node_id"` // the node that was asked
	Healthy   bool          `json:"healthy"`
	Problems  []string      `json:"problems,omitempty"`
	Nodes     []NodeStatus  `json:"nodes"`
	Groups    []GroupStatus `json:"groups"`
	Topics    int           `json:"topics"`
	// NotReady counts partitions that no client can use now.
	NotReady int `json:"partitions_not_ready"`
	// Rebuilds are the topics that are made anew on the node that was asked,
	// or should be.
	Rebuilds []RebuildStatus `json:"rebuilds,omitempty"`
	// LeaderChanges are the last ones that the node that was asked saw since
	// it started, the newest first.
	LeaderChanges []node.LeaderChange `json:"leader_changes,omitempty"`
}

// NodeStatus is one member.
type NodeStatus struct {
	ID          int32             `json:"id"`
	Alive       bool              `json:"alive"`
	Version     string            `json:"version,omitempty"`
	Kafka       map[string]string `json:"kafka,omitempty"` // advertised, by listener name
	Raft        string            `json:"raft"`
	Admin       string            `json:"admin,omitempty"`
	Incarnation string            `json:"incarnation,omitempty"`
	Membership  string            `json:"membership,omitempty"` // awaited, joining or leaving; empty: a member
	Problem     string            `json:"problem,omitempty"`
	Broker      BrokerStatus      `json:"broker"`
	Recovery    *RecoveryReport   `json:"recovery,omitempty"`
	Rack        string            `json:"rack,omitempty"`
	State       NodeState         `json:"state"`
	// Silent is for how long nothing was heard of the node, -1 if nothing ever was.
	Silent time.Duration `json:"silent_ns"`
	// Coordinators counts the slots whose consumer groups the node coordinates.
	Coordinators int `json:"coordinator_slots"`
	// Rebuilds are topics that are made anew on the node, or should be, not
	// all if there are many.
	Rebuilds []RebuildStatus `json:"rebuilds,omitempty"`
}

// BrokerStatus is a member's broker.
type BrokerStatus struct {
	State string `json:"state"` // up, down or unknown
	Kind  string `json:"kind,omitempty"`
	Error string `json:"error,omitempty"`
}

// GroupStatus is one Raft group.
type GroupStatus struct {
	Group   uint32         `json:"group"`
	Leader  int32          `json:"leader"` // 0 if none
	Term    uint64         `json:"term"`
	Members []MemberStatus `json:"members"`
	// Placed are the nodes that vote in the group, if not every node holds it.
	Placed []int32 `json:"placed,omitempty"`
}

// MemberStatus is one node's instance of a group. Lag is in entries, from the
// newest that any node has committed to what is on this node's broker.
type MemberStatus struct {
	Node        int32    `json:"node"`
	Role        string   `json:"role"`
	Term        uint64   `json:"term"`
	Commit      uint64   `json:"commit_index"`
	Applied     uint64   `json:"applied_index"`
	Broker      uint64   `json:"broker_applied_index"`
	Trusted     uint64   `json:"trusted_index"` // the broker holds everything up to it through a power cut
	Lag         uint64   `json:"lag"`
	LagReport            // as the node itself says
	Quarantined []string `json:"quarantined,omitempty"`
	// Troubled are partitions that the node's broker cannot serve, the worst
	// first, not all if there are many.
	Troubled []apply.PartitionStatus `json:"troubled,omitempty"`
}

// Status reports on the cluster as this node knows it. Any goroutine.
func (c *Cluster) Status() Status {
	s := c.view.Get()
	out := Status{ClusterID: c.cfg.ClusterID, NodeID: c.cfg.Self, Topics: len(s.view.Topics)}
	news, _ := c.roster.fresh()
	registered := make(map[int32]*fsm.CatalogNode)
	c.node.Catalog().Read(func(g *fsm.Group) { maps.Copy(registered, g.Catalog.Nodes) })
	strangers := c.strangers(news)
	for _, id := range c.listed(registered) {
		n := c.nodeStatus(id, news[id], registered[id])
		if n.Problem == "" {
			n.Problem = strangers[id]
		}
		c.addState(&n, news[id], s.view.Coordinators)
		out.Nodes = append(out.Nodes, n)
		out.addProblems(&n)
		out.addRecovery(id, n.Recovery)
	}
	for _, g := range c.node.Groups() {
		gs := groupStatus(g.ID, s.leaders[g.ID], news)
		gs.Placed = s.topics.from.placedIn(g.ID)
		if gs.Leader == 0 {
			out.Problems = append(out.Problems, "group "+itoa(int32(g.ID))+" has no leader")
		}
		for _, m := range gs.Members {
			for _, q := range m.Quarantined {
				out.Problems = append(out.Problems, "node "+itoa(m.Node)+" quarantines "+q)
			}
			if gs.Leader > 0 && m.Role != "leader" && m.Role != "follower" {
				out.Problems = append(out.Problems, "node "+itoa(m.Node)+" does not follow group "+itoa(int32(g.ID))+": its role is "+m.Role)
			}
			if m.Lag > closeBehind {
				out.Problems = append(out.Problems, "the broker of node "+itoa(m.Node)+" lags in group "+itoa(int32(g.ID)))
			}
		}
		out.Groups = append(out.Groups, gs)
	}
	for _, t := range s.view.Topics {
		for _, p := range t.Partitions {
			if p.Leader < 0 {
				out.NotReady++
			}
		}
	}
	if out.NotReady > 0 {
		out.Problems = append(out.Problems, strconv.Itoa(out.NotReady)+" partitions have no leader that can serve them")
	}
	out.LeaderChanges = c.node.LeaderChanges()
	out.Rebuilds = c.Rebuilds()
	for _, r := range out.Rebuilds {
		out.Problems = append(out.Problems, "topic "+r.Topic+" is not whole on node "+itoa(c.cfg.Self)+": rebuild: "+r.Stage+" "+r.Reason)
	}
	out.Healthy = len(out.Problems) == 0
	return out
}

// strangers collects which nodes are kept out, as anybody alive says.
func (c *Cluster) strangers(news map[int32]*Announcement) map[int32]string {
	out := make(map[int32]string)
	for _, a := range news {
		maps.Copy(out, a.Strangers)
	}
	maps.Copy(out, c.node.Strangers())
	return out
}

func (c *Cluster) nodeStatus(id int32, a *Announcement, reg *fsm.CatalogNode) NodeStatus {
	n := NodeStatus{ID: id, Raft: c.node.Address(id), Broker: BrokerStatus{State: "unknown"}}
	if reg != nil {
		n.Kafka, n.Admin, n.Incarnation, n.Rack, n.Membership = reg.Listeners, reg.Admin, reg.Incarnation, reg.Rack, string(reg.State)
	}
	if a == nil {
		return n
	}
	n.Alive, n.Version, n.Problem, n.Recovery, n.Rebuilds = true, a.Version, a.Problem, a.Recovery, a.Rebuilds
	if reg == nil && n.Problem == "" {
		n.Problem = "not in the catalog yet: clients are not told of it"
	}
	if n.Membership == string(fsm.NodeJoining) && n.Problem == "" {
		n.Problem = "joining: not a voter in every group yet"
	}
	n.Broker = BrokerStatus{State: "down", Kind: a.Broker.Kind, Error: a.Broker.Error}
	if a.Broker.Up {
		n.Broker.State = "up"
	}
	return n
}

func (s *Status) addProblems(n *NodeStatus) {
	switch {
	case n.Membership == string(fsm.NodeAwaited):
		s.Problems = append(s.Problems, "node "+itoa(n.ID)+" is awaited: start it with an empty data_dir")
	case n.Problem != "":
		s.Problems = append(s.Problems, "node "+itoa(n.ID)+": "+n.Problem)
	case !n.Alive:
		s.Problems = append(s.Problems, "node "+itoa(n.ID)+" is not heard of")
	case n.Broker.State != "up":
		s.Problems = append(s.Problems, "the broker of node "+itoa(n.ID)+" is down: "+n.Broker.Error)
	}
}

func groupStatus(id uint32, leader int32, news map[int32]*Announcement) GroupStatus {
	out := GroupStatus{Group: id}
	if leader > 0 {
		out.Leader = leader
	}
	var newest uint64
	for _, node := range slices.Sorted(maps.Keys(news)) {
		a := news[node]
		if int(id) >= len(a.Groups) {
			continue
		}
		rep := a.Groups[id]
		if rep.Role == roleAway {
			continue
		}
		newest = max(newest, rep.Applied)
		out.Term = max(out.Term, rep.Term)
		out.Members = append(out.Members, MemberStatus{Node: node, Role: rep.Role, Term: rep.Term, Commit: rep.Commit,
			Applied: rep.Applied, Broker: rep.Broker, Trusted: rep.Trusted, LagReport: rep.LagReport, Quarantined: rep.Quarantined, Troubled: rep.Troubled})
	}
	for i := range out.Members {
		m := &out.Members[i]
		if m.Broker < newest {
			m.Lag = newest - m.Broker
		}
	}
	return out
}

// BrokerAPIs returns what the brokers of all nodes that were ever heard of
// offer, for the table that clients are given.
func (c *Cluster) BrokerAPIs() [][][3]int16 {
	var out [][][3]int16
	for _, a := range c.roster.last() {
		if len(a.Broker.APIs) > 0 {
			out = append(out, a.Broker.APIs)
		}
	}
	return out
}

// Heard returns when a node was last heard of; zero if never.
func (c *Cluster) Heard(node int32) time.Time {
	if a := c.roster.last()[node]; a != nil {
		return a.heard
	}
	return time.Time{}
}
