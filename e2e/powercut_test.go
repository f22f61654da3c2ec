//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestPowerCut keeps all three nodes, brokers and proxies, on one file system
// of their own and shuts that down under load without writing back what is
// dirty: what a power cut of all machines at once leaves. Everything that was
// acknowledged must be on every broker afterwards, although the brokers
// themselves lose what they had not synced.
func TestPowerCut(t *testing.T) {
	for name, settings := range map[string]func(*node) []string{
		// The log is cut often and only flushing makes that safe.
		"syncfs": func(n *node) []string {
			return []string{"broker.log_dirs=" + n.broker.dataDir(), "raft.snapshot_bytes=256KiB", "raft.log_retain_bytes=0", "raft.log_limit_bytes=64MiB"}
		},
		// The broker's own disk is not seen: age decides.
		"age": func(*node) []string {
			return []string{"broker.trust_after=60s", "raft.snapshot_bytes=256KiB", "raft.log_retain_bytes=0"}
		},
	} {
		t.Run(name, func(t *testing.T) { powerCut(t, settings) })
	}
}

func powerCut(t *testing.T, settings func(*node) []string) {
	d := mountDisk(t, 3<<30)
	c := newClusterWith(t, clusterOpts{dir: d.dir, settings: settings})
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	const topic, partitions = "power", 6
	c.createTopic(c.node(1), topic, partitions)
	// The installation and the topic are older than the last write-back.
	if err := command("sync", "--file-system", d.dir); err != nil {
		t.Fatal(err)
	}
	w := startWorkload(t, c.bootstrap(), topic, partitions, 5*time.Millisecond, "p1", "p2")
	for round := range envInt(t, "E2E_POWER_CUTS", 2) {
		settle, cancelSettle := context.WithTimeout(ctx, settleWithin)
		if err := w.h.waitAcks(settle, partitions, time.Now(), 800); err != nil {
			t.Fatal(err)
		}
		cancelSettle()
		before := c.endOffsets(topic, partitions)
		w.brokenDisks.Store(true)
		if err := d.cutPower(); err != nil {
			t.Fatal(err)
		}
		for _, n := range c.nodes { // what still runs has no disk any more
			if err := errors.Join(n.proc.kill9(), n.broker.proc.kill9()); err != nil {
				t.Fatal(err)
			}
		}
		ends := w.h.ends()
		if err := d.remount(); err != nil {
			t.Fatal(err)
		}
		for _, n := range c.nodes {
			c.restartBrokerOf(n)
		}
		lost := c.lostOffsets(topic, before)
		for _, n := range c.nodes {
			n.startProxy(t)
		}
		c.waitHealthy()
		w.brokenDisks.Store(false)
		c.waitBrokersHold(c.nodes, topic, ends)
		c.trusted(ctx)
		t.Logf("power cut %d: the brokers had lost %d offsets that they had acknowledged; shorter or replayed: %d lines",
			round+1, lost, len(c.logLines("filling it again")))
		if lost == 0 {
			t.Errorf("power cut %d cost the brokers nothing: it proves nothing", round+1)
		}
	}
	flush, cancelFlush := context.WithTimeout(ctx, time.Minute)
	defer cancelFlush()
	if err := w.stopProducing(flush); err != nil {
		t.Errorf("wait for the last answers: %v", err)
	}
	c.waitBrokersHold(c.nodes, topic, w.h.ends())
	w.h.check(c.readBrokers(c.nodes, topic, partitions), partitions).report(t)
	c.verify()
	_, acked := w.h.counts()
	t.Logf("%d records acknowledged", acked)
}

// endOffsets asks each broker directly.
func (c *cluster) endOffsets(topic string, partitions int32) map[int]map[int32]int64 {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	out := map[int]map[int32]int64{}
	for _, n := range c.nodes {
		out[n.id] = map[int32]int64{}
		for p := range partitions {
			end, err := endOffset(ctx, n.broker.addr(), topic, p)
			if err != nil {
				c.t.Fatal(err)
			}
			out[n.id][p] = end
		}
	}
	return out
}

// lostOffsets returns by how much the brokers' logs are shorter than they were.
func (c *cluster) lostOffsets(topic string, before map[int]map[int32]int64) (lost int64) {
	c.t.Helper()
	for _, n := range c.nodes {
		waitFor(c.t, "the broker's end offsets", healthyWithin, func(ctx context.Context) error {
			sum := int64(0)
			for p, was := range before[n.id] {
				end, err := endOffset(ctx, n.broker.addr(), topic, p)
				if err != nil {
					return err
				}
				sum += max(0, was-end)
			}
			lost += sum
			return nil
		})
	}
	return lost
}

// restartBrokerOf starts a broker that was killed and waits until it serves.
func (c *cluster) restartBrokerOf(n *node) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), brokerReady)
	defer cancel()
	if err := n.broker.start(ctx); err != nil {
		c.t.Fatal(err)
	}
}

// disk is an ext4 file system in a file, mounted for one test.
type disk struct{ dir, image, loop string }

// mountDisk makes one and mounts it. It needs root and ext4: without them the
// test cannot run and says so.
func mountDisk(t *testing.T, bytes int64) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("cannot run: a power cut needs root, to mount a file system and shut it down")
	}
	base := runDir(t)
	d := &disk{dir: filepath.Join(base, "disk"), image: filepath.Join(base, "disk.img")}
	if err := errors.Join(os.Mkdir(d.dir, 0o755), os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, bytes)); err != nil {
		t.Fatal(err)
	}
	if err := command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", d.image); err != nil {
		t.Fatal(err)
	}
	if err := d.mount(); err != nil {
		t.Skipf("cannot run: this machine lets nobody mount a file: %v", err)
	}
	t.Cleanup(func() {
		if err := d.unmount(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *disk) mount() error {
	out, err := exec.Command("losetup", "--find", "--show", d.image).Output()
	if err != nil {
		return fmt.Errorf("losetup %s: %w", d.image, err)
	}
	d.loop = strings.TrimSpace(string(out))
	if err := syscall.Mount(d.loop, d.dir, "ext4", 0, ""); err != nil {
		return errors.Join(fmt.Errorf("mount %s: %w", d.loop, err), command("losetup", "--detach", d.loop))
	}
	return nil
}

// unmount returns when the kernel has let go of the file system: a process that
// was killed may hold its files for a moment longer.
func (d *disk) unmount() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := waitUntil(ctx, 50*time.Millisecond, func(context.Context) error { return syscall.Unmount(d.dir, 0) })
	if err != nil {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	return command("losetup", "--detach", d.loop)
}

// cutPower drops everything that was not synced (EXT4_IOC_SHUTDOWN with
// EXT4_GOING_FLAGS_NOLOGFLUSH). The file system fails all use from then on.
func (d *disk) cutPower() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return fmt.Errorf("cut the power: %w", err)
	}
	defer f.Close()
	return shutdownFS(f)
}

// remount is the machine that comes up again: the journal is replayed.
func (d *disk) remount() error {
	if err := d.unmount(); err != nil {
		return err
	}
	return d.mount()
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
