//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"
)

// placedGroups is raft.groups: the catalog's and five that move.
const placedGroups = 6

// TestReplicationFactor grows a cluster from three nodes to five and has its
// groups spread with lockstep rebalance, under load and with a kill -9 of a
// node, broker and proxy, in between. In the end each partition is on exactly
// three brokers, which have the same, and nothing is lost or repeated.
func TestReplicationFactor(t *testing.T) {
	const topic, partitions, factor = "placed", 10, 3
	c := newClusterWith(t, clusterOpts{spare: 2, groups: placedGroups})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	rebalance(t, ctx, c.node(1)) // five nodes come to groups that have places
	if err := createTopic(ctx, c.node(1).kafkaAddr(), topic, partitions, 1); err != nil {
		t.Fatal(err)
	}
	c.waitLed(topic, partitions)
	const again = "again"
	c.createTopic(c.node(2), again, partitions)
	produceAll(t, newHistory(again), c.bootstrap(), "old", partitions, 50)
	bootstrap := c.bootstrap()
	for _, n := range c.spare {
		bootstrap = append(bootstrap, n.kafkaAddr())
	}
	w := startWorkload(t, bootstrap, topic, partitions, 20*time.Millisecond, "p1")
	m := &membership{c: c, w: w, ctx: ctx, partitions: partitions}
	for id := 4; id <= 5; id++ {
		m.arrive(id)
	}
	if on := replicas(t, ctx, c.node(5), topic); slices.ContainsFunc(on[0], func(id int32) bool { return id > 3 }) {
		t.Fatalf("a partition moved before the rebalance: %v", on)
	}
	moved := make(chan struct{})
	begin := time.Now()
	go func() {
		defer close(moved)
		rebalance(t, ctx, c.node(1))
	}()
	m.bounce(c.node(2))
	select {
	case <-moved:
	case <-ctx.Done():
		t.Fatal("the rebalance did not end")
	}
	t.Logf("rebalanced after %s, with a kill of node 2 meanwhile", time.Since(begin).Round(100*time.Millisecond))
	m.flows("after the rebalance")
	flush, cancelFlush := context.WithTimeout(ctx, time.Minute)
	defer cancelFlush()
	if err := w.stopProducing(flush); err != nil {
		t.Fatalf("wait for the last answers: %v", err)
	}
	if err := w.waitConsumed(flush); err != nil {
		t.Errorf("consumer did not reach the last acknowledged record: %v", err)
	}
	c.checkPlaced(ctx, w, topic, partitions, factor)
	c.verify()
	c.remake(ctx, again, partitions)
}

// remake deletes a topic that brokers hold in part, or have given up, and makes
// another one of its name.
func (c *cluster) remake(ctx context.Context, topic string, partitions int32) {
	t := c.t
	t.Helper()
	if err := deleteTopic(ctx, c.nodes[4].kafkaAddr(), topic); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "every broker to delete it", time.Minute, func(ctx context.Context) error {
		for _, n := range c.nodes {
			if _, err := metadata(ctx, n.broker.addr(), topic); !isUnknownTopic(err) {
				return fmt.Errorf("broker of node %d: %w", n.id, errNotYet(err))
			}
		}
		return nil
	})
	if err := createTopic(ctx, c.nodes[3].kafkaAddr(), topic, partitions, 1); err != nil {
		t.Fatal(err)
	}
	c.waitLed(topic, partitions)
	h := newHistory(topic)
	produceAll(t, h, c.bootstrap(), "new", partitions, 50)
	for _, n := range c.nodes {
		d, err := readTo(ctx, []string{n.kafkaAddr()}, topic, h.ends())
		if err != nil {
			t.Fatal(err)
		}
		h.check(map[int]dump{n.id: d}, partitions).report(t)
	}
	c.verify()
}

