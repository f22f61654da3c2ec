package main

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"lockstep/internal/admin"
	"lockstep/internal/cluster"
	"lockstep/internal/node"
	"lockstep/proxy"
)

var (
	descName   = regexp.MustCompile(`fqName: "(lockstep_[a-z_]+)"`)
	metricName = regexp.MustCompile(`lockstep_[a-z_]+`)
	tableRow   = regexp.MustCompile("(?m)^\\| `(lockstep_[a-z_]+)")
)

// registered are the names of all metrics of ours.
func registered(t *testing.T) map[string]bool {
	t.Helper()
	srv, err := proxy.New(proxy.Config{Listeners: []proxy.Listener{{Name: "PLAINTEXT", Addr: "127.0.0.1:0"}}, Upstream: "127.0.0.1:1"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	log := hclog.NewNullLogger()
	n := node.New(node.Config{DataDir: t.TempDir(), ClusterID: "c", NodeID: 1, Groups: 1, Peers: map[int32]string{1: "127.0.0.1:1"}, Logger: log})
	if err := n.Init(); err != nil {
		t.Fatal(err)
	}
	descs := make(chan *prometheus.Desc, 100)
	for _, c := range append(cluster.New(cluster.Config{Logger: log}, n, nil).Metrics(), admin.NewCollector(nil, admin.Config{}), srv, n.Metrics()) {
		c.Describe(descs)
	}
	close(descs)
	names := make(map[string]bool)
	for d := range descs {
		if m := descName.FindStringSubmatch(d.String()); m != nil {
			names[m[1]] = true
		}
	}
	if len(names) < 20 {
		t.Fatalf("only %d metrics: %v", len(names), names)
	}
	return names
}

// The table of metrics in docs/operations.md has every metric there is, and no other.
func TestEveryMetricIsDocumented(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]bool)
	for _, m := range tableRow.FindAllStringSubmatch(string(raw), -1) {
		documented[m[1]] = true
	}
	names := registered(t)
	for name := range names {
		if !documented[name] {
			t.Errorf("%s is not in the table of docs/operations.md", name)
		}
	}
	for name := range documented {
		if !names[name] {
			t.Errorf("docs/operations.md has %s, which does not exist", name)
		}
	}
}

// Alerts and dashboard use metrics that exist; each alert has a row in
// docs/operations.md and a case in the rules' own tests (make rules).
func TestAlertsAndDashboard(t *testing.T) {
	t.Parallel()
	names := registered(t)
	read := func(path string) string {
		raw, err := os.ReadFile("../../" + path)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	rules, cases, dashboard, docs := read("deploy/prometheus/lockstep.rules.yml"), read("deploy/prometheus/lockstep.rules_test.yml"),
		read("deploy/grafana/lockstep.json"), read("docs/operations.md")
	if !json.Valid([]byte(dashboard)) {
		t.Error("the dashboard is no JSON")
	}
	for file, text := range map[string]string{"rules": rules, "rules' tests": cases, "dashboard": dashboard} {
		used := metricName.FindAllString(text, -1)
		if len(used) < 10 {
			t.Errorf("the %s use only %v", file, used)
		}
		for _, name := range used {
			if !names[name] && !strings.HasPrefix(name, "lockstep_rules") {
				t.Errorf("the %s use %s, which does not exist", file, name)
			}
		}
	}
	alerts := make(map[string]bool)
	for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(rules, -1) {
		alerts[m[1]] = true
	}
	if len(alerts) < 10 {
		t.Errorf("only %d alerts", len(alerts))
	}
	for _, name := range slices.Sorted(maps.Keys(alerts)) {
		if !strings.Contains(cases, `alertname="`+name+`"`) {
			t.Errorf("no case makes %s fire", name)
		}
		if !strings.Contains(docs, "| `"+name+"`") {
			t.Errorf("docs/operations.md does not say what to do about %s", name)
		}
	}
}
