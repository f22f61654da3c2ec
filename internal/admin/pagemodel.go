package admin

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"lockstep/internal/apply"
	"lockstep/internal/cluster"
)

// What the page shows at most of each kind; /status has all.
const (
	maxPageProblems = 12
	maxPageGroups   = 64
	maxPageTroubled = 50
)

// page is what the status page shows, in the words in which it is shown.
type page struct {
	ClusterID string
	NodeID    int32
	Version   string
	Now       string

	Verdict      chip
	Tolerance    string
	Problems     []string
	MoreProblems int
	Tiles        []tile

	Nodes        []pageNode
	Groups       []pageGroup
	MoreGroups   int
	Copies       []pageCopy
	Troubled     []pageTrouble
	MoreTroubled int
	Changes      []pageChange
}

// chip is a state in a colour, a sign and a word.
type chip struct{ Tone, Sign, Text string }

func good(text string) chip  { return chip{"good", "●", text} }
func warn(text string) chip  { return chip{"warn", "▲", text} }
func bad(text string) chip   { return chip{"bad", "✕", text} }
func calm(text string) chip  { return chip{"calm", "★", text} }
func plain(text string) chip { return chip{"plain", "○", text} }

type tile struct{ Tone, Name, Value, Note string }

type pageNode struct {
	ID                   int32
	Rack, Heard, Problem string
	State, Broker        chip
	BrokerNote           string
	Kafka                []string
	Raft, Admin          string
	AdminURL             string
	Linked               bool // the address is this node's alone
	Version, Incarnation string
	Leads, Coordinators  int
	Disk, Held           string
}

type pageGroup struct {
	ID      uint32
	Leader  chip
	Term    uint64
	Members []pageMember // one for each node, in the nodes' order
}

type pageMember struct {
	Node                         int32
	Role                         string // empty if not heard of
	Chip                         chip
	Commit, Applied, Broker, Lag string
	Behind                       string // empty if it is not worth a word
}

type pageCopy struct {
	Node                    int32
	Whole                   bool // the line of all partitions together
	Percent                 string
	Note, Partition, Reason string
	From, Left, Bytes       string
}

type pageTrouble struct {
	Name       string
	Node       int32
	State      chip
	Since, Why string
}

type pageChange struct {
	At, Clock, Ago string
	Group          uint32
	Move, Why      string
	Term           uint64
	Gap            string
}

func newPage(st cluster.Status, now time.Time) *page {
	p := &page{ClusterID: st.ClusterID, NodeID: st.NodeID, Now: now.UTC().Format("2006-01-02 15:04:05 UTC")}
	p.Problems, p.MoreProblems = atMost(st.Problems, maxPageProblems)
	leads := make(map[int32]int)
	for _, g := range st.Groups {
		leads[g.Leader]++
	}
	// A loopback address that several nodes have leads to none but the reader's own.
	at := make(map[string]int)
	for i := range st.Nodes {
		at[st.Nodes[i].Admin]++
	}
	for i := range st.Nodes {
		n := &st.Nodes[i]
		if n.ID == st.NodeID {
			p.Version = n.Version
		}
		shown := newPageNode(n, leads[n.ID], n.ID == st.NodeID)
		shown.Linked = at[n.Admin] == 1
		p.Nodes = append(p.Nodes, shown)
		p.addCopies(n)
	}
	groups, more := atMost(st.Groups, maxPageGroups)
	p.MoreGroups = more
	for i := range groups {
		p.Groups = append(p.Groups, newPageGroup(&groups[i], st.Nodes))
	}
	p.addTrouble(&st, now)
	for _, l := range st.LeaderChanges {
		move := fmt.Sprintf("node %d → node %d", l.From, l.To)
		switch l.From {
		case 0:
			move = fmt.Sprintf("node %d", l.To)
		case l.To:
			move = fmt.Sprintf("node %d again", l.To)
		}
		p.Changes = append(p.Changes, pageChange{At: l.At.UTC().Format(time.RFC3339Nano), Clock: l.At.UTC().Format("15:04:05"),
			Ago: ago(now.Sub(l.At)), Group: l.Group, Move: move, Why: l.Why, Term: l.Term, Gap: shortSpan(l.Gap)})
	}
	p.judge(&st)
	return p
}

func atMost[T any](all []T, limit int) (shown []T, more int) {
	n := min(len(all), limit)
	return all[:n], len(all) - n
}

