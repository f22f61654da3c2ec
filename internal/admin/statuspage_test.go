package admin

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"lockstep/internal/apply"
	"lockstep/internal/cluster"
	"lockstep/internal/node"
)

var pageNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// troubledStatus has one of everything that the page can show.
func troubledStatus() cluster.Status {
	return cluster.Status{
		ClusterID: "prod", NodeID: 1, Topics: 7, NotReady: 3, Problems: []string{"node 3 is not heard of"},
		Nodes: []cluster.NodeStatus{
			{ID: 1, Alive: true, State: cluster.NodeUp, Version: "v1", Rack: "east", Raft: "node-1:7400", Admin: "node-1:7501",
				Incarnation: "0123456789abcdef", Kafka: map[string]string{"PLAINTEXT": "kafka-1:9092"}, Coordinators: 16,
				Broker:   cluster.BrokerStatus{State: "up"},
				Rebuilds: []cluster.RebuildStatus{{Topic: "old", Stage: cluster.StageFrozen, Reason: "no majority of copies is complete"}},
				Recovery: &cluster.RecoveryReport{Log: cluster.LogReport{Disk: 3 << 30, Held: 5 << 20, Limit: 4 << 30}}},
			{ID: 2, Alive: true, State: cluster.NodeStopping, Version: "v1", Raft: "node-2:7400", Silent: time.Second,
				Broker: cluster.BrokerStatus{State: "down", Error: "connection refused"},
				Recovery: &cluster.RecoveryReport{Copy: &cluster.CopyReport{Partitions: 9, Percent: 42.5, BytesPerSecond: 3 << 20, Seconds: 75,
					UnderWay: []apply.PartitionCopy{{Topic: "orders", Partition: 4, Peer: 1, From: 100, At: 300, To: 12500, Bytes: 2 << 20},
						{Topic: "orders", Partition: 5, Peer: -1, To: 10, Reason: "no peer has it"}}}}},
			{ID: 3, State: cluster.NodeDown, Raft: "node-3:7400", Silent: 90 * time.Second, Broker: cluster.BrokerStatus{State: "unknown"}},
			{ID: 4, State: cluster.NodeSuspect, Raft: "node-4:7400", Silent: 2 * time.Second, Broker: cluster.BrokerStatus{State: "unknown"}},
		},
		Groups: []cluster.GroupStatus{
			{Group: 0, Leader: 2, Term: 8, Members: []cluster.MemberStatus{
				{Node: 1, Role: "follower", Commit: 1234567, Applied: 1234560, Broker: 1234000, Lag: 560, LagReport: cluster.LagReport{LagBytes: 7 << 20, LagSeconds: 12.3},
					Troubled: []apply.PartitionStatus{{Topic: "pay", Partition: 2, State: "quarantined", Reason: "checksum differs", Since: pageNow.Add(-time.Hour)}}},
				{Node: 2, Role: "leader", Commit: 1234567}}},
			{Group: 1},
		},
		LeaderChanges: []node.LeaderChange{
			{At: pageNow.Add(-3 * time.Second), Group: 0, From: 3, To: 2, Term: 8, Why: "the process of node 3 is gone: killed or crashed", Gap: 640 * time.Millisecond},
			{At: pageNow.Add(-time.Hour), Group: 0, To: 3, Term: 7, Why: "first leader seen since this node started"}},
	}
}

func rendered(t *testing.T, st cluster.Status) string {
	t.Helper()
	body, err := newPage(st, pageNow).render()
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

var (
	noText = regexp.MustCompile(`(?s)<style>.*?</style>|<script>.*?</script>|<[^>]*>`)
	spaces = regexp.MustCompile(`\s+`)
)

// visible is what a reader sees, in one line; \s leaves narrow spaces as they are.
func visible(body string) string {
	return spaces.ReplaceAllString(noText.ReplaceAllString(body, " "), " ")
}

func TestStatusPageShowsEachState(t *testing.T) {
	text := visible(rendered(t, troubledStatus()))
	for _, want := range []string{
		"prod", "as node 1 sees it", "No majority", "node 3 is not heard of", // the verdict
		"● up this node", "▲ stopping", "✕ down silent for 1 min", "▲ suspect silent for 2.0 s", // nodes
		"rack east", "kafka kafka-1:9092", "incarnation 01234567", "✕ down connection refused", // addresses, brokers
		"3.0 GiB 5.0 MiB of 4.0 GiB held",                                                                                                    // disk
		"group 0 ★ node 2 8", "▲ follower, far behind commit 1\u202f234\u202f567", "lag 560 12 s behind · 7.0 MiB", "✕ none", "not heard of", // groups
		"42.5 % · 3.0 MiB/s · about 1 min left", "orders/4", "12\u202f200", "2.0 MiB", "no peer has it", // copies
		"pay/2 node 1 ✕ quarantined 1 h ago checksum differs", "old node 1 ✕ rebuild: frozen", "no majority of copies", // trouble
		"3 s ago group 0 node 3 → node 2 the process of node 3 is gone: killed or crashed 8 640 ms", // changes
		"1 h ago group 0 node 3 first leader seen",
		"Partitions not ready 3 of 7 topics",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not show %q:\n%s", want, text)
		}
	}
}

