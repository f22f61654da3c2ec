package proxy

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// handBroker is a broker whose answers the test writes by hand.
type handBroker struct {
	t     *testing.T
	ln    net.Listener
	conns chan net.Conn
}

// newHandFixture is a proxy in front of a handBroker, with a topic of two
// partitions.
func newHandFixture(t *testing.T, configure ...func(*Config)) (*fixture, *handBroker) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &handBroker{t: t, ln: ln, conns: make(chan net.Conn, 10)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			b.conns <- nc
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	f := newFixture(t, func(c *Config) {
		c.Upstream = ln.Addr().String()
		for _, change := range configure {
			change(c)
		}
	})
	f.createTopic("orders", 2, nil)
	return f, b
}

// next is the proxy's next connection.
func (b *handBroker) next() net.Conn {
	b.t.Helper()
	select {
	case nc := <-b.conns:
		b.t.Cleanup(func() { nc.Close() })
		nc.SetDeadline(time.Now().Add(patience))
		return nc
	case <-time.After(patience):
		b.t.Fatal("the proxy does not connect")
		return nil
	}
}

// asked reads a request and returns its correlation id.
func (b *handBroker) asked(nc net.Conn) uint32 {
	b.t.Helper()
	frame, err := kafkawire.ReadResponseFrame(nc, 1<<20) // the same length prefix
	if err != nil {
		b.t.Fatalf("read a request: %v", err)
	}
	return binary.BigEndian.Uint32(frame[4:])
}

// fetchAnswer is the frame of an answer with random records of one partition.
func fetchAnswer(version int16, corr uint32, records int) (frame []byte, resp *kmsg.FetchResponse) {
	resp = kmsg.NewPtrFetchResponse()
	resp.Version, resp.ThrottleMillis = version, 4
	p := kmsg.NewFetchResponseTopicPartition()
	p.HighWatermark, p.LastStableOffset, p.LogStartOffset, p.PreferredReadReplica = 90, 90, 0, 0
	p.RecordBatches = make([]byte, records)
	_, _ = rand.Read(p.RecordBatches)
	ft := kmsg.NewFetchResponseTopic()
	ft.Topic, ft.Partitions = "orders", []kmsg.FetchResponseTopicPartition{p}
	resp.Topics = []kmsg.FetchResponseTopic{ft}
	return kafkawire.AppendResponse(nil, int16(kmsg.Fetch), version, int32(corr), resp), resp
}

func oneFetch(version int16) *kmsg.FetchRequest {
	req := fetchOf(longPoll, fetchPart{name: "orders"})
	req.SetVersion(version)
	return req
}

// TestFetchIsPassedOnWhileItComes: the client has the first half of an answer
// before the broker has written the second, in every version, and what it has in
// the end is the broker's answer but for what is patched.
func TestFetchIsPassedOnWhileItComes(t *testing.T) {
	f, b := newHandFixture(t)
	c := f.dial()
	var up net.Conn
	for version := int16(4); version <= 12; version++ {
		corr := c.send(oneFetch(version))
		if up == nil {
			up = b.next()
		}
		frame, want := fetchAnswer(version, b.asked(up), 3<<20)
		half := len(frame) / 2
		if _, err := up.Write(frame[:half]); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(frame))
		if _, err := io.ReadFull(c.nc, got[:half]); err != nil {
			t.Fatalf("v%d: the first half: %v", version, err)
		}
		if _, err := up.Write(frame[half:]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c.nc, got[half:]); err != nil {
			t.Fatalf("v%d: the second half: %v", version, err)
		}
		want.Topics[0].Partitions[0].PreferredReadReplica = -1
		if !bytes.Equal(got, kafkawire.AppendResponse(nil, int16(kmsg.Fetch), version, corr, want)) {
			t.Errorf("v%d: the answer is another", version)
		}
		c.alive() // and so is the connection
	}
	// The next answer on the same two connections, small and with an error.
	req := oneFetch(11)
	corr := c.send(req)
	_, small := fetchAnswer(11, b.asked(up), 10)
	small.Topics[0].Partitions[0].ErrorCode = kerr.KafkaStorageError.Code
	if _, err := up.Write(kafkawire.AppendResponse(nil, int16(kmsg.Fetch), 11, 9, small)); err != nil {
		t.Fatal(err)
	}
	if p := receive[*kmsg.FetchResponse](c, corr, req).Topics[0].Partitions[0]; p.ErrorCode == 0 {
		t.Errorf("%+v", p)
	}
}

