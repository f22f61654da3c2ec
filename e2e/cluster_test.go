//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// cluster is three nodes: three Kafka clusters of one broker each, whose node
// ids, ports, cluster ids and topic ids have nothing in common, and three
// proxies that make them one.
type cluster struct {
	t     *testing.T
	dir   string
	nodes []*node
	spare []*node // made, and not in the cluster yet
}

// healthyWithin bounds every wait for health. A broker that was killed needs
// about 4 s to serve again on an idle machine.
const healthyWithin = 90 * time.Second

// clusterOpts is what a test wants to be otherwise. The zero value is the usual.
type clusterOpts struct {
	dir      string                      // in place of a run directory of its own
	via      func(*broker) string        // where a proxy looks for its broker
	settings func(*node) []string        // key=value for --set
	prepare  func(t *testing.T, b *node) // before anything is started
	seed     func(c *cluster)            // once the brokers run, before any proxy does
	embedded bool                        // brokers that are fakes, and start in a moment
	groups   int                         // of Raft, in place of E2E_GROUPS
	program  *program                    // in place of the binary under test
	begin    int                         // nodes that the cluster begins with, in place of three
	spare    int                         // nodes that may come later
	peerAddr func(from, to *node) string // where one node looks for another
}

// newCluster starts everything and returns when status calls it healthy.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	return newClusterWith(t, clusterOpts{})
}

// newClusterVia is newCluster with proxies that look for their brokers at an
// address that via gives.
func newClusterVia(t *testing.T, via func(*broker) string) *cluster {
	t.Helper()
	return newClusterWith(t, clusterOpts{via: via})
}

