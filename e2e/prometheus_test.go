//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	rulesFile = "../deploy/prometheus/lockstep.rules.yml"
	// hasten is what every "for" and every range of the rules is divided by:
	// what an operator waits a minute for fires here after a second.
	hasten = 60
	// scraped is how often the nodes are, and how often the rules are looked at.
	scraped = 500 * time.Millisecond
)

// prometheus is a real server that scrapes the cluster and judges it by the
// repository's rules, in a hurry.
type prometheus struct {
	t      *testing.T
	addr   string
	alerts []string        // all that the rules have
	fired  map[string]bool // seen firing on what provokes them
}

// startPrometheus runs Debian's prometheus until the test ends.
func startPrometheus(t *testing.T, c *cluster) *prometheus {
	t.Helper()
	if _, err := exec.LookPath("prometheus"); err != nil {
		t.Fatalf("%v: install Debian's prometheus", err)
	}
	dir := filepath.Join(c.dir, "prometheus")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := &prometheus{t: t, addr: loopback(freePort(t)), fired: make(map[string]bool)}
	rules := hastened(t)
	for _, m := range regexp.MustCompile(`(?m)^ *- alert: (\w+)$`).FindAllStringSubmatch(rules, -1) {
		p.alerts = append(p.alerts, m[1])
	}
	var targets []string
	for _, n := range c.nodes {
		targets = append(targets, n.adminAddr())
	}
	config := fmt.Sprintf("global: {scrape_interval: %[1]s, scrape_timeout: %[1]s, evaluation_interval: %[1]s}\n"+
		"rule_files: [rules.yml]\nscrape_configs: [{job_name: lockstep, static_configs: [{targets: ['%[2]s']}]}]\n",
		scraped, strings.Join(targets, "', '"))
	for name, text := range map[string]string{"prometheus.yml": config, "rules.yml": rules} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := os.Create(filepath.Join(dir, "prometheus.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	server, err := startProcess("prometheus", commandTo(out, "prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+p.addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.kill9(); err != nil {
			t.Error(err)
		}
	})
	waitFor(t, "prometheus and its first look at every node", 30*time.Second, func(ctx context.Context) error {
		if server.exited() {
			return fmt.Errorf("it ended: %w\n%s", server.err, tail(out.Name(), 20))
		}
		up, err := p.query(ctx, `up{job="lockstep"} == 1`)
		if err == nil && len(up) != len(c.nodes) {
			err = fmt.Errorf("it sees %v", up)
		}
		return err
	})
	return p
}

// hastened returns the repository's rules with every duration divided by hasten.
func hastened(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	times := 0
	rules := regexp.MustCompile(`(for: |\[)(\d+[smh])\b`).ReplaceAllStringFunc(string(raw), func(s string) string {
		times++
		at := strings.IndexAny(s, "0123456789")
		d, err := time.ParseDuration(s[at:])
		if err != nil {
			t.Fatal(err)
		}
		return s[:at] + strconv.FormatInt((d/hasten).Milliseconds(), 10) + "ms"
	})
	if times < 10 {
		t.Fatalf("%s has only %d durations", rulesFile, times)
	}
	return rules
}

// series is labels and nothing else.
type series map[string]string

// has says whether s has all labels of want.
func (s series) has(want series) bool {
	for name, value := range want {
		if s[name] != value {
			return false
		}
	}
	return true
}

// get asks the server's API.
func (p *prometheus) get(ctx context.Context, path string, data any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.addr+path, nil)
	if err != nil {
		return err
	}
	resp, err := adminClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Status string `json:"status"`
		Error  string `json:"error"`
		Data   any    `json:"data"`
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("read what prometheus answers (HTTP %d): %w", resp.StatusCode, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("prometheus says %s: %s", answer.Status, answer.Error)
	}
	return nil
}

// query returns the series that an expression has now.
func (p *prometheus) query(ctx context.Context, expr string) ([]series, error) {
	var data struct {
		Result []struct {
			Metric series `json:"metric"`
		} `json:"result"`
	}
	if err := p.get(ctx, "/api/v1/query?query="+url.QueryEscape(expr), &data); err != nil {
		return nil, err
	}
	var out []series
	for _, r := range data.Result {
		out = append(out, r.Metric)
	}
	return out, nil
}

// firing returns the labels of every alert that fires.
func (p *prometheus) firing(ctx context.Context) ([]series, error) {
	var data struct {
		Alerts []struct {
			Labels series `json:"labels"`
			State  string `json:"state"`
		} `json:"alerts"`
	}
	if err := p.get(ctx, "/api/v1/alerts", &data); err != nil {
		return nil, err
	}
	var out []series
	for _, a := range data.Alerts {
		if a.State == "firing" {
			out = append(out, a.Labels)
		}
	}
	return out, nil
}

// quiet fails the test if any alert fired within the last while.
func (p *prometheus) quiet(while time.Duration) {
	p.t.Helper()
	got, err := p.query(p.t.Context(), fmt.Sprintf(`count_over_time(ALERTS{alertstate="firing"}[%dms])`, while.Milliseconds()))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, s := range got {
		p.t.Errorf("on a healthy cluster fired %v", s)
	}
}

// alert is one that is expected: of a node that says so, if there is one, and with
// other labels.
type alert struct {
	name   string
	of     *node
	labels series
}

func (a alert) series() series {
	s := series{"alertname": a.name}
	if a.of != nil {
		s["instance"] = a.of.adminAddr()
	}
	for name, value := range a.labels {
		s[name] = value
	}
	return s
}

// waitFiring returns when all the alerts fire at the same time.
func (p *prometheus) waitFiring(limit time.Duration, want ...alert) {
	p.t.Helper()
	p.waitFiringWhile(limit, func() {}, want...)
}

// waitFiringWhile is waitFiring that does something between two looks.
func (p *prometheus) waitFiringWhile(limit time.Duration, do func(), want ...alert) {
	p.t.Helper()
	begin := time.Now()
	waitFor(p.t, "alerts", limit, func(ctx context.Context) error {
		do()
		got, err := p.firing(ctx)
		if err != nil {
			return err
		}
		for _, a := range want {
			if !slices.ContainsFunc(got, func(s series) bool { return s.has(a.series()) }) {
				return fmt.Errorf("%v does not fire, %v do", a.series(), got)
			}
		}
		return nil
	})
	for _, a := range want {
		p.fired[a.name] = true
		p.t.Logf("%v fires after %s", a.series(), time.Since(begin).Round(100*time.Millisecond))
	}
}

// waitGone returns when none of the alerts fires any more.
func (p *prometheus) waitGone(limit time.Duration, want ...alert) {
	p.t.Helper()
	begin := time.Now()
	waitFor(p.t, "the end of alerts", limit, func(ctx context.Context) error {
		got, err := p.firing(ctx)
		if err != nil {
			return err
		}
		for _, a := range want {
			if i := slices.IndexFunc(got, func(s series) bool { return s.has(a.series()) }); i >= 0 {
				return fmt.Errorf("%v still fires", got[i])
			}
		}
		return nil
	})
	p.t.Logf("gone after %s", time.Since(begin).Round(100*time.Millisecond))
}

// waitSilent returns when nothing fires any more.
func (p *prometheus) waitSilent(limit time.Duration) {
	p.t.Helper()
	waitFor(p.t, "silence", limit, func(ctx context.Context) error {
		got, err := p.firing(ctx)
		if err == nil && len(got) > 0 {
			err = fmt.Errorf("%v", got)
		}
		return err
	})
}
