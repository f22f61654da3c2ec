package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"lockstep/fsm"
	"lockstep/transport"
)

// Every order of starting three nodes ends in one cluster, on both stores.
func TestEveryStartOrderMakesOneCluster(t *testing.T) {
	orders := [][]int32{{1, 2, 3}, {1, 3, 2}, {2, 1, 3}, {2, 3, 1}, {3, 1, 2}, {3, 2, 1}}
	for i, order := range orders {
		store := []string{StoreWAL, StoreBoltDB}[i%2]
		t.Run(fmt.Sprintf("%v/%s", order, store), func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t, 3, func(cfg *Config) { cfg.LogStore = store })
			// The first two begin; the third finds a cluster that writes.
			c.start(order[:2]...)
			id := c.createTopic(c.nodes[order[0]], "before")
			c.start(order[2])
			c.settled()
			for _, n := range c.nodes {
				c.until(n.Catalog(), "the topic is everywhere", hasTopic(id, "before"))
			}
		})
	}
}

// Five nodes, a minority of which is late, make one cluster.
func TestFiveNodesMakeOneCluster(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 5, nil)
	c.start(4, 2)
	c.problem(c.nodes[4], "2 of 5")
	c.start(5)
	id := c.createTopic(c.nodes[5], "t")
	c.start(1, 3)
	c.settled()
	c.until(c.nodes[1].Catalog(), "the topic is everywhere", hasTopic(id, "t"))
}

// One node alone, or with nobody it reaches, begins nothing.
func TestNoMajorityBeginsNothing(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(2)
	c.problem(c.nodes[2], "1 of 3")
	if c.nodes[2].Member() {
		t.Fatal("one of three began a cluster")
	}
	c.stop(2)
	if _, err := os.Stat(groupDir(c.dataDir(2), 0)); err == nil {
		t.Fatal("stores were made without a cluster")
	}
	c.start(1, 2, 3)
	c.settled()
}

// A node that sees only one of the others comes in through that one.
func TestPartialMesh(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	start := func(id int32, hidden int32) {
		n := New(c.config(id))
		if err := n.Init(); err != nil {
			t.Fatal(err)
		}
		n.transport.SetPeer(hidden, "127.0.0.1:1") // nobody is there
		if err := n.Open(); err != nil {
			t.Fatal(err)
		}
		c.nodes[id] = n
	}
	start(1, 3)
	c.start(2)
	id := c.createTopic(c.nodes[1], "t")
	c.registered(1, 2)
	if c.leader(0) != c.nodes[1] { // the one that node 3 does not reach
		if err := c.nodes[2].Catalog().Transfer(c.ctx(), 1, "a test wants it"); err != nil {
			t.Fatal(err)
		}
	}
	start(3, 1)
	c.eventually("node 3 is a member", func() (bool, string) { return c.nodes[3].Member(), c.nodes[3].Problem() })
	c.until(c.nodes[2].Catalog(), "node 3 is registered", func(s *fsm.Group) bool {
		r := s.Catalog.Nodes[3]
		return r != nil && r.Incarnation == c.nodes[3].Incarnation()
	})
	c.nodes[3].transport.SetPeer(1, c.peers[1])
	c.nodes[1].transport.SetPeer(3, c.peers[3])
	c.until(c.nodes[3].Catalog(), "the topic reaches node 3", hasTopic(id, "t"))
}

// registered waits until some of the nodes are in the catalog.
func (c *testCluster) registered(ids ...int32) {
	c.t.Helper()
	for _, id := range ids {
		c.until(c.nodes[id].Catalog(), "nodes are registered", func(s *fsm.Group) bool {
			for _, other := range ids {
				if s.Catalog.Nodes[other] == nil {
					return false
				}
			}
			return true
		})
	}
}