// newClusterWith is newCluster with options.
func newClusterWith(t *testing.T, o clusterOpts) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: o.dir}
	if c.dir == "" {
		c.dir = runDir(t)
	}
	if o.via == nil {
		o.via = (*broker).addr
	}
	groups, logStore := envInt(t, "E2E_GROUPS", 3), envOr("E2E_LOG_STORE", "wal")
	if o.groups > 0 {
		groups = o.groups
	}
	bin := lockstepBinary(t)
	if o.program != nil {
		bin = o.program.get(t)
	}
	begin := time.Now()
	begins := 3
	if o.begin > 0 {
		begins = o.begin
	}
	for i, brokerID := range []int{11, 27, 305, 4, 52}[:begins+o.spare] {
		dir := filepath.Join(c.dir, fmt.Sprintf("kafka%d", i+1))
		var b *broker
		if o.embedded {
			b = makeEmbedded(t, dir, bin)
		} else {
			b = makeBroker(t, dir, brokerID)
		}
		c.nodes = append(c.nodes, &node{
			id: i + 1, bin: bin, dir: filepath.Join(c.dir, fmt.Sprintf("node%d", i+1)),
			broker:    b,
			kafkaPort: freePort(t), raftPort: freePort(t), adminPort: freePort(t),
		})
	}
	t.Cleanup(func() {
		for _, n := range slices.Concat(c.nodes, c.spare) {
			if n.proc != nil {
				if err := n.proc.kill9(); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for _, n := range c.nodes {
		if o.settings != nil {
			n.settings = o.settings(n)
		}
		if o.prepare != nil {
			o.prepare(t, n)
		}
	}
	c.nodes, c.spare = c.nodes[:begins:begins], c.nodes[begins:]
	c.startBrokers()
	if o.seed != nil {
		o.seed(c)
	}
	for _, n := range c.nodes {
		n.upstream = o.via(n.broker)
		if o.peerAddr != nil {
			n.peerAddr = func(to *node) string { return o.peerAddr(n, to) }
		}
		if err := n.writeConfig(c.nodes, filepath.Base(c.dir), groups, logStore); err != nil {
			t.Fatal(err)
		}
		n.startProxy(t)
	}
	c.waitHealthy()
	t.Logf("%d brokers and proxies healthy after %s (raft.groups %d, log store %s)",
		begins, time.Since(begin).Round(100*time.Millisecond), groups, logStore)
	return c
}

// startBrokers formats and starts the three brokers at the same time.
func (c *cluster) startBrokers() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), brokerReady)
	defer cancel()
	results := make(chan error, len(c.nodes))
	for _, n := range c.nodes {
		go func() {
			if err := n.broker.format(ctx); err != nil {
				results <- err
				return
			}
			results <- n.broker.start(ctx)
		}()
	}
	var err error
	for range c.nodes {
		err = errors.Join(err, <-results)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// node returns the node with a Lockstep id.
func (c *cluster) node(id int) *node {
	all := slices.Concat(c.nodes, c.spare)
	return all[slices.IndexFunc(all, func(n *node) bool { return n.id == id })]
}

// others returns all nodes but one.
func (c *cluster) others(id int) []*node {
	var out []*node
	for _, n := range c.nodes {
		if n.id != id {
			out = append(out, n)
		}
	}
	return out
}

// bootstrap lists the proxies' addresses.
func (c *cluster) bootstrap() []string {
	var out []string
	for _, n := range c.nodes {
		out = append(out, n.kafkaAddr())
	}
	return out
}

// killNode is kill -9 of the proxy and its broker together.
func (c *cluster) killNode(id int) {
	c.t.Helper()
	n := c.node(id)
	// Both get the signal before either is waited for.
	errs := errors.Join(n.proc.signal(9), n.broker.proc.signal(9), n.proc.kill9(), n.broker.proc.kill9())
	if errs != nil {
		c.t.Fatal(errs)
	}
}

// restartNode starts broker and proxy again at the same time, on their disks,
// and waits for neither.
func (c *cluster) restartNode(id int) {
	c.t.Helper()
	n := c.node(id)
	if err := n.broker.spawn(); err != nil {
		c.t.Fatal(err)
	}
	n.startProxy(c.t)
}

// waitHealthy returns when every node's own /status and the status command's
// exit code say healthy.
func (c *cluster) waitHealthy() {
	c.t.Helper()
	c.waitHealthyWithin(healthyWithin)
}

func (c *cluster) waitHealthyWithin(limit time.Duration) {
	c.t.Helper()
	waitFor(c.t, "a healthy cluster", limit, func(ctx context.Context) error {
		for _, n := range c.nodes {
			if !n.running() {
				return fmt.Errorf("lockstep of node %d is not running", n.id)
			}
			s, err := n.status(ctx)
			if err != nil {
				return err
			}
			if !s.Healthy {
				b, _ := json.Marshal(s)
				return fmt.Errorf("node %d says the cluster is not healthy: %s", n.id, b)
			}
			// Believed only when the parts agree with the verdict.
			if err := s.complete(len(c.nodes)); err != nil {
				return fmt.Errorf("node %d says healthy, but %w", n.id, err)
			}
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, err := c.nodes[0].cli(ctx, "status", "-o", "json")
		return err
	})
}

// complete returns an error when a status that calls itself healthy is not.
func (s *status) complete(nodes int) error {
	if len(s.Nodes) != nodes {
		return fmt.Errorf("it lists %d nodes", len(s.Nodes))
	}
	for _, n := range s.Nodes {
		if !n.Alive || n.Broker.State != "up" || n.Problem != "" {
			return fmt.Errorf("node %d: alive %t, broker %q, problem %q", n.ID, n.Alive, n.Broker.State, n.Problem)
		}
	}
	if len(s.Groups) == 0 {
		return errors.New("it lists no group")
	}
	for _, g := range s.Groups {
		if g.Leader <= 0 {
			return fmt.Errorf("group %d has no leader", g.Group)
		}
	}
	return nil
}

// verify runs "lockstep verify" and fails the test unless the brokers' logs
// are identical.
func (c *cluster) verify() {
	c.t.Helper()
	c.verifyWithin(2 * time.Minute)
}

func (c *cluster) verifyWithin(limit time.Duration) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), limit)
	defer cancel()
	begin := time.Now()
	out, err := c.nodes[0].cli(ctx, "verify", "-o", "json")
	if err != nil {
		c.t.Fatal(err)
	}
	var v struct {
		Identical bool `json:"identical"`
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		c.t.Fatalf("read output of lockstep verify: %v\n%s", err, lastBytes(out, 2000))
	}
	if !v.Identical {
		c.t.Fatalf("lockstep verify exits 0 and says the logs differ: %s", lastBytes(out, 2000))
	}
	c.t.Logf("lockstep verify: identical (%s)", time.Since(begin).Round(time.Millisecond))
}

// trusted fails the test when a node quarantines a partition or ever did.
func (c *cluster) trusted(ctx context.Context) {
	c.t.Helper()
	for _, n := range c.nodes {
		s, err := n.status(ctx)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, g := range s.Groups {
			for _, m := range g.Members {
				if m.Quarantined != nil {
					c.t.Errorf("node %d quarantines partitions of group %d: %v", m.Node, g.Group, m.Quarantined)
				}
			}
		}
	}
	if lines := c.logLines("partition quarantined"); len(lines) > 0 {
		c.t.Errorf("%d partitions were quarantined, first: %s", len(lines), lines[0])
	}
}

