package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// TestAnswersKeepTheRequestOrder completes pipelined Produces in reverse, mixed
// with requests that are answered at once and by the broker.
func TestAnswersKeepTheRequestOrder(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 4, nil)
	const n = 4
	var mu sync.Mutex
	var held []func()
	all := make(chan struct{})
	f.producer.setHold(func(_ appendCall, complete func()) {
		mu.Lock()
		defer mu.Unlock()
		if held = append(held, complete); len(held) == n {
			close(all)
		}
	})
	c := f.dial()
	type sent struct {
		corr int32
		req  kmsg.Request
	}
	var order []sent
	ask := func(req kmsg.Request) { order = append(order, sent{c.send(req), req}) }
	for i := range int32(n) {
		ask(produceTo("orders", i, batchOf("a", "b")))
		ask(kmsg.NewPtrApiVersionsRequest())
		list := kmsg.NewPtrListGroupsRequest()
		ask(list)
	}
	select {
	case <-all: // every Produce was handed over although none was answered
	case <-time.After(patience):
		t.Fatal("pipelined Produces did not all reach the Producer")
	}
	mu.Lock()
	for i := len(held) - 1; i >= 0; i-- {
		held[i]()
	}
	mu.Unlock()
	for _, s := range order {
		switch req := s.req.(type) {
		case *kmsg.ProduceRequest:
			resp := receive[*kmsg.ProduceResponse](c, s.corr, req)
			p := resp.Topics[0].Partitions[0]
			if p.Partition != req.Topics[0].Partitions[0].Partition || p.ErrorCode != 0 || p.BaseOffset != 0 || p.LogAppendTime != -1 {
				t.Errorf("partition %d: code %d, base offset %d", p.Partition, p.ErrorCode, p.BaseOffset)
			}
		case *kmsg.ApiVersionsRequest:
			receive[*kmsg.ApiVersionsResponse](c, s.corr, req)
		case *kmsg.ListGroupsRequest:
			receive[*kmsg.ListGroupsResponse](c, s.corr, req)
		}
	}
}

// TestBudgetStopsTheReader holds commits back until a connection's budget is
// used up: the reader stops, others go on, and all is answered afterwards.
func TestBudgetStopsTheReader(t *testing.T) {
	const frame = 64 << 10
	f := newFixture(t, func(c *Config) {
		c.Limits.MaxFrameBytes = frame
		c.Limits.MaxInflightBytesPerConn = 2 * frame
		c.Limits.MaxInflightBytes = 4 * frame
	})
	f.createTopic("orders", 1, nil)
	release := make(chan struct{})
	f.producer.setHold(func(_ appendCall, complete func()) { <-release; complete() })
	c := f.dial()
	batch := batchOf(strings.Repeat("x", 40<<10))
	const n = 6
	written := make(chan struct{})
	go func() {
		defer close(written)
		for i := range n {
			id := "raw"
			h := kafkawire.RequestHeader{CorrelationID: int32(i), ClientID: &id}
			if _, err := c.nc.Write(kafkawire.AppendRequest(nil, h, produceTo("orders", 0, batch))); err != nil {
				return
			}
		}
	}()
	// Three frames of 40 KiB do not fit into 128 KiB.
	eventually(t, "the third Produce to be taken", func() bool { return f.producer.appended() == 3 })
	used := f.srv.requests.inUse()
	if limit := int64(2 * frame); used > limit {
		t.Errorf("%d bytes are held for one connection, limit %d", used, limit)
	}
	f.dial().alive()
	if got := f.producer.appended(); got != 3 {
		t.Errorf("%d Produces were taken, want 3", got)
	}
	close(release)
	<-written
	for i := range n {
		resp := receive[*kmsg.ProduceResponse](c, int32(i), produceTo("orders", 0, nil))
		if got := resp.Topics[0].Partitions[0].BaseOffset; got != int64(i) {
			t.Errorf("response %d: base offset %d", i, got)
		}
	}
	eventually(t, "the budget to be given back", func() bool { return f.srv.requests.inUse() == 0 })
}