func TestStatusPageVerdicts(t *testing.T) {
	well := func() cluster.Status {
		st := cluster.Status{ClusterID: "c", NodeID: 1, Healthy: true, Groups: []cluster.GroupStatus{{Leader: 1}}}
		for id := range int32(3) {
			st.Nodes = append(st.Nodes, cluster.NodeStatus{ID: id + 1, Alive: true, State: cluster.NodeUp})
		}
		return st
	}
	for _, tt := range []struct {
		name string
		turn func(*cluster.Status)
		want string
	}{
		{"well", func(*cluster.Status) {}, "● Healthy 3 of 3 nodes are up; the cluster survives the loss of 1 more"},
		{"copying", func(s *cluster.Status) {
			s.Nodes[1].Recovery = &cluster.RecoveryReport{Copy: &cluster.CopyReport{Partitions: 1}}
			s.Groups[0].Members = []cluster.MemberStatus{{Node: 2, Troubled: []apply.PartitionStatus{{Topic: "t", State: string(apply.StateCopying)}}}}
		}, "▲ Catching up 3 of 3 nodes are up; the cluster survives the loss of 1 more; clients are served, and not every broker has everything yet"},
		{"one down", func(s *cluster.Status) { s.Nodes[2].Alive, s.Healthy = false, false }, "▲ Needs attention 2 of 3 nodes are up; the cluster survives the loss of 0 more"},
		{"one not let in", func(s *cluster.Status) { s.Nodes[2].Problem, s.Healthy = "stranger", false }, "▲ Needs attention 2 of 3"},
		{"no leader", func(s *cluster.Status) { s.Groups[0].Leader, s.Healthy = 0, false }, "✕ Not everything can be used"},
		{"partitions", func(s *cluster.Status) { s.NotReady, s.Healthy = 1, false }, "✕ Not everything can be used"},
		{"two down", func(s *cluster.Status) { s.Nodes[1].Alive, s.Nodes[2].Alive, s.Healthy = false, false, false },
			"✕ No majority 1 of 3 nodes are up as node 1 sees it: nothing can be written"},
	} {
		st := well()
		tt.turn(&st)
		text := visible(rendered(t, st))
		if !strings.Contains(text, tt.want) {
			t.Errorf("%s: the page does not say %q:\n%s", tt.name, tt.want, text)
		}
		if strings.Contains(text, "Copies in trouble 1") {
			t.Errorf("%s: a copy under way is told of twice:\n%s", tt.name, text)
		}
	}
}

// An address that several nodes have is no link: it leads to one of them only.
func TestStatusPageLinks(t *testing.T) {
	st := troubledStatus()
	const link = `<a id="admin-1" href="http://node-1:7501/">node-1:7501</a>`
	if body := rendered(t, st); !strings.Contains(body, link) {
		t.Error("the only node at an address is not linked")
	}
	st.Nodes[0].Admin = "https://node-1:7501"
	if body := rendered(t, st); !strings.Contains(body, `<a id="admin-1" href="https://node-1:7501/">https://node-1:7501</a>`) {
		t.Error("the link to a node with TLS does not begin with https")
	}
	st.Nodes[0].Admin = "javascript://alert(1)"
	if body := rendered(t, st); strings.Contains(body, `href="javascript`) {
		t.Error("an address is a script")
	}
	st.Nodes[0].Admin = "node-1:7501"
	st.Nodes[1].Admin = st.Nodes[0].Admin
	if body := rendered(t, st); strings.Contains(body, "<a id") || !strings.Contains(body, "admin node-1:7501") {
		t.Error("an address of two nodes is a link, or is not shown")
	}
}

// What nodes and clients choose is text, wherever it stands.
func TestStatusPageEscapes(t *testing.T) {
	const evil = `"'><script>alert(1)</script><img src=x onerror=alert(2)>`
	st := troubledStatus()
	st.ClusterID, st.Problems = evil, []string{evil}
	for i := range st.Nodes {
		n := &st.Nodes[i]
		n.Rack, n.Raft, n.Version, n.Incarnation, n.Problem = evil, evil, evil, evil, evil
		n.Admin = strings.Repeat("x", i) + evil // linked, as nobody else has it
		n.Kafka = map[string]string{evil: evil, "B": evil}
		n.Broker.Error, n.Broker.Kind, n.State = evil, evil, cluster.NodeState(evil)
		if r := n.Recovery; r != nil && r.Copy != nil {
			r.Copy.UnderWay[0].Topic, r.Copy.UnderWay[1].Reason = evil, evil
		}
	}
	m := &st.Groups[0].Members[0]
	m.Role, m.Troubled[0].Topic, m.Troubled[0].Reason, m.Troubled[0].State = evil, evil, evil, evil
	r := &st.Nodes[0].Rebuilds[0]
	r.Topic, r.Reason, r.Stage = evil, evil, evil
	st.LeaderChanges[0].Why = evil
	body := rendered(t, st)
	if n := strings.Count(body, "<script"); n != 1 || strings.Contains(body, "<img") {
		t.Errorf("%d scripts in the page, or an image", n)
	}
	if !strings.Contains(body, "&lt;script&gt;alert(1)") {
		t.Error("the text is not shown at all")
	}
	// An address cannot make a link to anything but a host over HTTP.
	for _, m := range regexp.MustCompile(`href="([^"]*)"`).FindAllStringSubmatch(body, -1) {
		if link := m[1]; strings.Contains(link, ":") && !strings.HasPrefix(link, "http://") && link != "data:," {
			t.Errorf("a link to %q", link)
		}
	}
	if strings.Contains(strings.SplitN(body, "<script>", 2)[0], `"'>`) {
		t.Error("a quote ends an attribute")
	}
}

