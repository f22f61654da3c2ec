package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"lockstep/kafkawire"
)

// patience bounds every wait of the tests; nothing is expected to take it.
const patience = 20 * time.Second

const testListener = "PLAINTEXT"

// fixture is a proxy in front of one kfake broker, as node 1 of a cluster of three
// whose other nodes are only names.
type fixture struct {
	t        *testing.T
	srv      *Server
	addr     string
	broker   *kfake.Cluster
	upstream string
	cluster  *fakeCluster
	producer *fakeProducer
	log      *logBuffer
}

// newFixture starts a proxy. configure may change the configuration first.
func newFixture(t *testing.T, configure func(*Config)) *fixture {
	t.Helper()
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.MaxVersions(kversion.V4_0_0()))
	if err != nil {
		t.Fatalf("start kfake: %v", err)
	}
	t.Cleanup(broker.Close)
	f := &fixture{t: t, broker: broker, upstream: broker.ListenAddrs()[0], log: &logBuffer{}}
	f.cluster = newFakeCluster(f.upstream)
	f.producer = newFakeProducer(t, f.upstream)
	t.Cleanup(f.producer.close)
	cfg := Config{
		Listeners: []Listener{{Name: testListener, Addr: "127.0.0.1:0"}},
		Upstream:  f.upstream,
		Topics:    Topics{AutoCreate: true, NumPartitions: 2},
		Logger:    hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: f.log}),
	}
	if configure != nil {
		configure(&cfg)
	}
	f.start(cfg)
	return f
}

func (f *fixture) start(cfg Config) {
	f.t.Helper()
	srv, err := New(cfg, f.cluster, f.producer)
	if err != nil {
		f.t.Fatalf("new: %v", err)
	}
	if err := srv.Listen(); err != nil {
		f.t.Fatalf("listen: %v", err)
	}
	f.srv, f.addr = srv, srv.Addrs()[0].String()
	f.cluster.setEndpoint(f.addr)
	served := make(chan error, 1)
	go func() { served <- srv.Serve() }()
	f.t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			f.t.Errorf("close: %v", err)
		}
		if err := <-served; err != ErrServerClosed {
			f.t.Errorf("serve returned %v, want ErrServerClosed", err)
		}
	})
}

// createTopic makes a topic in the catalog and on the broker.
func (f *fixture) createTopic(name string, partitions int32, config map[string]string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f.cluster.CreateTopic(ctx, TopicSpec{Name: name, Partitions: partitions, Config: config}); err != nil {
		f.t.Fatalf("create topic %s: %v", name, err)
	}
}

// logBuffer captures the log.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// lines returns the captured lines that contain all of the words.
func (l *logBuffer) lines(words ...string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
next:
	for line := range strings.SplitSeq(l.buf.String(), "\n") {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		if line != "" {
			found = append(found, line)
		}
	}
	return found
}

// fakeCluster is a catalog that lives in memory, with three nodes of which
// node 1 leads everything until a test says otherwise.
type fakeCluster struct {
	upstream string

	mu      sync.Mutex
	view    *View
	changed chan struct{}
	nextID  uint64
	nextPID int64
	ends    map[partitionKey]int64 // EndOffset; what is missing is asked of the broker
	verify  func(partitionKey) (int64, error)
	create  func(TopicSpec) error // before a topic is created
}

func newFakeCluster(upstream string) *fakeCluster {
	v := &View{ClusterID: "test-cluster", Self: 1, Controller: 1, CatalogReady: true, Topics: map[string]*Topic{}, Coordinators: []int32{1}}
	for id := int32(1); id <= 3; id++ {
		v.Nodes = append(v.Nodes, Node{ID: id, Rack: fmt.Sprint("r", id), Alive: id == 1,
			Listeners: map[string]Endpoint{testListener: {Host: "127.0.0.1", Port: 1}}})
	}
	return &fakeCluster{upstream: upstream, view: v, changed: make(chan struct{}), nextPID: 1 << 40, ends: map[partitionKey]int64{}}
}

func (c *fakeCluster) setEndpoint(addr string) {
	host, port := splitAddr(addr)
	c.update(func(v *View) { v.Nodes[0].Listeners = map[string]Endpoint{testListener: {Host: host, Port: port}} })
}

