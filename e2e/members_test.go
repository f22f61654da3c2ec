//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

// memberStep bounds one change of the membership, a kill included.
const memberStep = 3 * time.Minute

// TestMembers grows a cluster from one node to three, or to MEMBERS_MOST, and
// shrinks it to three again, under load and with a kill -9 of a node, broker and
// proxy, during each step. Then the first node comes back with empty disks. All
// the time records are produced and read; in the end none is lost or repeated,
// and every broker that is left has the same.
func TestMembers(t *testing.T) {
	most := envInt(t, "MEMBERS_MOST", 3)
	const topic, partitions = "members", 6
	c := newClusterWith(t, clusterOpts{begin: 1, spare: most - 1})
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(most+4)*memberStep)
	defer cancel()
	if err := createTopic(ctx, c.node(1).kafkaAddr(), topic, partitions, 1); err != nil {
		t.Fatal(err)
	}
	c.waitLed(topic, partitions)
	bootstrap := c.bootstrap()
	for _, n := range c.spare {
		bootstrap = append(bootstrap, n.kafkaAddr())
	}
	w := startWorkload(t, bootstrap, topic, partitions, 20*time.Millisecond, "p1")
	m := &membership{c: c, w: w, ctx: ctx, partitions: partitions}
	for id := 2; id <= most; id++ {
		m.grow(id)
	}
	for id := most; id > 3; id-- {
		m.shrink(id)
	}
	m.replace(1)
	flush, cancelFlush := context.WithTimeout(ctx, time.Minute)
	defer cancelFlush()
	if err := w.stopProducing(flush); err != nil {
		t.Fatalf("wait for the last answers: %v", err)
	}
	if err := w.waitConsumed(flush); err != nil {
		t.Errorf("consumer did not reach the last acknowledged record: %v", err)
	}
	c.waitBrokersHold(c.nodes, topic, w.h.ends())
	dumps := c.readBrokers(c.nodes, topic, partitions)
	w.h.check(dumps, partitions).report(t)
	c.verify()
}

// membership is a run of TestMembers.
type membership struct {
	c          *cluster
	w          *workload
	ctx        context.Context
	partitions int32
}

// flows returns when records are acknowledged in every partition again.
func (m *membership) flows(what string) {
	m.c.t.Helper()
	ctx, cancel := context.WithTimeout(m.ctx, memberStep)
	defer cancel()
	if err := m.w.h.waitAcks(ctx, m.partitions, time.Now(), 10); err != nil {
		m.c.t.Fatalf("%s: %v", what, err)
	}
}

func (m *membership) order(via *node, args ...string) {
	m.c.t.Helper()
	waitFor(m.c.t, fmt.Sprint("the order ", args), memberStep, func(ctx context.Context) error {
		_, err := via.cli(ctx, append([]string{"members"}, args...)...)
		return err
	})
}

// bounce kills a node, broker and proxy, and starts it again.
func (m *membership) bounce(n *node) {
	m.c.t.Helper()
	m.c.killNode(n.id)
	m.c.restartNode(n.id)
}

