//go:build e2e

package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// scrubEvery is the scrub's period in these tests. What it finds must be out of
// service within one period and the time that a busy machine takes.
const scrubEvery = 3 * time.Second

// TestDivergence spoils a follower's copy in ways that its proxy does not see
// happen: the partition must be taken out of service with the cause named, the
// wrong record must not reach a consumer, and the copy must be made anew from
// the peers without anybody's help.
func TestDivergence(t *testing.T) {
	c := newClusterWith(t, clusterOpts{settings: func(n *node) []string {
		return append(shortLog(n), "recovery.scrub_interval="+scrubEvery.String(), "recovery.scrub_bytes_per_second=64MiB")
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	const topic, partitions = "divergence", 3
	c.createTopic(c.node(1), topic, partitions)
	w := startWorkload(t, c.bootstrap(), topic, partitions, 20*time.Millisecond, "p1")
	settle := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, settleWithin)
		defer cancel()
		if err := w.h.waitAcks(ctx, partitions, time.Now(), 20); err != nil {
			t.Fatal(err)
		}
	}
	for i, spoil := range []struct {
		name   string
		causes []string // labels of the metric
		do     func(n *node, p int32)
	}{
		{"a record that went around the proxy", []string{"foreign-write", "base-offset", "too-long"}, func(n *node, p int32) {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			b := batch{producerID: -1, epoch: -1, sequence: -1, values: []string{"around the proxy"}}
			if _, code, err := rawProduce(ctx, n.broker.addr(), topic, p, b); err != nil || code != 0 {
				t.Fatalf("write to the broker of node %d: code %d, %v", n.id, code, err)
			}
		}},
		{"a flipped bit in the middle of the log", []string{"corrupt", "divergent"}, func(n *node, p int32) {
			n.broker.stop(t)
			flipBit(t, filepath.Join(n.broker.dataDir(), fmt.Sprintf("%s-%d", topic, p), "00000000000000000000.log"))
			c.restartBrokerOf(n)
		}},
	} {
		settle()
		p := int32(i)
		n := c.follower(ctx, topic, p, partitions)
		said := len(n.logLines("partition quarantined"))
		begin := time.Now()
		spoil.do(n, p)
		waitFor(t, "a quarantine", 60*time.Second, func(ctx context.Context) error {
			if len(n.logLines("partition quarantined")) == said {
				return fmt.Errorf("node %d noticed nothing", n.id)
			}
			return nil
		})
		noticed := time.Since(begin)
		settle() // another node serves, or this one again
		c.waitHealthy()
		rebuilt := time.Since(begin)
		named := 0.0
		for _, cause := range spoil.causes {
			named += metric(t, n, `lockstep_quarantines_total{cause="`+cause+`"}`)
		}
		if named < 1 {
			t.Errorf("%s: no metric names a cause of %v; log: %v", spoil.name, spoil.causes, n.logLines("partition quarantined"))
		}
		t.Logf("%s (node %d, partition %d): noticed after %s, healthy again after %s: %s",
			spoil.name, n.id, p, noticed.Round(time.Millisecond), rebuilt.Round(time.Millisecond), n.logLines("partition quarantined")[said])
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

// follower returns a node that does not lead a partition.
func (c *cluster) follower(ctx context.Context, topic string, p, partitions int32) *node {
	c.t.Helper()
	leaders, err := partitionLeaders(ctx, c.nodes[0], topic, partitions)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.others(leaders[p])[0]
}

// TestOldBackup puts a broker's data directory back to what it was some time
// ago: it must become what the others are.
func TestOldBackup(t *testing.T) {
	c := newClusterWith(t, clusterOpts{settings: shortLog})
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	const topic, partitions = "backup", 6
	c.createTopic(c.node(1), topic, partitions)
	first := fillTopic(t, c.bootstrap(), topic, partitions, 16<<20)
	c.waitBrokersHold(c.nodes, topic, first)
	n := c.node(3)
	n.broker.stop(t)
	backup := filepath.Join(c.dir, "backup")
	if out, err := exec.Command("cp", "-a", n.broker.dataDir(), backup).CombinedOutput(); err != nil {
		t.Fatalf("copy the data directory: %v: %s", err, out)
	}
	c.restartBrokerOf(n)
	c.waitHealthy()
	ends := fillTopic(t, c.bootstrap(), topic, partitions, 128<<20) // beyond what the logs keep
	c.waitBrokersHold(c.nodes, topic, ends)
	n.broker.stop(t)
	if err := os.RemoveAll(n.broker.dataDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(backup, n.broker.dataDir()); err != nil {
		t.Fatal(err)
	}
	c.restartBrokerOf(n)
	c.waitComplete(ctx, n, topic, ends)
	c.waitHealthy()
	c.trusted(ctx)
	c.verify()
	if len(n.logLines("copying it from a peer")) == 0 {
		t.Error("nothing was copied: the raft logs reached back to the backup, and the test shows nothing")
	}
}

// flipBit changes one bit of the records in the first half of a segment, in place: a
// process that has the file open goes on. Not any bit would do: the leader epoch of a
// batch is its broker's own, outside of the checksum, and nobody minds it.
func flipBit(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	at, b := lastByteOfBatch(t, f, info.Size()/3), make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// lastByteOfBatch is where the batch ends that a segment has at a position: in its
// records. Magic 2: base offset, length of what follows, 49 bytes of header, records.
func lastByteOfBatch(t *testing.T, f *os.File, pos int64) int64 {
	t.Helper()
	for at, head := int64(0), make([]byte, 12); ; {
		if _, err := f.ReadAt(head, at); err != nil {
			t.Fatal(err)
		}
		end := at + int64(len(head)) + int64(binary.BigEndian.Uint32(head[8:]))
		if end > pos {
			return end - 1
		}
		at = end
	}
}
