package cluster

import (
	"lockstep/internal/apply"
)

// RecoveryReport is what a node says of its logs, of the copies to its broker
// and of what it found wrong. Counters are since the start of the process.
type RecoveryReport struct {
	Log  LogReport   `json:"log"`
	Copy *CopyReport `json:"copy,omitempty"` // nil if nothing is copied

	Copied int64 `json:"copied_bytes"` // received from peers

	Scrub       apply.ScrubStatus      `json:"scrub"`
	Paths       map[apply.Path]uint64  `json:"paths,omitempty"`       // ways of recovery, how often each was taken
	Quarantines map[apply.Cause]uint64 `json:"quarantines,omitempty"` // by cause
	Flushes     uint64                 `json:"flushes"`               // of the broker's log directories
	FlushErrors uint64                 `json:"flush_errors"`
	Unflushed   bool                   `json:"unflushed,omitempty"` // the newest flush failed
}

// LogReport is the Raft logs of all groups of a node together, in bytes.
type LogReport struct {
	Bytes int64 `json:"bytes"` // that can be read
	Held  int64 `json:"held"`  // of those, what the broker is not trusted with yet
	Limit int64 `json:"limit"` // of what is held
	Disk  int64 `json:"disk"`  // what the directories take
	// Throttled are the groups that let nothing new in until less is held.
	Throttled []uint32 `json:"throttled,omitempty"`
}

// CopyReport is how far the copies from peers' brokers are.
type CopyReport struct {
	Partitions     int     `json:"partitions"` // still to be copied
	Percent        float64 `json:"percent"`
	BytesPerSecond float64 `json:"bytes_per_second"`
	Seconds        float64 `json:"seconds_left"` // at that rate; -1 if not known
	// Under way, not all if there are many.
	UnderWay []apply.PartitionCopy `json:"under_way,omitempty"`
}

// maxUnderWay bounds what an announcement says of copies.
const maxUnderWay = 8

// Report puts together what the applier says; the log is the caller's.
func Report(a *apply.Applier, log LogReport) RecoveryReport {
	m := a.Metrics()
	r := RecoveryReport{Log: log, Scrub: a.Scrub(), Paths: m.Recoveries, Quarantines: a.Quarantines(),
		Flushes: m.Flushes, FlushErrors: m.FlushErrors, Unflushed: m.Unflushed}
	p := a.CopyProgress()
	r.Copied = p.TotalBytes
	if len(p.Partitions) > 0 {
		r.Copy = &CopyReport{Partitions: len(p.Partitions), Percent: p.Percent, BytesPerSecond: p.BytesPerSecond,
			Seconds: -1, UnderWay: p.Partitions[:min(maxUnderWay, len(p.Partitions))]}
		if p.Left >= 0 {
			r.Copy.Seconds = p.Left.Seconds()
		}
	}
	return r
}

// addRecovery names what an operator should know of.
func (s *Status) addRecovery(id int32, r *RecoveryReport) {
	if r == nil {
		return
	}
	if len(r.Log.Throttled) > 0 {
		s.Problems = append(s.Problems, "node "+itoa(id)+" slows producers: its raft log holds as much as raft.log_limit_bytes allows and its broker is not trusted with it")
	}
	if r.Unflushed {
		s.Problems = append(s.Problems, "node "+itoa(id)+" cannot flush its broker's log directories, and trusts what is old enough: see its log")
	}
}
