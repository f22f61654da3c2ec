//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
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

// doctor runs the command and returns "severity check" of what it found.
func (n *node) doctor(ctx context.Context, t *testing.T, want int, sets ...string) map[string]bool {
	t.Helper()
	args := []string{"doctor", "--config", n.confFile(), "-o", "json"}
	for _, s := range sets {
		args = append(args, "--set", s)
	}
	cmd := exec.CommandContext(ctx, n.bin, args...)
	out, err := cmd.Output()
	if got := cmd.ProcessState.ExitCode(); got != want {
		t.Errorf("lockstep doctor exits %d, want %d: %v\n%s", got, want, err, out)
	}
	var list []struct{ Check, Severity, What, Next string }
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	found := map[string]bool{}
	for _, f := range list {
		if f.Severity != "ok" && f.Next == "" {
			t.Errorf("%s: %q has no next step", f.Check, f.What)
		}
		found[fmt.Sprintf("%s %s", f.Severity, f.Check)] = true
	}
	return found
}
