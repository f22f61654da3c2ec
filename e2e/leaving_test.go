//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestLeaving stops the proxies for good. Each broker has every record, and is
// written to and read directly from then on; a consumer group goes on at any of
// them where it was, because the brokers were told what it had committed.
func TestLeaving(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	const topic, partitions, each = "left", 3, 200
	c := newCluster(t)
	c.createTopic(c.node(1), topic, partitions)
	produceAll(t, newHistory(topic), c.bootstrap(), "p", partitions, each)
	a := &adoptee{topic: topic, partitions: partitions, starts: map[int32]int64{}, ends: map[int32]int64{}}
	for p := range int32(partitions) {
		a.starts[p], a.ends[p] = 0, each
	}
	group := &oldReaders{a: a}
	group.start(ctx, t, c.bootstrap())
	busy := group.member(t, c.bootstrap())
	busy.PollRecords(ctx, 1) // it is a member now
	if out, err := c.node(2).cli(ctx, "leave"); err == nil || !strings.Contains(out, "stop their consumers: "+oldGroup) {
		t.Errorf("leave while the group has a member: %v\n%s", err, out)
	}
	busy.Close()
	waitFor(t, "every broker to be told", time.Minute, func(ctx context.Context) error {
		out, err := c.node(3).cli(ctx, "leave")
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
	committed := group.committed
	for _, n := range c.nodes {
		n.stopProxy(t)
	}
	before := dump{}
	for i, n := range c.nodes {
		addr := n.broker.addr()
		got, err := committedOffsets(ctx, addr, oldGroup, topic, partitions)
		if err != nil {
			t.Fatal(err)
		}
		for p, want := range committed {
			if got[p] != want {
				t.Errorf("the broker of node %d says that the group has committed %v, it was %v", n.id, got, committed)
				break
			}
		}
		d, err := readBroker(ctx, addr, topic, partitions)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			before = d
		}
		if err := sameDump(before, d, partitions); err != nil || d.records() != partitions*each {
			t.Errorf("the broker of node %d: %d records, %v", n.id, d.records(), err)
		}
		produceAll(t, newHistory(topic), []string{addr}, "direct", partitions, each)
		at := &oldReaders{a: a, committed: map[int32]int64{}}
		for p, o := range committed {
			at.committed[p] = o
		}
		at.goOn(ctx, t, []string{addr}, map[int32]int64{0: 2 * each, 1: 2 * each, 2: 2 * each})
	}
}
