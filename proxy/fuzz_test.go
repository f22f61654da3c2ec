package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// fuzzCluster keeps its one topic whatever is asked.
type fuzzCluster struct{ *fakeCluster }

func (fuzzCluster) CreateTopic(context.Context, TopicSpec) error {
	return &KafkaError{Code: kerr.PolicyViolation.Code, Message: "no"}
}
func (fuzzCluster) DeleteTopic(context.Context, string) error             { return context.Canceled }
func (fuzzCluster) CreatePartitions(context.Context, string, int32) error { return nil }

func (fuzzCluster) EndOffset(context.Context, *Topic, int32, bool) (int64, error) { return 5, nil }

// fuzzProducer checks what it is given and acknowledges.
type fuzzProducer struct {
	mu  sync.Mutex
	bad []byte // the first batch that should not have come here
}

func (p *fuzzProducer) Append(topic *Topic, partition int32, batch []byte, deadline time.Time, done func(AppendResult)) {
	checked, refusal := kafkawire.CheckProduce(batch, kafkawire.Limits{MaxBatchBytes: defaultMaxMessageBytes})
	if refusal != nil || len(checked) != len(batch) || topic.Name != "orders" || partition != 0 {
		p.mu.Lock()
		if p.bad == nil {
			p.bad = bytes.Clone(batch)
		}
		p.mu.Unlock()
	}
	go done(AppendResult{BaseOffset: 1, LogStartOffset: 0})
}

// fuzzBroker answers every request with an empty message, or with answer if it
// is set. kfake is not used: hostile requests can bring it down.
type fuzzBroker struct {
	ln net.Listener

	mu     sync.Mutex
	answer []byte
}

func (b *fuzzBroker) serve() {
	for {
		nc, err := b.ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer nc.Close()
			for {
				frame, err := kafkawire.ReadFrame(nc, kafkawire.MaxFrameSize)
				if err != nil {
					return
				}
				h, _, err := kafkawire.ParseRequestHeader(frame)
				if err != nil {
					return
				}
				b.mu.Lock()
				answer := b.answer
				b.mu.Unlock()
				out := kafkawire.AppendResponse(nil, h.Key, h.Version, h.CorrelationID, kmsg.ResponseForKey(h.Key))
				if answer != nil {
					out = kafkawire.AppendFrameSize(nil, 4+len(answer))
					out = binary.BigEndian.AppendUint32(out, uint32(h.CorrelationID))
					out = append(out, answer...)
				}
				if _, err := nc.Write(out); err != nil {
					return
				}
			}
		}()
	}
}

type fuzzFixture struct {
	*fixture
	broker   *fuzzBroker
	producer *fuzzProducer
}

func newFuzzFixture(f *testing.F) *fuzzFixture {
	f.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { ln.Close() })
	broker := &fuzzBroker{ln: ln}
	go broker.serve()
	fx := &fuzzFixture{fixture: &fixture{log: &logBuffer{}, cluster: newFakeCluster(ln.Addr().String())}, broker: broker, producer: &fuzzProducer{}}
	fx.cluster.update(func(v *View) {
		v.Topics["orders"] = &Topic{ID: 1, Name: "orders", Partitions: []Partition{{Leader: 1, Replicas: []int32{1, 2, 3}}}}
	})
	srv, err := New(Config{
		Listeners: []Listener{{Name: testListener, Addr: "127.0.0.1:0"}},
		Upstream:  ln.Addr().String(),
		Topics:    Topics{AutoCreate: true},
		Limits:    Limits{PartialRequestTimeout: time.Second, UpstreamTimeout: time.Second},
		Logger:    hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: fx.log}),
	}, fuzzCluster{fx.cluster}, fx.producer)
	if err != nil {
		f.Fatal(err)
	}
	if err := srv.Listen(); err != nil {
		f.Fatal(err)
	}
	go func() { _ = srv.Serve() }()
	f.Cleanup(func() { _ = srv.Close() })
	fx.srv, fx.addr = srv, srv.Addrs()[0].String()
	return fx
}

