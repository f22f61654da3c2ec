//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ceilingRow is one size of what is committed, and how much of it is under way.
type ceilingRow struct {
	Bytes  int // of a batch, and of an entry of bare Raft
	Flying int // batches that are unanswered at once, over all groups
}

var ceilingRows = []ceilingRow{{1 << 10, 192}, {16 << 10, 96}, {128 << 10, 48}}

// ceilingGroups are Raft groups, and leaders, on both sides.
const ceilingGroups = 3

// TestBenchCeiling measures what Lockstep takes when its brokers answer at once,
// beside hashicorp/raft alone with the same log store, sizes and number of groups:
// three processes each. BENCH_ROUNDS and BENCH_SECONDS as for TestBench.
func TestBenchCeiling(t *testing.T) {
	rounds, span := envInt(t, "BENCH_ROUNDS", 5), time.Duration(envInt(t, "BENCH_SECONDS", 4))*time.Second
	t.Logf("disk: %.0f fsyncs/s of 4 KiB, %.0f of 256 KiB; loopback %.0f MiB/s", fsyncRate(t, 4<<10), fsyncRate(t, 256<<10), loopbackRate(t))
	l := newInstantCluster(t)
	bare := newBareRaft(t)
	l.load(t, ceilingRows[0], span) // warm-up
	rates := map[ceilingRow][2][]float64{}
	for range rounds {
		for _, row := range ceilingRows {
			got := rates[row]
			got[0] = append(got[0], l.load(t, row, span))
			got[1] = append(got[1], bare.load(t, row, span))
			rates[row] = got
		}
	}
	var w strings.Builder
	w.WriteString("\n| MiB/s committed | Lockstep, instant brokers | hashicorp/raft alone | ratio |\n|---|---|---|---|\n")
	for _, row := range ceilingRows {
		ours, theirs := medianOf(rates[row][0]), medianOf(rates[row][1])
		fmt.Fprintf(&w, "| %d KiB, %d under way | %.1f | %.1f | %.2f |\n", row.Bytes>>10, row.Flying, ours, theirs, ours/theirs)
	}
	t.Log(w.String())
}

// instantCluster is three proxies whose brokers answer every Produce at once and
// keep nothing.
type instantCluster struct {
	c     *cluster
	topic string
	lead  map[int32]int // leader by partition
}

func newInstantCluster(t *testing.T) *instantCluster {
	t.Helper()
	// Scrubbing would find out within seconds that these brokers keep nothing.
	c := newClusterWith(t, clusterOpts{embedded: true, groups: ceilingGroups, via: func(b *broker) string { return serveInstantly(t, b) },
		settings: func(*node) []string { return []string{"recovery.scrub_interval=0s", "raft.log_limit_bytes=32GiB"} }})
	i := &instantCluster{c: c, topic: "instant"}
	c.createTopic(c.node(1), i.topic, 2*ceilingGroups)
	c.waitLed(i.topic, 2*ceilingGroups)
	var err error
	if i.lead, err = partitionLeaders(t.Context(), c.node(1), i.topic, 2*ceilingGroups); err != nil {
		t.Fatal(err)
	}
	return i
}

// load keeps a row's batches under way for span, after one second, and returns
// MiB acknowledged per second.
func (i *instantCluster) load(t *testing.T, row ceilingRow, span time.Duration) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), span+time.Minute)
	defer cancel()
	var acked atomic.Int64
	from := time.Now().Add(time.Second)
	to := from.Add(span)
	errs := make(chan error, len(i.lead))
	for p, id := range i.lead {
		go func() {
			errs <- i.pump(ctx, i.c.node(id).kafkaAddr(), p, row, to, func() {
				if now := time.Now(); now.After(from) && now.Before(to) {
					acked.Add(1)
				}
			})
		}()
	}
	for range i.lead {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	return float64(acked.Load()) * float64(row.Bytes) / (1 << 20) / span.Seconds()
}

