//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// quickRetention has a broker look every moment for what it may delete.
var quickRetention = []string{"log.retention.check.interval.ms=300", "log.initial.task.delay.ms=300"}

// makeAdoptees fills twelve topics on the brokers: ten that one broker has, of
// which one has lost its beginning by retention, and another by DeleteRecords;
// one that two have with the same records; and one with other records on a
// second broker.
func makeAdoptees(ctx context.Context, t *testing.T, c *cluster) (all []*adoptee, aside *adoptee) {
	t.Helper()
	each := int64(envInt(t, "ADOPT_BYTES", 24<<20)) / 11 // the topic that two brokers share is small
	make1 := func(topic string, on *node, partitions int32) *adoptee {
		if err := createTopic(ctx, on.broker.addr(), topic, partitions, 1); err != nil {
			t.Fatal(err)
		}
		return &adoptee{topic: topic, on: on, partitions: partitions}
	}
	expired, begun := &adoptee{topic: "expired", on: c.node(1), partitions: 3}, make1("begun", c.node(2), 3)
	fillExpired(ctx, t, expired, each)
	fillTopic(t, []string{begun.on.broker.addr()}, begun.topic, begun.partitions, each)
	begun.note(ctx, t)
	for p, start := range map[int32]int64{0: begun.ends[0]/2 + 1, 1: begun.ends[1] - 1, 2: begun.ends[2]} {
		if err := deleteRecords(ctx, begun.on.broker.addr(), begun.topic, p, start); err != nil {
			t.Fatal(err)
		}
	}
	// No lone broker can keep that, and nobody noticed: producers used acks=1.
	alterTopicAt(t, ctx, begun.on.broker.addr(), begun.topic, 0, map[string]string{"min.insync.replicas": "2"})
	all = append(all, expired, begun)
	for i := 2; i < 10; i++ {
		a := make1(fmt.Sprintf("old-%02d", i), c.nodes[i%3], int32(1+i%4))
		fillTopic(t, []string{a.on.broker.addr()}, a.topic, a.partitions, each)
		all = append(all, a)
	}
	same := make1("same", c.node(2), 2)
	make1("same", c.node(3), 2)
	fillSame(ctx, t, c.node(2), same)
	fillSame(ctx, t, c.node(3), same)
	conflict := make1("conflict", c.node(2), 2)
	aside = make1("conflict", c.node(1), 2)
	fillTopic(t, []string{conflict.on.broker.addr()}, "conflict", 2, each)
	fillTopic(t, []string{aside.on.broker.addr()}, "conflict", 2, each/2)
	all = append(all, same, conflict)
	for _, a := range append(all, aside) {
		a.note(ctx, t)
	}
	return all, aside
}

// fillExpired makes a topic of which the broker deletes everything that is older
// than its retention of seven days: the first half of partitions 0 and 1, and
// all of partition 2.
func fillExpired(ctx context.Context, t *testing.T, a *adoptee, bytes int64) {
	t.Helper()
	addr := a.on.broker.addr()
	req := kmsg.NewPtrCreateTopicsRequest()
	req.SetVersion(4)
	req.TimeoutMillis = 20_000
	tp, cfg, small := kmsg.NewCreateTopicsRequestTopic(), kmsg.NewCreateTopicsRequestTopicConfig(), "1048576"
	tp.Topic, tp.NumPartitions, tp.ReplicationFactor = a.topic, a.partitions, 1
	cfg.Name, cfg.Value = "segment.bytes", &small
	tp.Configs, req.Topics = append(tp.Configs, cfg), append(req.Topics, tp)
	resp, err := rawCall[*kmsg.CreateTopicsResponse](ctx, addr, req)
	if err != nil || resp.Topics[0].ErrorCode != 0 {
		t.Fatalf("create %s: %v %s", a.topic, err, topicError(resp.Topics))
	}
	starts := fillTopicAt(t, []string{addr}, a.topic, a.partitions, bytes/2, time.Now().Add(-8*24*time.Hour))
	fillTopicAt(t, []string{addr}, a.topic, a.partitions-1, bytes/2, time.Now())
	waitFor(t, "retention to delete what is too old", time.Minute, func(ctx context.Context) error {
		for p, want := range starts {
			got, err := listOffset(ctx, addr, a.topic, p, -2)
			if err == nil && got != want {
				err = fmt.Errorf("%s/%d begins at %d, must at %d", a.topic, p, got, want)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// fillSame writes the same batches to any broker.
func fillSame(ctx context.Context, t *testing.T, n *node, a *adoptee) {
	t.Helper()
	cl, err := kgo.NewClient(append(clientOpts([]string{n.broker.addr()}), kgo.DefaultProduceTopic(a.topic),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.UnknownTopicRetries(-1))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	at := time.Now().Truncate(time.Hour)
	for i := range 40 {
		r := &kgo.Record{Partition: int32(i) % a.partitions, Key: []byte(strconv.Itoa(i)), Value: []byte(strings.Repeat("v", 100+i)), Timestamp: at}
		if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// logSums are the checksums of a topic's log files on its broker's disk, and the
// length that each is over.
type logSums map[string]logSum

type logSum struct {
	bytes int64
	sum   string
}

// sums reads the files as they are now. Of a file in was only as much as it had
// then; others, of which the log grew since, are left out.
func (a *adoptee) sums(was logSums) (logSums, error) {
	out := logSums{}
	for p := range a.partitions {
		files, err := filepath.Glob(filepath.Join(a.on.broker.dataDir(), fmt.Sprintf("%s-%d", a.topic, p), "*.log"))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			before, known := was[file]
			if was != nil && !known {
				continue
			}
			if out[file], err = sumFile(file, before.bytes, known); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func sumFile(file string, bytes int64, bounded bool) (logSum, error) {
	f, err := os.Open(file)
	if err != nil {
		return logSum{}, err
	}
	defer f.Close()
	var r io.Reader = f
	if bounded {
		r = io.LimitReader(f, bytes)
	}
	h := sha256.New()
	n, err := io.Copy(h, r)
	return logSum{bytes: n, sum: hex.EncodeToString(h.Sum(nil))}, err
}

// untouched fails the test unless every byte of the log that the broker had on
// its disk is there still. A copy that nobody appends to must not have grown
// either.
func (a *adoptee) untouched(t *testing.T, grows bool) {
	t.Helper()
	was := a.files
	if !grows {
		was = nil
	}
	now, err := a.sums(was)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.files) == 0 {
		t.Fatalf("%s on node %d: no log file was found before", a.topic, a.on.id)
	}
	for file, before := range a.files {
		if now[file] != before {
			t.Errorf("%s had %d bytes with sum %s, now %d with %s", file, before.bytes, before.sum, now[file].bytes, now[file].sum)
		}
	}
	if !grows && len(now) != len(a.files) {
		t.Errorf("%s on node %d had %d log files, now %d", a.topic, a.on.id, len(a.files), len(now))
	}
}