func splitAddr(addr string) (string, int32) {
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		panic(err)
	}
	return a.IP.String(), int32(a.Port)
}

// update publishes a changed copy of the view.
func (c *fakeCluster) update(change func(*View)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := *c.view
	v.Nodes = slices.Clone(v.Nodes)
	v.Topics = maps.Clone(v.Topics)
	v.Coordinators = slices.Clone(v.Coordinators)
	change(&v)
	c.view = &v
	close(c.changed)
	c.changed = make(chan struct{})
}

// setLeader moves a partition.
func (c *fakeCluster) setLeader(topic string, partition, leader int32) {
	c.update(func(v *View) {
		t := *v.Topics[topic]
		t.Partitions = slices.Clone(t.Partitions)
		t.Partitions[partition].Leader = leader
		v.Topics[topic] = &t
	})
}

func (c *fakeCluster) View() *View {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view
}

func (c *fakeCluster) Changed() (*View, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view, c.changed
}

func (c *fakeCluster) CreateTopic(ctx context.Context, spec TopicSpec) error {
	c.mu.Lock()
	create, exists := c.create, c.view.Topics[spec.Name] != nil
	c.mu.Unlock()
	if create != nil {
		if err := create(spec); err != nil {
			return err
		}
	}
	if exists {
		return &KafkaError{Code: kerr.TopicAlreadyExists.Code, Message: "exists"}
	}
	req := kmsg.NewPtrCreateTopicsRequest()
	req.SetVersion(5)
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = spec.Name, spec.Partitions, 1
	req.Topics = append(req.Topics, t)
	resp, err := roundTrip[*kmsg.CreateTopicsResponse](c.upstream, req)
	if err != nil {
		return err
	}
	if code := resp.Topics[0].ErrorCode; code != 0 {
		return kerr.ErrorForCode(code)
	}
	c.update(func(v *View) {
		c.nextID++
		nt := &Topic{ID: c.nextID, Name: spec.Name, Config: spec.Config}
		for range spec.Partitions {
			nt.Partitions = append(nt.Partitions, Partition{Leader: 1, Replicas: []int32{1, 2, 3}, ISR: []int32{1, 2, 3}})
		}
		v.Topics[spec.Name] = nt
	})
	return nil
}

func (c *fakeCluster) DeleteTopic(ctx context.Context, name string) error {
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.SetVersion(5)
	req.TopicNames = []string{name}
	if _, err := roundTrip[*kmsg.DeleteTopicsResponse](c.upstream, req); err != nil {
		return err
	}
	c.update(func(v *View) { delete(v.Topics, name) })
	return nil
}

func (c *fakeCluster) CreatePartitions(ctx context.Context, name string, total int32) error {
	req := kmsg.NewPtrCreatePartitionsRequest()
	req.SetVersion(1)
	t := kmsg.NewCreatePartitionsRequestTopic()
	t.Topic, t.Count = name, total
	req.Topics = append(req.Topics, t)
	if _, err := roundTrip[*kmsg.CreatePartitionsResponse](c.upstream, req); err != nil {
		return err
	}
	c.update(func(v *View) {
		t := *v.Topics[name]
		t.Partitions = slices.Clone(t.Partitions)
		for int32(len(t.Partitions)) < total {
			t.Partitions = append(t.Partitions, Partition{Leader: 1, Replicas: []int32{1, 2, 3}, ISR: []int32{1, 2, 3}})
		}
		v.Topics[name] = &t
	})
	return nil
}

func (c *fakeCluster) ProducerID(context.Context) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextPID++
	return c.nextPID, nil
}

func (c *fakeCluster) EndOffset(ctx context.Context, topic *Topic, partition int32, verify bool) (int64, error) {
	key := partitionKey{topic.Name, partition}
	c.mu.Lock()
	end, ok := c.ends[key]
	confirm := c.verify
	c.mu.Unlock()
	if verify && confirm != nil {
		return confirm(key)
	}
	if ok {
		return end, nil
	}
	return listOffset(c.upstream, topic.Name, partition, -1)
}

