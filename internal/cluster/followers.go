package cluster

import (
	"time"

	"lockstep/fsm"
	"lockstep/internal/node"
	"lockstep/proxy"
)

// maxFollowerLag is for how long a follower may not have had everything and is
// still one that consumers are sent to (Kafka: replica.lag.time.max.ms).
const maxFollowerLag = lease

// pace says how closely another node's broker follows this node's state
// machines. A broker that takes appends all the time never has everything; it
// keeps up if it soon has what there was a moment ago (Kafka:
// Replica.lastCaughtUpTimeMs).
type pace struct {
	applied  []uint64    // by group: what this node had applied when the announcement came
	caughtUp []time.Time // by group: when that broker last had everything applied here
}

// measure compares an announcement with the one before it, nil if there was none.
func (a *Announcement) measure(old *Announcement) {
	if len(a.applied) != len(a.Groups) {
		return // this node's own
	}
	a.caughtUp = make([]time.Time, len(a.Groups))
	same := old != nil && old.Boot == a.Boot && len(old.caughtUp) == len(a.Groups)
	for g := range a.Groups {
		broker := a.Groups[g].Broker
		switch {
		case broker >= a.applied[g]:
			a.caughtUp[g] = a.heard
		case same && broker >= old.applied[g]:
			a.caughtUp[g] = old.heard
		case same:
			a.caughtUp[g] = old.caughtUp[g]
		}
	}
}

// serves says whether consumers can read a partition from that node's broker.
func (a *Announcement) serves(group uint32, p proxy.TopicPartition) bool {
	if int(group) >= len(a.caughtUp) || time.Since(a.caughtUp[group]) > maxFollowerLag {
		return false
	}
	if a.Groups[group].Role == roleAway {
		return false
	}
	troubled := a.Groups[group].Troubled
	if len(troubled) >= maxTroubled {
		return false // there may be more
	}
	for i := range troubled {
		if troubled[i].TopicID == p.Topic && troubled[i].Partition == p.Partition {
			return false
		}
	}
	return true
}

// appliedHere is what this node has applied, by group.
func (c *Cluster) appliedHere() []uint64 {
	groups := c.node.Groups()
	out := make([]uint64, len(groups))
	for i, g := range groups {
		out[i] = g.Log().Applied().Get()
	}
	return out
}

// ReadReplicas implements proxy.Cluster.
func (c *Cluster) ReadReplicas(rack string, partitions []proxy.TopicPartition) []int32 {
	out := make([]int32, len(partitions))
	groups := make([]*node.Group, len(partitions))
	for i, p := range partitions {
		groups[i] = c.groupOf(p.Topic, p.Partition)
	}
	news, _ := c.roster.fresh()
	for _, n := range c.view.Get().view.Nodes {
		a := news[n.ID]
		if n.Rack != rack || n.ID == c.cfg.Self || a == nil || a.Stopping || !a.Broker.Up {
			continue
		}
		for i, g := range groups {
			if out[i] == 0 && g != nil && a.serves(g.ID, partitions[i]) {
				out[i] = n.ID
			}
		}
	}
	return out
}

// Follows implements proxy.Cluster.
func (c *Cluster) Follows(p proxy.TopicPartition) bool {
	if g := c.groupOf(p.Topic, p.Partition); g != nil && c.Away(g) {
		return false
	}
	return c.cfg.Broker().Up && c.applier.Ready(fsm.TP{Topic: p.Topic, Partition: p.Partition}, 0)
}
