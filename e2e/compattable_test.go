//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// compatGap is something that is known not to work. The error must hold one of
// the texts, so that another failure is not taken for the known one.
type compatGap struct {
	client  string // begins with it; empty: every client
	feature string
	errors  []string
	why     string
	chance  bool // it may work as well, by luck: allowed for a client's own mistakes alone
}

// compatGaps is the list that a run is held to, in both directions: what fails
// must stand here, and what stands here must fail.
var compatGaps = []compatGap{
	{feature: "kafka-acls: list", errors: []string{"No Authorizer is configured"}, why: "the brokers of this run have no authorizer, and say so"},
	// Its send() keeps one answer per broker over its tries. A partition that
	// moves to a broker which has answered already is never sent again, and
	// send() says that all is well (kafkajs 2.2.4, src/producer/sendMessages.js).
	{
		client: "kafkajs", feature: "idempotent produce and consume through a leader's kill -9", errors: []string{" records of kafkajs."}, chance: true,
		why: "a mistake of kafkajs itself: it leaves out records whose partition moves to a broker that has answered the same send() already",
	},
}

// notServed is how the clients say that an API is not advertised.
var notServed = []string{
	"does not support", "not supported", "broker is too old", "_UNSUPPORTED_FEATURE", "IncompatibleBrokerVersion", "NotSupportApiKey",
}

// compatTable is what became of every client and feature.
type compatTable struct {
	mu       sync.Mutex
	clients  []*compatClient
	features []*compatFeature
	cells    map[[2]string]error // by client id and feature name; nil: works
}

func newCompatTable(clients []*compatClient, features []*compatFeature) *compatTable {
	return &compatTable{clients: clients, features: features, cells: map[[2]string]error{}}
}

func (ct *compatTable) set(cl *compatClient, f *compatFeature, err error) {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	ct.cells[[2]string{cl.id(), f.name}] = err
}

// gapOf returns the known gap that covers a cell.
func gapOf(cl *compatClient, feature string) *compatGap {
	for i, g := range compatGaps {
		if g.feature == feature && strings.HasPrefix(cl.id(), g.client) {
			return &compatGaps[i]
		}
	}
	return nil
}

func (g *compatGap) covers(err error) bool {
	return slices.ContainsFunc(g.errors, func(s string) bool { return strings.Contains(err.Error(), s) })
}

// judge fails the test for every cell that is not as the list of gaps has it.
func (ct *compatTable) judge(t *testing.T) {
	t.Helper()
	for _, cl := range ct.clients {
		for _, f := range ct.features {
			if err, ran := ct.cells[[2]string{cl.id(), f.name}]; ran {
				if wrong := verdict(gapOf(cl, f.name), err); wrong != nil {
					t.Errorf("%s, %s: %v", cl.id(), f.name, wrong)
				}
			}
		}
	}
}

// verdict returns what is wrong with a cell, given the gap known for it or nil.
func verdict(gap *compatGap, err error) error {
	switch {
	case errors.Is(err, errClientCannot):
		return nil
	case err == nil && gap != nil && !gap.chance:
		return errors.New("works now; take it off the list of known gaps")
	case err != nil && gap == nil:
		return err
	case err != nil && !gap.covers(err):
		return fmt.Errorf("fails otherwise than the known gap: %w", err)
	}
	return nil
}

// count says how much was run.
func (ct *compatTable) count() string {
	works, gaps, cannot := 0, 0, 0
	for _, err := range ct.cells {
		switch {
		case err == nil:
			works++
		case errors.Is(err, errClientCannot):
			cannot++
		default:
			gaps++
		}
	}
	return fmt.Sprintf("%d client features work, %d do not, %d the client does not have", works, gaps, cannot)
}

// markdown is the table with its footnotes. Cells that were not run are empty.
func (ct *compatTable) markdown() string {
	var b strings.Builder
	b.WriteString("| |")
	for _, cl := range ct.clients {
		fmt.Fprintf(&b, " %s %s |", cl.name, cl.version)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(ct.clients)) + "\n")
	notes := &footnotes{}
	for _, f := range ct.features {
		row, ran := "| "+f.name+" |", false
		for _, cl := range ct.clients {
			err, did := ct.cells[[2]string{cl.id(), f.name}]
			row += " " + cellText(cl, f, err, did, notes) + " |"
			ran = ran || did
		}
		if ran {
			b.WriteString(row + "\n")
		}
	}
	b.WriteString("\n" + notes.text())
	return b.String()
}

func cellText(cl *compatClient, f *compatFeature, err error, ran bool, notes *footnotes) string {
	switch {
	case !ran:
		return ""
	case err == nil:
		return "yes"
	case errors.Is(err, errClientCannot):
		return "– " + notes.add(err.Error())
	}
	why := "not a known gap"
	if gap := gapOf(cl, f.name); gap != nil {
		why = gap.why
	}
	return "**no** " + notes.add(why+" ("+f.name+"): `"+strings.ReplaceAll(firstLine(err.Error()), "|", "/")+"`")
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if r := []rune(s); len(r) > 300 {
		return string(r[:300]) + "…"
	}
	return s
}

// footnotes are numbered in the order of their first use.
type footnotes struct{ all []string }

func (n *footnotes) add(s string) string {
	i := slices.Index(n.all, s)
	if i < 0 {
		n.all, i = append(n.all, s), len(n.all)
	}
	return fmt.Sprintf("[%d]", i+1)
}

func (n *footnotes) text() string {
	var b strings.Builder
	for i, s := range n.all {
		fmt.Fprintf(&b, "%d. %s\n", i+1, s)
	}
	return b.String()
}

// compatDocument is the whole of docs/compat.md.
func compatDocument(commit string, clients, tools *compatTable) string {
	return fmt.Sprintf(`# Clients and features that were run

Generated by `+"`make compat`"+` on %s, commit %s; do not edit. Three unmodified Apache Kafka %s brokers, each alone, a proxy in front of each; every client spoke to the proxies.

A "yes" is what the suite found for itself: it read all three brokers directly after every step and compared every record, byte for byte, and asked them for topics, settings and offsets. "**no**" is a known gap of Lockstep with the client's own words; "–" is something the client cannot do with any broker. Nothing that is not in this table was run.

%s
## Apache Kafka's own tools

%s`, time.Now().UTC().Format(time.DateOnly), commit, kafkaVersion(), clients.markdown(), tools.markdown())
}

// productCommit is the last commit that changed the product, which a commit of
// this very table does not.
func productCommit() string {
	paths := []string{"../cmd", "../configs", "../fsm", "../internal", "../kafkawire", "../proxy", "../transport", "../go.mod"}
	out, err := exec.Command("git", append([]string{"log", "-1", "--format=%h", "--"}, paths...)...).Output()
	if err != nil {
		return "unknown"
	}
	commit := strings.TrimSpace(string(out))
	if changed, err := exec.Command("git", append([]string{"status", "--porcelain", "--"}, paths...)...).Output(); err != nil || len(changed) > 0 {
		commit += " with changes"
	}
	return commit
}

// kafkaVersion is the version of the brokers that ran.
func kafkaVersion() string {
	d, err := sharedDist()
	if err != nil {
		return "(unknown)"
	}
	return d.version
}