// A restart keeps identity, log, term and vote; the whole cluster may restart.
func TestRestartKeepsLogTermAndVote(t *testing.T) {
	for _, store := range []string{StoreWAL, StoreBoltDB} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t, 3, func(cfg *Config) { cfg.LogStore = store })
			c.start(1, 2, 3)
			c.settled()
			id := c.createTopic(c.nodes[1], "kept")
			incarnation := c.nodes[2].Incarnation()
			term := c.nodes[2].Catalog().Raft().CurrentTerm()
			c.stop(1, 2, 3)
			votes := 0 // a majority voted; who did not has none on disk
			for id := range c.peers {
				s, err := openStores(storeConfig{dir: groupDir(c.dataDir(id), 0), kind: store, segmentBytes: 1 << 20, timeout: testWait})
				if err != nil {
					t.Fatal(err)
				}
				if got, err := s.stable.GetUint64([]byte("CurrentTerm")); err != nil || id == 2 && got < term {
					t.Errorf("term on disk of node %d is %d, %v; it was %d", id, got, err, term)
				}
				if vote, err := s.stable.GetUint64([]byte("LastVoteTerm")); err == nil && vote > 0 {
					votes++
				}
				if err := s.close(); err != nil {
					t.Fatal(err)
				}
			}
			if votes < 2 {
				t.Errorf("%d votes are on disk, want those of a majority", votes)
			}
			c.start(3, 2, 1)
			c.settled()
			if got := c.nodes[2].Incarnation(); got != incarnation {
				t.Errorf("incarnation is %s, it was %s", got, incarnation)
			}
			for _, n := range c.nodes {
				c.until(n.Catalog(), "the topic is still there", hasTopic(id, "kept"))
				if got := n.Catalog().Raft().CurrentTerm(); got <= term {
					t.Errorf("term is %d, it was %d before the restart", got, term)
				}
			}
		})
	}
}

// A node that lost its disk stays out, is named by the others, and gives no
// vote: with a second node down the last one cannot win.
func TestWipedNodeStaysOut(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2, 3)
	c.settled()
	id := c.createTopic(c.nodes[1], "acknowledged")
	c.stop(3)
	if err := os.RemoveAll(c.dataDir(3)); err != nil {
		t.Fatal(err)
	}
	c.start(3)
	c.problem(c.nodes[3], "readmitted")
	for _, named := range []int32{1, 2} {
		c.eventually("node 3 is named", func() (bool, string) {
			why := c.nodes[named].Strangers()[3]
			return strings.Contains(why, "neither votes nor counts"), why
		})
	}
	c.createTopic(c.nodes[2], "without it") // 1 and 2 go on
	if c.nodes[3].Member() || c.nodes[3].Catalog().Raft() != nil {
		t.Fatal("the wiped node takes part")
	}

	// Node 1 alone with the wiped node: no leader, whatever the vote says.
	c.stop(2)
	n1 := c.nodes[1]
	ctx := c.ctx()
	for {
		l, changed := n1.Catalog().Leading.Changed()
		if l == nil {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("node 1 leads without a majority")
		}
	}
	g := n1.Catalog()
	req := &raft.RequestVoteRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("1"), Addr: []byte(c.peers[1])},
		Term: 1000, LastLogIndex: 1000, LastLogTerm: 1000}
	var resp raft.RequestVoteResponse
	if err := g.trans.RequestVote("3", raft.ServerAddress(c.peers[3]), req, &resp); err == nil {
		t.Fatalf("the wiped node answered a vote request: %+v", resp)
	}
	if g.Raft().State() == raft.Leader {
		t.Fatal("node 1 leads without a majority")
	}
	c.start(2)
	c.until(c.nodes[2].Catalog(), "nothing is lost", hasTopic(id, "acknowledged"))
}

// A node of the same cluster id and node id, with a data_dir of its own, is
// refused while the rightful one goes on.
func TestForeignNodeIsRefused(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2, 3)
	c.settled()
	cfg := c.config(3)
	cfg.DataDir = filepath.Join(c.dir, "foreign")
	cfg.Listen = "127.0.0.1:0"
	foreign := New(cfg)
	if err := foreign.Init(); err != nil {
		t.Fatal(err)
	}
	if err := foreign.Open(); err != nil {
		t.Fatal(err)
	}
	c.problem(foreign, "readmitted")
	if foreign.Member() {
		t.Fatal("the foreign node was let in")
	}
	if err := foreign.Close(); err != nil {
		t.Fatal(err)
	}
	c.createTopic(c.nodes[3], "t") // the rightful node 3 still takes part
}

