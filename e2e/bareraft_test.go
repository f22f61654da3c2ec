//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// bareRaft is three processes with nothing but hashicorp/raft, its own transport
// and raft-wal: what Lockstep is built on, without Lockstep. Each leads one group.
type bareRaft struct{ nodes []*bareNode }

type bareNode struct {
	in  io.Writer
	out *bufio.Reader
}

func newBareRaft(t *testing.T) *bareRaft {
	t.Helper()
	bin := bareRaftProgram.get(t)
	var ports []string
	for range ceilingGroups * 3 {
		ports = append(ports, strconv.Itoa(freePort(t)))
	}
	dir := runDir(t)
	b := &bareRaft{}
	for id := range 3 {
		cmd := exec.Command(bin, append([]string{strconv.Itoa(id), filepath.Join(dir, strconv.Itoa(id))}, ports...)...)
		cmd.Stderr = t.Output()
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		b.nodes = append(b.nodes, &bareNode{in: in, out: bufio.NewReader(out)})
		t.Cleanup(func() {
			in.Close() // it ends with its standard input
			if err := cmd.Wait(); err != nil {
				t.Errorf("bare raft: %v", err)
			}
		})
	}
	for _, n := range b.nodes {
		n.expect(t, "leads")
	}
	return b
}

// expect reads lines until one begins with word, and returns its number.
func (n *bareNode) expect(t *testing.T, word string) (v float64) {
	t.Helper()
	for {
		line, err := n.out.ReadString('\n')
		if err != nil {
			t.Fatalf("bare raft: waiting for %q: %v", word, err)
		}
		if got, _ := fmt.Sscanf(line, word+" %f", &v); got == 1 {
			return v
		}
	}
}

// load is instantCluster.load for bare Raft.
func (b *bareRaft) load(t *testing.T, row ceilingRow, span time.Duration) (sum float64) {
	t.Helper()
	for _, n := range b.nodes {
		if _, err := fmt.Fprintf(n.in, "%d %d %d\n", row.Bytes, row.Flying/ceilingGroups, span.Milliseconds()); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range b.nodes {
		sum += n.expect(t, "rate")
	}
	return sum
}