// judge says how the whole is, in one line and in the tiles.
func (p *page) judge(st *cluster.Status) {
	up, led := 0, 0
	for i := range st.Nodes {
		if st.Nodes[i].Alive && st.Nodes[i].Problem == "" {
			up++
		}
	}
	var lag uint64
	for _, g := range st.Groups {
		if g.Leader > 0 {
			led++
		}
		for _, m := range g.Members {
			lag = max(lag, m.Lag)
		}
	}
	spare := up - (len(st.Nodes)/2 + 1)
	p.Tolerance = fmt.Sprintf("%d of %d nodes are up; the cluster survives the loss of %d more", up, len(st.Nodes), max(spare, 0))
	switch {
	case st.Healthy && len(p.Copies) > 0:
		p.Verdict = warn("Catching up")
		p.Tolerance += "; clients are served, and not every broker has everything yet"
	case st.Healthy:
		p.Verdict = good("Healthy")
	case spare < 0:
		p.Verdict = bad("No majority")
		p.Tolerance = fmt.Sprintf("%d of %d nodes are up as node %d sees it: nothing can be written", up, len(st.Nodes), st.NodeID)
	case led < len(st.Groups) || st.NotReady > 0:
		p.Verdict = bad("Not everything can be used")
	default:
		p.Verdict = warn("Needs attention")
	}
	tone := func(ok bool, tone string) string {
		if ok {
			return ""
		}
		return tone
	}
	copying := 0
	for i := range st.Nodes {
		if r := st.Nodes[i].Recovery; r != nil && r.Copy != nil {
			copying += r.Copy.Partitions
		}
	}
	p.Tiles = []tile{
		{tone(up == len(st.Nodes), "warn"), "Nodes up", fmt.Sprintf("%d/%d", up, len(st.Nodes)), ""},
		{tone(led == len(st.Groups), "bad"), "Groups with a leader", fmt.Sprintf("%d/%d", led, len(st.Groups)), ""},
		{tone(st.NotReady == 0, "bad"), "Partitions not ready", count(st.NotReady), "of " + plural(st.Topics, "topic")},
		{tone(len(p.Troubled) == 0, "warn"), "Copies in trouble", count(len(p.Troubled) + p.MoreTroubled), "copies"},
		{tone(copying == 0, "warn"), "Still to be copied", count(copying), "copies"},
		{"", "Largest lag", count(lag), "entries"},
	}
}

func newPageNode(n *cluster.NodeStatus, leads int, asked bool) pageNode {
	out := pageNode{ID: n.ID, Rack: n.Rack, Problem: n.Problem, Raft: n.Raft, Admin: n.Admin, AdminURL: Registered(n.Admin), Leads: leads, Coordinators: n.Coordinators,
		Version: cmp.Or(n.Version, "unknown"), Incarnation: cmp.Or(n.Incarnation[:min(8, len(n.Incarnation))], "unknown"), Disk: "unknown"}
	switch n.State {
	case cluster.NodeUp:
		out.State = good("up")
	case cluster.NodeStopping:
		out.State = warn("stopping")
	case cluster.NodeSuspect:
		out.State = warn("suspect")
	case cluster.NodeDown:
		out.State = bad("down")
	default:
		out.State = plain(cmp.Or(string(n.State), "unknown"))
	}
	switch {
	case asked:
		out.Heard = "this node"
	case n.Silent < 0:
		out.Heard = "never heard of"
	case !n.Alive:
		out.Heard = "silent for " + shortSpan(n.Silent)
	}
	switch n.Broker.State {
	case "up":
		out.Broker = good("up")
	case "down":
		out.Broker = bad("down")
	default:
		out.Broker = plain(cmp.Or(n.Broker.State, "unknown"))
	}
	out.BrokerNote = strings.TrimSpace(n.Broker.Kind + " " + n.Broker.Error)
	for name, addr := range n.Kafka {
		if len(n.Kafka) > 1 {
			addr = name + "://" + addr
		}
		out.Kafka = append(out.Kafka, addr)
	}
	slices.Sort(out.Kafka)
	if r := n.Recovery; r != nil {
		out.Disk = size(r.Log.Disk)
		out.Held = size(r.Log.Held) + " of " + size(r.Log.Limit) + " held"
	}
	return out
}

