package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"lockstep/internal/drill"
)

// killLeaderArgs are kill-leader's for this demo.
func (d *runningDemo) killLeaderArgs(more ...string) []string {
	return append([]string{"demo", "kill-leader", "--data-dir", d.dir,
		"--kafka-ports", commas(d.kafka), "--admin-ports", commas(d.admin)}, more...)
}

// TestKillLeader is what the first five minutes end with: on a demo that runs,
// and on one of its own, which is interrupted in the middle.
func TestKillLeader(t *testing.T) {
	bin := buildLockstep(t)
	ports := testPorts(t, 6)
	dir := filepath.Join(t.TempDir(), "demo")
	d := startDemo(t, bin, dir, ports[:3], ports[3:])
	d.out.await(t, 60*time.Second, `(?m)^ready .*`)
	nodes, brokers := d.pids()
	if fi, err := os.Stat(filepath.Join(dir, controlFile)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the control file: %v, %v", fi, err)
	}

	// One node is dead already, as a drill that was killed leaves it.
	if err := syscall.Kill(nodes[1], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.out.await(t, 10*time.Second, `(?m)^node 2 .* start it again with: `)
	second := mistake{args: []string{"demo", "--data-dir", dir, "--kafka-ports", commas(d.kafka), "--admin-ports", commas(d.admin)},
		code: exitFailed, says: []string{"a demo runs there already: " + dir, loopback(d.kafka[0]), "or name another --data-dir"}}
	second.check(t, bin)
	cmd := exec.CommandContext(t.Context(), bin, d.killLeaderArgs("-o", "json")...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	raw, err := cmd.Output()
	t.Logf("kill-leader: %v\n%s%s", err, raw, &stderr)
	var r drill.Result
	if jsonErr := json.Unmarshal(raw, &r); err != nil || jsonErr != nil {
		t.Fatalf("exit %v, %v", err, jsonErr)
	}
	if !r.OK() || r.Acknowledged < 500 || len(r.Brokers) != demoNodes || r.Pause <= 0 || r.NewLeader == r.Killed {
		t.Errorf("%+v", r)
	}
	for _, b := range r.Brokers {
		if b.Records < r.Acknowledged {
			t.Errorf("%d acknowledged, and on the broker of node %d are %d", r.Acknowledged, b.Node, b.Records)
		}
	}
	// Real processes died, and only those of one node.
	for i := range demoNodes {
		alive := int32(i+1) != r.Killed
		for _, pid := range []int{nodes[i], brokers[i]} {
			if pid == nodes[1] {
				continue // dead before
			}
			if err := syscall.Kill(pid, 0); (err == nil) != alive {
				t.Errorf("process %d of node %d, when node %d was killed: %v", pid, i+1, r.Killed, err)
			}
		}
	}
	if !strings.Contains(stderr.String(), "node 2 or its broker is dead: starting it") {
		t.Error("it does not say that it started node 2")
	}
	d.verifySays(true, 3)
	d.stop()
	gone(t, slices.Concat(nodes, brokers)...)
	if _, err := os.Stat(filepath.Join(dir, controlFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control file of a demo that was stopped: %v", err)
	}
	d.interruptedDrill()
}

// interruptedDrill has kill-leader start a demo of its own and presses Ctrl-C
// while a node is dead.
func (d *runningDemo) interruptedDrill() {
	d.t.Helper()
	cmd := exec.Command(d.bin, d.killLeaderArgs()...)
	d.out = newOutput()
	cmd.Stdout, cmd.Stderr = d.out, d.out
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait() // the exit code says it
	}()
	d.out.await(d.t, 90*time.Second, `ended: signal: killed`)
	nodes, brokers := d.pids()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		d.t.Fatal(err)
	}
	select {
	case <-exited:
	case <-time.After(60 * time.Second):
		_ = cmd.Process.Kill()
		d.t.Fatalf("not ended 60 s after Ctrl-C\n%s", d.out)
	}
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(d.out.String(), "not finished") {
		d.t.Errorf("exit %d\n%s", code, d.out)
	}
	gone(d.t, slices.Concat(nodes, brokers)...)
}

// Brokers that replicate nothing, behind a control port that kills nobody: the
// loss is told, and the exit code says it.
func TestKillLeaderTellsLoss(t *testing.T) {
	dir := t.TempDir()
	c, err := openDemoControl(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	st := sampleStatus()
	var members []demoMember
	for id := range int32(2) {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, "kill-leader"))
		if err != nil {
			t.Fatal(err)
		}
		defer cluster.Close()
		m := demoMember{ID: id + 1, Broker: cluster.ListenAddrs()[0], Admin: serveStatus(t, &st)}
		m.Kafka = append(members, m)[0].Broker // the first takes all writes
		members = append(members, m)
	}
	go func() {
		for req := range c.requests {
			req.answer <- controlAnswer{Nodes: members}
		}
	}()
	defer close(c.requests)
	cmd := demoCommand()
	cmd.SetErr(io.Discard)
	out, code, err := runCommand(cmd, "kill-leader", "--data-dir", dir, "--timeout", "2s")
	if code != exitFailed || !errors.Is(err, errRecordsAtFault) || !strings.Contains(out, "node 2     0 ") || strings.Contains(out, "lost 0,") {
		t.Errorf("exit %d, %v\n%s", code, err, out)
	}
}

// What is printed to be pasted into a shell is one command there.
func TestShellWord(t *testing.T) {
	for _, s := range []string{"data/demo", "", "a b", "it's", "$HOME", "a;b", "é", "--x=1,2", "a\nb"} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+shellWord(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q is %q in a shell, as %s: %v", s, out, shellWord(s), err)
		}
	}
	if got := shellWord("data/demo"); got != "data/demo" {
		t.Errorf("quoted for nothing: %s", got)
	}
}

// A control file that a killed demo left behind, and one of somebody else.
func TestFindDemo(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := findDemo(t.Context(), dir); !errors.Is(err, errNoDemo) {
		t.Errorf("no file: %v", err)
	}
	c, err := openDemoControl(dir)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, controlFile)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		(<-c.requests).answer <- controlAnswer{Nodes: []demoMember{{ID: 7}}}
	}()
	if _, nodes, err := findDemo(t.Context(), dir); err != nil || len(nodes) != 1 || nodes[0].ID != 7 {
		t.Errorf("a demo: %v, %v", nodes, err)
	}
	<-served
	// Without its token nothing reaches the demo.
	var at controlAddress
	if err := json.Unmarshal(raw, &at); err != nil {
		t.Fatal(err)
	}
	at.Token = "x"
	other, _ := json.Marshal(at)
	writeFile(t, file, other)
	if _, _, err := findDemo(t.Context(), dir); !errors.Is(err, errNoDemo) {
		t.Errorf("another token: %v", err)
	}
	c.close()
	writeFile(t, file, raw)
	if _, _, err := findDemo(t.Context(), dir); !errors.Is(err, errNoDemo) {
		t.Errorf("a demo that was killed: %v", err)
	}
	writeFile(t, file, []byte("nonsense"))
	if _, _, err := findDemo(t.Context(), dir); !errors.Is(err, errNoDemo) {
		t.Errorf("nonsense: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	writeFile(t, file, raw)
	if _, _, err := findDemo(ctx, dir); err == nil {
		t.Error("it goes on after its end")
	}
}

func writeFile(t *testing.T, name string, raw []byte) {
	t.Helper()
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}
