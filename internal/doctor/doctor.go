// Package doctor looks at a node's surroundings, before it is started and while
// it runs, and says what is wrong, why that matters and what to do. It changes
// nothing.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Severity of a finding.
type Severity string

// A finding is an Error if the node cannot work, or records are at risk; a
// Warning if it will bite one day; Unknown if it could not be found out; OK if
// it was looked at and is well.
const (
	OK      Severity = "ok"
	Unknown Severity = "unknown"
	Warning Severity = "warning"
	Error   Severity = "error"
)

// Finding is what one check has to say.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	What     string   `json:"what"`
	Why      string   `json:"why,omitempty"`
	Next     string   `json:"next,omitempty"`
}

// Check is one thing to look at. Run returns soon after its context has ended.
type Check struct {
	Name string
	Run  func(ctx context.Context) []Finding
}

// limit bounds each check; they run side by side.
const limit = 10 * time.Second

// Examine runs the checks and returns their findings, in the order of the
// checks. A check that does not end in time is Unknown.
func Examine(ctx context.Context, checks []Check) []Finding { return examine(ctx, checks, limit) }

func examine(ctx context.Context, checks []Check, limit time.Duration) []Finding {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	found := make([][]Finding, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() {
			done := make(chan []Finding, 1)
			go func() { done <- c.Run(ctx) }()
			late := time.NewTimer(limit + limit/4)
			defer late.Stop()
			select {
			case found[i] = <-done:
			case <-late.C:
				found[i] = []Finding{{Severity: Unknown, What: fmt.Sprintf("no answer within %s", limit), Next: "look at what hangs there"}}
			}
			for j := range found[i] {
				found[i][j].Check = cmp.Or(found[i][j].Check, c.Name)
			}
		})
	}
	wg.Wait()
	return slices.Concat(found...)
}

// Bad says whether an error was found.
func Bad(fs []Finding) bool {
	return slices.ContainsFunc(fs, func(f Finding) bool { return f.Severity == Error })
}

func ok(format string, args ...any) []Finding {
	return []Finding{{Severity: OK, What: fmt.Sprintf(format, args...)}}
}

func unknown(next, format string, args ...any) []Finding {
	return []Finding{{Severity: Unknown, What: fmt.Sprintf(format, args...), Next: next}}
}