func (m *membership) prepare(n *node, join bool) {
	t := m.c.t
	t.Helper()
	ctx, cancel := context.WithTimeout(m.ctx, brokerReady)
	defer cancel()
	if err := n.broker.format(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.broker.start(ctx); err != nil {
		t.Fatal(err)
	}
	if join {
		n.settings = append(n.settings, "raft.join=true")
	}
}

// grow lets a node in, and kills the oldest one that is there meanwhile.
func (m *membership) grow(id int) {
	c, t := m.c, m.c.t
	t.Helper()
	begin := time.Now()
	n, old := c.node(id), c.nodes[0]
	m.prepare(n, true)
	n.upstream = n.broker.addr()
	if err := n.writeConfig(append(slices.Clone(c.nodes), n), m.clusterID(old), envInt(t, "E2E_GROUPS", 3), envOr("E2E_LOG_STORE", "wal")); err != nil {
		t.Fatal(err)
	}
	m.order(old, "add", strconv.Itoa(id), "--address", n.raftAddr())
	n.startProxy(t)
	m.bounce(old)
	m.is(old, id, "member")
	c.nodes, c.spare = append(c.nodes, n), slices.DeleteFunc(slices.Clone(c.spare), func(s *node) bool { return s == n })
	c.waitHealthyWithin(memberStep)
	m.flows(fmt.Sprintf("after node %d came", id))
	t.Logf("node %d came: a member after %s, with a kill of node %d meanwhile", id, time.Since(begin).Round(100*time.Millisecond), old.id)
}

// shrink takes a node out, and kills another one meanwhile.
func (m *membership) shrink(id int) {
	c, t := m.c, m.c.t
	t.Helper()
	begin := time.Now()
	n, old := c.node(id), c.nodes[1]
	m.order(c.nodes[0], "remove", strconv.Itoa(id))
	m.bounce(old)
	m.is(c.nodes[0], id, "gone")
	c.nodes = slices.DeleteFunc(slices.Clone(c.nodes), func(s *node) bool { return s == n })
	waitFor(t, "the removed node to be told", time.Minute, func(ctx context.Context) error {
		if err := n.ready(ctx); err == nil {
			return fmt.Errorf("node %d calls itself ready", id)
		}
		s, err := n.status(ctx)
		if err != nil {
			return err
		}
		for _, o := range s.Nodes {
			if o.ID == id && o.Problem != "" {
				return nil
			}
		}
		return fmt.Errorf("node %d does not know: %v", id, s.Problems)
	})
	n.stopProxy(t)
	c.waitHealthyWithin(memberStep)
	m.flows(fmt.Sprintf("after node %d went", id))
	t.Logf("node %d went: gone after %s, with a kill of node %d meanwhile", id, time.Since(begin).Round(100*time.Millisecond), old.id)
}

// replace kills a node, empties both its disks, and lets it in again; the one
// after it is killed meanwhile.
func (m *membership) replace(id int) {
	c, t := m.c, m.c.t
	t.Helper()
	begin := time.Now()
	n, old := c.node(id), c.nodes[1]
	c.killNode(id)
	for _, dir := range []string{n.dataDir(), n.broker.dataDir()} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	m.prepare(n, true)
	// It began alone, and knows nobody but itself from its configuration.
	if err := n.writeConfig(c.nodes, m.clusterID(old), envInt(t, "E2E_GROUPS", 3), envOr("E2E_LOG_STORE", "wal")); err != nil {
		t.Fatal(err)
	}
	n.startProxy(t) // not let in before the order
	m.order(old, "replace", strconv.Itoa(id))
	m.bounce(old)
	m.is(c.nodes[2], id, "member")
	c.waitHealthyWithin(memberStep)
	m.flows(fmt.Sprintf("after node %d was replaced", id))
	t.Logf("node %d was replaced with empty disks: a member after %s, with a kill of node %d meanwhile", id, time.Since(begin).Round(100*time.Millisecond), old.id)
}

func (m *membership) clusterID(via *node) string {
	m.c.t.Helper()
	s, err := via.status(m.ctx)
	if err != nil {
		m.c.t.Fatal(err)
	}
	return s.ClusterID
}

// is returns when a node says of another that it is in that state, and, of a
// member, that it votes in every group.
func (m *membership) is(via *node, id int, state string) {
	m.c.t.Helper()
	m.isWith(via, id, state, func(votes []int) bool {
		return state != "member" || len(votes) == envInt(m.c.t, "E2E_GROUPS", 3)
	})
}

// isWith is is, with what is wanted of the groups that it votes in.
func (m *membership) isWith(via *node, id int, state string, wanted func(votes []int) bool) {
	m.c.t.Helper()
	waitFor(m.c.t, fmt.Sprintf("node %d to be %s", id, state), memberStep, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		out, err := via.cli(ctx, "members", "list", "-o", "json")
		if err != nil {
			return err
		}
		var list []struct {
			ID    int    `json:"id"`
			State string `json:"state"`
			Votes []int  `json:"votes"`
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return err
		}
		for _, o := range list {
			if o.ID == id && o.State == state && wanted(o.Votes) {
				return nil
			}
		}
		return fmt.Errorf("%s", out)
	})
}
