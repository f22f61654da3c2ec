//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	steadyTopic = "steady"
	steadyParts = 3

	framesClients = 48
	// answerWithin is how long a frame's answer is waited for before the next
	// frame is sent behind it.
	answerWithin = 20 * time.Millisecond
	// silentMost is how many frames one connection sends without any answer.
	silentMost = 8
)

// frameCounts is what became of the frames.
type frameCounts struct {
	answered, closed, silent atomic.Int64
}

func (c *frameCounts) String() string {
	return fmt.Sprintf("%d answered, %d connections closed, %d without an answer within %s",
		c.answered.Load(), c.closed.Load(), c.silent.Load(), answerWithin)
}

// frameClient sends frames one after the other, over as many connections as it
// takes. It belongs to one goroutine.
type frameClient struct {
	m      *frameMaker
	addr   string
	counts *frameCounts
	nc     *net.TCPConn
	silent int
	buf    []byte
}

func (f *frameClient) run(ctx context.Context, frames int) error {
	defer f.hangUp()
	for range frames {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := f.send(); err != nil {
			return err
		}
	}
	return nil
}

// send sends one frame and waits a moment for what becomes of it.
func (f *frameClient) send() error {
	if f.nc == nil {
		nc, err := net.DialTimeout("tcp", f.addr, 10*time.Second)
		if err != nil {
			return fmt.Errorf("connect to a proxy: %w", err)
		}
		f.nc, f.silent = nc.(*net.TCPConn), 0
	}
	frame, how := f.m.spoiled()
	if err := f.nc.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := f.nc.Write(frame); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("a proxy does not read: %w", err)
		}
		f.counts.closed.Add(1)
		f.hangUp()
		return nil
	}
	if err := f.nc.SetReadDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	switch _, err := f.nc.Read(f.buf); {
	case err == nil:
		f.counts.answered.Add(1)
		f.silent = 0
	case errors.Is(err, os.ErrDeadlineExceeded):
		f.counts.silent.Add(1)
		f.silent++
	default:
		f.counts.closed.Add(1)
		f.hangUp()
		return nil
	}
	if how.last || f.silent == silentMost {
		f.hangUp()
	}
	return nil
}

// hangUp ends the connection, every second time without a goodbye.
func (f *frameClient) hangUp() {
	if f.nc == nil {
		return
	}
	if f.m.rng.IntN(2) == 0 {
		_ = f.nc.SetLinger(0)
	}
	_ = f.nc.Close()
	f.nc = nil
}

// untilOneEnds returns a context that ends with the first process of the cluster.
func (c *cluster) untilOneEnds(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	for _, n := range c.nodes {
		for _, p := range []*process{n.proc, n.broker.proc} {
			go func() {
				select {
				case <-p.done:
					cancel(fmt.Errorf("%s of node %d ended", p.name, n.id))
				case <-ctx.Done():
				}
			}()
		}
	}
	return ctx, func() { cancel(nil) }
}

// sendFrames sends so many frames over many connections to all nodes. It ends
// with the first error of any client.
func sendFrames(ctx context.Context, c *cluster, frames int, seed uint64) (*frameCounts, error) {
	apis, err := rawCall[*kmsg.ApiVersionsResponse](ctx, c.nodes[0].kafkaAddr(), kmsg.NewPtrApiVersionsRequest())
	if err != nil {
		return nil, err
	}
	ctx, stop := c.untilOneEnds(ctx)
	defer stop()
	counts := new(frameCounts)
	var (
		clients sync.WaitGroup
		mu      sync.Mutex
		failed  error
	)
	for i := range framesClients {
		n := frames / framesClients
		if i < frames%framesClients {
			n++
		}
		cl := &frameClient{m: newFrameMaker(seed<<8+uint64(i), apis.ApiKeys), counts: counts,
			addr: c.nodes[i%len(c.nodes)].kafkaAddr(), buf: make([]byte, 64<<10)}
		clients.Go(func() {
			err := cl.run(ctx, n)
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if failed == nil {
				failed = err
			}
			stop()
		})
	}
	clients.Wait()
	return counts, failed
}

// footprint is what a proxy holds.
type footprint struct{ goroutines, files, heap float64 }

func footprintOf(t *testing.T, n *node) footprint {
	t.Helper()
	return footprint{
		goroutines: metric(t, n, "go_goroutines"),
		files:      metric(t, n, "process_open_fds"),
		heap:       metric(t, n, "go_memstats_heap_alloc_bytes"),
	}
}

func (f footprint) String() string {
	return fmt.Sprintf("%.0f goroutines, %.0f open files, heap %.1f MiB", f.goroutines, f.files, f.heap/(1<<20))
}

// What a proxy may hold more than before: goroutines and connections that come
// and go on their own, and memory that waits for the next collection, which the
// runtime makes every two minutes at the latest.
const (
	moreGoroutines = 20
	moreFiles      = 8
	moreHeap       = 32 << 20
)