// fakeProducer appends to the broker directly, one batch after the other, and
// reports each outcome from its own goroutine.
type fakeProducer struct {
	upstream string

	mu      sync.Mutex
	jobs    []appendJob
	wake    chan struct{}
	stopped chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
	calls   []appendCall
	// hold, if set, takes the completion instead of its being called.
	hold func(call appendCall, complete func())
}

type appendCall struct {
	topic     string
	partition int32
	batch     []byte
}

type appendJob struct {
	appendCall
	done func(AppendResult)
}

func newFakeProducer(t *testing.T, upstream string) *fakeProducer {
	p := &fakeProducer{upstream: upstream, wake: make(chan struct{}, 1), stopped: make(chan struct{})}
	p.wg.Go(p.run)
	return p
}

func (p *fakeProducer) close() {
	p.once.Do(func() { close(p.stopped) })
	p.wg.Wait()
}

func (p *fakeProducer) Append(topic *Topic, partition int32, batch []byte, deadline time.Time, done func(AppendResult)) {
	call := appendCall{topic.Name, partition, batch}
	p.mu.Lock()
	p.calls = append(p.calls, call)
	p.jobs = append(p.jobs, appendJob{call, done})
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// appended returns how often Append was called.
func (p *fakeProducer) appended() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.calls)
}

func (p *fakeProducer) run() {
	for {
		p.mu.Lock()
		var job appendJob
		if len(p.jobs) > 0 {
			job = p.jobs[0]
			p.jobs = p.jobs[1:]
		}
		hold := p.hold
		p.mu.Unlock()
		if job.done == nil {
			select {
			case <-p.wake:
				continue
			case <-p.stopped:
				return
			}
		}
		res := p.append(job.appendCall)
		complete := func() { job.done(res) }
		if hold != nil {
			hold(job.appendCall, complete)
			continue
		}
		complete()
	}
}

func (p *fakeProducer) append(c appendCall) AppendResult {
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(9)
	req.Acks, req.TimeoutMillis = -1, 10_000
	t := kmsg.NewProduceRequestTopic()
	t.Topic = c.topic
	part := kmsg.NewProduceRequestTopicPartition()
	part.Partition, part.Records = c.partition, c.batch
	t.Partitions = append(t.Partitions, part)
	req.Topics = append(req.Topics, t)
	resp, err := roundTrip[*kmsg.ProduceResponse](p.upstream, req)
	if err != nil {
		return AppendResult{Code: kerr.NotLeaderForPartition.Code, BaseOffset: -1, LogStartOffset: -1}
	}
	got := resp.Topics[0].Partitions[0]
	return AppendResult{Code: got.ErrorCode, BaseOffset: got.BaseOffset, LogStartOffset: got.LogStartOffset}
}

// roundTrip asks a broker one thing over a connection of its own.
func roundTrip[T kmsg.Response](addr string, req kmsg.Request) (T, error) {
	var none T
	nc, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return none, err
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	if _, err := nc.Write(kafkawire.AppendRequest(nil, kafkawire.RequestHeader{}, req)); err != nil {
		return none, err
	}
	frame, err := kafkawire.ReadResponseFrame(nc, 64<<20)
	if err != nil {
		return none, err
	}
	return decodeAnswer[T](req, frame)
}

func listOffset(addr, topic string, partition int32, timestamp int64) (int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.SetVersion(1)
	req.ReplicaID = -1
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic = topic
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Partition, p.Timestamp = partition, timestamp
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	resp, err := roundTrip[*kmsg.ListOffsetsResponse](addr, req)
	if err != nil {
		return 0, err
	}
	got := resp.Topics[0].Partitions[0]
	return got.Offset, kerr.ErrorForCode(got.ErrorCode)
}

// rawClient speaks the protocol by hand.
type rawClient struct {
	t    *testing.T
	nc   net.Conn
	corr int32
}

func (f *fixture) dial() *rawClient {
	f.t.Helper()
	nc, err := net.DialTimeout("tcp", f.addr, patience)
	if err != nil {
		f.t.Fatalf("dial proxy: %v", err)
	}
	f.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	return &rawClient{t: f.t, nc: nc}
}

