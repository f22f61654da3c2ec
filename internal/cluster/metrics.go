package cluster

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// stages are how long batches that were acknowledged took, a stage after the
// other. Any goroutine.
type stages struct {
	commit, visible prometheus.Histogram
}

func newStages() stages {
	stage := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "lockstep", Name: name, Help: help,
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10}})
	}
	return stages{
		commit:  stage("produce_commit_seconds", "From a batch's proposal to its verdict: the wait for an entry, the log, a majority."),
		visible: stage("produce_visible_seconds", "From a batch's verdict until this node's broker has it."),
	}
}

// since observes in a histogram how long something took, and returns when it ended.
func since(h prometheus.Histogram, from time.Time) time.Time {
	now := time.Now()
	h.Observe(now.Sub(from).Seconds())
	return now
}

// Metrics returns the collectors of what this room measures. Any goroutine.
func (c *Cluster) Metrics() []prometheus.Collector {
	return []prometheus.Collector{c.stages.commit, c.stages.visible}
}