// TestProcessBudgetStopsOtherConnections uses the whole process's budget up
// with one connection and sees another wait.
func TestProcessBudgetStopsOtherConnections(t *testing.T) {
	const frame = 64 << 10
	f := newFixture(t, func(c *Config) {
		c.Limits.MaxFrameBytes = frame
		c.Limits.MaxInflightBytesPerConn = frame
		c.Limits.MaxInflightBytes = frame
	})
	f.createTopic("orders", 1, nil)
	release := make(chan struct{})
	f.producer.setHold(func(_ appendCall, complete func()) { <-release; complete() })
	batch := batchOf(strings.Repeat("x", 40<<10))
	first, second := f.dial(), f.dial()
	req := produceTo("orders", 0, batch)
	corr1 := first.send(req)
	eventually(t, "the first Produce", func() bool { return f.producer.appended() == 1 })
	corr2 := second.send(req)
	eventually(t, "the second connection to wait", func() bool {
		f.srv.requests.mu.Lock()
		defer f.srv.requests.mu.Unlock()
		return len(f.srv.requests.waiters) == 1
	})
	if got := f.producer.appended(); got != 1 {
		t.Errorf("%d Produces were taken, want 1", got)
	}
	close(release)
	receive[*kmsg.ProduceResponse](first, corr1, req)
	receive[*kmsg.ProduceResponse](second, corr2, req)
}

// TestIdleConnectionsEnd closes who says nothing, but not who waits for a poll.
func TestIdleConnectionsEnd(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Limits.IdleTimeout = 50 * time.Millisecond })
	f.createTopic("orders", 1, nil)
	polling, idle := f.dial(), f.dial()
	req := fetchOf(300*time.Millisecond, fetchPart{name: "orders"})
	corr := polling.send(req)
	idle.alive()
	idle.closed()
	resp := receive[*kmsg.FetchResponse](polling, corr, req)
	if code := resp.Topics[0].Partitions[0].ErrorCode; code != 0 {
		t.Errorf("poll: code %d", code)
	}
	polling.closed()
}

// TestHalfSentRequestsEnd closes who starts a request and does not finish it,
// in the size field or in the body.
func TestHalfSentRequestsEnd(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Limits.PartialRequestTimeout = 50 * time.Millisecond })
	other := f.dial()
	for _, part := range [][]byte{{0}, {0, 0, 0, 100, 0, 18, 0}} {
		c := f.dial()
		c.write(part)
		c.closed()
	}
	other.alive()
	eventually(t, "the log line", func() bool { return len(f.log.lines("request was not sent to its end in time")) == 1 })
	eventually(t, "the budget to be given back", func() bool { return f.srv.requests.inUse() == 0 })
}

// TestClientThatNeverReadsIsClosed fills the socket of a client that takes no
// response.
func TestClientThatNeverReadsIsClosed(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Limits.WriteTimeout = 100 * time.Millisecond })
	other := f.dial()
	c := f.dial()
	// The socket keeps its own buffer: with one of a few KiB, Linux drops what
	// carries the acknowledgements too, and it is the requests that stand still.
	req := kafkawire.AppendRequest(nil, kafkawire.RequestHeader{}, kmsg.NewPtrApiVersionsRequest())
	many := make([]byte, 0, 1000*len(req))
	for range 1000 {
		many = append(many, req...)
	}
	for {
		if _, err := c.nc.Write(many); err != nil {
			if isTimeout(err) {
				t.Fatal("the proxy neither closed nor stopped reading for ever")
			}
			break // closed by the proxy
		}
	}
	eventually(t, "the log line", func() bool { return len(f.log.lines("client does not read its responses")) == 1 })
	other.alive()
	eventually(t, "the budget to be given back", func() bool { return f.srv.requests.inUse() == 0 })
}

// TestPanicEndsOneConnection lets a handler panic.
func TestPanicEndsOneConnection(t *testing.T) {
	f := newFixture(t, nil)
	f.cluster.behave(func() { f.cluster.create = func(TopicSpec) error { panic("boom") } })
	other, c := f.dial(), f.dial()
	req := kmsg.NewPtrCreateTopicsRequest()
	req.SetVersion(5)
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = "orders", 1, -1
	req.Topics = append(req.Topics, topic)
	c.send(req)
	c.closed()
	other.alive()
	if got := f.log.lines("panic while serving a request", "api=CreateTopics", "boom"); len(got) != 1 {
		t.Errorf("%d log lines, want 1", len(got))
	}
}

