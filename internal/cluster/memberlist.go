package cluster

import (
	"maps"
	"slices"

	"lockstep/fsm"
)

// MemberReport is what any node can say of one node's place in the cluster
// (lockstep members list).
type MemberReport struct {
	ID          int32  `json:"id"`
	State       string `json:"state"` // member, awaited, joining, leaving or gone
	Raft        string `json:"raft"`
	Incarnation string `json:"incarnation,omitempty"`
	Alive       bool   `json:"alive"`
	// Leads, Votes and Learns are the groups in which it is the leader, a
	// voter, or has no vote yet.
	Leads  []uint32 `json:"leads,omitempty"`
	Votes  []uint32 `json:"votes,omitempty"`
	Learns []uint32 `json:"learns,omitempty"`
	// Lag is how many entries its broker is behind, all groups together, and
	// Unsound how many partitions it has no sound copy of.
	Lag     uint64 `json:"lag"`
	Unsound int    `json:"unsound"`
	Problem string `json:"problem,omitempty"`
}

// Members reports on every node that the catalog or the configuration names.
// Any goroutine.
func (c *Cluster) Members() []MemberReport {
	_, nodes := c.catalogNodes()
	news, _ := c.roster.fresh()
	for id, n := range nodes {
		if a := news[id]; a != nil && a.Incarnation != n.Incarnation {
			delete(news, id) // another one under that id
		}
	}
	strangers := c.strangers(news)
	ids := append(c.node.Peers(), slices.Collect(maps.Keys(nodes))...)
	slices.Sort(ids)
	var out []MemberReport
	for _, id := range slices.Compact(ids) {
		m := MemberReport{ID: id, State: "member", Raft: c.node.Address(id), Problem: strangers[id]}
		if n := nodes[id]; n != nil {
			m.Raft, m.Incarnation = n.Raft, n.Incarnation
			if n.State != fsm.NodeMember {
				m.State = string(n.State)
			}
		}
		if a := news[id]; a != nil {
			m.Alive = true
			if m.Problem == "" {
				m.Problem = a.Problem
			}
		}
		if m.State == string(fsm.NodeGone) {
			m.Problem = ""
		}
		out = append(out, m)
	}
	for _, g := range c.node.Groups() {
		addGroup(out, g.ID, news)
	}
	return out
}

// addGroup adds what the leader of a group says of its members.
func addGroup(out []MemberReport, group uint32, news map[int32]*Announcement) {
	var lead *GroupReport
	for _, a := range news {
		if rep := &a.Groups[group]; rep.Leading && (lead == nil || rep.Term > lead.Term) {
			lead = rep
		}
	}
	if lead == nil {
		return
	}
	for i := range out {
		m := &out[i]
		voter, in := lead.Servers[m.ID]
		switch {
		case voter:
			m.Votes = append(m.Votes, group)
		case in:
			m.Learns = append(m.Learns, group)
		}
		a := news[m.ID]
		if !in || a == nil {
			continue
		}
		rep := &a.Groups[group]
		if rep.Leading {
			m.Leads = append(m.Leads, group)
		}
		if rep.Broker < lead.Applied {
			m.Lag += lead.Applied - rep.Broker
		}
		m.Unsound += rep.Unsound
	}
}