// arrive lets a node in that gets no group but the catalog's.
func (m *membership) arrive(id int) {
	c, t := m.c, m.c.t
	t.Helper()
	n, old := c.node(id), c.nodes[0]
	m.prepare(n, true)
	n.upstream = n.broker.addr()
	if err := n.writeConfig(append(slices.Clone(c.nodes), n), m.clusterID(old), placedGroups, envOr("E2E_LOG_STORE", "wal")); err != nil {
		t.Fatal(err)
	}
	m.order(old, "add", strconv.Itoa(id), "--address", n.raftAddr())
	n.startProxy(t)
	m.isWith(old, id, "member", func(votes []int) bool { return slices.Equal(votes, []int{0}) })
	c.nodes, c.spare = append(c.nodes, n), slices.DeleteFunc(slices.Clone(c.spare), func(s *node) bool { return s == n })
	waitFor(t, "clients to be shown the node", time.Minute, func(ctx context.Context) error {
		_, err := partitionLeaders(ctx, n, "placed", m.partitions)
		return err
	})
}

func rebalance(t *testing.T, ctx context.Context, via *node) {
	t.Helper()
	out, err := via.cli(ctx, "rebalance")
	if err != nil {
		t.Errorf("lockstep rebalance: %v", err)
	}
	t.Logf("lockstep rebalance:\n%s", out)
}

// replicas are the nodes of each partition, as a node tells clients.
func replicas(t *testing.T, ctx context.Context, via *node, topic string) map[int32][]int32 {
	t.Helper()
	md, err := metadata(ctx, via.kafkaAddr(), topic)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[int32][]int32)
	for _, p := range md.Topics[0].Partitions {
		if len(p.ISR) != len(p.Replicas) || !slices.Contains(p.Replicas, p.Leader) {
			t.Errorf("partition %d has replicas %v, in sync %v, leader %d", p.Partition, p.Replicas, p.ISR, p.Leader)
		}
		out[p.Partition] = p.Replicas
	}
	return out
}

// checkPlaced reads every broker itself, past the proxies. A partition's
// replicas have everything, in the same order; other brokers have nothing of
// it, or what they had when they gave it up.
func (c *cluster) checkPlaced(ctx context.Context, w *workload, topic string, partitions int32, factor int) {
	c.t.Helper()
	on := replicas(c.t, ctx, c.nodes[0], topic)
	ends := w.h.ends()
	load := make(map[int32]int)
	whole := make(map[int]dump) // by the number of the replica: a whole topic out of several brokers
	for p := range partitions {
		if len(on[p]) != factor {
			c.t.Errorf("partition %d is on nodes %v, want %d", p, on[p], factor)
		}
		for i, id := range on[p] {
			load[id]++
			n := c.node(int(id))
			waitFor(c.t, fmt.Sprintf("node %d to hold partition %d", id, p), 30*time.Second, func(ctx context.Context) error {
				end, err := endOffset(ctx, n.broker.addr(), topic, p)
				if err == nil && end < ends[p] {
					err = fmt.Errorf("it ends at %d of %d", end, ends[p])
				}
				return err
			})
			d, err := readBroker(ctx, n.broker.addr(), topic, partitions)
			if err != nil {
				c.t.Fatalf("node %d: %v", id, err)
			}
			if whole[i] == nil {
				whole[i] = make(dump)
			}
			whole[i][p] = d[p]
		}
		for _, n := range c.nodes {
			if slices.Contains(on[p], int32(n.id)) {
				continue
			}
			end, err := endOffset(ctx, n.broker.addr(), topic, p)
			if err != nil || end >= ends[p] || n.id > 3 && end > 0 {
				c.t.Errorf("node %d does not hold partition %d, and its broker ends at %d of %d: %v", n.id, p, end, ends[p], err)
			}
		}
	}
	if len(load) != len(c.nodes) {
		c.t.Errorf("not every node holds something: %v", load)
	}
	w.h.check(whole, partitions).report(c.t)
}