// TestMaxConnections refuses one connection too many, and serves again when
// one has left.
func TestMaxConnections(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Limits.MaxConnections = 1 })
	first := f.dial()
	first.alive()
	f.dial().closed()
	first.nc.Close()
	eventually(t, "the first to be gone", func() bool { return len(f.srv.snapshot()) == 0 })
	f.dial().alive()
	if got := f.log.lines("too many connections"); len(got) != 1 {
		t.Errorf("%d log lines, want 1", len(got))
	}
}

// TestShutdownAnswersWhatIsCommitting waits for the commit under way, takes
// nothing new, and leaves no goroutine.
func TestShutdownAnswersWhatIsCommitting(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	release := make(chan struct{})
	f.producer.setHold(func(_ appendCall, complete func()) { <-release; complete() })
	c, idle := f.dial(), f.dial()
	idle.alive()
	req := produceTo("orders", 0, batchOf("a"))
	corr := c.send(req)
	eventually(t, "the Produce to be taken", func() bool { return f.producer.appended() == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- f.srv.Shutdown(ctx) }()
	idle.closed()
	select {
	case err := <-ended:
		t.Fatalf("shutdown returned %v before the commit was answered", err)
	default:
	}
	close(release)
	if resp := receive[*kmsg.ProduceResponse](c, corr, req); resp.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Errorf("code %d", resp.Topics[0].Partitions[0].ErrorCode)
	}
	c.closed()
	if err := <-ended; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	assertNoProxyGoroutines(t)
	if err := f.srv.Shutdown(ctx); err != nil {
		t.Errorf("second shutdown: %v", err)
	}
	if err := f.srv.Listen(); !errors.Is(err, ErrServerClosed) {
		t.Errorf("listen after shutdown: %v", err)
	}
	if nc, err := net.Dial("tcp", f.addr); err == nil {
		nc.Close()
		t.Error("the port is still open")
	}
}

// TestShutdownCutsAtTheDeadline does not wait for a commit that never comes.
func TestShutdownCutsAtTheDeadline(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	release := make(chan struct{})
	defer close(release)
	f.producer.setHold(func(_ appendCall, complete func()) { <-release; complete() })
	c := f.dial()
	req := produceTo("orders", 0, batchOf("a"))
	req.TimeoutMillis = int32(longPoll.Milliseconds())
	c.send(req)
	eventually(t, "the Produce to be taken", func() bool { return f.producer.appended() == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.srv.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
	assertNoProxyGoroutines(t)
	c.closed()
}

// assertNoProxyGoroutines fails if a goroutine of the server is left.
func assertNoProxyGoroutines(t *testing.T) {
	t.Helper()
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	for g := range strings.SplitSeq(string(buf), "\n\n") {
		for _, fn := range []string{"proxy.(*conn)", "proxy.(*link)", "proxy.(*Server).accept", "proxy.(*Server).watch"} {
			if strings.Contains(g, fn) && !strings.Contains(g, "proxy.Test") {
				t.Errorf("goroutine is left:\n%s", g)
			}
		}
	}
}

// TestUpstreamGarbageIsNotPassedOn answers with another correlation id than the
// one asked, as a broker never should.
func TestUpstreamGarbageIsNotPassedOn(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		frame, err := kafkawire.ReadFrame(nc, 1<<20)
		if err != nil {
			return
		}
		answer := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 10}, binary.BigEndian.Uint32(frame[4:])+1)
		_, _ = nc.Write(append(answer, 0, 0, 0, 0, 0, 0))
	}()
	f := newFixture(t, func(c *Config) { c.Upstream = ln.Addr().String() })
	c := f.dial()
	if code := do[*kmsg.ListGroupsResponse](c, 3, kmsg.NewPtrListGroupsRequest()).ErrorCode; code != kerr.CoordinatorNotAvailable.Code {
		t.Errorf("code %d", code)
	}
	if got := f.log.lines("broker did not answer", "api=ListGroups", "correlation id"); len(got) != 1 {
		t.Errorf("%d log lines, want 1", len(got))
	}
}
