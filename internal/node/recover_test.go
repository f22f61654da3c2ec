package node

import (
	"strings"
	"testing"

	"lockstep/fsm"
)

// Two of three nodes are lost. The third goes on alone, with everything it
// had, under the next recovery number; a node of the old cluster that comes
// back is kept out, and stops.
func TestRecoverFromLostQuorum(t *testing.T) {
	bothStores(t, func(t *testing.T, kind string) {
		c := newTestCluster(t, 3, smallLogs(kind))
		c.start(1, 2, 3)
		c.settled()
		c.openLoad()
		stop := c.trustAll(1, 2, 3)
		c.load(1<<20, 8<<10)
		lead := c.leader(1).Group(1)
		if _, err := c.nodes[3].Group(1).Log().Applied().Wait(c.ctx(), lead.Log().Applied().Get()); err != nil {
			t.Fatal(err)
		}
		stop()
		next := func(n *Node) (at int64) {
			n.Group(1).Read(func(s *fsm.Group) { at = s.Partitions[loadTP].NextOffset })
			return at
		}
		had := next(c.nodes[3])
		c.stop(1, 2, 3)

		r, err := Recover(c.config(3))
		if err != nil {
			t.Fatal(err)
		}
		if r.Number != 1 || len(r.Groups) != 2 || r.Groups[1].LastIndex < 128 || r.Groups[1].Servers != 3 {
			t.Errorf("the report is %+v", r)
		}
		c.start(3)
		g := c.leader(1).Group(1)
		c.leader(0)
		if got := next(c.nodes[3]); got != had {
			t.Fatalf("the log ends at offset %d after the recovery, it was %d", got, had)
		}
		results := make(chan fsm.Result, 1)
		g.Propose(fsm.AppendCommand(loadTP, loadBatch(100)), func(r fsm.Result, err error) {
			if err != nil {
				t.Error(err)
			}
			results <- r
		})
		if r := <-results; r.Verdict != fsm.Appended || r.Epoch != 1 || r.Sequence != 0 || r.BaseOffset != had {
			t.Fatalf("the first batch after the recovery: %+v", r)
		}
		newTailer(t, g).sameAsHead()

		// An old node.
		c.start(1)
		old := c.nodes[1]
		select {
		case <-old.Failed():
		case <-c.ctx().Done():
			t.Fatal("a node of the old cluster goes on")
		}
		if err := old.Err(); !strings.Contains(err.Error(), "recovered without this node") {
			t.Error(err)
		}
		c.eventually("the old node is named", func() (bool, string) {
			why := c.nodes[3].Strangers()[1]
			return strings.Contains(why, "recovery 1"), why
		})
		c.load(64<<10, 8<<10)

		// Once more, and a restart keeps the number.
		c.stop(1, 3)
		if r, err := Recover(c.config(3)); err != nil || r.Number != 2 || r.Groups[0].Servers != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		c.start(3)
		c.load(64<<10, 8<<10)
		c.leader(1).Group(1).Read(func(s *fsm.Group) {
			if s.Recovery != 2 || s.Partitions[loadTP].Epoch != 2 {
				t.Errorf("the group is at recovery %d, the partition at %d", s.Recovery, s.Partitions[loadTP].Epoch)
			}
		})
	})
}

// Nothing is touched on a node that is damaged, or was never a member.
func TestRecoverRefuses(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 1, func(cfg *Config) { cfg.EntryBytes = 8 << 10 })
	if _, err := Recover(c.config(1)); err == nil || !strings.Contains(err.Error(), "never been a member") {
		t.Fatalf("an empty data_dir is recovered: %v", err)
	}
	c.start(1)
	c.settled()
	c.openLoad()
	c.load(128<<10, 8<<10)
	c.stop(1)
	path, at := walEntry(t, groupDir(c.dataDir(1), 1), 10)
	flip(t, path, at)
	if _, err := Recover(c.config(1)); err == nil {
		t.Fatal("a damaged log is recovered")
	}
	if id, err := loadIdentity(c.dataDir(1), "test", 1, 2); err != nil || id.Recovery != 0 {
		t.Errorf("the recovery number is %d, %v", id.Recovery, err)
	}
}

// A new node that comes into a recovered cluster is not taken for an old one.
func TestJoinAfterRecovery(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2)
	id := c.createTopic(c.nodes[1], "kept")
	c.until(c.nodes[1].Catalog(), "node 1 has the topic", hasTopic(id, "kept"))
	c.stop(1, 2)
	if _, err := Recover(c.config(1)); err != nil {
		t.Fatal(err)
	}
	c.start(1)
	c.leader(0)
	c.start(3)
	c.registered(1)
	c.eventually("node 3 is told that nobody awaits it", func() (bool, string) {
		return strings.Contains(c.nodes[3].Problem(), "members add 3"), c.nodes[3].Problem()
	})
	if r, err := c.nodes[1].Submit(c.ctx(), fsm.CatalogGroup, fsm.Control(fsm.KindAddNode, fsm.AddNode{ID: 3, Raft: c.nodes[1].Address(3)})); err != nil || r.Verdict != fsm.Done {
		t.Fatalf("%+v, %v", r, err)
	}
	c.until(c.nodes[1].Catalog(), "node 3 is registered", func(s *fsm.Group) bool { return s.Catalog.Nodes[3] != nil })
	c.eventually("node 3 is a member", func() (bool, string) { return c.nodes[3].Member(), c.nodes[3].Problem() })
	if got := c.nodes[3].recovery(); got != 1 {
		t.Errorf("the new node is of recovery %d", got)
	}
	// Members' calls are answered to it.
	if r, err := c.nodes[3].submitTo(c.ctx(), c.nodes[3].Catalog(), 1, false,
		fsm.Control(fsm.KindCreateTopic, fsm.CreateTopic{Name: "new", Partitions: 1, Groups: 1})); err != nil || r.Verdict != fsm.Done {
		t.Errorf("the new node is not heard: %+v, %v", r, err)
	}
}
