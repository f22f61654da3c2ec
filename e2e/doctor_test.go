//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestDoctor plants mistakes in a real broker's settings and in a node's
// configuration: the doctor names each of them, and none of a node that is well,
// whether it runs or not.
func TestDoctor(t *testing.T) {
	dir := runDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	start := func(name string, settings ...string) *node {
		n := &node{id: 1, bin: lockstepBinary(t), dir: filepath.Join(dir, name), broker: makeBroker(t, filepath.Join(dir, name, "kafka"), 7),
			kafkaPort: freePort(t), raftPort: freePort(t), adminPort: freePort(t)}
		n.broker.settings = append(n.broker.settings, settings...)
		if err := n.broker.format(ctx); err != nil {
			t.Fatal(err)
		}
		if err := n.broker.start(ctx); err != nil {
			t.Fatal(err)
		}
		n.upstream = n.broker.addr()
		if err := n.writeConfig([]*node{n}, "doctor", 1, "wal"); err != nil {
			t.Fatal(err)
		}
		return n
	}
	well := start("well")
	if found := well.doctor(ctx, t, 0); found["error broker"] || !found["ok broker"] || !found["ok broker's settings"] || !found["ok node"] {
		t.Errorf("a node that is well, before its start: %v", found)
	}
	ill := start("ill", "min.insync.replicas=2", "auto.create.topics.enable=true", "delete.topic.enable=false")
	found := ill.doctor(ctx, t, 1, "listeners=PLAINTEXT://"+well.broker.addr(), "advertised_listeners=PLAINTEXT://no-such-host.invalid:9092")
	for _, want := range []string{"error broker's settings", "warning broker's settings", "error node", "error advertised no-such-host.invalid:9092"} {
		if !found[want] {
			t.Errorf("%s is not found: %v", want, found)
		}
	}
	if err := ill.broker.proc.kill9(); err != nil {
		t.Fatal(err)
	}
	if found := ill.doctor(ctx, t, 1); !found["error broker"] || !found["unknown broker's settings"] {
		t.Errorf("without a broker: %v", found)
	}

	well.startProxy(t)
	t.Cleanup(func() {
		if err := well.proc.kill9(); err != nil {
			t.Error(err)
		}
	})
	waitFor(t, "the node to be ready", healthyWithin, well.ready)
	if found := well.doctor(ctx, t, 0); !found["ok node"] {
		t.Errorf("a node that is well, running: %v", found)
	}
}

// finding is one line of "lockstep doctor -o json".
type finding struct{ Check, Severity, What, Next string }

// doctor runs the command and returns "severity check" of what it found.
func (n *node) doctor(ctx context.Context, t *testing.T, want int, sets ...string) map[string]bool {
	t.Helper()
	var args []string
	for _, s := range sets {
		args = append(args, "--set", s)
	}
	found := map[string]bool{}
	for _, f := range n.findings(ctx, t, want, args...) {
		found[fmt.Sprintf("%s %s", f.Severity, f.Check)] = true
	}
	return found
}

// says fails the test unless a finding of that severity speaks of it.
func says(t *testing.T, found []finding, severity, part string) {
	t.Helper()
	if !slices.ContainsFunc(found, func(f finding) bool { return f.Severity == severity && strings.Contains(f.What, part) }) {
		t.Errorf("no %s speaks of %q: %+v", severity, part, found)
	}
}

// findings runs the command and returns what it found.
func (n *node) findings(ctx context.Context, t *testing.T, want int, more ...string) []finding {
	t.Helper()
	args := append([]string{"doctor", "--config", n.confFile(), "-o", "json"}, more...)
	for _, s := range n.settings {
		args = append(args, "--set", s)
	}
	cmd := exec.CommandContext(ctx, n.bin, args...)
	out, err := cmd.Output()
	if got := cmd.ProcessState.ExitCode(); got != want {
		t.Errorf("lockstep doctor exits %d, want %d: %v\n%s", got, want, err, out)
	}
	var list []finding
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, f := range list {
		if f.Severity != "ok" && f.Next == "" {
			t.Errorf("%s: %q has no next step", f.Check, f.What)
		}
	}
	return list
}

