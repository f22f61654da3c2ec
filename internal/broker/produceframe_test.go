package broker

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// kmsgFrame is the frame of the same request as kmsg has it.
func kmsgFrame(version int16, clientID string, corr int32, batch []pending) []byte {
	req := kmsg.NewPtrProduceRequest()
	req.Version = version
	req.Acks = -1
	req.TimeoutMillis = int32(produceTimeout / time.Millisecond)
	for i := range batch {
		p := &batch[i]
		if n := len(req.Topics); n == 0 || req.Topics[n-1].Topic != p.tp.topic {
			t := kmsg.NewProduceRequestTopic()
			t.Topic = p.tp.topic
			req.Topics = append(req.Topics, t)
		}
		part := kmsg.NewProduceRequestTopicPartition()
		part.Partition = p.tp.partition
		part.Records = append(bytes.Clone(p.head[:]), p.body...)
		t := &req.Topics[len(req.Topics)-1]
		t.Partitions = append(t.Partitions, part)
	}
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID(clientID)).AppendRequest(nil, req, corr)
}

// randomPending is what a session may take for one request: sizes around those
// at which lengths get longer and bodies are no longer copied.
func randomPending(rng *rand.Rand, n int) []pending {
	sizes := []int{0, 1, 65, 66, 67, 127, 128, inlineBody - 1, inlineBody, inlineBody + 1, 16<<10 - 61, 40000}
	batch := make([]pending, n)
	for i := range batch {
		p := &batch[i]
		p.tp = topicPartition{fmt.Sprintf("topic-%0*d", 1+rng.IntN(140), rng.IntN(3)), int32(i)}
		p.body = make([]byte, sizes[rng.IntN(len(sizes))])
		for _, b := range [][]byte{p.head[:], p.body} {
			for j := range b {
				b[j] = byte(rng.Uint32())
			}
		}
	}
	byTopic(batch)
	return batch
}

func checkFrame(t *testing.T, f *produceFrame, version int16, corr int32, batch []pending) {
	t.Helper()
	f.encode(version, "a client", corr, batch)
	var got bytes.Buffer
	if err := f.writeTo(&got); err != nil {
		t.Fatal(err)
	}
	if want := kmsgFrame(version, "a client", corr, batch); !bytes.Equal(got.Bytes(), want) {
		t.Fatalf("v%d, %d batches: %d bytes, kmsg has %d", version, len(batch), got.Len(), len(want))
	}
}

// TestProduceFrame has one frame used for every request, as a session has.
func TestProduceFrame(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var f produceFrame
	for version := int16(minProduceVersion); version <= maxProduceVersion; version++ {
		for _, n := range []int{1, 2, 3, 126, 127, 128, 129, 300} {
			checkFrame(t, &f, version, rng.Int32(), randomPending(rng, n))
		}
		many := make([]pending, 200) // topics
		for i := range many {
			many[i].tp.topic = fmt.Sprint("t", i)
		}
		byTopic(many)
		checkFrame(t, &f, version, 1, many)
	}
}

// TestProduceFrameLetsGo looks for what keeps committed entries alive.
func TestProduceFrameLetsGo(t *testing.T) {
	var f produceFrame
	f.encode(maxProduceVersion, "", 1, []pending{{body: make([]byte, inlineBody+1)}, {body: make([]byte, keptBuffer)}})
	if err := f.writeTo(io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, b := range f.bodies[:cap(f.bodies)] {
		if b.bytes != nil {
			t.Error("a body is still held")
		}
	}
	for _, b := range f.pieces[:cap(f.pieces)] {
		if b != nil {
			t.Error("a piece is still held")
		}
	}
	small := make([]pending, 2*keptBuffer/inlineBody)
	for i := range small {
		small[i].body = make([]byte, inlineBody)
	}
	f.encode(maxProduceVersion, "", 1, small)
	if err := f.writeTo(io.Discard); err != nil || f.own != nil {
		t.Errorf("%d bytes are kept, %v", cap(f.own), err)
	}
}

func FuzzProduceFrame(f *testing.F) {
	f.Add(uint64(1), 3, int16(9))
	f.Add(uint64(2), 200, int16(3))
	f.Fuzz(func(t *testing.T, seed uint64, n int, version int16) {
		n = int(uint(n) % 200)
		version = minProduceVersion + int16(uint16(version)%(maxProduceVersion-minProduceVersion+1))
		var frame produceFrame
		checkFrame(t, &frame, version, int32(seed), randomPending(rand.New(rand.NewPCG(seed, 1)), n+1))
	})
}

// BenchmarkProduceFrame writes requests to a socket: as kmsg puts them together
// from batches that were copied to be stamped, and as a session does it.
func BenchmarkProduceFrame(b *testing.B) {
	for _, c := range []struct{ partitions, bytes int }{{1, 1 << 10}, {1, 256 << 10}, {48, 1 << 10}, {48, 4 << 10}, {48, 16 << 10}} {
		batch := make([]pending, c.partitions)
		for i := range batch {
			batch[i] = pending{tp: topicPartition{"topic", int32(i)}, body: make([]byte, c.bytes)}
		}
		name := fmt.Sprintf("%dx%d", c.partitions, c.bytes)
		w := sink(b)
		b.Run(name+"/kmsg", func(b *testing.B) {
			b.ReportAllocs()
			var buf []byte
			format := kmsg.NewRequestFormatter(kmsg.FormatterClientID("c"))
			for b.Loop() {
				req := kmsg.NewPtrProduceRequest()
				req.Version = maxProduceVersion
				req.Topics = []kmsg.ProduceRequestTopic{{Topic: "topic"}}
				for i := range batch {
					part := kmsg.NewProduceRequestTopicPartition()
					part.Records = append(append(make([]byte, 0, batch[i].size()), batch[i].head[:]...), batch[i].body...)
					req.Topics[0].Partitions = append(req.Topics[0].Partitions, part)
				}
				buf = format.AppendRequest(buf[:0], req, 1)
				if _, err := w.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/frame", func(b *testing.B) {
			b.ReportAllocs()
			var f produceFrame
			for b.Loop() {
				f.encode(maxProduceVersion, "c", 1, batch)
				if err := f.writeTo(w); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// sink is a connection whose other end throws away what comes.
func sink(b *testing.B) net.Conn {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		buf := make([]byte, 1<<20)
		for err == nil {
			_, err = nc.Read(buf)
		}
		_ = nc.Close()
	}()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = nc.Close(); _ = ln.Close(); <-done })
	return nc
}
