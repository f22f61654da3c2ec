package broker

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

const testTopic = "orders"

// testWait is how long a test waits for something that must happen.
const testWait = 20 * time.Second

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	t.Cleanup(cancel)
	return ctx
}

// newBroker starts an in-process broker with testTopic of 4 partitions.
func newBroker(t *testing.T, opts ...kfake.Opt) (*kfake.Cluster, string) {
	t.Helper()
	opts = append([]kfake.Opt{
		kfake.NumBrokers(1),
		kfake.MaxVersions(kversion.V4_0_0()),
		kfake.SeedTopics(4, testTopic),
	}, opts...)
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, c.ListenAddrs()[0]
}

func newAppender(t *testing.T, cfg Config) *Appender {
	t.Helper()
	a := NewAppender(cfg)
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func mustSession(t *testing.T, a *Appender) *Session {
	t.Helper()
	s, err := a.Session(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newReader(t *testing.T, addr string) *Reader {
	t.Helper()
	r := NewReader(Config{BootstrapServer: addr})
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func newAdmin(t *testing.T, addr string) *Admin {
	t.Helper()
	a := NewAdmin(Config{BootstrapServer: addr})
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// applierPID is the producer id of stamped batches in tests.
const applierPID = 1<<40 + 7

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// makeBatch builds a stamped, uncompressed v2 batch of count records.
func makeBatch(seq, count int32, valueBytes int) []byte {
	var records []byte
	value := bytes.Repeat([]byte{'v'}, valueBytes)
	for i := range count {
		r := kmsg.NewRecord()
		r.OffsetDelta = i
		r.Key = binary.BigEndian.AppendUint32(nil, uint32(seq+i))
		r.Value = value
		body := r.AppendTo(nil)
		// Length is a varint of what follows it; it was 0, so one byte.
		r.Length = int32(len(body) - 1)
		records = r.AppendTo(records)
	}
	now := time.Now().UnixMilli()
	b := kmsg.NewRecordBatch()
	b.Length = int32(batchHeader - batchPrefix + len(records))
	b.PartitionLeaderEpoch = -1
	b.Magic = 2
	b.LastOffsetDelta = count - 1
	b.FirstTimestamp, b.MaxTimestamp = now, now
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = applierPID, 0, seq
	b.NumRecords = count
	b.Records = records
	raw := b.AppendTo(nil)
	seal(raw)
	return raw
}

// appendOf is the Append of a whole batch; nil will do where it is not sent.
func appendOf(topic string, partition int32, batch []byte) Append {
	a := Append{Topic: topic, Partition: partition}
	if n := copy(a.Head[:], batch); n < len(batch) {
		a.Body = batch[n:]
	}
	return a
}

// seal recomputes the CRC of a batch.
func seal(raw []byte) {
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], castagnoli))
}

// sameBatch compares a batch read back with the one appended: all but base
// offset and leader epoch.
func sameBatch(got, want []byte) bool {
	return len(got) == len(want) && bytes.Equal(got[8:12], want[8:12]) && bytes.Equal(got[16:], want[16:])
}

// collector gathers results of appends in callback order.
type collector struct {
	ch chan tagged
}

type tagged struct {
	tag int
	Result
}

func newCollector() *collector { return &collector{ch: make(chan tagged, 10000)} }

func (c *collector) done(tag int) func(Result) {
	return func(r Result) { c.ch <- tagged{tag, r} }
}

func (c *collector) next(t *testing.T) tagged {
	t.Helper()
	select {
	case r := <-c.ch:
		return r
	case <-time.After(testWait):
		t.Fatal("no result of an append")
		return tagged{}
	}
}

func mustAppend(t *testing.T, s *Session, partition int32, batch []byte) Result {
	t.Helper()
	c := newCollector()
	s.Append(appendOf(testTopic, partition, batch), c.done(0))
	return c.next(t).Result
}

// relay is a TCP relay in front of a broker. It records request frames, can
// hold back answers and cut connections.
type relay struct {
	ln       net.Listener
	upstream string
	frames   chan []byte // every request frame's body
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	dials int
	gate  chan struct{} // answers pass while it is closed
	edit  func(frame []byte) []byte
}

func newRelay(t *testing.T, upstream string) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{ln: ln, upstream: upstream, frames: make(chan []byte, 10000), gate: make(chan struct{})}
	close(r.gate)
	r.wg.Add(1)
	go r.accept()
	t.Cleanup(func() {
		_ = ln.Close()
		r.cut()
		r.release()
		r.wg.Wait()
	})
	return r
}

func (r *relay) addr() string { return r.ln.Addr().String() }

func (r *relay) accept() {
	defer r.wg.Done()
	for {
		client, err := r.ln.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", r.upstream)
		if err != nil {
			_ = client.Close()
			continue
		}
		r.mu.Lock()
		r.dials++
		r.conns = append(r.conns, client, server)
		r.mu.Unlock()
		r.wg.Add(2)
		go r.pump(client, server, func(frame []byte) []byte {
			r.frames <- append([]byte(nil), frame[4:]...)
			return frame
		})
		go r.pump(server, client, func(frame []byte) []byte {
			r.mu.Lock()
			gate, edit := r.gate, r.edit
			r.mu.Unlock()
			<-gate
			if edit != nil {
				frame = edit(frame)
			}
			return frame
		})
	}
}

func (r *relay) pump(from, to net.Conn, through func([]byte) []byte) {
	defer r.wg.Done()
	defer to.Close()
	for {
		frame := make([]byte, 4)
		if _, err := io.ReadFull(from, frame); err != nil {
			return
		}
		frame = append(frame, make([]byte, binary.BigEndian.Uint32(frame))...)
		if _, err := io.ReadFull(from, frame[4:]); err != nil {
			return
		}
		if _, err := to.Write(through(frame)); err != nil {
			return
		}
	}
}

// hold keeps answers back until release.
func (r *relay) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gate = make(chan struct{})
}