// createTopic creates a topic through one proxy and returns when every proxy
// that runs announces a leader for each partition.
func (c *cluster) createTopic(via *node, topic string, partitions int32) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	if err := createTopic(ctx, via.kafkaAddr(), topic, partitions, 3); err != nil {
		c.t.Fatal(err)
	}
	c.waitLed(topic, partitions)
}

// waitLed returns when every running proxy announces a leader for every
// partition.
func (c *cluster) waitLed(topic string, partitions int32) {
	c.t.Helper()
	waitFor(c.t, "leaders of "+topic, 30*time.Second, func(ctx context.Context) error {
		for _, n := range c.nodes {
			if !n.running() {
				continue
			}
			if _, err := partitionLeaders(ctx, n, topic, partitions); err != nil {
				return err
			}
		}
		return nil
	})
}

// partitionLeaders returns each partition's leader as one proxy announces it to
// clients, or an error when one has none.
func partitionLeaders(ctx context.Context, via *node, topic string, partitions int32) (map[int32]int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	md, err := metadata(ctx, via.kafkaAddr(), topic)
	if err != nil {
		return nil, err
	}
	m := map[int32]int{}
	for _, p := range md.Topics[0].Partitions {
		if p.ErrorCode == 0 && p.Leader > 0 {
			m[p.Partition] = int(p.Leader)
		}
	}
	if len(m) != int(partitions) {
		return nil, fmt.Errorf("node %d announces leaders for %d of %d partitions of %s", via.id, len(m), partitions, topic)
	}
	return m, nil
}

// ledBy returns the partitions of a topic that node id leads.
func ledBy(leaders map[int32]int, id int) []int32 {
	var out []int32
	for p := range int32(len(leaders)) {
		if leaders[p] == id {
			out = append(out, p)
		}
	}
	return out
}

// leaders returns the leaders on which every running node agrees.
func (c *cluster) leaders(ctx context.Context) (map[int]int, error) {
	var agreed map[int]int
	for _, n := range c.nodes {
		if !n.running() {
			continue
		}
		s, err := n.status(ctx)
		if err != nil {
			return nil, err
		}
		if l := s.leaders(); agreed == nil {
			agreed = l
		} else if !maps.Equal(agreed, l) {
			return nil, fmt.Errorf("node %d says the leaders are %v, another node says %v", n.id, l, agreed)
		}
	}
	return agreed, nil
}

// readBrokers reads a topic from each given node's broker directly, going
// around Lockstep, and requires gapless offsets and the same records on each.
func (c *cluster) readBrokers(nodes []*node, topic string, partitions int32) map[int]dump {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 3*time.Minute)
	defer cancel()
	dumps := map[int]dump{}
	for _, n := range nodes {
		d, err := readBroker(ctx, n.broker.addr(), topic, partitions)
		if err != nil {
			c.t.Fatalf("node %d: %v", n.id, err)
		}
		if err := d.gapless(); err != nil {
			c.t.Errorf("broker of node %d: %v", n.id, err)
		}
		dumps[n.id] = d
		if err := sameDump(dumps[nodes[0].id], d, partitions); err != nil {
			c.t.Errorf("brokers of node %d and %d differ in %s: %v", nodes[0].id, n.id, topic, err)
		}
	}
	return dumps
}

// waitBrokersHold returns when the given nodes' brokers have the end offsets
// wanted, asked directly.
func (c *cluster) waitBrokersHold(nodes []*node, topic string, ends map[int32]int64) {
	c.t.Helper()
	waitFor(c.t, "the records on each broker", 30*time.Second, func(ctx context.Context) error {
		for _, n := range nodes {
			for p, want := range ends {
				got, err := endOffset(ctx, n.broker.addr(), topic, p)
				if err != nil {
					return err
				}
				if got < want {
					return fmt.Errorf("broker of node %d ends at %d/%d, want %d", n.id, p, got, want)
				}
			}
		}
		return nil
	})
}

// logLines returns the lines of all nodes' logs that hold s, node by node.
func (c *cluster) logLines(s string) []string {
	var out []string
	for _, n := range c.nodes {
		out = append(out, n.logLines(s)...)
	}
	return out
}

// logLines returns the lines of the node's log that hold s. A log that cannot
// be read has none.
func (n *node) logLines(s string) []string {
	b, _ := os.ReadFile(n.logFile())
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, s) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// ready returns an error unless /livez and /readyz both answer 200.
func (n *node) ready(ctx context.Context) error {
	for _, path := range []string{"/livez", "/readyz"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.adminURL()+path, nil)
		if err != nil {
			return err
		}
		resp, err := n.adminClient().Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("node %d: %s answers %s", n.id, path, resp.Status)
		}
	}
	return nil
}
