//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestStatusPage looks at node 1's status page in a real browser, which loads
// it once: all that follows must come by itself. The cluster is well; a leader
// is killed with -9; it comes back in front of an emptied broker and copies what
// that lacks; all is well again; a node with a hostile name of a rack comes; at
// last the node that the page is from goes. The broker is the embedded one: the
// page shows what the proxies know. STATUS_PAGE_SHOTS names a directory for
// screenshots.
func TestStatusPage(t *testing.T) {
	dir := filepath.Join(runDir(t), "orders-prod")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := newClusterWith(t, clusterOpts{dir: dir, embedded: true, groups: 3, settings: func(n *node) []string {
		return []string{"broker.log_dirs=" + n.broker.dataDir(), "raft.snapshot_bytes=1MiB", "raft.log_retain_bytes=1MiB",
			"recovery.copy_bytes_per_second=4MiB"}
	}})
	const topic, partitions, home = "orders", 6, 2
	waitFor(t, "each group's leader at home", time.Minute, func(ctx context.Context) error {
		groups, err := c.leaders(ctx)
		if err == nil && !maps.Equal(groups, map[int]int{0: 1, 1: 2, 2: 3}) {
			err = fmt.Errorf("they are %v", groups)
		}
		return err
	})
	c.createTopic(c.node(1), topic, partitions)
	ends := fillTopic(t, c.bootstrap(), topic, partitions, 32<<20)
	c.waitBrokersHold(c.nodes, topic, ends)
	c.waitHealthy()
	w := &statusPage{browser: startBrowser(t, dir), from: c.node(1)}
	w.open("http://" + w.from.adminAddr() + "/")
	w.screen(1200, false)

	w.waitText("#verdict", "Healthy 3 of 3 nodes are up; the cluster survives the loss of 1 more")
	w.waitText("#copies", "Nothing is being copied")
	w.waitText("#nodes", "node 1 rack a", "node 2 rack b", "node 3 rack c", "raft "+c.node(3).raftAddr(), "kafka "+c.node(2).kafkaAddr())
	w.waitText("#groups", "group 0", "group 1 ★ node 2", "group 2")
	w.waitMatch("#changes", `group 1 (node \d → )?node 2 `, "first leader seen since this node started")
	w.unnoticed()
	w.checkSemantics()
	w.shot("status-healthy")
	w.narrow()

	if err := c.node(home).proc.kill9(); err != nil {
		t.Fatal(err)
	}
	w.waitText("#nodes", "node 2 rack b ✕ down silent for")
	w.waitMatch("#changes", `group 1 node 2 → node [13] (the process of node 2 is gone|no heartbeat from node 2)`)
	w.waitMatch("#groups", `group 1 ★ node [13] `)
	w.waitText("#verdict", "Needs attention 2 of 3 nodes are up", "node 2 is not heard of")
	w.shot("status-failover")

	c.node(home).broker.stop(t)
	if err := os.RemoveAll(c.node(home).broker.dataDir()); err != nil {
		t.Fatal(err)
	}
	c.node(home).broker.restart(t)
	c.node(home).startProxy(t)
	w.waitMatch("#copies", `node 2 .*\d % · .*/s · .*left all: \d partitions? to go .*orders/\d node [13]`)
	w.waitMatch("#verdict", `(Catching up|Needs attention) 3 of 3 nodes are up`)
	w.shot("status-catchup")
	w.screen(1200, true)
	w.shot("status-catchup-dark")
	w.screen(1200, false)

	w.waitText("#verdict", "Healthy 3 of 3 nodes are up")
	w.waitText("#copies", "Nothing is being copied")
	w.waitText("#nodes", "node 2 rack b ● up")
	w.unnoticed()

	const evil = `<img src=x onerror=alert(1)><script>document.title="taken"</script>`
	c.node(3).stopProxy(t)
	c.node(3).settings = append(c.node(3).settings, "node.rack="+evil)
	c.node(3).startProxy(t)
	w.waitText("#nodes", "rack "+evil)
	w.waitText("#changes", "node 3 handed over: node 3 stops")
	if title := w.title(); !strings.HasSuffix(title, " · orders-prod · Lockstep") {
		t.Errorf("the title is %q", title)
	}
	w.unnoticed()
	w.stale(t)
}