func newPageGroup(g *cluster.GroupStatus, nodes []cluster.NodeStatus) pageGroup {
	out := pageGroup{ID: g.Group, Term: g.Term, Leader: bad("none")}
	if g.Leader > 0 {
		out.Leader = calm("node " + strconv.Itoa(int(g.Leader)))
	}
	for i := range nodes {
		m := pageMember{Node: nodes[i].ID}
		for _, s := range g.Members {
			if s.Node != nodes[i].ID {
				continue
			}
			m = pageMember{Node: s.Node, Role: s.Role, Chip: warn(s.Role), Commit: count(s.Commit), Applied: count(s.Applied), Broker: count(s.Broker), Lag: count(s.Lag)}
			switch s.Role {
			case "leader":
				m.Chip = calm(s.Role)
			case "follower":
				m.Chip = plain(s.Role)
			}
			if s.LagSeconds >= 1 {
				m.Behind = shortSpan(time.Duration(s.LagSeconds*float64(time.Second))) + " behind · " + size(s.LagBytes)
			}
			if s.Lag > cluster.FarBehind {
				m.Chip = warn(s.Role + ", far behind")
			}
		}
		out.Members = append(out.Members, m)
	}
	return out
}

func (p *page) addCopies(n *cluster.NodeStatus) {
	if n.Recovery == nil || n.Recovery.Copy == nil {
		return
	}
	c := n.Recovery.Copy
	left := "time left unknown"
	if c.Seconds >= 0 {
		left = "about " + shortSpan(time.Duration(c.Seconds*float64(time.Second))) + " left"
	}
	var offsets, bytes int64
	for i := range c.UnderWay {
		w := &c.UnderWay[i]
		offsets, bytes = offsets+max(0, w.To-w.At), bytes+w.Bytes
	}
	whole := pageCopy{Node: n.ID, Whole: true, Percent: fmt.Sprintf("%.1f", c.Percent), Partition: "all: " + plural(c.Partitions, "partition") + " to go",
		Note: fmt.Sprintf("%.1f %% · %s/s · %s", c.Percent, size(int64(c.BytesPerSecond)), left), From: "", Left: count(offsets), Bytes: size(bytes)}
	if len(c.UnderWay) < c.Partitions {
		whole.Left = "more than " + whole.Left
	}
	p.Copies = append(p.Copies, whole)
	for i := range c.UnderWay {
		w := &c.UnderWay[i]
		line := pageCopy{Node: n.ID, Percent: "0", Partition: partitionName(w.Topic, w.Partition), Reason: w.Reason,
			From: "waits", Left: count(max(0, w.To-w.At)), Bytes: size(w.Bytes)}
		if w.To > w.From {
			line.Percent = fmt.Sprintf("%.1f", 100*float64(w.At-w.From)/float64(w.To-w.From))
		}
		if w.Peer > 0 {
			line.From = "node " + strconv.Itoa(int(w.Peer))
		}
		p.Copies = append(p.Copies, line)
	}
}

// addTrouble lists what no client can use, or not everywhere. What is being
// copied is told of as such, if its node says how far that is.
func (p *page) addTrouble(st *cluster.Status, now time.Time) {
	var all []pageTrouble
	copying := make(map[int32]bool)
	for i := range p.Copies {
		copying[p.Copies[i].Node] = true
	}
	for i := range st.Nodes {
		for _, r := range st.Nodes[i].Rebuilds {
			state := warn("rebuild: " + r.Stage)
			if r.Stage == cluster.StageFrozen {
				state = bad("rebuild: " + r.Stage)
			}
			all = append(all, pageTrouble{Name: r.Topic, Node: st.Nodes[i].ID, State: state, Since: ago(now.Sub(r.Since)), Why: r.Reason})
		}
	}
	for _, g := range st.Groups {
		for _, m := range g.Members {
			for i := range m.Troubled {
				t := &m.Troubled[i]
				if apply.State(t.State) == apply.StateCopying && copying[m.Node] {
					continue
				}
				state := warn(t.State)
				if apply.State(t.State) == apply.StateQuarantined {
					state = bad(t.State)
				}
				all = append(all, pageTrouble{Name: partitionName(t.Topic, t.Partition), Node: m.Node, State: state, Since: ago(now.Sub(t.Since)), Why: t.Reason})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b pageTrouble) int {
		return cmp.Or(cmp.Compare(a.State.Tone, b.State.Tone), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Node, b.Node))
	})
	p.Troubled, p.MoreTroubled = atMost(all, maxPageTroubled)
}
