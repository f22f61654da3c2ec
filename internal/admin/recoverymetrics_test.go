package admin

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/internal/apply"
	"lockstep/internal/cluster"
)

// reported is a collector of one report.
type reported struct {
	descs  recoveryDescs
	report *cluster.RecoveryReport
}

func (c *reported) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs.all() {
		ch <- d
	}
}

func (c *reported) Collect(ch chan<- prometheus.Metric) { c.descs.collect(ch, c.report) }

// Every metric has a value whatever a node reports, and says what it says.
func TestRecoveryMetrics(t *testing.T) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("lockstep_"+name, help, labels, nil)
	}
	gather := func(r *cluster.RecoveryReport) map[string]float64 {
		t.Helper()
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(&reported{newRecoveryDescs(desc), r})
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]float64{}
		for _, f := range families {
			for _, m := range f.Metric {
				name := strings.TrimPrefix(f.GetName(), "lockstep_")
				for _, l := range m.Label {
					name += " " + l.GetValue()
				}
				out[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
		return out
	}
	if got := gather(nil); len(got) != 0 {
		t.Errorf("a node that reports nothing: %v", got)
	}
	idle := gather(&cluster.RecoveryReport{})
	if idle["copy_percent"] != 100 || idle["copy_seconds_left"] != 0 || idle["copy_partitions"] != 0 {
		t.Errorf("a node that copies nothing: %v", idle)
	}
	got := gather(&cluster.RecoveryReport{
		Log:         cluster.LogReport{Bytes: 1, Held: 2, Limit: 3, Disk: 4, Throttled: []uint32{1, 2}},
		Copy:        &cluster.CopyReport{Partitions: 5, Percent: 41, Seconds: -1},
		Copied:      6,
		Scrub:       apply.ScrubStatus{Verified: 7, Bytes: 8, Findings: 9},
		Paths:       map[apply.Path]uint64{apply.PathCopy: 10},
		Quarantines: map[apply.Cause]uint64{apply.CauseBaseOffset: 11},
		Flushes:     12, FlushErrors: 13,
	})
	want := map[string]float64{"raft_log_bytes": 1, "raft_log_held_bytes": 2, "raft_log_limit_bytes": 3, "raft_disk_bytes": 4,
		"raft_groups_throttled": 2, "copy_partitions": 5, "copy_percent": 41, "copy_seconds_left": -1, "copy_received_bytes_total": 6,
		"scrub_partitions_verified": 7, "scrub_read_bytes_total": 8, "scrub_findings_total": 9, "recoveries_total copy": 10,
		"quarantines_total base-offset": 11, "broker_flushes_total": 12, "broker_flush_errors_total": 13}
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s is %v, want %v", name, got[name], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