// TestFetchCutOffWhilePassedOn: half a frame has nothing behind it, and only
// that client notices.
func TestFetchCutOffWhilePassedOn(t *testing.T) {
	f, b := newHandFixture(t)
	c, other := f.dial(), f.dial()
	other.alive()
	c.send(oneFetch(12))
	up := b.next()
	frame, _ := fetchAnswer(12, b.asked(up), 1<<20)
	c.send(kmsg.NewPtrApiVersionsRequest()) // its answer must not be taken for records
	if _, err := up.Write(frame[:300<<10]); err != nil {
		t.Fatal(err)
	}
	up.Close()
	got, err := io.ReadAll(c.nc)
	if isTimeout(err) || len(got) > 300<<10 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	other.alive()
	eventually(t, "the connection to be forgotten", func() bool { return len(f.srv.snapshot()) == 1 })
}

// TestRequestWhilePassedOn: an answer that is passed on keeps its own time when
// the client asks for more meanwhile.
func TestRequestWhilePassedOn(t *testing.T) {
	f, b := newHandFixture(t, func(c *Config) { c.Limits.UpstreamTimeout = 100 * time.Millisecond })
	c := f.dial()
	req := fetchOf(0, fetchPart{name: "orders"})
	req.SetVersion(12)
	first := c.send(req)
	up := b.next()
	frame, _ := fetchAnswer(12, b.asked(up), 1<<20)
	half := len(frame) / 2
	if _, err := up.Write(frame[:half]); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(frame))
	if _, err := io.ReadFull(c.nc, got[:half]); err != nil {
		t.Fatal(err)
	}
	second := c.send(req)
	two := b.asked(up)
	<-time.After(3 * 100 * time.Millisecond) // longer than the second may take, less than a piece of the first
	if _, err := up.Write(frame[half:]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c.nc, got[half:]); err != nil {
		t.Fatalf("the second half, of request %d: %v", first, err)
	}
	small, want := fetchAnswer(12, two, 10)
	if _, err := up.Write(small); err != nil {
		t.Fatal(err)
	}
	resp := receive[*kmsg.FetchResponse](c, second, req)
	if !bytes.Equal(resp.Topics[0].Partitions[0].RecordBatches, want.Topics[0].Partitions[0].RecordBatches) {
		t.Error("the second answer is another")
	}
}