// exchange sends bytes on a connection of their own, reads until the answer with
// the correlation id last (0: none is awaited) or until the proxy closes, and
// waits until the connection is gone.
func (fx *fuzzFixture) exchange(t *testing.T, data []byte, last uint32) {
	t.Helper()
	nc, err := net.Dial("tcp", fx.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	if _, err := nc.Write(data); err != nil && isTimeout(err) {
		t.Fatal("the proxy does not read")
	}
	for last != 0 {
		frame, err := kafkawire.ReadResponseFrame(nc, kafkawire.MaxFrameSize)
		if isTimeout(err) {
			t.Fatal("no answer, and the connection is open")
		}
		if err != nil || binary.BigEndian.Uint32(frame) == last {
			break
		}
	}
	nc.(*net.TCPConn).CloseWrite()
	if _, err := io.Copy(io.Discard, nc); isTimeout(err) {
		t.Fatal("the connection hangs")
	}
	nc.Close()
	eventually(t, "the connection to end", func() bool { return len(fx.srv.snapshot()) == 0 })
	if got := fx.log.lines(); len(got) != 0 {
		t.Fatalf("the log has errors: %q", got)
	}
	fx.producer.mu.Lock()
	defer fx.producer.mu.Unlock()
	if fx.producer.bad != nil {
		t.Fatalf("a batch that does not pass the checks was appended: %x", fx.producer.bad)
	}
	if used := fx.srv.responses.inUse(); used != 0 {
		t.Fatalf("%d bytes of the response budget are lost", used)
	}
}

// fillRequest sets the exported fields of a kmsg struct to what names the one
// topic and one group where a field names any. name is the field's.
func fillRequest(rng *rand.Rand, v reflect.Value, name string) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.Type().Elem().Kind() != reflect.Struct && rng.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fillRequest(rng, v.Elem(), name)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			field := v.Type().Field(i).Name
			if field != "Version" && field != "UnknownTags" && v.Field(i).CanSet() {
				fillRequest(rng, v.Field(i), field)
			}
		}
	case reflect.Slice:
		if name == "Records" {
			v.SetBytes(batchOf("a", "b"))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1+rng.IntN(2), 2))
		for i := range v.Len() {
			fillRequest(rng, v.Index(i), name)
		}
	case reflect.String:
		text, ok := map[string]string{"Topic": "orders", "Topics": "orders", "TopicNames": "orders", "ResourceName": "orders",
			"Group": "g", "Groups": "g", "CoordinatorKey": "g", "CoordinatorKeys": "g", "ProtocolType": "consumer"}[name]
		if !ok {
			text = [...]string{"", "retention.ms", "1", "m"}[rng.IntN(4)]
		}
		v.SetString(text)
	case reflect.Bool:
		v.SetBool(rng.IntN(2) == 0)
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt([...]int64{0, 1, -1, 2}[rng.IntN(4)])
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		v.SetUint(uint64(rng.Uint32N(2)))
	}
}