// TestDoctorBeforeTheFirstStart asks about brokers that hold topics already: what
// each has, and which names are in conflict, before any node was started, while
// one runs, and what somebody changed at the broker since.
func TestDoctorBeforeTheFirstStart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir := runDir(t)
	one, two := newBroker(t, filepath.Join(dir, "one"), 7), newBroker(t, filepath.Join(dir, "two"), 8)
	for addr, topics := range map[string][]string{one.addr(): {"orders", "both", "nothing"}, two.addr(): {"both", "bills"}} {
		for _, topic := range topics {
			if err := createTopic(ctx, addr, topic, 2, 1); err != nil {
				t.Fatal(err)
			}
			if topic != "nothing" {
				produceAll(t, newHistory(topic), []string{addr}, "p", 2, 10+len(addr+topic)%7+len(topics))
			}
		}
	}
	n := &node{id: 1, bin: lockstepBinary(t), dir: filepath.Join(dir, "node"), broker: one, upstream: one.addr(), kafkaPort: freePort(t), raftPort: freePort(t), adminPort: freePort(t)}
	if err := n.writeConfig([]*node{n}, "before", 1, "wal"); err != nil {
		t.Fatal(err)
	}
	alone := n.findings(ctx, t, 0)
	says(t, alone, "warning", "the broker of node 1 holds 2 topics from before lockstep")
	both := n.findings(ctx, t, 0, "--brokers", "2="+two.addr()+",3="+loopback(freePort(t)))
	says(t, both, "warning", "the broker of node 1 holds 2 topics from before lockstep")
	says(t, both, "warning", "the broker of node 2 holds 2 topics from before lockstep")
	says(t, both, "warning", "topic both is in conflict: the brokers of node 1 and node 2")
	says(t, both, "unknown", "the broker of node 3 cannot be asked")

	n.startProxy(t)
	t.Cleanup(func() {
		if err := n.proc.kill9(); err != nil {
			t.Error(err)
		}
	})
	waitFor(t, "the node to be ready", healthyWithin, n.ready)
	says(t, n.findings(ctx, t, 0), "warning", "the broker of node 1 holds 2 topics from before lockstep")
	if outcomes, err := adopt(ctx, t, n, "--all"); err != nil {
		t.Fatalf("%+v: %v", outcomes, err)
	}
	if err := createTopic(ctx, n.kafkaAddr(), "own", 1, 1); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "every topic to be served", healthyWithin, func(ctx context.Context) error {
		_, err := n.cli(ctx, "status")
		return err
	})
	waitFor(t, "topics that are as they should be", time.Minute, func(ctx context.Context) error {
		for _, f := range n.findings(ctx, t, 0) {
			if (f.Check == "topics" || f.Check == "quotas") && f.Severity != "ok" {
				return fmt.Errorf("%s %s", f.Severity, f.What)
			}
		}
		return nil
	})
	alterTopicAt(t, ctx, one.addr(), "own", 0, map[string]string{"compression.type": "gzip"})
	alterTopicAt(t, ctx, one.addr(), "orders", 0, map[string]string{"min.insync.replicas": "2"})
	quota := kmsg.NewPtrAlterClientQuotasRequest()
	quota.SetVersion(1)
	quota.Entries = append(quota.Entries, quotaChange("producer_byte_rate", 1<<30, "client-id", "lockstep-applier"))
	if resp, err := rawCall[*kmsg.AlterClientQuotasResponse](ctx, one.addr(), quota); err != nil || resp.Entries[0].ErrorCode != 0 {
		t.Fatalf("give the applier a quota: %+v, %v", resp, err)
	}
	spoilt := n.findings(ctx, t, 1)
	says(t, spoilt, "error", "compression.type is gzip in 1 topic of lockstep's on the broker: own")
	says(t, spoilt, "error", "min.insync.replicas is 2 in 1 topic of lockstep's on the broker: orders")
	says(t, spoilt, "warning", "producer_byte_rate is 1.073741824e+09 for lockstep's own connection")

	n.stopProxy(t)
	says(t, n.findings(ctx, t, 0), "unknown", "only a running node knows which")
	n.startProxy(t)
	waitFor(t, "a node that puts its topics right", healthyWithin, func(ctx context.Context) error {
		if err := n.ready(ctx); err != nil {
			return err
		}
		config, err := topicConfig(ctx, one.addr(), "own")
		if err == nil && config["compression.type"] != "producer" {
			err = fmt.Errorf("it has %v", config)
		}
		return err
	})
}

// TestDoctorAmongPeers gives a node an address that nobody reaches: the others
// say so, and nothing of a node whose addresses are good.
func TestDoctorAmongPeers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	const wrong = "no-such-host.invalid:9092"
	c := newClusterWith(t, clusterOpts{embedded: true, settings: func(n *node) []string {
		if n.id == 2 {
			return []string{"advertised_listeners=PLAINTEXT://" + wrong}
		}
		return nil
	}})
	found := c.node(2).findings(ctx, t, 1)
	says(t, found, "error", "node 1 does not reach "+wrong)
	says(t, found, "error", "node 3 does not reach "+wrong)
	says(t, c.node(3).findings(ctx, t, 0), "ok", "2 other nodes reach what it advertises")
}
