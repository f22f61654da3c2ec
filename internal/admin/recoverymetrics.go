package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	"lockstep/internal/cluster"
)

// recoveryDescs are the metrics of this node's logs, copies and findings.
type recoveryDescs struct {
	log, held, limit, disk, throttled             *prometheus.Desc
	copying, copied, copyPercent, copyLeft        *prometheus.Desc
	paths, quarantines, scrubbed, findings, proof *prometheus.Desc
	flushes, flushErrors                          *prometheus.Desc
}

func newRecoveryDescs(desc func(name, help string, labels ...string) *prometheus.Desc) recoveryDescs {
	return recoveryDescs{
		log:         desc("raft_log_bytes", "Entries in this node's Raft logs, all groups."),
		held:        desc("raft_log_held_bytes", "Of those, the entries that this node's broker is not trusted with yet."),
		limit:       desc("raft_log_limit_bytes", "How much may be held before producers are slowed."),
		disk:        desc("raft_disk_bytes", "What the Raft directories take on the disk."),
		throttled:   desc("raft_groups_throttled", "Groups that let nothing new in until less is held."),
		copying:     desc("copy_partitions", "Partitions that are still copied from a peer's broker."),
		copied:      desc("copy_received_bytes_total", "Bytes received for copies."),
		copyPercent: desc("copy_percent", "How much of the copies under way is done, 100 if there are none."),
		copyLeft:    desc("copy_seconds_left", "Time left at the present rate, 0 if nothing is copied, -1 if not known."),
		paths:       desc("recoveries_total", "How often each way of recovery was taken.", "path"),
		quarantines: desc("quarantines_total", "Partitions taken out of service, by cause.", "cause"),
		scrubbed:    desc("scrub_read_bytes_total", "Bytes that the scrub read from this node's broker."),
		findings:    desc("scrub_findings_total", "Partitions in which the scrub found something wrong."),
		proof:       desc("scrub_partitions_verified", "Partitions read through of late and found as committed."),
		flushes:     desc("broker_flushes_total", "Flushes of the broker's log directories."),
		flushErrors: desc("broker_flush_errors_total", "Flushes that failed."),
	}
}

func (d *recoveryDescs) all() []*prometheus.Desc {
	return []*prometheus.Desc{d.log, d.held, d.limit, d.disk, d.throttled, d.copying, d.copied, d.copyPercent, d.copyLeft,
		d.paths, d.quarantines, d.scrubbed, d.findings, d.proof, d.flushes, d.flushErrors}
}

func (d *recoveryDescs) collect(ch chan<- prometheus.Metric, r *cluster.RecoveryReport) {
	if r == nil {
		return
	}
	gauge := func(desc *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v)
	}
	counter := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, v, labels...)
	}
	gauge(d.log, float64(r.Log.Bytes))
	gauge(d.held, float64(r.Log.Held))
	gauge(d.limit, float64(r.Log.Limit))
	gauge(d.disk, float64(r.Log.Disk))
	gauge(d.throttled, float64(len(r.Log.Throttled)))
	percent, left, copying := 100.0, 0.0, 0
	if r.Copy != nil {
		percent, left, copying = r.Copy.Percent, r.Copy.Seconds, r.Copy.Partitions
	}
	gauge(d.copying, float64(copying))
	gauge(d.copyPercent, percent)
	gauge(d.copyLeft, left)
	counter(d.copied, float64(r.Copied))
	for path, n := range r.Paths {
		counter(d.paths, float64(n), string(path))
	}
	for cause, n := range r.Quarantines {
		counter(d.quarantines, float64(n), string(cause))
	}
	counter(d.scrubbed, float64(r.Scrub.Bytes))
	counter(d.findings, float64(r.Scrub.Findings))
	gauge(d.proof, float64(r.Scrub.Verified))
	counter(d.flushes, float64(r.Flushes))
	counter(d.flushErrors, float64(r.FlushErrors))
}
