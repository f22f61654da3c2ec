package broker

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"lockstep/internal/testaddr"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Offsets and callbacks of pipelined appends come in the order of the calls.
func TestAppendPipelinesInOrder(t *testing.T) {
	_, addr := newBroker(t)
	r := newRelay(t, addr)
	s := mustSession(t, newAppender(t, Config{BootstrapServer: r.addr()}))

	const batches, count = 60, 3
	c := newCollector()
	for i := range batches {
		// The sequence makes the broker refuse any other order.
		s.Append(appendOf(testTopic, 1, makeBatch(int32(i*count), count, 20)), c.done(i))
	}
	for i := range batches {
		got := c.next(t)
		if got.tag != i || got.Err != nil || got.Code != 0 || got.BaseOffset != int64(i*count) {
			t.Fatalf("result %d: %+v, want offset %d", i, got, i*count)
		}
	}
	_, end, err := newReader(t, addr).LogEnd(testContext(t), testTopic, 1)
	if err != nil || end != batches*count {
		t.Fatalf("log end %d, %v, want %d", end, err, batches*count)
	}
}

func TestAppendKeepsUpToFiveRequestsInFlight(t *testing.T) {
	_, addr := newBroker(t)
	r := newRelay(t, addr)
	s := mustSession(t, newAppender(t, Config{BootstrapServer: r.addr()}))
	r.hold()
	c := newCollector()
	for i := range 8 {
		s.Append(appendOf(testTopic, 0, makeBatch(int32(i), 1, 10)), c.done(i))
	}
	for range 5 {
		r.nextProduce(t)
	}
	s.mu.Lock()
	inflight, queued := len(s.inflight), len(s.queues[topicPartition{testTopic, 0}].items)
	s.mu.Unlock()
	if inflight != 5 || queued != 3 {
		t.Fatalf("%d in flight and %d queued, want 5 and 3", inflight, queued)
	}
	r.release()
	for i := range 8 {
		if got := c.next(t); got.tag != i || got.BaseOffset != int64(i) || got.Err != nil {
			t.Fatalf("result %d: %+v", i, got)
		}
	}
}

// What queued up while the slots were taken shares a request: one batch per
// partition, up to MaxRequestBytes, a larger one alone.
func TestAppendCombinesPartitions(t *testing.T) {
	_, addr := newBroker(t)
	r := newRelay(t, addr)
	s := mustSession(t, newAppender(t, Config{
		BootstrapServer: r.addr(), MaxInFlightRequests: 1, MaxRequestBytes: 2000,
	}))
	r.hold()
	c := newCollector()
	s.Append(appendOf(testTopic, 0, makeBatch(0, 1, 10)), c.done(0))
	r.nextProduce(t)

	s.Append(appendOf(testTopic, 0, makeBatch(1, 1, 10)), c.done(1))
	s.Append(appendOf(testTopic, 0, makeBatch(2, 1, 10)), c.done(2))
	s.Append(appendOf(testTopic, 1, makeBatch(0, 1, 10)), c.done(3))
	s.Append(appendOf(testTopic, 2, makeBatch(0, 1, 5000)), c.done(4))
	s.Append(appendOf(testTopic, 3, makeBatch(0, 1, 10)), c.done(5))
	r.release()

	want := []map[int32]bool{{0: true, 1: true}, {2: true}, {3: true, 0: true}}
	for i, w := range want {
		got := r.nextProduce(t)
		for p := range got {
			if !w[p] {
				t.Fatalf("request %d carries %v, want partitions %v", i, got, w)
			}
		}
		if len(got) != len(w) {
			t.Fatalf("request %d carries %v, want partitions %v", i, got, w)
		}
	}
	for range 6 {
		if got := c.next(t); got.Err != nil || got.Code != 0 {
			t.Fatalf("result %+v", got)
		}
	}
}

