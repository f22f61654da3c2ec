package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// loneNode is `lockstep serve` of a cluster of one whose broker is away.
type loneNode struct {
	t                          *testing.T
	bin, config, dataDir       string
	kafka, raft, admin, broker string
	out                        *output
	cmd                        *exec.Cmd
	exited                     chan struct{}
}

func newLoneNode(t *testing.T, bin string) *loneNode {
	t.Helper()
	dir, ports := t.TempDir(), testPorts(t, 4)
	n := &loneNode{t: t, bin: bin, config: filepath.Join(dir, "node.yaml"), dataDir: filepath.Join(dir, "data"),
		kafka: loopback(ports[0]), raft: loopback(ports[1]), admin: loopback(ports[2]), broker: loopback(ports[3])}
	writeFile(t, n.config, fmt.Appendf(nil, `
node: {id: 1}
cluster: {id: lone}
data_dir: %s
listeners: ["PLAINTEXT://%s"]
broker: {bootstrap_server: "%s"}
raft: {listen: "%s", peers: [{id: 1, address: "%[4]s"}]}
admin: {listen: "%s"}
`, n.dataDir, n.kafka, n.broker, n.raft, n.admin))
	return n
}

// start starts the node; what ends the test ends it.
func (n *loneNode) start(env ...string) {
	n.t.Helper()
	n.startWith([]string{"serve", "--config", n.config}, env...)
}

func (n *loneNode) startWith(args []string, env ...string) {
	n.t.Helper()
	n.out, n.exited = newOutput(), make(chan struct{})
	n.cmd = exec.Command(n.bin, args...)
	n.cmd.Env = append(os.Environ(), env...)
	n.cmd.Stdout, n.cmd.Stderr = n.out, n.out
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	go func() {
		defer close(n.exited)
		_ = n.cmd.Wait() // the exit code says it
	}()
	n.t.Cleanup(func() {
		_ = n.cmd.Process.Kill()
		<-n.exited
		if n.t.Failed() {
			n.t.Logf("the node said:\n%s", n.out)
		}
	})
}

// wait requires that the node ends well.
func (n *loneNode) wait() {
	n.t.Helper()
	select {
	case <-n.exited:
	case <-time.After(60 * time.Second):
		n.t.Fatal("the node did not end")
	}
	if code := n.cmd.ProcessState.ExitCode(); code != 0 {
		n.t.Errorf("the node's exit code is %d", code)
	}
}

func (n *loneNode) stop() {
	n.t.Helper()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		n.t.Fatal(err)
	}
	n.wait()
}
