//go:build e2e

package e2e

import (
	"bufio"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// documentedMetrics are those of the tables in docs/operations.md.
func documentedMetrics(t *testing.T) []string {
	t.Helper()
	raw, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile("(?m)^\\| `((?:lockstep|raft)_[a-zA-Z_]+)(?:\\{[a-z_,]+\\})?` \\| (gauge|counter|histogram|summary)").FindAllStringSubmatch(string(raw), -1) {
		names = append(names, m[1])
	}
	if len(names) < 30 {
		t.Fatalf("only %d metrics are documented: %v", len(names), names)
	}
	return names
}

// metricsSeen is which values every series of all nodes had.
type metricsSeen struct {
	t    *testing.T
	c    *cluster
	quit chan struct{}
	done chan struct{}
	once sync.Once

	mu     sync.Mutex
	values map[string]map[string]map[string]bool // by name, by node and labels
}

// watchMetrics scrapes every node ten times a second until stop, or the test's
// end.
func watchMetrics(t *testing.T, c *cluster) *metricsSeen {
	s := &metricsSeen{t: t, c: c, quit: make(chan struct{}), done: make(chan struct{}), values: make(map[string]map[string]map[string]bool)}
	go func() {
		defer close(s.done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-s.quit:
				return
			}
			for _, n := range c.nodes {
				s.scrape(n)
			}
		}
	}()
	t.Cleanup(s.stop)
	return s
}

func (s *metricsSeen) stop() {
	s.once.Do(func() { close(s.quit) })
	<-s.done
}

// scrape takes one node's metrics; a node that is down has none.
func (s *metricsSeen) scrape(n *node) {
	resp, err := adminClient.Get("http://" + n.adminAddr() + "/metrics")
	if err != nil {
		return
	}
	defer resp.Body.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		series, value, ok := strings.Cut(lines.Text(), " ")
		if !ok || !strings.HasPrefix(series, "lockstep_") && !strings.HasPrefix(series, "raft_") {
			continue
		}
		if i := strings.LastIndexByte(lines.Text(), ' '); i >= 0 { // a label may have spaces
			series, value = lines.Text()[:i], lines.Text()[i+1:]
		}
		name, _, _ := strings.Cut(series, "{")
		name = strings.TrimSuffix(name, "_count")
		if s.values[name] == nil {
			s.values[name] = make(map[string]map[string]bool)
		}
		key := string(rune('0'+n.id)) + series
		if s.values[name][key] == nil {
			s.values[name][key] = make(map[string]bool)
			// What Raft counts is there once it was counted.
			if strings.HasPrefix(name, "raft_") {
				s.values[name][key]["0"] = true
			}
		}
		s.values[name][key][value] = true
	}
}

// moved returns nil if a series of the metric had more than one value.
func (s *metricsSeen) moved(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, values := range s.values[name] {
		if len(values) > 1 {
			return nil
		}
	}
	return &notMoved{name, slices.Sorted(maps.Keys(s.values[name]))}
}

type notMoved struct {
	name   string
	series []string
}

// Error implements error.
func (e *notMoved) Error() string {
	if len(e.series) == 0 {
		return e.name + " does not exist"
	}
	return e.name + " never moved: " + strings.Join(e.series, " ")
}
