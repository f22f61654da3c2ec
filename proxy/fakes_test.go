package proxy

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

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
	create  func(TopicSpec) error                                  // before a topic is created
	here    func(*Topic)                                           // called for what is waited for
	deposed map[uint64]bool                                        // topics whose leadership no majority confirms
	asked   []TopicPartition                                       // of Confirmed
	nearest func(rack string, partitions []TopicPartition) []int32 // ReadReplicas; nil: none
	follows map[TopicPartition]bool                                // what is left out, not
	fakeGroups
	fakeAccess
	next *View // replaces the view, unannounced, once it has been looked at
}

func newFakeCluster(upstream string) *fakeCluster {
	v := &View{ClusterID: "test-cluster", Self: 1, Controller: 1, CatalogReady: true, Topics: map[string]*Topic{}, Coordinators: []int32{1}}
	for id := int32(1); id <= 3; id++ {
		v.Nodes = append(v.Nodes, Node{ID: id, Rack: fmt.Sprint("r", id), Alive: id == 1,
			Listeners: map[string]Endpoint{testListener: {Host: "127.0.0.1", Port: 1}}})
	}
	v.CoordinatorEpochs = []int64{1}
	return &fakeCluster{fakeGroups: newFakeGroups(), upstream: upstream, view: v, changed: make(chan struct{}), nextPID: 1 << 40, ends: map[partitionKey]int64{}}
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
	v.CoordinatorEpochs = make([]int64, len(v.Coordinators))
	for slot, node := range v.Coordinators {
		if node == v.Self {
			v.CoordinatorEpochs[slot] = c.fakeGroups.epochNow()
		}
	}
	c.view = &v
	close(c.changed)
	c.changed = make(chan struct{})
}

// behave changes what the cluster answers.
func (c *fakeCluster) behave(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
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
	v := c.view
	if c.next != nil {
		c.view, c.next = c.next, nil
	}
	return v
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

func (c *fakeCluster) AlterTopicConfig(_ context.Context, name string, change func(map[string]string) (map[string]string, error)) error {
	old := maps.Clone(c.View().Topics[name].Config)
	if old == nil {
		old = map[string]string{}
	}
	config, err := change(old)
	if err != nil {
		return err
	}
	c.update(func(v *View) {
		t := *v.Topics[name]
		t.Config = config
		v.Topics[name] = &t
	})
	return nil
}

func (c *fakeCluster) Confirmed(_ context.Context, partitions []TopicPartition) []bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, partitions...)
	out := make([]bool, len(partitions))
	for i, p := range partitions {
		out[i] = !c.deposed[p.Topic]
	}
	return out
}

func (c *fakeCluster) ReadReplicas(rack string, partitions []TopicPartition) []int32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nearest == nil {
		return make([]int32, len(partitions))
	}
	return c.nearest(rack, partitions)
}

func (c *fakeCluster) Follows(p TopicPartition) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.follows[p]
}

func (c *fakeCluster) TopicHere(_ context.Context, topic *Topic) {
	if c.here != nil {
		c.here(topic)
	}
}

// DeleteRecords asks the broker, as the applier would.
func (c *fakeCluster) DeleteRecords(ctx context.Context, topic *Topic, partition int32, offset int64) (int64, error) {
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.SetVersion(2)
	t := kmsg.NewDeleteRecordsRequestTopic()
	t.Topic = topic.Name
	p := kmsg.NewDeleteRecordsRequestTopicPartition()
	p.Partition, p.Offset = partition, offset
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	resp, err := roundTrip[*kmsg.DeleteRecordsResponse](c.upstream, req)
	if err != nil {
		return 0, err
	}
	got := resp.Topics[0].Partitions[0]
	if got.ErrorCode != 0 {
		return 0, &KafkaError{Code: got.ErrorCode}
	}
	return got.LowWatermark, nil
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
	deadline  time.Time
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
	call := appendCall{topic.Name, partition, batch, deadline}
	p.mu.Lock()
	p.calls = append(p.calls, call)
	p.jobs = append(p.jobs, appendJob{call, done})
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// setHold makes fn take every completion from here on.
func (p *fakeProducer) setHold(fn func(call appendCall, complete func())) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold = fn
}

// appended returns how often Append was called.
func (p *fakeProducer) appended() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.calls)
}

// taken returns what Append was called with.
func (p *fakeProducer) taken() []appendCall {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.calls)
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
