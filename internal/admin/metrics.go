package admin

import (
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"lockstep/internal/cluster"
)

// collector reads the status at every scrape. Labels are node, group and words
// from fixed lists.
type collector struct {
	cluster *cluster.Cluster
	self    int32

	leader, term, commit, applied, broker, lag *prometheus.Desc
	lagBytes, lagSeconds, queued, queuedBytes  *prometheus.Desc
	followerLag                                *prometheus.Desc
	brokerUp, quarantined, notReady, nodeAlive *prometheus.Desc
	recovery                                   recoveryDescs
}

func newRegistry(c *cluster.Cluster, cfg Config) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), NewCollector(c, cfg))
	reg.MustRegister(cfg.Metrics...)
	return reg
}

// NewCollector returns what /metrics says of the cluster's status; other rooms
// have collectors of their own (Config.Metrics).
func NewCollector(c *cluster.Cluster, cfg Config) prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("lockstep_"+name, help, labels, nil)
	}
	return &collector{cluster: c, self: cfg.Self,
		leader:      desc("group_leader", "Node that leads the group, 0 if none.", "group"),
		term:        desc("raft_term", "Raft term of this node in the group.", "group"),
		commit:      desc("raft_commit_index", "Commit index of this node in the group.", "group"),
		applied:     desc("raft_applied_index", "Last entry with commands that this node's state machine applied.", "group"),
		broker:      desc("broker_applied_index", "Every entry up to this index is on this node's broker.", "group"),
		lag:         desc("broker_lag_entries", "Entries between the newest applied on any node and this node's broker.", "group"),
		lagBytes:    desc("broker_lag_bytes", "Of committed entries that this node's broker lacks, as far as this node's log has them.", "group"),
		lagSeconds:  desc("broker_lag_seconds", "For how long at least this node has known the oldest committed entry that its broker lacks, 0 if there is none.", "group"),
		queued:      desc("apply_queue_batches", "Batches in memory on the way from the log to this node's broker.", "group"),
		queuedBytes: desc("apply_queue_bytes", "Bytes of these.", "group"),
		followerLag: desc("follower_lag_entries", "On the leader: entries that it applied and the other node, by its last word, did not.", "group", "node"),
		brokerUp:    desc("broker_up", "1 if this node's broker answers."),
		quarantined: desc("partitions_quarantined", "Partitions whose copy on this node's broker is not trusted.", "group"),
		notReady:    desc("partitions_not_ready", "Partitions that no client can use now."),
		nodeAlive:   desc("node_alive", "1 if the node was heard of within the lease.", "node"),
		recovery:    newRecoveryDescs(desc),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.leader, c.term, c.commit, c.applied, c.broker, c.lag,
		c.lagBytes, c.lagSeconds, c.queued, c.queuedBytes, c.followerLag, c.brokerUp, c.quarantined, c.notReady, c.nodeAlive} {
		ch <- d
	}
	for _, d := range c.recovery.all() {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	st := c.cluster.Status()
	gauge(c.notReady, float64(st.NotReady))
	for _, n := range st.Nodes {
		gauge(c.nodeAlive, flag(n.Alive), strconv.Itoa(int(n.ID)))
		if n.ID == c.self {
			gauge(c.brokerUp, flag(n.Broker.State == "up"))
			c.recovery.collect(ch, n.Recovery)
		}
	}
	for _, g := range st.Groups {
		id := strconv.FormatUint(uint64(g.Group), 10)
		gauge(c.leader, float64(g.Leader), id)
		c.collectFollowers(gauge, &g, id)
		for _, m := range g.Members {
			if m.Node != c.self {
				continue
			}
			gauge(c.term, float64(m.Term), id)
			gauge(c.commit, float64(m.Commit), id)
			gauge(c.applied, float64(m.Applied), id)
			gauge(c.broker, float64(m.Broker), id)
			gauge(c.lag, float64(m.Lag), id)
			gauge(c.lagBytes, float64(m.LagBytes), id)
			gauge(c.lagSeconds, m.LagSeconds, id)
			gauge(c.queued, float64(m.QueuedBatches), id)
			gauge(c.queuedBytes, float64(m.QueuedBytes), id)
			gauge(c.quarantined, float64(len(m.Quarantined)), id)
		}
	}
}

// collectFollowers says of a group that this node leads how far the others are.
func (c *collector) collectFollowers(gauge func(*prometheus.Desc, float64, ...string), g *cluster.GroupStatus, id string) {
	mine := slices.IndexFunc(g.Members, func(m cluster.MemberStatus) bool { return m.Node == c.self })
	if g.Leader != c.self || mine < 0 {
		return
	}
	applied := g.Members[mine].Applied
	for _, m := range g.Members {
		if m.Node != c.self {
			gauge(c.followerLag, float64(applied-min(applied, m.Applied)), id, strconv.Itoa(int(m.Node)))
		}
	}
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
