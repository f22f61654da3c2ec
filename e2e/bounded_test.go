//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBoundedLog produces with one broker stopped throughout: the Raft logs and
// the proxies' memory must stay bounded, on that node, too, and when the broker
// is back it must become complete. E2E_BOUNDED_MIB sets how much is produced.
func TestBoundedLog(t *testing.T) {
	c := newClusterWith(t, clusterOpts{settings: shortLog})
	mib := envInt(t, "E2E_BOUNDED_MIB", 256)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute+time.Duration(mib)*time.Second/4)
	defer cancel()
	const topic, partitions = "bounded", 12
	c.createTopic(c.node(1), topic, partitions)
	stopped := c.node(3)
	stopped.broker.kill9(t)
	watch := watchUse(c, 2*time.Second)
	begin := time.Now()
	ends := fillTopic(t, c.bootstrap(), topic, partitions, int64(mib)<<20)
	took := time.Since(begin)
	disk, memory := watch.stop()
	for _, line := range watch.lines {
		t.Log(line)
	}
	t.Logf("%d MiB produced in %s with the broker of node %d down (%.1f MiB/s); worst Raft directory %d MiB, worst memory %d MiB",
		mib, took.Round(time.Second), stopped.id, float64(mib)/took.Seconds(), disk>>20, memory>>20)
	// The limit counts what cannot be cut; between two snapshots, in pages that
	// are free and in segments taken in advance there is more.
	if limit := int64(3*64+3*2*32) << 20; os.Getenv("E2E_LOG_LIMIT") == "" && disk > limit {
		t.Errorf("a Raft directory took %d MiB", disk>>20)
	}
	if memory > 1<<30 {
		t.Errorf("a proxy took %d MiB of memory", memory>>20)
	}
	c.waitBrokersHold(c.others(stopped.id), topic, ends)
	c.restartBrokerOf(stopped)
	c.waitComplete(ctx, stopped, topic, ends)
	c.waitHealthy()
	c.trusted(ctx)
	c.verifyWithin(5*time.Minute + time.Duration(mib)*time.Second/8)
	if lines := c.logLines("will need a copy"); len(lines) == 0 {
		t.Error("no node gave up log for a copy: more must be produced to reach the limit")
	}
}

// use samples disk and memory of all nodes until it is stopped.
type use struct {
	lines        []string
	disk, memory int64 // the worst of any node
	done         chan struct{}
	ended        chan struct{}
}

func watchUse(c *cluster, every time.Duration) *use {
	u := &use{done: make(chan struct{}), ended: make(chan struct{})}
	type target struct {
		dir string
		pid int
	}
	var targets []target
	for _, n := range c.nodes {
		targets = append(targets, target{filepath.Join(n.dataDir(), "raft"), n.proc.pid})
	}
	go func() {
		defer close(u.ended)
		begin := time.Now()
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			line := fmt.Sprintf("%4.0f s:", time.Since(begin).Seconds())
			for i, n := range targets {
				disk, memory := diskUse(n.dir), residentBytes(n.pid)
				u.disk, u.memory = max(u.disk, disk), max(u.memory, memory)
				line += fmt.Sprintf("  node %d raft %4d MiB, memory %4d MiB", i+1, disk>>20, memory>>20)
			}
			u.lines = append(u.lines, line)
			select {
			case <-u.done:
				return
			case <-ticker.C:
			}
		}
	}()
	return u
}

// stop returns the worst of each; then lines may be read.
func (u *use) stop() (disk, memory int64) {
	close(u.done)
	<-u.ended
	return u.disk, u.memory
}

// diskUse is the length of all files below dir; what vanishes meanwhile counts
// nothing.
func diskUse(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			if info, err := e.Info(); err == nil {
				sum += info.Size()
			}
		}
		return nil
	})
	return sum
}

// residentBytes is VmRSS of a process, 0 if it is gone.
func residentBytes(pid int) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	return 0
}