// givenBack returns when every proxy holds about as much as before.
func (c *cluster) givenBack(before []footprint) {
	c.t.Helper()
	waitFor(c.t, "what the frames took to be given back", 4*time.Minute, func(context.Context) error {
		for i, n := range c.nodes {
			now := footprintOf(c.t, n)
			was := before[i]
			if now.goroutines > was.goroutines+moreGoroutines || now.files > was.files+moreFiles || now.heap > was.heap+moreHeap {
				return fmt.Errorf("node %d holds %s; before it held %s", n.id, now, was)
			}
		}
		return nil
	})
	for i, n := range c.nodes {
		c.t.Logf("node %d: %s; before: %s", n.id, footprintOf(c.t, n), before[i])
	}
}

// removeTopics deletes every topic but those to keep.
func (c *cluster) removeTopics(ctx context.Context, keep string) error {
	return waitUntil(ctx, 200*time.Millisecond, func(ctx context.Context) error {
		req := kmsg.NewPtrMetadataRequest()
		req.SetVersion(5)
		md, err := rawCall[*kmsg.MetadataResponse](ctx, c.nodes[0].kafkaAddr(), req)
		if err != nil {
			return err
		}
		var errs error
		left := 0
		for _, t := range md.Topics {
			if t.Topic == nil || *t.Topic == keep || strings.HasPrefix(*t.Topic, "__") {
				continue
			}
			left++
			errs = errors.Join(errs, deleteTopic(ctx, c.nodes[0].kafkaAddr(), *t.Topic))
		}
		if left > 0 {
			return errors.Join(fmt.Errorf("%d topics are left", left), errs)
		}
		return nil
	})
}

// TestMutatedFrames sends requests of every API and version, damaged in many
// ways, at a cluster that serves good clients meanwhile. No proxy ends or
// panics, the good clients notice nothing, everything that the frames took is
// given back, and the brokers are identical. E2E_FRAMES is the number of frames
// (20000), E2E_SEED which ones, E2E_FRAMES_BROKER=kafka runs real brokers.
func TestMutatedFrames(t *testing.T) {
	frames, seed := envInt(t, "E2E_FRAMES", 20_000), envInt(t, "E2E_SEED", 1)
	c := newClusterWith(t, clusterOpts{embedded: os.Getenv("E2E_FRAMES_BROKER") != "kafka"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(frames)*10*time.Millisecond)
	defer cancel()
	c.createTopic(c.node(1), steadyTopic, steadyParts)
	w := startWorkload(t, c.bootstrap(), steadyTopic, steadyParts, 20*time.Millisecond, "good")
	if err := w.h.waitAcks(ctx, steadyParts, time.Now(), 50); err != nil {
		t.Fatal(err)
	}
	// The first of everything makes what stays for the life of a process.
	if _, err := sendFrames(ctx, c, 500, uint64(seed)+1); err != nil {
		t.Fatal(err)
	}
	if err := c.removeTopics(ctx, steadyTopic); err != nil {
		t.Fatal(err)
	}
	var before []footprint
	for _, n := range c.nodes {
		before = append(before, footprintOf(t, n))
	}
	// The topics that the frames name are made and deleted by frames.
	begin := time.Now()
	counts, err := sendFrames(ctx, c, frames, uint64(seed))
	took := time.Since(begin)
	t.Logf("%d frames in %s: %s", frames, took.Round(time.Second), counts)
	if err != nil {
		t.Errorf("after %s: %v", took.Round(time.Second), err)
	}
	for _, n := range c.nodes {
		if !n.running() {
			t.Fatalf("lockstep of node %d ended\n%s", n.id, tail(n.logFile(), 40))
		}
		if n.broker.proc.exited() {
			t.Fatalf("the broker of node %d ended\n%s", n.id, tail(n.broker.outFile(), 40))
		}
	}
	if counts.answered.Load() < int64(frames)/20 || counts.closed.Load() < int64(frames)/20 {
		t.Errorf("hardly a frame had an effect: %s", counts)
	}
	t.Logf("longest pause of the good producer: %s", ms(w.h.worstGap([]int32{0, 1, 2}, begin, time.Now())))
	if err := w.h.waitAcks(ctx, steadyParts, time.Now(), 50); err != nil {
		t.Fatalf("the good producer does not go on: %v", err)
	}
	if panics := c.logLines("panic"); len(panics) > 0 {
		t.Errorf("%d lines speak of a panic, first: %s", len(panics), panics[0])
	}
	if err := c.removeTopics(ctx, steadyTopic); err != nil {
		t.Error(err)
	}
	c.givenBack(before)
	c.goodClientsSawAll(w)
	c.trusted(ctx)
	c.verify()
}

// goodClientsSawAll ends the good clients: every record they sent was
// acknowledged, read, and is on every broker once.
func (c *cluster) goodClientsSawAll(w *workload) {
	t := c.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.stopProducing(ctx); err != nil {
		t.Errorf("wait for the last answers: %v", err)
	}
	if sent, acked := w.h.counts(); sent != acked || sent == 0 {
		t.Errorf("%d of %d records of the good producer were acknowledged", acked, sent)
	}
	if err := w.waitConsumed(ctx); err != nil {
		t.Errorf("the good consumer did not read to the end: %v", err)
	}
	c.waitBrokersHold(c.nodes, w.h.topic, w.h.ends())
	w.h.check(c.readBrokers(c.nodes, w.h.topic, steadyParts), steadyParts).report(t)
}
