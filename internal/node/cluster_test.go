package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/internal/testaddr"
)

const testWait = 30 * time.Second

// testCluster is several nodes in one process over real sockets and stores.
type testCluster struct {
	t     *testing.T
	dir   string
	peers map[int32]string
	edit  func(*Config)
	nodes map[int32]*Node
}

func newTestCluster(t *testing.T, size int, edit func(*Config)) *testCluster {
	t.Helper()
	c := &testCluster{t: t, dir: t.TempDir(), peers: make(map[int32]string), edit: edit, nodes: make(map[int32]*Node)}
	host := testaddr.New()
	for id := int32(1); int(id) <= size; id++ {
		c.peers[id] = host.Free(t)
	}
	t.Cleanup(func() {
		for id := range c.nodes {
			c.stop(id)
		}
	})
	return c
}

func (c *testCluster) dataDir(id int32) string {
	return filepath.Join(c.dir, fmt.Sprintf("node-%d", id))
}

func (c *testCluster) config(id int32) Config {
	cfg := Config{ClusterID: "test", NodeID: id, DataDir: c.dataDir(id), Version: "test",
		Listen: c.peers[id], Peers: c.peers, Groups: 2, LogStore: StoreWAL,
		MaxAppendEntries: 16, EntryBytes: 256 << 10, MaxInFlightEntries: 8, SegmentBytes: 1 << 20,
		Timing: Timing{HeartbeatTimeout: 500 * time.Millisecond, ElectionTimeout: 500 * time.Millisecond,
			LeaseTimeout: 500 * time.Millisecond, CommitTimeout: 20 * time.Millisecond,
			StoreTimeout: 20 * time.Second, JoinGrace: 300 * time.Millisecond},
		Self:   fsm.CatalogNode{Listeners: map[string]string{"PLAINTEXT": "localhost:9092"}},
		Logger: hclog.NewNullLogger()}
	if os.Getenv("LOCKSTEP_TEST_LOG") != "" {
		cfg.Logger = hclog.New(&hclog.LoggerOptions{Name: fmt.Sprintf("n%d", id), Level: hclog.Debug})
	}
	if c.edit != nil {
		c.edit(&cfg)
	}
	return cfg
}

// open starts a node that is not running and returns its error.
func (c *testCluster) open(id int32) (*Node, error) { return c.openAs(id, c.config(id)) }

func (c *testCluster) openAs(id int32, cfg Config) (*Node, error) {
	n := New(cfg)
	if err := n.Init(); err != nil {
		return nil, err
	}
	if err := n.Open(); err != nil {
		if cerr := n.Close(); cerr != nil {
			c.t.Errorf("close after a failed open: %v", cerr)
		}
		return nil, err
	}
	c.nodes[id] = n
	return n, nil
}

func (c *testCluster) start(ids ...int32) {
	c.t.Helper()
	for _, id := range ids {
		if _, err := c.open(id); err != nil {
			c.t.Fatalf("start node %d: %v", id, err)
		}
	}
}

func (c *testCluster) stop(ids ...int32) {
	c.t.Helper()
	for _, id := range ids {
		n := c.nodes[id]
		delete(c.nodes, id)
		if err := n.Close(); err != nil {
			c.t.Errorf("close node %d: %v", id, err)
		}
	}
}

func (c *testCluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	c.t.Cleanup(cancel)
	return ctx
}

// leader waits for a leader in office of a group among the running nodes.
func (c *testCluster) leader(group uint32) *Node {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.ctx())
	defer cancel()
	found := make(chan *Node, len(c.nodes))
	for _, n := range c.nodes {
		go func() {
			g := n.Group(group)
			for {
				l, changed := g.Leading.Changed()
				if l != nil {
					found <- n
					return
				}
				select {
				case <-changed:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	select {
	case n := <-found:
		return n
	case <-ctx.Done():
		c.t.Fatalf("group %d has no leader", group)
		return nil
	}
}

// settled waits until every group has a leader and every running node is in
// the catalog as it is.
func (c *testCluster) settled() {
	c.t.Helper()
	for g := range uint32(2) {
		c.leader(g)
	}
	for id, n := range c.nodes {
		for _, m := range c.nodes {
			c.until(m.Catalog(), fmt.Sprintf("node %d knows node %d", m.cfg.NodeID, id), func(s *fsm.Group) bool {
				r := s.Catalog.Nodes[id]
				return r != nil && r.Incarnation == n.Incarnation()
			})
		}
	}
}

// until waits until a group's state machine on one node satisfies ok.
func (c *testCluster) until(g *Group, what string, ok func(*fsm.Group) bool) {
	c.t.Helper()
	ctx := c.ctx()
	for {
		at, changed := g.machine.applied.Changed()
		var is bool
		g.Read(func(s *fsm.Group) { is = ok(s) })
		if is {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.t.Fatalf("not in time (applied %d): %s", at, what)
		}
	}
}

// createTopic proposes a topic at one node and returns its id.
func (c *testCluster) createTopic(n *Node, name string) uint64 {
	c.t.Helper()
	r, err := n.Submit(c.ctx(), fsm.CatalogGroup, fsm.Control(fsm.KindCreateTopic, fsm.CreateTopic{Name: name, Partitions: 1, Groups: 1}))
	if err != nil || r.Verdict != fsm.Done {
		c.t.Fatalf("create topic %s at node %d: %+v, %v", name, n.cfg.NodeID, r, err)
	}
	return r.Topic
}

func hasTopic(id uint64, name string) func(*fsm.Group) bool {
	return func(s *fsm.Group) bool { t := s.Catalog.TopicByName(name); return t != nil && t.ID == id }
}

// problem waits until the node says why it is not a member.
func (c *testCluster) problem(n *Node, part string) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("node %d: problem %q", n.cfg.NodeID, part), func() (bool, string) {
		return strings.Contains(n.Problem(), part), n.Problem()
	})
}

// eventually is for what has no channel to wait on: what an operator sees.
func (c *testCluster) eventually(what string, ok func() (bool, string)) {
	c.t.Helper()
	ctx := c.ctx()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		is, got := ok()
		if is {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.t.Fatalf("not in time: %s; it is %q", what, got)
		}
	}
}