// pump sends one partition's share over one connection.
func (i *instantCluster) pump(ctx context.Context, addr string, partition int32, row ceilingRow, to time.Time, acked func()) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(to.Add(30 * time.Second)); err != nil {
		return err
	}
	frame := produceFrame(i.topic, partition, batch{producerID: -1, values: []string{strings.Repeat("x", row.Bytes-100)}}.encode())
	turns := make(chan struct{}, row.Flying/len(i.lead))
	sent := make(chan error, 1)
	go func() {
		defer close(turns)
		for time.Now().Before(to) {
			turns <- struct{}{}
			if _, err := conn.Write(frame); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	br := bufio.NewReader(conn)
	for range turns {
		body, err := readInstant(br)
		if err != nil {
			return err
		}
		resp := kmsg.NewPtrProduceResponse()
		resp.Version = 8
		if err := resp.ReadFrom(body[4:]); err != nil {
			return err
		}
		switch code := resp.Topics[0].Partitions[0].ErrorCode; code {
		case 0:
			acked()
		case kerr.NotLeaderForPartition.Code, kerr.LeaderNotAvailable.Code: // the process was without CPU for a moment
		default:
			return fmt.Errorf("partition %d: error %d", partition, code)
		}
	}
	return <-sent
}

func produceFrame(topic string, partition int32, records []byte) []byte {
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.Acks, req.TimeoutMillis = 8, -1, 30_000
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, records
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic, rt.Partitions = topic, append(rt.Partitions, p)
	req.Topics = append(req.Topics, rt)
	return kmsg.NewRequestFormatter().AppendRequest(nil, req, 1)
}

// serveInstantly stands in front of a broker, answers every Produce itself, and
// passes the rest on. It returns its address.
func serveInstantly(t *testing.T, b *broker) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ends := &instantEnds{next: map[string]int64{}}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				defer conn.Close()
				_ = ends.serve(ctx, conn, b.addr()) // the proxy sees the connection end
			})
		}
	})
	return ln.Addr().String()
}

// instantEnds are the log ends that a broker would have.
type instantEnds struct {
	mu   sync.Mutex
	next map[string]int64
}

func (e *instantEnds) serve(ctx context.Context, conn net.Conn, broker string) error {
	up, err := (&net.Dialer{}).DialContext(ctx, "tcp", broker)
	if err != nil {
		return err
	}
	defer up.Close()
	defer context.AfterFunc(ctx, func() { up.Close() })()
	br, ur := bufio.NewReaderSize(conn, 256<<10), bufio.NewReader(up)
	for {
		body, err := readInstant(br)
		if err != nil {
			return err
		}
		var answer []byte
		if key := binary.BigEndian.Uint16(body); key == uint16(kmsg.Produce) {
			answer, err = e.produce(body)
		} else {
			if _, err = up.Write(withSize(body)); err != nil {
				return err
			}
			answer, err = readInstant(ur)
		}
		if err != nil {
			return err
		}
		if _, err := conn.Write(withSize(answer)); err != nil {
			return err
		}
	}
}

// produce answers with the offsets that an empty log gives.
func (e *instantEnds) produce(body []byte) ([]byte, error) {
	version, corr := int16(binary.BigEndian.Uint16(body[2:])), body[4:8]
	rest := body[8:]
	rest = rest[2+int(int16(binary.BigEndian.Uint16(rest))):] // client id
	req := kmsg.NewPtrProduceRequest()
	req.Version = version
	if req.IsFlexible() {
		rest = rest[1:] // no tags
	}
	if err := req.ReadFrom(rest); err != nil {
		return nil, err
	}
	resp := req.ResponseKind().(*kmsg.ProduceResponse)
	e.mu.Lock()
	for _, t := range req.Topics {
		rt := kmsg.NewProduceResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewProduceResponseTopicPartition()
			rp.Partition = p.Partition
			key := fmt.Sprint(t.Topic, "/", p.Partition)
			rp.BaseOffset = e.next[key]
			e.next[key] += int64(binary.BigEndian.Uint32(p.Records[23:])) + 1
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	e.mu.Unlock()
	out := append([]byte(nil), corr...)
	if req.IsFlexible() {
		out = append(out, 0)
	}
	return resp.AppendTo(out), nil
}

func withSize(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...)
}

// readInstant reads a frame without its length.
func readInstant(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n < 8 || n > 64<<20 {
		return nil, fmt.Errorf("frame of %d bytes", n)
	}
	body := make([]byte, n)
	_, err := io.ReadFull(r, body)
	return body, err
}

// fsyncRate is how often a second one writer can append and fdatasync.
func fsyncRate(t *testing.T, size int) float64 {
	t.Helper()
	f, err := os.Create(filepath.Join(runDir(t), "fsync"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, n, begin := make([]byte, size), 0, time.Now()
	for time.Since(begin) < time.Second {
		_, err := f.Write(b)
		if err = errors.Join(err, syscall.Fdatasync(int(f.Fd()))); err != nil {
			t.Fatal(err)
		}
		n++
	}
	return float64(n) / time.Since(begin).Seconds()
}

// loopbackRate is MiB per second over one connection.
func loopbackRate(t *testing.T) float64 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b := make([]byte, 256<<10)
		for begin := time.Now(); time.Since(begin) < time.Second; {
			if _, err := conn.Write(b); err != nil {
				return
			}
		}
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begin, n, b := time.Now(), 0, make([]byte, 256<<10)
	for {
		m, err := conn.Read(b)
		if n += m; err != nil {
			return float64(n) / (1 << 20) / time.Since(begin).Seconds()
		}
	}
}