func (r *relay) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !isClosed(r.gate) {
		close(r.gate)
	}
}

func (r *relay) editAnswers(edit func([]byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.edit = edit
}

// cut closes every connection.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.conns = nil
}

func (r *relay) dialCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dials
}

// nextFrame waits for the next request frame of the given API key.
func (r *relay) nextFrame(t *testing.T, key kmsg.Key) []byte {
	t.Helper()
	timeout := time.After(testWait)
	for {
		select {
		case f := <-r.frames:
			if int16(binary.BigEndian.Uint16(f)) == int16(key) {
				return f
			}
		case <-timeout:
			t.Fatalf("no %s request arrived", key.Name())
		}
	}
}

// nextProduce waits for the next Produce request and returns its partitions
// with the batch sizes.
func (r *relay) nextProduce(t *testing.T) map[int32]int {
	t.Helper()
	f := r.nextFrame(t, kmsg.Produce)
	req := kmsg.NewPtrProduceRequest()
	req.Version = int16(binary.BigEndian.Uint16(f[2:]))
	clientID := int(binary.BigEndian.Uint16(f[8:]))
	body := f[10+clientID:]
	if req.IsFlexible() {
		body = body[1:]
	}
	if err := req.ReadFrom(body); err != nil {
		t.Fatal(err)
	}
	if req.Acks != -1 || req.TransactionID != nil {
		t.Fatalf("Produce with acks %d, transactional id %v", req.Acks, req.TransactionID)
	}
	parts := make(map[int32]int)
	for _, tp := range req.Topics {
		for _, p := range tp.Partitions {
			if _, twice := parts[p.Partition]; twice {
				t.Fatalf("two batches for partition %d in one request", p.Partition)
			}
			parts[p.Partition] = len(p.Records)
		}
	}
	return parts
}
