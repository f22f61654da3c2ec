//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// runDir makes a directory for one test. It is removed when the test passes;
// when it fails the directory stays and the end of each *.log in it is printed.
func runDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv("E2E_DIR"), "lockstep-e2e-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
			return
		}
		t.Logf("data and logs of the failed run are in %s", dir)
		logs, _ := filepath.Glob(filepath.Join(dir, "*", "*.log"))
		tools, _ := filepath.Glob(filepath.Join(dir, "*.log"))
		logs = append(logs, tools...)
		for _, l := range logs {
			if strings.HasPrefix(filepath.Base(l), "StorageTool") {
				continue
			}
			n := 60
			if !strings.HasPrefix(filepath.Base(l), "lockstep") {
				n = 8
			}
			t.Logf("--- end of %s\n%s", l, tail(l, n))
		}
	})
	return dir
}

// tail returns the last n lines of a log.
func tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		// Kafka prints its whole configuration at every start, indented.
		if !strings.HasPrefix(line, "\t") {
			lines = append(lines, strings.TrimRight(line, "\n"))
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// takenPorts remembers what freePort gave away, so that two processes of one
// run never get the same.
var takenPorts = struct {
	sync.Mutex
	m map[int]bool
}{m: map[int]bool{}}

// freePort returns a TCP port of 127.0.0.1 that is free and stays so while its
// owner is down: it lies below the range from which Linux takes the ports of
// outgoing connections (32768 and up), which port 0 would not.
func freePort(t *testing.T) int {
	t.Helper()
	port, err := takePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// takePort is freePort for callers without a test at hand.
func takePort() (int, error) {
	for range 1000 {
		port := 12000 + rand.IntN(20000)
		takenPorts.Lock()
		taken := takenPorts.m[port]
		takenPorts.m[port] = true
		takenPorts.Unlock()
		if taken {
			continue
		}
		ln, err := net.Listen("tcp", loopback(port))
		if err != nil {
			continue
		}
		return port, ln.Close()
	}
	return 0, errors.New("no free port on 127.0.0.1")
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// waitFor asks probe at every tick until it returns nil, and fails the test
// with probe's last error when timeout passes first. It is for states of other
// processes, which offer no channel to wait on.
func waitFor(t *testing.T, what string, timeout time.Duration, probe func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if err := waitUntil(ctx, 100*time.Millisecond, probe); err != nil {
		t.Fatalf("wait for %s: %v", what, err)
	}
}

// waitUntil is waitFor for callers that want the error.
func waitUntil(ctx context.Context, every time.Duration, probe func(ctx context.Context) error) error {
	start := time.Now()
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last error
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		// An error that only says that time is up would hide the cause. A
		// connection's deadline may be noticed before the context's.
		deadline, bounded := ctx.Deadline()
		if over := ctx.Err() != nil || bounded && time.Until(deadline) <= 0; !over || last == nil {
			last = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("not after %s: %w", time.Since(start).Round(100*time.Millisecond), last)
		}
	}
}