// send writes a request and returns its correlation id.
func (c *rawClient) send(req kmsg.Request) int32 {
	c.t.Helper()
	c.corr++
	id := "raw"
	c.write(kafkawire.AppendRequest(nil, kafkawire.RequestHeader{CorrelationID: c.corr, ClientID: &id}, req))
	return c.corr
}

func (c *rawClient) write(b []byte) {
	c.t.Helper()
	if _, err := c.nc.Write(b); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// receive reads the next response and decodes it as the answer to req.
func receive[T kmsg.Response](c *rawClient, corr int32, req kmsg.Request) T {
	c.t.Helper()
	frame, err := kafkawire.ReadResponseFrame(c.nc, 64<<20)
	if err != nil {
		c.t.Fatalf("read response to %s: %v", kmsg.NameForKey(req.Key()), err)
	}
	if got := int32(binary.BigEndian.Uint32(frame)); got != corr {
		c.t.Fatalf("correlation id %d, want %d", got, corr)
	}
	resp, err := decodeAnswer[T](req, frame)
	if err != nil {
		c.t.Fatalf("decode response to %s: %v", kmsg.NameForKey(req.Key()), err)
	}
	return resp
}

// do is send and receive.
func do[T kmsg.Response](c *rawClient, version int16, req kmsg.Request) T {
	c.t.Helper()
	req.SetVersion(version)
	return receive[T](c, c.send(req), req)
}

// closed asserts that the proxy closes the connection without another byte.
func (c *rawClient) closed() {
	c.t.Helper()
	b, err := io.ReadAll(c.nc)
	if len(b) > 0 {
		c.t.Fatalf("got %d bytes, want a closed connection", len(b))
	}
	if isTimeout(err) {
		c.t.Fatalf("connection is still open")
	}
}

// alive asserts that the connection answers.
func (c *rawClient) alive() {
	c.t.Helper()
	resp := do[*kmsg.ApiVersionsResponse](c, 0, kmsg.NewPtrApiVersionsRequest())
	if resp.ErrorCode != 0 || len(resp.ApiKeys) == 0 {
		c.t.Fatalf("ApiVersions: code %d, %d keys", resp.ErrorCode, len(resp.ApiKeys))
	}
}

// batchOf encodes one uncompressed batch of the values.
func batchOf(values ...string) []byte {
	var records []byte
	now := time.Now().UnixMilli()
	for i, v := range values {
		rec := kmsg.NewRecord()
		rec.OffsetDelta, rec.Value = int32(i), []byte(v)
		body := rec.AppendTo(nil)
		// The length is a varint of what follows it; a zero length takes one byte.
		rec.Length = int32(len(body) - 1)
		records = rec.AppendTo(records)
	}
	b := kmsg.NewRecordBatch()
	b.PartitionLeaderEpoch, b.Magic = -1, 2
	b.LastOffsetDelta, b.NumRecords = int32(len(values)-1), int32(len(values))
	b.FirstTimestamp, b.MaxTimestamp = now, now
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = -1, -1, -1
	b.Records = records
	b.Length = int32(49 + len(records))
	return sealBatch(b.AppendTo(nil))
}

// sealBatch makes a batch's checksum right.
func sealBatch(b []byte) []byte {
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// produceTo builds a Produce request for one partition.
func produceTo(topic string, partition int32, batch []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(9)
	req.Acks, req.TimeoutMillis = -1, 10_000
	t := kmsg.NewProduceRequestTopic()
	t.Topic = topic
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, batch
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return req
}

// fetchOf builds a Fetch request.
func fetchOf(maxWait time.Duration, parts ...fetchPart) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(12)
	req.ReplicaID, req.MaxWaitMillis, req.MinBytes, req.MaxBytes = -1, int32(maxWait.Milliseconds()), 1, 10<<20
	for _, p := range parts {
		t := kmsg.NewFetchRequestTopic()
		t.Topic = p.name
		fp := kmsg.NewFetchRequestTopicPartition()
		fp.Partition, fp.FetchOffset, fp.PartitionMaxBytes, fp.CurrentLeaderEpoch = p.partition, p.offset, 1<<20, 3
		t.Partitions = append(t.Partitions, fp)
		req.Topics = append(req.Topics, t)
	}
	return req
}

// eventually waits for a condition that another goroutine brings about and that
// no channel tells of.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
