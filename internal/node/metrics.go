package node

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics says of every group what Raft knows and the status does not have.
type metrics struct {
	n *Node

	heartbeat, changes, leaderless, last *prometheus.Desc
}

func newQueued() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "lockstep", Name: "produce_queue_seconds",
		Help:    "How long a batch waited on the leader to become part of an entry.",
		Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10}})
}

// Metrics returns the collector of this node's Raft groups. Any goroutine.
func (n *Node) Metrics() prometheus.Collector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("lockstep_raft_"+name, help, []string{"group"}, nil)
	}
	return &metrics{n: n,
		heartbeat:  desc("heartbeat_age_seconds", "Since this node heard from the group's leader, 0 if it leads itself, -1 if it never did."),
		changes:    desc("leader_changes_total", "Changes of the group's leader that this node saw."),
		leaderless: desc("leaderless_seconds_total", "How long the group was without a leader before these changes, as far as this node knows."),
		last:       desc("last_index", "Last index in this node's log."),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.heartbeat, m.changes, m.leaderless, m.last} {
		ch <- d
	}
	m.n.queued.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.n.queued.Collect(ch)
	for _, g := range m.n.Groups() {
		id := strconv.FormatUint(uint64(g.ID), 10)
		send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64) {
			ch <- prometheus.MustNewConstMetric(d, kind, v, id)
		}
		count, gap := m.n.changes.of(g.ID)
		send(m.changes, prometheus.CounterValue, float64(count))
		send(m.leaderless, prometheus.CounterValue, gap.Seconds())
		r := g.Raft()
		if r == nil {
			continue
		}
		age := -1.0
		if g.Leading.Get() != nil {
			age = 0
		} else if t := r.LastContact(); !t.IsZero() {
			age = time.Since(t).Seconds()
		}
		send(m.heartbeat, prometheus.GaugeValue, age)
		send(m.last, prometheus.GaugeValue, float64(r.LastIndex()))
	}
}