// FuzzRouter sends arbitrary bytes as one frame of an API and version, followed
// by a request that is good. Nothing panics, nothing hangs, and nothing is
// appended that does not pass CheckProduce.
func FuzzRouter(f *testing.F) {
	fx := newFuzzFixture(f)
	rng := rand.New(rand.NewPCG(1, 2))
	for _, api := range kafkawire.Served() {
		for version := api.Min; version <= api.Max; version++ {
			req := kmsg.RequestForKey(api.Key)
			req.SetVersion(version)
			f.Add(frameOf(req)[4:])
			for range 2 {
				fillRequest(rng, reflect.ValueOf(req).Elem(), "")
				f.Add(frameOf(req)[4:])
			}
		}
	}
	f.Add(frameOf(produceTo("orders", 0, batchOf("a", "b")))[4:])
	f.Add(frameOf(fetchOf(0, fetchPart{name: "orders"}))[4:])
	f.Add(frameOf(listOffsetsOf("orders", 0, -1))[4:])
	f.Add(frameOf(metadataOf(true, "orders", "new"))[4:])
	f.Add(frameOf(newTopicOf("new", 1, 1, setting("retention.ms", "1"), assignment(0, 1)))[4:])
	for _, row := range groupRequests("g") {
		f.Add(frameOf(row.req)[4:])
	}
	const last = 0x7ffffffe
	good := kafkawire.AppendRequest(nil, kafkawire.RequestHeader{CorrelationID: last}, kmsg.NewPtrApiVersionsRequest())
	f.Fuzz(func(t *testing.T, body []byte) {
		frame := append(kafkawire.AppendFrameSize(nil, len(body)), body...)
		fx.exchange(t, append(frame, good...), last)
	})
}

// FuzzStream sends arbitrary bytes as they are.
func FuzzStream(f *testing.F) {
	fx := newFuzzFixture(f)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{0x16, 3, 1, 2, 0})
	two := frameOf(kmsg.NewPtrApiVersionsRequest())
	f.Add(append(two, frameOf(produceTo("orders", 0, batchOf("a")))...))
	f.Fuzz(func(t *testing.T, data []byte) { fx.exchange(t, data, 0) })
}

// FuzzBrokerAnswer lets the broker answer arbitrary bytes to a request of every
// kind that reads the answer. Clients get an answer or a closed connection.
func FuzzBrokerAnswer(f *testing.F) {
	fx := newFuzzFixture(f)
	requests := []kmsg.Request{
		fetchOf(0, fetchPart{name: "orders"}),
		fetchOf(0, fetchPart{name: "orders"}, fetchPart{name: "nowhere"}),
		listOffsetsOf("orders", 0, -1),
		groupRequests("g")[kmsg.OffsetCommit].req,
		groupRequests("g")[kmsg.OffsetFetch].req,
		groupRequests("g")[kmsg.DescribeGroups].req,
		groupRequests("g")[kmsg.JoinGroup].req,
		kmsg.NewPtrListGroupsRequest(),
		func() kmsg.Request {
			req := kmsg.NewPtrDescribeConfigsRequest()
			res := kmsg.NewDescribeConfigsRequestResource()
			res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeBroker, "1"
			req.Resources = append(req.Resources, res)
			return req
		}(),
		func() kmsg.Request { return alterOf(setOp("orders", "retention.ms", "1")) }(),
	}
	for i, req := range requests {
		api, ok := kafkawire.Lookup(req.Key())
		if !ok {
			f.Fatalf("%s is not served", kmsg.NameForKey(req.Key()))
		}
		for version := api.Min; version <= api.Max; version++ {
			resp := req.ResponseKind()
			resp.SetVersion(version)
			if fr, ok := resp.(*kmsg.FetchResponse); ok {
				ft := kmsg.NewFetchResponseTopic()
				ft.Topic = "orders"
				fp := kmsg.NewFetchResponseTopicPartition()
				fp.ErrorCode = kerr.OffsetOutOfRange.Code
				ft.Partitions = append(ft.Partitions, fp)
				fr.Topics = append(fr.Topics, ft)
			}
			answer := kafkawire.AppendResponse(nil, req.Key(), version, 0, resp)[8:]
			f.Add(uint8(i), uint8(version), answer)
		}
	}
	f.Fuzz(func(t *testing.T, which, version uint8, answer []byte) {
		req := requests[int(which)%len(requests)]
		api, _ := kafkawire.Lookup(req.Key())
		req.SetVersion(api.Min + int16(version)%(api.Max-api.Min+1))
		fx.broker.mu.Lock()
		fx.broker.answer = append([]byte{}, answer...)
		fx.broker.mu.Unlock()
		fx.exchange(t, frameOf(req), 7)
	})
}
