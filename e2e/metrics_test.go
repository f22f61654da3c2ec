//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// unmoved are the documented metrics that the scenario of TestMetrics may leave
// as they are, and why.
var unmoved = map[string]string{
	"lockstep_raft_log_limit_bytes":      "a setting, and 0 until the groups run",
	"lockstep_partitions_quarantined":    "a small topic is made anew between two scrapes, now and then",
	"lockstep_broker_flush_errors_total": "needs a flush that fails: TestFlushFails of internal/apply",
}

// TestMetrics provokes what there is to see and watches /metrics of all nodes:
// every metric of the tables in docs/operations.md takes more than one value.
func TestMetrics(t *testing.T) {
	c := newClusterWith(t, clusterOpts{settings: func(n *node) []string {
		return []string{"broker.log_dirs=" + n.broker.dataDir(), "raft.snapshot_bytes=2MiB", "raft.log_retain_bytes=4MiB", "raft.log_limit_bytes=16MiB",
			"recovery.scrub_interval=10s", "recovery.scrub_bytes_per_second=64MiB", "recovery.copy_bytes_per_second=16MiB"}
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	seen := watchMetrics(t, c)
	const topic, partitions = "watched", 3
	c.createTopic(c.node(1), topic, partitions)
	w := startWorkload(t, c.bootstrap(), topic, partitions, 20*time.Millisecond, "p1")
	more := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := w.h.waitAcks(ctx, partitions, time.Now(), 20); err != nil {
			t.Fatal(err)
		}
	}
	more()

	// A node dies and comes back.
	victim := c.node(2)
	if err := victim.proc.kill9(); err != nil {
		t.Fatal(err)
	}
	more()
	victim.startProxy(t)
	c.waitHealthy()

	// A broker is away for longer than the log reaches back.
	away := c.node(3)
	away.broker.kill9(t)
	c.createTopic(c.node(1), "bulk", 6)
	ends := fillTopic(t, c.bootstrap(), "bulk", 6, 96<<20)
	c.waitBrokersHold(c.others(away.id), "bulk", ends)
	c.restartBrokerOf(away)
	c.waitComplete(ctx, away, "bulk", ends)
	c.waitHealthy()

	// A record goes around the proxy, and a bit flips.
	n := c.follower(ctx, topic, 0, partitions)
	b := batch{producerID: -1, epoch: -1, sequence: -1, values: []string{"around the proxy"}}
	if _, code, err := rawProduce(ctx, n.broker.addr(), topic, 0, b); err != nil || code != 0 {
		t.Fatalf("write to the broker of node %d: code %d, %v", n.id, code, err)
	}
	waitFor(t, "a quarantine", 60*time.Second, func(context.Context) error { return seen.moved("lockstep_quarantines_total") })
	more()
	c.waitHealthy()
	n = c.follower(ctx, topic, 1, partitions)
	n.broker.stop(t)
	flipBit(t, n.broker.dataDir()+"/"+topic+"-1/00000000000000000000.log")
	c.restartBrokerOf(n)
	waitFor(t, "a finding of the scrub", 60*time.Second, func(context.Context) error { return seen.moved("lockstep_scrub_findings_total") })
	more()
	c.waitHealthy()

	flush, cancelFlush := context.WithTimeout(ctx, time.Minute)
	defer cancelFlush()
	if err := w.stopProducing(flush); err != nil {
		t.Errorf("wait for the last answers: %v", err)
	}
	seen.stop()
	for _, name := range documentedMetrics(t) {
		if err := seen.moved(name); err != nil && unmoved[name] == "" {
			t.Error(err)
		}
	}
}

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