// A refusal is a Code with the connection kept; the others in the request are
// not affected.
func TestAppendReportsRefusal(t *testing.T) {
	_, addr := newBroker(t)
	s := mustSession(t, newAppender(t, Config{BootstrapServer: addr}))
	if got := mustAppend(t, s, 0, makeBatch(0, 2, 10)); got.Err != nil || got.Code != 0 {
		t.Fatalf("first append: %+v", got)
	}
	if got := mustAppend(t, s, 0, makeBatch(9, 1, 10)); got.Err != nil || got.Code != kerr.OutOfOrderSequenceNumber.Code {
		t.Fatalf("append with a gap: %+v", got)
	}
	if got := mustAppend(t, s, 99, makeBatch(0, 1, 10)); got.Err != nil || got.Code != kerr.UnknownTopicOrPartition.Code {
		t.Fatalf("append to no partition: %+v", got)
	}
	if got := mustAppend(t, s, 0, makeBatch(0, 2, 10)); got.Err != nil || got.Code != 0 || got.BaseOffset != 0 {
		t.Fatalf("repeat: %+v, want offset 0 again", got)
	}
	if got := mustAppend(t, s, 0, makeBatch(2, 1, 10)); got.Err != nil || got.Code != 0 || got.BaseOffset != 2 {
		t.Fatalf("append after refusal: %+v", got)
	}
}

// With the connection gone, what was written is unknown and what was queued
// was not sent; every callback comes once, in order, before Done.
func TestAppendConnectionLost(t *testing.T) {
	_, addr := newBroker(t)
	r := newRelay(t, addr)
	a := newAppender(t, Config{BootstrapServer: r.addr(), MaxInFlightRequests: 2})
	s := mustSession(t, a)
	r.hold()
	c := newCollector()
	for i := range 6 {
		s.Append(appendOf(testTopic, 0, makeBatch(int32(i), 1, 10)), c.done(i))
	}
	r.nextProduce(t)
	r.nextProduce(t)
	r.cut()
	select {
	case <-s.Done():
	case <-time.After(testWait):
		t.Fatal("session not done after its connection was cut")
	}
	if len(c.ch) != 6 {
		t.Fatalf("%d callbacks before Done, want 6", len(c.ch))
	}
	for i := range 6 {
		want := ErrConnLost
		if i >= 2 {
			want = ErrNotSent
		}
		if got := c.next(t); got.tag != i || !errors.Is(got.Err, want) {
			t.Fatalf("result %d: %+v, want %v", i, got, want)
		}
	}
	if s.Err() == nil {
		t.Fatal("lost session without a cause")
	}
	for i := range 3 {
		s.Append(appendOf(testTopic, 0, nil), c.done(100+i))
	}
	for i := range 3 {
		if got := c.next(t); got.tag != 100+i || !errors.Is(got.Err, ErrNotSent) {
			t.Fatalf("append to a lost session: %+v", got)
		}
	}
	r.release()
	if next := mustSession(t, a); next == s {
		t.Fatal("the lost session was handed out again")
	} else if got := mustAppend(t, next, 3, makeBatch(0, 1, 10)); got.Err != nil || got.Code != 0 {
		t.Fatalf("append over the next session: %+v", got)
	}
}

// A callback may queue more, even while the session is being given up.
func TestAppendFromCallback(t *testing.T) {
	_, addr := newBroker(t)
	r := newRelay(t, addr)
	s := mustSession(t, newAppender(t, Config{BootstrapServer: r.addr()}))
	r.hold()
	c := newCollector()
	s.Append(appendOf(testTopic, 0, makeBatch(0, 1, 10)), func(res Result) {
		c.done(1)(res)
		s.Append(appendOf(testTopic, 0, makeBatch(1, 1, 10)), c.done(2))
	})
	r.nextProduce(t)
	r.cut()
	if got := c.next(t); got.tag != 1 || !errors.Is(got.Err, ErrConnLost) {
		t.Fatalf("first: %+v", got)
	}
	if got := c.next(t); got.tag != 2 || !errors.Is(got.Err, ErrNotSent) {
		t.Fatalf("second: %+v", got)
	}
}

