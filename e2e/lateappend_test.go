//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// TestLateAppend holds back what a proxy sends its broker, kills the proxy with
// -9, lets a new one append the same batches over new connections, and only
// then lets the broker have what the dead one sent. The log end offset alone
// would not tell the two apart: the broker must know the late ones by the
// applier's sequence. In every second round they come while the new proxy is
// still comparing.
func TestLateAppend(t *testing.T) {
	relays := map[*broker]*relay{}
	c := newClusterVia(t, func(b *broker) string {
		relays[b] = startRelay(t, b.addr())
		return relays[b].addr()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	const topic, partitions = "late", 6
	c.createTopic(c.node(1), topic, partitions)
	w := startWorkload(t, c.bootstrap(), topic, partitions, 40*time.Millisecond, "p1", "p2")
	settle := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, settleWithin)
		defer cancel()
		if err := w.h.waitAcks(ctx, partitions, time.Now(), 5); err != nil {
			t.Fatal(err)
		}
	}
	settle()
	for round := range 6 {
		n := c.nodes[round%len(c.nodes)]
		r := relays[n.broker]
		release := r.hold()
		t.Cleanup(release)
		// Some Produce requests; the probe of the broker's health is far less.
		waitFor(t, "appends to be held back", 10*time.Second, func(context.Context) error {
			if got := r.holds(); got < 600 {
				return fmt.Errorf("%d bytes are", got)
			}
			return nil
		})
		if err := n.proc.kill9(); err != nil {
			t.Fatal(err)
		}
		n.startProxy(t)
		if round%2 == 0 {
			c.waitHealthy()
			c.waitBrokersHold(c.nodes, topic, w.h.ends())
		} else {
			waitFor(t, "the new proxy", healthyWithin, func(ctx context.Context) error {
				_, err := n.status(ctx)
				return err
			})
		}
		held := r.holds()
		release()
		settle()
		c.waitHealthy()
		c.waitBrokersHold(c.nodes, topic, w.h.ends())
		c.trusted(ctx)
		t.Logf("round %d: node %d, %d bytes came late", round+1, n.id, held)
	}
	flush, cancelFlush := context.WithTimeout(ctx, time.Minute)
	defer cancelFlush()
	if err := w.stopProducing(flush); err != nil {
		t.Errorf("wait for the last answers: %v", err)
	}
	c.waitBrokersHold(c.nodes, topic, w.h.ends())
	w.h.check(c.readBrokers(c.nodes, topic, partitions), partitions).report(t)
	c.verify()
}