// The page is bounded, however much is wrong.
func TestStatusPageIsBounded(t *testing.T) {
	st := troubledStatus()
	for range 2000 {
		st.Problems = append(st.Problems, "a problem")
		st.Groups = append(st.Groups, st.Groups[0])
	}
	body := rendered(t, st)
	if len(body) > 512<<10 {
		t.Errorf("a page of %d bytes", len(body))
	}
	if text := visible(body); !strings.Contains(text, "1\u202f989 more: see /status") && !strings.Contains(text, "and 1989 more") {
		t.Errorf("the page does not say that there is more:\n%s", text)
	}
}

// The policy names the style and the script that the document has, and lets
// nothing else in.
func TestStatusPagePolicy(t *testing.T) {
	w := httptest.NewRecorder()
	new(Server).writePage(w, newPage(troubledStatus(), pageNow))
	for name, want := range map[string]string{"Content-Security-Policy": pagePolicy, "Content-Type": "text/html; charset=utf-8",
		"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"} {
		if got := w.Header().Get(name); w.Code != http.StatusOK || got != want {
			t.Errorf("HTTP %d, %s: %q, want %q", w.Code, name, got, want)
		}
	}
	body := w.Body.String()
	for tag, directive := range map[string]string{"style": "style-src", "script": "script-src"} {
		m := regexp.MustCompile(`(?s)<` + tag + `>(.*?)</` + tag + `>`).FindStringSubmatch(body)
		if m == nil || !strings.Contains(pagePolicy, directive+" '"+cspHash(m[1])+"'") {
			t.Errorf("%s of the document is not the one that the policy %q allows", tag, pagePolicy)
		}
	}
	for _, loose := range []string{"unsafe", "*", "http:", "https:"} {
		if strings.Contains(pagePolicy, loose) {
			t.Errorf("the policy has %q: %s", loose, pagePolicy)
		}
	}
	if strings.Contains(body, "style=") || regexp.MustCompile(`\son[a-z]+=`).MatchString(body) {
		t.Error("the document has an inline style or handler, which the policy forbids")
	}
	for _, m := range regexp.MustCompile(`(?:src|href)="(//|https?://)([^"]*)"`).FindAllStringSubmatch(body, -1) {
		if m[2] != "node-1:7501/" {
			t.Errorf("the page refers to %s%s", m[1], m[2])
		}
	}
	if !strings.HasPrefix(pagePolicy, "default-src 'none';") {
		t.Errorf("the policy is %q", pagePolicy)
	}
}

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		count(0): "0", count(999): "999", count(1000): "1\u202f000", count(-1234567): "-1\u202f234\u202f567", count(-123): "-123",
		size(0): "0 B", size(1023): "1023 B", size(1536): "1.5 KiB", size(200 << 20): "200 MiB", size(5 << 40): "5.0 TiB",
		shortSpan(0): "0 ms", shortSpan(1500 * time.Millisecond): "1.5 s", shortSpan(59 * time.Second): "59 s", shortSpan(61 * time.Minute): "1 h",
		shortSpan(72 * time.Hour): "3 days", ago(-time.Second): "just now", ago(1500 * time.Millisecond): "1 s ago", ago(2 * time.Minute): "2 min ago",
		plural(1, "topic"): "1 topic", plural(2, "topic"): "2 topics",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Only the root is the page: other unknown paths stay unknown.
func TestStatusPagePath(t *testing.T) {
	s := New(Config{Self: 1}, nil, nil, nil)
	_, pattern := s.http.Handler.(*http.ServeMux).Handler(mustRequest(t, http.MethodGet, "http://node/nothing"))
	if pattern != "" {
		t.Errorf("/nothing is served by %q", pattern)
	}
	if _, pattern = s.http.Handler.(*http.ServeMux).Handler(mustRequest(t, http.MethodGet, "http://node/")); pattern != "GET /{$}" {
		t.Errorf("/ is served by %q", pattern)
	}
}

func mustRequest(t *testing.T, method, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
