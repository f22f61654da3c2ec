package check

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Verdict of a run. A run that proves nothing is not a pass.
type Verdict int

// Verdicts, the worse the higher.
const (
	Pass Verdict = iota
	Unknown
	Failed
)

func (v Verdict) String() string { return [...]string{"pass", "unknown", "fail"}[v] }

// Report is what a checker found.
type Report struct {
	ByKind map[string]int // how many findings of each kind
	Lines  []string       // the first few of each kind
	Doubts []string       // why the run proves less than it should
	Counts Counts
}

// Counts of a run.
type Counts struct {
	Sent, Acked, Refused, Open int            // records by outcome
	Polled, Stored             int            // records given to consumers, read from brokers
	Faults                     map[string]int // by kind
	LeaderChanges              int
}

const linesPerKind = 5

func (r *Report) add(kind, format string, args ...any) {
	if r.ByKind == nil {
		r.ByKind = make(map[string]int)
	}
	if r.ByKind[kind]++; r.ByKind[kind] <= linesPerKind {
		r.Lines = append(r.Lines, kind+": "+fmt.Sprintf(format, args...))
	}
}

func (r *Report) doubt(format string, args ...any) {
	r.Doubts = append(r.Doubts, fmt.Sprintf(format, args...))
}

// Verdict is the worst that the report gives cause for.
func (r *Report) Verdict() Verdict {
	switch {
	case len(r.ByKind) > 0:
		return Failed
	case len(r.Doubts) > 0:
		return Unknown
	}
	return Pass
}

// String says everything, a line each.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "verdict: %s\n", r.Verdict())
	for _, k := range slices.Sorted(maps.Keys(r.ByKind)) {
		fmt.Fprintf(&b, "found %d x %s\n", r.ByKind[k], k)
	}
	for _, l := range r.Lines {
		fmt.Fprintf(&b, "  %s\n", l)
	}
	for _, d := range r.Doubts {
		fmt.Fprintf(&b, "doubt: %s\n", d)
	}
	c := r.Counts
	fmt.Fprintf(&b, "records: %d sent, %d acknowledged, %d refused, %d open; %d polled, %d read from brokers; %d leader changes\n",
		c.Sent, c.Acked, c.Refused, c.Open, c.Polled, c.Stored, c.LeaderChanges)
	for _, k := range slices.Sorted(maps.Keys(c.Faults)) {
		fmt.Fprintf(&b, "fault %s: %d\n", k, c.Faults[k])
	}
	return b.String()
}