// statusPage is the status page of one node in a browser.
type statusPage struct {
	*browser
	from *node
}

func (w *statusPage) title() (s string) {
	w.t.Helper()
	w.run(`return document.title`, &s)
	return s
}

// waitText returns when an element shows all of the texts.
func (w *statusPage) waitText(selector string, want ...string) {
	w.t.Helper()
	for i := range want {
		want[i] = regexp.QuoteMeta(want[i])
	}
	w.waitMatch(selector, want...)
}

func (w *statusPage) waitMatch(selector string, want ...string) {
	w.t.Helper()
	waitFor(w.t, "the page's "+selector, healthyWithin, func(context.Context) error {
		text := w.text(selector)
		for _, re := range want {
			if !regexp.MustCompile(re).MatchString(text) {
				return fmt.Errorf("it does not show %q: %s", re, lastBytes(text, 3000))
			}
		}
		return nil
	})
}

// unnoticed fails the test when the browser's console complained, or when it
// asked anybody but the node for anything.
func (w *statusPage) unnoticed() {
	w.t.Helper()
	for _, line := range w.complaints() {
		w.t.Errorf("the browser's console: %s", line)
	}
	requests := w.requests()
	own := "http://" + w.from.adminAddr() + "/"
	if !slices.Contains(requests, own) {
		w.t.Errorf("the page did not ask %s again: %v", own, requests)
	}
	for _, url := range requests {
		// The browser's own first page is of chrome://; data: is in the page.
		if url != own && !strings.HasPrefix(url, "data:") && !strings.HasPrefix(url, "chrome://") {
			w.t.Errorf("the page asked for %s", url)
		}
	}
}

// checkSemantics asserts what a screen reader and a keyboard need.
func (w *statusPage) checkSemantics() {
	w.t.Helper()
	var wrong []string
	w.run(`const wrong = [];
		for (const t of document.querySelectorAll("table")) {
			if (!t.caption?.textContent) wrong.push("a table without a caption");
			for (const h of t.querySelectorAll("th")) if (!h.scope) wrong.push("a header without a scope: " + h.textContent);
			for (const r of t.tBodies[0].rows) if (r.cells[0].tagName !== "TH") wrong.push("a row without a header: " + r.textContent);
		}
		for (const s of document.querySelectorAll(".scroll")) if (s.tabIndex !== 0 || !s.getAttribute("aria-labelledby")) wrong.push("a scrolled part that the keyboard does not reach");
		const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
		for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) wrong.push("two of " + id);
		if (document.documentElement.lang !== "en") wrong.push("no language");
		if (document.querySelectorAll("table").length < 3) wrong.push("tables are missing");
		return wrong`, &wrong)
	for _, line := range wrong {
		w.t.Error(line)
	}
}

// narrow looks at the page as on a telephone: nothing is wider than it.
func (w *statusPage) narrow() {
	w.t.Helper()
	w.screen(390, false)
	var wide []string
	w.run(`return [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > 391 && !e.closest("caption, thead")).map((e) => e.tagName + " " + e.className)`, &wide)
	if len(wide) > 0 {
		w.t.Errorf("wider than the screen: %v", wide)
	}
	w.shot("status-narrow")
	w.screen(1200, false)
}

// stale ends the node and wants the page to say so, with the time since the
// last answer going on, and to go on by itself when the node is back.
func (w *statusPage) stale(t *testing.T) {
	t.Helper()
	if banner := w.text("#stale"); banner != "" {
		t.Errorf("the banner says %q while the node answers", banner)
	}
	if err := w.from.proc.kill9(); err != nil {
		t.Fatal(err)
	}
	w.waitMatch("#stale", `node 1 does not answer.* What you see is ([4-9]|\d\d+) s old\.`)
	if title := w.title(); !strings.HasPrefix(title, "No answer · ") {
		t.Errorf("the title is %q while the node does not answer", title)
	}
	w.shot("status-stale")
	w.from.startProxy(t)
	begin := time.Now()
	waitFor(t, "the banner to go", healthyWithin, func(context.Context) error {
		if banner := w.text("#stale"); banner != "" {
			return fmt.Errorf("it says %q", banner)
		}
		return nil
	})
	w.waitText("#verdict", "Healthy 3 of 3 nodes are up")
	t.Logf("the page went on after %s", time.Since(begin).Round(100*time.Millisecond))
}