func TestAppendUnansweredEndsTheSession(t *testing.T) {
	_, addr := newBroker(t)
	r := newRelay(t, addr)
	s := mustSession(t, newAppender(t, Config{BootstrapServer: r.addr(), RequestTimeout: 150 * time.Millisecond}))
	// Idle for longer than the timeout is fine: nothing is unanswered.
	select {
	case <-s.Done():
		t.Fatalf("idle session ended: %v", s.Err())
	case <-time.After(300 * time.Millisecond):
	}
	r.hold()
	if got := mustAppend(t, s, 0, makeBatch(0, 1, 10)); !errors.Is(got.Err, ErrConnLost) {
		t.Fatalf("unanswered append: %+v", got)
	}
	<-s.Done()
}

// An answer that leaves the partition out makes the outcome unknown and ends
// the session.
func TestAppendAnswerWithoutPartition(t *testing.T) {
	_, addr := newBroker(t)
	r := newRelay(t, addr)
	s := mustSession(t, newAppender(t, Config{BootstrapServer: r.addr()}))
	r.editAnswers(func(frame []byte) []byte {
		resp := kmsg.NewPtrProduceResponse()
		resp.Version = s.produceVersion
		out := append([]byte(nil), frame[:8]...)
		if resp.IsFlexible() {
			out = append(out, 0)
		}
		out = resp.AppendTo(out)
		binary.BigEndian.PutUint32(out, uint32(len(out)-4))
		return out
	})
	if got := mustAppend(t, s, 0, makeBatch(0, 1, 10)); !errors.Is(got.Err, ErrConnLost) || !errors.Is(got.Err, ErrMalformed) {
		t.Fatalf("append: %+v", got)
	}
	<-s.Done()
}

func TestAppendWrongCorrelationEndsTheSession(t *testing.T) {
	_, addr := newBroker(t)
	r := newRelay(t, addr)
	s := mustSession(t, newAppender(t, Config{BootstrapServer: r.addr()}))
	r.editAnswers(func(frame []byte) []byte { frame[7]++; return frame })
	if got := mustAppend(t, s, 0, makeBatch(0, 1, 10)); !errors.Is(got.Err, ErrConnLost) {
		t.Fatalf("append: %+v", got)
	}
	<-s.Done()
}

func TestSessionKeepAlive(t *testing.T) {
	_, addr := newBroker(t)
	r := newRelay(t, addr)
	s := mustSession(t, newAppender(t, Config{BootstrapServer: r.addr(), KeepAlive: 20 * time.Millisecond}))
	r.nextFrame(t, kmsg.ApiVersions) // the handshake
	for range 8 {                    // more than the slots, so answers give slots back
		r.nextFrame(t, kmsg.ApiVersions)
	}
	if got := mustAppend(t, s, 0, makeBatch(0, 1, 10)); got.Err != nil {
		t.Fatalf("append between keep-alives: %+v", got)
	}
}

func TestSessionSharesOneDial(t *testing.T) {
	_, addr := newBroker(t)
	r := newRelay(t, addr)
	r.hold() // the handshake cannot finish before everyone waits
	a := newAppender(t, Config{BootstrapServer: r.addr()})
	var wg sync.WaitGroup
	sessions := make([]*Session, 20)
	for i := range sessions {
		wg.Add(1)
		go func() {
			defer wg.Done()
			sessions[i], _ = a.Session(context.Background())
		}()
	}
	r.nextFrame(t, kmsg.ApiVersions)
	r.release()
	wg.Wait()
	for _, s := range sessions {
		if s == nil || s != sessions[0] {
			t.Fatal("callers got different sessions")
		}
	}
	if n := r.dialCount(); n != 1 {
		t.Fatalf("%d dials, want 1", n)
	}
}

func TestSessionsSpreadOverConnections(t *testing.T) {
	_, addr := newBroker(t)
	a := newAppender(t, Config{BootstrapServer: addr, Connections: 2})
	first, second, third := mustSession(t, a), mustSession(t, a), mustSession(t, a)
	if first == second || first != third {
		t.Fatal("two connections are not handed out in turn")
	}
}

