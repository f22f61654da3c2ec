//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// leaderLine is the one log line of a leader change; its keys are a promise to
// operators. hclog prints one event as "name: event: key=value ...".
var leaderLine = regexp.MustCompile(`leader changed:.*\bgroup=(\d+)\b`)

// TestElection: after a start without any bootstrap command every group has a
// leader, status and logs name the same one, leaders are spread over the nodes,
// and nothing changes in 60 idle seconds.
func TestElection(t *testing.T) {
	c := newCluster(t)
	groups := envInt(t, "E2E_GROUPS", 3)

	var leaders map[int]int
	waitFor(t, "leaders spread over the nodes", 30*time.Second, func(ctx context.Context) error {
		var err error
		if leaders, err = c.leaders(ctx); err != nil {
			return err
		}
		if len(leaders) != groups {
			return fmt.Errorf("%d of %d groups have a leader", len(leaders), groups)
		}
		led := map[int]int{}
		for _, id := range leaders {
			led[id]++
		}
		if want := min(groups, 3); len(led) < want {
			return fmt.Errorf("leaders %v stand on %d nodes, want %d", leaders, len(led), want)
		}
		return nil
	})
	t.Logf("leaders by group: %v", leaders)
	waitFor(t, "readiness", 10*time.Second, func(ctx context.Context) error {
		for _, n := range c.nodes {
			if err := n.ready(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	checkLeaderLog(t, c, leaders)

	s, err := c.nodes[0].status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	termsBefore := s.terms()
	changes := map[string]bool{}
	for _, line := range c.logLines("leader changed") {
		changes[line] = true
	}
	select {
	case <-time.After(60 * time.Second): // the claim is about this time
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
	if s, err = c.nodes[0].status(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(s.leaders(), leaders) {
		t.Errorf("leaders after 60 idle seconds: %v, before %v", s.leaders(), leaders)
	}
	if !maps.Equal(s.terms(), termsBefore) {
		t.Errorf("terms after 60 idle seconds: %v, before %v", s.terms(), termsBefore)
	}
	for _, line := range c.logLines("leader changed") {
		if !changes[line] {
			t.Errorf("a leader changed in 60 idle seconds: %s", line)
		}
	}
}

// checkLeaderLog requires that the log of every group's leader names it in the
// group's last "leader changed" line, with all that an operator needs.
func checkLeaderLog(t *testing.T, c *cluster, leaders map[int]int) {
	t.Helper()
	for group, id := range leaders {
		var last string
		for _, line := range c.node(id).logLines("leader changed") {
			if m := leaderLine.FindStringSubmatch(line); m != nil && m[1] == strconv.Itoa(group) {
				last = line
			}
		}
		for _, key := range []string{`\bold=`, fmt.Sprintf(`\bnew="?(node-)?%d\b`, id), `\bterm=\d+`, `\bwhy=`, `\bgap=`} {
			if !regexp.MustCompile(key).MatchString(last) {
				t.Errorf("group %d is led by node %d; its last leader line there lacks %s: %q", group, id, key, last)
			}
		}
	}
}
