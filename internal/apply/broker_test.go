package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"lockstep/internal/broker"
	"lockstep/kafkawire"
)

// testWait is how long a test waits for something that must happen.
const testWait = 15 * time.Second

// testBroker is a kfake broker that can be stopped, wiped and set back.
type testBroker struct {
	t       *testing.T
	dir     string
	addr    string
	cluster *kfake.Cluster // nil while it is stopped
}

func newTestBroker(t *testing.T) *testBroker {
	b := &testBroker{t: t, dir: t.TempDir()}
	b.start()
	t.Cleanup(b.stop)
	return b
}

// start starts the broker, on the address it had before.
func (b *testBroker) start() {
	b.t.Helper()
	port := 0
	if b.addr != "" {
		_, p, err := net.SplitHostPort(b.addr)
		if err != nil {
			b.t.Fatal(err)
		}
		if port, err = strconv.Atoi(p); err != nil {
			b.t.Fatal(err)
		}
	}
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(port), kfake.DataDir(b.dir), kfake.MaxVersions(kversion.V4_0_0()))
	if err != nil {
		b.t.Fatal(err)
	}
	b.cluster, b.addr = c, c.ListenAddrs()[0]
}

// stop stops it cleanly: kfake forgets the producers' sequences otherwise.
func (b *testBroker) stop() {
	if b.cluster != nil {
		b.cluster.Close()
		b.cluster = nil
	}
}

// saved stops the broker, copies its files, and starts it again. The function
// returned sets a stopped broker's files back to the copy: a log that has lost
// its end.
func (b *testBroker) saved() (restore func()) {
	b.t.Helper()
	b.stop()
	old := b.t.TempDir()
	if err := os.CopyFS(old, os.DirFS(b.dir)); err != nil {
		b.t.Fatal(err)
	}
	b.start()
	return func() {
		b.wipe()
		if err := os.CopyFS(b.dir, os.DirFS(old)); err != nil {
			b.t.Fatal(err)
		}
	}
}

// wipe removes a stopped broker's files.
func (b *testBroker) wipe() {
	if err := os.RemoveAll(b.dir); err != nil {
		b.t.Fatal(err)
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
}

// fate is what becomes of one append on its way to the broker.
type fate int

const (
	pass       fate = iota
	lostBefore      // the connection is lost; the broker never saw it
	lostAfter       // the broker executes it, then the connection is lost without an answer
	zombie          // the connection is lost; the broker executes it after the next look at the log end
	liar            // executed, and the answer names the wrong offset
	silent          // executed, and the answer names no offset
	failed          // not executed, and the answer names no offset and no error: what a weak broker does
	held            // executed, and answered when the test says so
	late            // executed and answered when the test says so
)

// local is the broker as the applier sees it: internal/broker as it is, with
// faults between it and the applier.
type local struct {
	*broker.Admin
	*broker.Reader
	appender *broker.Appender
	health   *broker.Health

	mu       sync.Mutex
	decide   func(a broker.Append) fate // nil passes all
	logEnd   func(topic string, partition int32)
	blind    int // calls of Topic that find nothing
	current  *faultySession
	zombies  []broker.Append
	release  chan struct{} // held appends are answered when it is closed
	executed sync.WaitGroup
}

func newLocal(t *testing.T, addr string) *local {
	cfg := broker.Config{BootstrapServer: addr, Connections: 3, ProbeInterval: 20 * time.Millisecond, ProbeTimeout: 5 * time.Second}
	b := &local{Admin: broker.NewAdmin(cfg), Reader: broker.NewReader(cfg), appender: broker.NewAppender(cfg),
		health: broker.NewHealth(cfg), release: make(chan struct{})}
	if err := b.health.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = b.health.Close()
		_ = b.appender.Close()
		_ = b.Admin.Close()
		_ = b.Reader.Close()
	})
	return b
}

