package apply

import (
	"sync/atomic"
)

// Path is a way of recovery, as the metric's label names it.
type Path string

// The paths. docs/recovery.md says when each is taken.
const (
	PathReplay     Path = "replay"     // after a start: passes over what the broker has, appends the rest from the log
	PathShorter    Path = "shorter"    // the broker lost acknowledged batches: appends them again from the log
	PathCopy       Path = "copy"       // the broker ends below the base: a peer's broker has the rest
	PathWiped      Path = "wiped"      // the same, and it has nothing
	PathAdopt      Path = "adopt"      // another broker held the topic before it came into the catalog
	PathRebase     Path = "rebase"     // a leader's snapshot took the place of the log
	PathDeclare    Path = "declare"    // entries were given up that the broker lacks
	PathCut        Path = "cut"        // a batch that no broker takes was cut out of the log
	PathQuarantine Path = "quarantine" // the broker's copy is not what was committed
)

// Paths lists every path.
func Paths() []Path {
	return []Path{PathReplay, PathShorter, PathCopy, PathWiped, PathAdopt, PathRebase, PathDeclare, PathCut, PathQuarantine}
}

// counts are what Metrics shows. Any goroutine may add.
type counts struct {
	paths       [9]atomic.Uint64 // in the order of Paths
	flushes     atomic.Uint64
	flushErrors atomic.Uint64
	unflushed   atomic.Bool // the newest flush failed
}

// Metrics are counters since the start.
type Metrics struct {
	Recoveries  map[Path]uint64 // how often each path was taken, by a partition or by a group
	Flushes     uint64          // of the broker's log directories
	FlushErrors uint64          // of those, the ones that failed
	Unflushed   bool            // the newest of them did: not a counter
}

// Metrics returns the counters. Any goroutine may call it.
func (a *Applier) Metrics() Metrics {
	m := Metrics{Recoveries: make(map[Path]uint64), Flushes: a.counts.flushes.Load(), FlushErrors: a.counts.flushErrors.Load(),
		Unflushed: a.counts.unflushed.Load()}
	for i, p := range Paths() {
		m.Recoveries[p] = a.counts.paths[i].Load()
	}
	return m
}

func (a *Applier) count(path Path) {
	for i, p := range Paths() {
		if p == path {
			a.counts.paths[i].Add(1)
		}
	}
}

// words says what is done on the paths that a lane takes.
var words = map[Path]string{
	PathReplay:  "the broker's log agrees with the raft log",
	PathShorter: "the broker's log is shorter than it was: filling it again from the raft log",
	PathCopy:    "the broker lacks what the raft log no longer holds: copying it from a peer's broker",
	PathWiped:   "the broker lost the partition: copying it from a peer's broker",
	PathAdopt:   "another broker held the adopted topic: copying it from there",
}

// took counts the path that a lane takes, and says so.
func (a *Applier) took(l *lane, path Path, args ...any) {
	a.count(path)
	args = append([]any{"topic", l.name, "partition", l.tp.Partition, "group", l.f.id, "path", path}, args...)
	if path == PathReplay {
		a.log.Debug(words[path], args...)
		return
	}
	if path == PathAdopt {
		a.log.Info(words[path], args...)
		return
	}
	a.log.Warn(words[path], args...)
}