// TestClientGoneWhilePassedOn: the broker's connection ends with the client's.
func TestClientGoneWhilePassedOn(t *testing.T) {
	f, b := newHandFixture(t)
	c := f.dial()
	c.send(oneFetch(12))
	up := b.next()
	frame, _ := fetchAnswer(12, b.asked(up), 32<<20)
	go func() { _, _ = up.Write(frame) }()
	if _, err := io.ReadFull(c.nc, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	c.nc.Close()
	eventually(t, "the connection to be forgotten", func() bool { return len(f.srv.snapshot()) == 0 })
}

// TestClientThatDoesNotRead is not waited for, and the log says who it was.
func TestClientThatDoesNotRead(t *testing.T) {
	f, b := newHandFixture(t, func(c *Config) { c.Limits.WriteTimeout = 100 * time.Millisecond })
	c := f.dial()
	c.send(oneFetch(12))
	up := b.next()
	frame, _ := fetchAnswer(12, b.asked(up), 32<<20)
	if _, err := up.Write(frame); err == nil {
		t.Error("all of the answer was taken")
	}
	eventually(t, "the log to say so", func() bool { return len(f.log.lines("client does not read its responses")) == 1 })
}

// TestFetchBehindAnUnfinishedRequest: an answer whose turn has not come is read
// to its end and held: what is before it waits for a later answer on the same
// connection.
func TestFetchBehindAnUnfinishedRequest(t *testing.T) {
	f, b := newHandFixture(t)
	c := f.dial()
	req := oneFetch(12)
	first, second := c.send(req), c.send(req)
	up := b.next()
	one, two := b.asked(up), b.asked(up)
	_, gone := fetchAnswer(12, one, 1)
	gone.Topics[0].Partitions[0].ErrorCode = kerr.OffsetOutOfRange.Code
	if _, err := up.Write(kafkawire.AppendResponse(nil, int16(kmsg.Fetch), 12, int32(one), gone)); err != nil {
		t.Fatal(err)
	}
	three := b.asked(up)                         // where the log starts
	frame, want := fetchAnswer(12, two, 100<<10) // held, and a little room left
	start := kmsg.NewPtrListOffsetsResponse()
	start.Version = 1
	part := kmsg.NewListOffsetsResponseTopicPartition()
	part.Offset = 50
	start.Topics = []kmsg.ListOffsetsResponseTopic{{Topic: "orders", Partitions: []kmsg.ListOffsetsResponseTopicPartition{part}}}
	if _, err := up.Write(kafkawire.AppendResponse(frame, int16(kmsg.ListOffsets), 1, int32(three), start)); err != nil {
		t.Fatal(err)
	}
	if p := receive[*kmsg.FetchResponse](c, first, req).Topics[0].Partitions[0]; p.ErrorCode != kerr.OffsetOutOfRange.Code {
		t.Errorf("code %d", p.ErrorCode)
	}
	got := receive[*kmsg.FetchResponse](c, second, req)
	if !bytes.Equal(got.Topics[0].Partitions[0].RecordBatches, want.Topics[0].Partitions[0].RecordBatches) {
		t.Error("the records are others")
	}
	eventually(t, "nothing to be held", func() bool { return f.srv.responses.inUse() == 0 })
}

// TestStreamOfAnotherRequest: an answer that is not to the oldest request is
// not passed on.
func TestStreamOfAnotherRequest(t *testing.T) {
	f, b := newHandFixture(t)
	c := f.dial()
	req := oneFetch(12)
	corr := c.send(req)
	up := b.next()
	frame, _ := fetchAnswer(12, b.asked(up)+1, 200<<10)
	if _, err := up.Write(frame); err != nil {
		t.Fatal(err)
	}
	if p := receive[*kmsg.FetchResponse](c, corr, req).Topics[0].Partitions[0]; p.ErrorCode != kerr.NotLeaderForPartition.Code || len(p.RecordBatches) != 0 {
		t.Errorf("code %d, %d bytes", p.ErrorCode, len(p.RecordBatches))
	}
}

// BenchmarkFetchThrough has a client read answers of 1 MiB through a proxy: all
// of one partition, passed on while they come; and the same where two are asked
// for, which are read first. CPU is that of client, proxy and broker together.
func BenchmarkFetchThrough(b *testing.B) {
	for _, c := range []struct {
		name string
		req  *kmsg.FetchRequest
	}{
		{"passed-on", fetchOf(0, fetchPart{name: "orders"})},
		{"whole", fetchOf(0, fetchPart{name: "orders"}, fetchPart{name: "orders", partition: 1})},
	} {
		b.Run(c.name, func(b *testing.B) {
			nc := benchFetch(b)
			id := "bench"
			ask := kafkawire.AppendRequest(nil, kafkawire.RequestHeader{ClientID: &id}, c.req)
			buf := make([]byte, 128<<10)
			var before, after syscall.Rusage
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			for b.Loop() {
				if _, err := nc.Write(ask); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(nc, buf[:4]); err != nil {
					b.Fatal(err)
				}
				for n := int(binary.BigEndian.Uint32(buf)); n > 0; {
					got, err := nc.Read(buf[:min(n, len(buf))])
					if n -= got; err != nil {
						b.Fatal(err)
					}
				}
			}
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			b.SetBytes(1 << 20)
			cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(cpu)/float64(b.N)/1e3, "cpu-µs/op")
		})
	}
}

// benchFetch is a client's connection to a proxy whose broker answers every
// request with 1 MiB.
func benchFetch(b *testing.B) net.Conn {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		frame, _ := fetchAnswer(12, 0, 1<<20)
		for {
			asked, err := kafkawire.ReadResponseFrame(nc, 1<<20)
			if err != nil {
				return
			}
			copy(frame[4:8], asked[4:8])
			if _, err := nc.Write(frame); err != nil {
				return
			}
		}
	}()
	cluster := newFakeCluster(ln.Addr().String())
	srv, err := New(Config{Listeners: []Listener{{Name: testListener, Addr: "127.0.0.1:0"}}, Upstream: ln.Addr().String(), Logger: hclog.NewNullLogger()}, cluster, nil)
	if err != nil {
		b.Fatal(err)
	}
	if err := srv.Listen(); err != nil {
		b.Fatal(err)
	}
	cluster.setEndpoint(srv.Addrs()[0].String())
	cluster.update(func(v *View) {
		v.Topics["orders"] = &Topic{ID: 1, Name: "orders", Partitions: []Partition{{Leader: 1}, {Leader: 1}}}
	})
	go func() { _ = srv.Serve() }()
	b.Cleanup(func() { srv.Close() })
	nc, err := net.Dial("tcp", srv.Addrs()[0].String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { nc.Close() })
	return nc
}