// Whoever lost part of what it had must not start.
func TestLostStoresRefuseToStart(t *testing.T) {
	for _, tc := range []struct {
		name, store string
		lose        func(dir string) error
		want        string
	}{
		{"group directory", StoreWAL, func(d string) error { return os.RemoveAll(groupDir(d, 1)) }, "empty data_dir and readmit"},
		{"wal", StoreWAL, func(d string) error { return os.RemoveAll(filepath.Join(groupDir(d, 0), "wal")) }, "raft log"},
		{"bolt log", StoreBoltDB, func(d string) error { return os.Remove(filepath.Join(groupDir(d, 0), "log.db")) }, "raft log"},
		{"term and vote", StoreWAL, func(d string) error { return os.Remove(filepath.Join(groupDir(d, 1), "stable.db")) }, "term and vote"},
		{"identity", StoreWAL, func(d string) error { return os.Remove(filepath.Join(d, identityFile)) }, identityFile},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t, 3, func(cfg *Config) { cfg.LogStore = tc.store })
			c.start(1, 2, 3)
			c.settled()
			c.stop(2)
			if err := tc.lose(c.dataDir(2)); err != nil {
				t.Fatal(err)
			}
			for range 2 { // a first attempt must not make the second one look right
				if _, err := c.open(2); err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("node 2 without its %s: %v", tc.name, err)
				}
			}
		})
	}
}

// Another log store finds no log, and says so.
func TestChangedLogStoreRefusesToStart(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2, 3)
	c.settled()
	c.stop(1)
	cfg := c.config(1)
	cfg.LogStore = StoreBoltDB
	if _, err := c.openAs(1, cfg); err == nil || !strings.Contains(err.Error(), "raft.log_store") {
		t.Fatalf("another log store: %v", err)
	}
	c.start(1)
	c.settled()
}

// A node that was wiped before anybody began the cluster is no stranger.
func TestWipedBeforeTheBeginning(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1)
	c.problem(c.nodes[1], "1 of 3")
	// Node 2 is heard of by node 1, and does not see anybody itself.
	cfg := c.config(2)
	n := New(cfg)
	if err := n.Init(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.nodes[1].meet(transport.Hello{NodeID: 2, Incarnation: n.Incarnation()}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(c.dataDir(2)); err != nil {
		t.Fatal(err)
	}
	c.start(2)
	c.problem(c.nodes[1], "lost its data_dir before the cluster began")
	c.problem(c.nodes[2], "has seen this node with another data_dir")
	if c.nodes[1].Member() || c.nodes[2].Member() {
		t.Fatal("a cluster was begun although node 2 may have begun one before")
	}
	c.start(3)
	c.settled()
}

// Nodes that do not agree on who the peers are begin nothing: their first
// configurations would differ under the same index and term.
func TestDifferentPeersBeginNothing(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	cfg := c.config(1)
	cfg.Peers = map[int32]string{1: c.peers[1], 2: c.peers[2], 4: "127.0.0.1:1"}
	if _, err := c.openAs(1, cfg); err != nil {
		t.Fatal(err)
	}
	c.start(2)
	c.problem(c.nodes[1], "raft.peers differ")
	c.problem(c.nodes[2], "raft.peers differ")
}

// A crash anywhere while a node enters leaves one that starts over.
func TestCrashWhileEntering(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	n := New(c.config(1))
	if err := n.Init(); err != nil {
		t.Fatal(err)
	}
	// Group 0 is ready, group 1 half so, the identity knows nothing.
	conf := &raft.Configuration{Servers: []raft.Server{{ID: "1", Address: "a:1"}, {ID: "9", Address: "b:1"}}}
	if err := n.groups[0].prepare(conf); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(groupDir(c.dataDir(1), 1), "wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	c.start(1, 2, 3)
	c.settled()
	for _, s := range c.nodes[1].Catalog().Raft().GetConfiguration().Configuration().Servers {
		if s.ID == "9" {
			t.Fatal("the configuration of the attempt that crashed is in use")
		}
	}
}
