//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
)

// TestStaticMembers: a member with a name that comes back within its session
// has its old assignment in the same generation, and whoever still uses the id
// from before is fenced; so it is when the name comes back at the next
// coordinator, where the committed offset is the one of before. Kafka's own tool
// gives one answer through each of the proxies all the while.
func TestStaticMembers(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	const topic, group, name = "static", "static-group", "worker-1"
	worker := groupMember{group: group, instance: name, topic: topic}
	c.createTopic(c.node(1), topic, 1)
	w := startWorkload(t, c.bootstrap(), topic, 1, 5*time.Millisecond, "p1")
	waitFor(t, "records", 30*time.Second, func(context.Context) error {
		if _, acked := w.h.counts(); acked < 50 {
			return fmt.Errorf("%d acknowledged", acked)
		}
		return nil
	})
	if err := w.stopProducing(ctx); err != nil {
		t.Fatal(err)
	}

	first, old := memberAtCoordinator(t, ctx, c, worker)
	if code := old.commit(t, topic, 10); code != 0 {
		t.Fatalf("the first commit: %v", kerr.ErrorForCode(code))
	}
	old.close()
	at, again := memberAtCoordinator(t, ctx, c, worker)
	if at != first || again.generation != old.generation || !bytes.Equal(again.assignment, old.assignment) || again.id == old.id {
		t.Errorf("back at node %d as %q, generation %d, with %q; was at node %d as %q, generation %d, with %q",
			at.id, again.id, again.generation, again.assignment, first.id, old.id, old.generation, old.assignment)
	}
	fenced(t, c, first, old, topic)
	if code := again.commit(t, topic, 20); code != 0 {
		t.Fatalf("a commit of the member that came back: %v", kerr.ErrorForCode(code))
	}
	c.groupToolAgrees(ctx, t, group, "20", "--offsets")

	c.killNode(first.id)
	second, moved := memberAtCoordinator(t, ctx, c, worker, first)
	t.Logf("node %d coordinated, node %d does", first.id, second.id)
	if err := offsetIs(ctx, second.kafkaAddr(), group, topic, 20); err != nil {
		t.Error(err)
	}
	fenced(t, c, second, again, topic)
	if code := moved.commit(t, topic, 30); code != 0 {
		t.Fatalf("a commit at the next coordinator: %v", kerr.ErrorForCode(code))
	}
	c.restartNode(first.id)
	c.waitHealthy()
	fenced(t, c, second, again, topic)
	c.groupToolAgrees(ctx, t, group, "30", "--offsets")
	c.groupToolAgrees(ctx, t, group, name, "--members", "--verbose")
}

// fenced asks a node as a member of before, which must not be let through.
func fenced(t *testing.T, c *cluster, at *node, before *groupMember, topic string) {
	t.Helper()
	m := *before
	m.rawConn = dialRaw(t, at.kafkaAddr())
	defer m.close()
	want := []int16{kerr.FencedInstanceID.Code, kerr.UnknownMemberID.Code}
	if code := m.heartbeat(t); !slices.Contains(want, code) {
		t.Errorf("node %d answers a heartbeat of the member of before %v", at.id, kerr.ErrorForCode(code))
	}
	if code := m.commit(t, topic, 5); !slices.Contains(want, code) {
		t.Errorf("node %d answers a commit of the member of before %v", at.id, kerr.ErrorForCode(code))
	}
}

// groupToolAgrees runs Kafka's kafka-consumer-groups through each of the
// proxies: the rows are the same, and hold the given word.
func (c *cluster) groupToolAgrees(ctx context.Context, t *testing.T, group, word string, what ...string) {
	t.Helper()
	const class = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
	var rows []string
	for _, n := range c.nodes {
		args := append([]string{"--bootstrap-server", n.kafkaAddr(), "--describe", "--group", group}, what...)
		out, err := n.broker.dist.tool(ctx, c.dir, class, args...)
		if err != nil {
			t.Fatalf("node %d: kafka-consumer-groups %v: %v\n%s", n.id, what, err, out)
		}
		rows = append(rows, groupRows(out, group))
	}
	if rows[0] != rows[1] || rows[0] != rows[2] || !strings.Contains(" "+rows[0], " "+word+" ") {
		t.Errorf("kafka-consumer-groups %v says this through each node, want %q in all:\n%s", what, word, strings.Join(rows, "\n"))
	}
	t.Logf("through each node: %s", rows[0])
}

// groupRows are the rows of a group, without the widths of the columns.
func groupRows(out, group string) string {
	var rows []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == group {
			rows = append(rows, strings.Join(f, " "))
		}
	}
	slices.Sort(rows)
	return strings.Join(rows, "\n")
}
