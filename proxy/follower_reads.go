package proxy

import (
	"github.com/twmb/franz-go/pkg/kerr"
)

// Reads at followers, as Kafka has them (KIP-392, ReplicaManager). A consumer
// that names its rack is sent by the leader to an in-sync node of that rack, by
// PreferredReadReplica and without records; that node serves it from its own
// broker, to which nothing uncommitted is ever written. Only nodes with a rack
// take part, and none where reads are linearizable: a follower cannot know what
// was acknowledged.
//
// A client that comes back to the leader at the offset at which it was sent away
// is served there, whatever was in its way: a node that cannot be reached from
// where it is, a log that lags, or one that starts later than the leader's.

// maxSentAway bounds the partitions that a connection remembers.
const maxSentAway = 4096

// rackAware says whether the client is one that may be served by a follower.
func (f *fetching) rackAware() bool {
	return len(f.req.Rack) > 0 && !f.r.c.srv.cfg.LinearizableReads
}

// nearby decides, of each partition, whether this node serves it as a follower,
// or sends the client away as its leader. It is called from the connection's
// reader.
func (f *fetching) nearby() {
	if !f.rackAware() {
		return
	}
	rack, racks := string(f.req.Rack), false
	for _, n := range f.view.Nodes {
		if n.Rack != rack {
			continue
		}
		if n.ID == f.view.Self {
			f.follow()
			return // who is here is at home, also at the partitions led here
		}
		racks = true
	}
	if racks {
		f.sendAway(rack)
	}
}

// follow takes on the partitions that another node leads and this one has.
func (f *fetching) follow() {
	for i := range f.parts {
		p := &f.parts[i]
		if p.code != kerr.NotLeaderForPartition.Code || p.topic == nil {
			continue
		}
		// Without a leader this node may be cut off and does not know how
		// old its log is.
		if leader := p.topic.Partitions[p.partition].Leader; leader >= 0 && leader != f.view.Self && f.follows(p) {
			p.code, p.followed, f.followed = 0, true, true
		}
	}
}

func (f *fetching) follows(p *fetchPart) bool {
	return f.r.c.srv.cluster.Follows(TopicPartition{p.topic.ID, p.partition})
}

// sendAway names another node for the partitions that one of the rack has.
func (f *fetching) sendAway(rack string) {
	c := f.r.c
	var led []*fetchPart
	var ask []TopicPartition
	for i := range f.parts {
		p := &f.parts[i]
		if p.code != 0 {
			continue
		}
		key := TopicPartition{p.topic.ID, p.partition}
		if offset, sent := c.sentAway[key]; sent && offset == p.offset {
			delete(c.sentAway, key)
			continue
		}
		led, ask = append(led, p), append(ask, key)
	}
	nodes := liveNodes(f.view, c.listener)
	var names []string
	for i, id := range c.srv.cluster.ReadReplicas(rack, ask) {
		if _, ok := nodes[id]; !ok || id == f.view.Self {
			continue
		}
		// Beyond the end only the leader can judge.
		end, err := c.srv.cluster.EndOffset(c.ctx, led[i].topic, led[i].partition, false)
		if err != nil || led[i].offset < 0 || led[i].offset > end {
			continue
		}
		led[i].replica, led[i].end = id, end
		names = append(names, led[i].name)
	}
	// Who may not read is told so by the broker, and not where the log ends.
	denied := f.r.mayTopics(c.ctx, opRead, names, kerr.NotLeaderForPartition.Code)
	for i, p := range led {
		switch {
		case p.replica == 0:
		case denied[p.name] != 0:
			p.replica = 0
		default:
			c.noteSentAway(ask[i], p.offset)
		}
	}
}

func (c *conn) noteSentAway(p TopicPartition, offset int64) {
	if c.sentAway == nil || len(c.sentAway) >= maxSentAway {
		c.sentAway = make(map[TopicPartition]int64)
	}
	c.sentAway[p] = offset
}

// served says whether the partition is asked of the local broker.
func (p *fetchPart) served() bool { return p.code == 0 && p.replica == 0 }

// stillServes says whether what the local broker says of a partition may be
// given on, in the light of v.
func (f *fetching) stillServes(v *View, p *fetchPart) bool {
	if !p.followed {
		return stillLeads(v, p.topic, p.partition)
	}
	now := v.Topics[p.name]
	return now != nil && now.ID == p.topic.ID && f.follows(p)
}