func (b *local) WaitUp(ctx context.Context) error {
	for {
		changed := b.health.Changed()
		if b.health.State().Up {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// LogEnd lets zombies land after the end was read and before the applier can
// do anything about it.
func (b *local) LogEnd(ctx context.Context, topic string, partition int32) (start, end int64, err error) {
	start, end, err = b.Reader.LogEnd(ctx, topic, partition)
	b.mu.Lock()
	hook := b.logEnd
	var due, rest []broker.Append
	for _, z := range b.zombies {
		if z.Topic == topic && z.Partition == partition {
			due = append(due, z)
		} else {
			rest = append(rest, z)
		}
	}
	b.zombies = rest
	b.mu.Unlock()
	for _, z := range due {
		if s, err := b.appender.Session(ctx); err == nil {
			done := make(chan struct{})
			s.Append(z, func(broker.Result) { close(done) })
			<-done
		}
	}
	if hook != nil {
		hook(topic, partition)
	}
	return start, end, err
}

// Topic does not see topics for a while, as a broker that has just started.
func (b *local) Topic(ctx context.Context, name string) (broker.TopicInfo, error) {
	b.mu.Lock()
	blind := b.blind > 0
	b.blind--
	b.mu.Unlock()
	if blind {
		return broker.TopicInfo{}, broker.ErrNoTopic
	}
	return b.Admin.Topic(ctx, name)
}

func (b *local) Session(ctx context.Context) (Session, error) {
	inner, err := b.appender.Session(ctx)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.current; s != nil && !s.isLost() && s.inner.Err() == nil {
		return s, nil
	}
	b.current = &faultySession{b: b, inner: inner, done: make(chan struct{})}
	b.executed.Add(1)
	go b.current.watch(&b.executed)
	return b.current, nil
}

func (b *local) setFate(f func(broker.Append) fate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.decide = f
}

// once gives the n-th append from now on a fate, all others pass. The channel
// is closed when it was met.
func (b *local) once(n int, f fate) <-chan struct{} {
	met := make(chan struct{})
	b.setFate(func(broker.Append) fate {
		if n--; n == 0 {
			close(met)
			return f
		}
		return pass
	})
	return met
}

func (b *local) fateOf(a broker.Append) fate {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.decide == nil {
		return pass
	}
	return b.decide(a)
}

// makeBatch builds a batch of count records, as a producer without an id sends
// it. Each fill and size makes another batch.
func makeBatch(count int32, size int, fill byte) kafkawire.Batch {
	return makeBatchAt(count, size, fill, time.Now().UnixMilli())
}

func makeBatchAt(count int32, size int, fill byte, at int64) kafkawire.Batch {
	var records []byte
	value := make([]byte, size)
	for i := range value {
		value[i] = fill
	}
	for i := range count {
		body := []byte{0, 0} // attributes, timestamp delta
		body = binary.AppendVarint(body, int64(i))
		body = binary.AppendVarint(body, 1)
		body = append(body, fill)
		body = binary.AppendVarint(body, int64(len(value)))
		body = append(body, value...)
		body = binary.AppendVarint(body, 0)
		records = append(binary.AppendVarint(records, int64(len(body))), body...)
	}
	b := kmsg.NewRecordBatch()
	b.Length = int32(kafkawire.BatchHeaderLen - 12 + len(records))
	b.PartitionLeaderEpoch = -1
	b.Magic = 2
	b.LastOffsetDelta = count - 1
	b.FirstTimestamp, b.MaxTimestamp = at, at
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = -1, -1, -1
	b.NumRecords = count
	b.Records = records
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

// rawAppend writes to the broker past the applier.
func (b *local) rawAppend(t *testing.T, topic string, partition int32, batch []byte) broker.Result {
	t.Helper()
	s, err := b.appender.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ch := make(chan broker.Result, 1)
	s.Append(broker.Append{Topic: topic, Partition: partition, Head: [kafkawire.BatchHeaderLen]byte(batch), Body: batch[kafkawire.BatchHeaderLen:]}, func(r broker.Result) { ch <- r })
	return <-ch
}

// brokerLog reads a whole partition from the broker.
func (b *local) brokerLog(t *testing.T, topic string, partition int32) []kafkawire.Batch {
	t.Helper()
	start, end, err := b.Reader.LogEnd(t.Context(), topic, partition)
	if err != nil {
		t.Fatal(err)
	}
	var log []kafkawire.Batch
	err = b.Batches(t.Context(), topic, partition, start, end, func(raw []byte) error {
		batch, _, err := kafkawire.ParseBatch(append([]byte(nil), raw...))
		log = append(log, batch)
		return err
	})
	if err != nil && !errors.Is(err, broker.ErrNoBatch) {
		t.Fatal(err)
	}
	return log
}