func TestSessionUnreachable(t *testing.T) {
	addr := testaddr.Local().Free(t)
	a := newAppender(t, Config{BootstrapServer: addr})
	if _, err := a.Session(testContext(t)); !errors.Is(err, ErrUnreachable) {
		t.Fatalf("session with nobody listening: %v", err)
	}
}

func TestAppenderClose(t *testing.T) {
	_, addr := newBroker(t)
	r := newRelay(t, addr)
	a := newAppender(t, Config{BootstrapServer: r.addr()})
	s := mustSession(t, a)
	r.hold()
	c := newCollector()
	s.Append(appendOf(testTopic, 0, makeBatch(0, 1, 10)), c.done(0))
	r.nextProduce(t)
	for range 2 {
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.ch) != 1 {
		t.Fatal("Close returned before the callback of an append under way")
	}
	if got := c.next(t); !errors.Is(got.Err, ErrConnLost) || !errors.Is(got.Err, ErrClosed) {
		t.Fatalf("result %+v", got)
	}
	if _, err := a.Session(testContext(t)); !errors.Is(err, ErrClosed) {
		t.Fatalf("session after Close: %v", err)
	}
}

// idleSession is a session whose goroutines do not run, over a pipe.
func idleSession(t *testing.T) *Session {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = theirs.Close() })
	cfg := Config{}.withDefaults()
	s, err := newSession(&cfg, &conn{
		nc:       ours,
		format:   kmsg.NewRequestFormatter(),
		versions: versions{0: {MaxVersion: 9}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A request that was made but not written when the connection went is not
// sent, and the writer does not write it any more.
func TestAppendLostBeforeWriting(t *testing.T) {
	s := idleSession(t)
	c := newCollector()
	s.Append(appendOf(testTopic, 0, makeBatch(0, 1, 10)), c.done(0))
	r := s.take(false)
	s.fail(net.ErrClosed)
	s.drain()
	if got := c.next(t); !errors.Is(got.Err, ErrNotSent) || errors.Is(got.Err, ErrConnLost) {
		t.Fatalf("result %+v", got)
	}
	if s.send(r) || r.written {
		t.Fatal("written after the loss was reported")
	}
}

// What is queued between the loss and its report comes after what was queued
// before.
func TestAppendDuringLoss(t *testing.T) {
	for range 200 {
		s := idleSession(t)
		c := newCollector()
		s.Append(appendOf(testTopic, 0, nil), c.done(0))
		s.fail(net.ErrClosed)
		s.Append(appendOf(testTopic, 0, nil), c.done(1))
		s.drain()
		for i := range 2 {
			if got := c.next(t); got.tag != i || !errors.Is(got.Err, ErrNotSent) {
				t.Fatalf("result %d: %+v", i, got)
			}
		}
	}
}

// A connection that hangs is given up at once when somebody knows that the
// broker does not answer, and the next one works while it still hangs.
func TestDropEndsAHungSession(t *testing.T) {
	_, addr := newBroker(t)
	hung, fine := newRelay(t, addr), addr
	cfg := Config{BootstrapServer: hung.addr(), RequestTimeout: time.Hour}
	a := newAppender(t, cfg)
	s := mustSession(t, a)
	hung.hold()
	c := newCollector()
	s.Append(appendOf(testTopic, 0, makeBatch(0, 1, 10)), c.done(0))
	hung.nextProduce(t)
	a.Drop(errors.New("it does not answer"))
	if got := c.next(t); !errors.Is(got.Err, ErrConnLost) {
		t.Fatalf("what was under way: %+v", got)
	}
	<-s.Done()
	if err := s.Err(); !errors.Is(err, ErrUnreachable) {
		t.Errorf("the session says %v", err)
	}
	a.cfg.BootstrapServer = fine
	next := mustSession(t, a)
	if next == s {
		t.Fatal("the dropped session was handed out again")
	}
	if r := mustAppend(t, next, 1, makeBatch(0, 1, 10)); r.Err != nil || r.Code != 0 {
		t.Errorf("over the next session: %+v", r)
	}
	a.Drop(errors.New("again"))
	a.Drop(errors.New("and again"))
}
