package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/configs"
	"lockstep/internal/admin"
	"lockstep/internal/embedded"
	"lockstep/internal/testaddr"
	"lockstep/internal/verify"
	"lockstep/proxy"
)

const inclusterWait = 60 * time.Second

// testNode is one node of a cluster in this process: the real thing, put
// together as serve does, before an embedded broker.
type testNode struct {
	cfg        configs.Config
	app        *app
	stopBroker func()
}

type inCluster struct {
	t     *testing.T
	ctx   context.Context
	nodes map[int32]*testNode
}

func startInCluster(t *testing.T) *inCluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), inclusterWait)
	t.Cleanup(cancel)
	c := &inCluster{t: t, ctx: ctx, nodes: make(map[int32]*testNode)}
	host := testaddr.New()
	addrs := make([]string, 12)
	for i := range addrs {
		addrs[i] = host.Free(t)
	}
	peers := fmt.Sprintf("1=%s,2=%s,3=%s", addrs[0], addrs[1], addrs[2])
	dir := t.TempDir()
	for id := int32(1); id <= 3; id++ {
		a := addrs[3*id:]
		cfg, err := configs.Load("", []string{
			"node.id=" + strconv.Itoa(int(id)), "cluster.id=test", "data_dir=" + filepath.Join(dir, fmt.Sprint("node", id)),
			"listeners=PLAINTEXT://" + a[0], "broker.bootstrap_server=" + a[1], "admin.listen=" + a[2],
			"raft.peers=" + peers, "broker.unreachable_after=300ms",
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		c.nodes[id] = &testNode{cfg: cfg}
	}
	t.Cleanup(c.close)
	for id, n := range c.nodes {
		n.cfg.Log.Level = "off"
		c.startBroker(id, filepath.Join(dir, fmt.Sprint("broker", id)))
		c.start(id)
	}
	return c
}

func (c *inCluster) close() {
	for id, n := range c.nodes {
		if n.app != nil {
			c.stop(id)
		}
		if n.stopBroker != nil {
			n.stopBroker()
		}
	}
}

func (c *inCluster) startBroker(id int32, dir string) {
	c.t.Helper()
	n := c.nodes[id]
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := embedded.Run(ctx, embedded.Config{Listen: n.cfg.Broker.BootstrapServer, DataDir: dir, Ready: w})
		_ = w.CloseWithError(io.EOF) // never fails
		done <- err
	}()
	if _, err := io.ReadFull(r, make([]byte, len("ready "))); err != nil {
		c.t.Fatalf("broker %d: %v", id, <-done)
	}
	go func() { _, _ = io.Copy(io.Discard, r) }() // ends with the broker
	n.stopBroker = func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("broker %d: %v", id, err)
		}
		n.stopBroker = nil
	}
}

func (c *inCluster) start(id int32) {
	c.t.Helper()
	n := c.nodes[id]
	recent := new(recentLog)
	log := newLogger(configs.Log{Level: "info"}, recent)
	if os.Getenv("LOCKSTEP_TEST_LOG") != "" {
		log = hclog.New(&hclog.LoggerOptions{Name: fmt.Sprint("n", id), Level: hclog.Debug, Output: recent.tee(os.Stderr)})
	}
	a, err := newNode(n.cfg, log, recent)
	if err != nil {
		c.t.Fatal(err)
	}
	n.app = a
	if err := a.open(); err != nil {
		c.t.Fatalf("open node %d: %v", id, err)
	}
}

// stop ends a node without handing over, as far as a process can do that to a
// part of itself.
func (c *inCluster) stop(id int32) {
	c.t.Helper()
	n := c.nodes[id]
	if err := n.app.close(); err != nil {
		c.t.Errorf("close node %d: %v", id, err)
	}
	n.app = nil
}

// shown waits until what a node shows clients satisfies ok.
func (c *inCluster) shown(at int32, what string, ok func(*proxy.View) bool) {
	c.t.Helper()
	for {
		v, changed := c.nodes[at].app.cluster.Changed()
		if ok(v) {
			return
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
			c.t.Fatalf("node %d does not show %s: %+v, %v", at, what, *v, c.nodes[at].app.node.Err())
		}
	}
}

// led waits until a node shows a leader that is not among avoid for every
// partition of a topic, and returns them.
func (c *inCluster) led(at int32, topic string, avoid ...int32) (leaders []int32) {
	c.t.Helper()
	c.shown(at, fmt.Sprintf("leaders of %s other than %v", topic, avoid), func(v *proxy.View) bool {
		leaders = nil
		if v.Topics[topic] == nil {
			return false
		}
		for _, p := range v.Topics[topic].Partitions {
			if p.Leader < 1 || slices.Contains(avoid, p.Leader) {
				return false
			}
			leaders = append(leaders, p.Leader)
		}
		return true
	})
	return leaders
}

func (c *inCluster) awaitCatalog(id int32) {
	c.t.Helper()
	c.shown(id, "the catalog", func(v *proxy.View) bool { return v.CatalogReady && len(v.Nodes) == 3 })
}

func (c *inCluster) client(seed string, opts ...kgo.Opt) *kgo.Client {
	c.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(seed), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MetadataMinAge(50 * time.Millisecond)}, opts...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	return cl
}

func (c *inCluster) kafka(id int32) string { return c.nodes[id].cfg.Listeners[0].Address() }

// produce writes n records to each of a topic's partitions and returns them by
// partition, as told by the acknowledgements.
func (c *inCluster) produce(cl *kgo.Client, topic, what string, partitions int32, n int) map[int32][]string {
	c.t.Helper()
	out := make(map[int32][]string)
	for i := range n {
		for p := range partitions {
			value := fmt.Sprintf("%s-%d-%d", what, p, i)
			r := &kgo.Record{Topic: topic, Partition: p, Value: []byte(value)}
			if err := cl.ProduceSync(c.ctx, r).FirstErr(); err != nil {
				c.t.Fatalf("produce %s: %v", value, err)
			}
			out[p] = append(out[p], value)
		}
	}
	return out
}

// read returns a partition's first n records from whoever listens at addr, and
// checks that there are no more.
func (c *inCluster) read(addr, topic string, p int32, n int) []string {
	c.t.Helper()
	cl := c.client(addr, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {p: kgo.NewOffset().At(0)}}))
	var out []string
	for len(out) < n {
		fs := cl.PollFetches(c.ctx)
		if err := c.ctx.Err(); err != nil {
			c.t.Fatalf("%s has %d records of %s/%d, want %d", addr, len(out), topic, p, n)
		}
		fs.EachRecord(func(r *kgo.Record) {
			if r.Offset != int64(len(out)) {
				c.t.Errorf("%s: record %d of %s/%d is at offset %d", addr, len(out), topic, p, r.Offset)
			}
			out = append(out, string(r.Value))
		})
	}
	if len(out) > n {
		c.t.Errorf("%s has %d records of %s/%d, want %d", addr, len(out), topic, p, n)
	}
	return out
}

func (c *inCluster) request(id int32, req kmsg.Request) kmsg.Response {
	c.t.Helper()
	resp, err := c.client(c.kafka(id)).Request(c.ctx, req)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp
}

func (c *inCluster) createTopic(id int32, name string, partitions int32) {
	c.t.Helper()
	req := kmsg.NewPtrCreateTopicsRequest()
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = name, partitions, -1
	req.Topics, req.TimeoutMillis = append(req.Topics, topic), 30_000
	resp := c.request(id, req).(*kmsg.CreateTopicsResponse)
	if err := kerr.ErrorForCode(resp.Topics[0].ErrorCode); err != nil {
		c.t.Fatalf("create %s: %v", name, err)
	}
}

func (c *inCluster) deleteTopic(id int32, name string) {
	c.t.Helper()
	req := kmsg.NewPtrDeleteTopicsRequest()
	topic := kmsg.NewDeleteTopicsRequestTopic()
	topic.Topic = kmsg.StringPtr(name)
	req.TopicNames, req.Topics, req.TimeoutMillis = []string{name}, append(req.Topics, topic), 30_000
	resp := c.request(id, req).(*kmsg.DeleteTopicsResponse)
	if err := kerr.ErrorForCode(resp.Topics[0].ErrorCode); err != nil {
		c.t.Fatalf("delete %s: %v", name, err)
	}
}

// identical runs lockstep verify.
func (c *inCluster) identical() {
	c.t.Helper()
	var addrs []string
	for _, n := range c.nodes {
		addrs = append(addrs, n.cfg.Admin.Listen)
	}
	client := admin.NewClient()
	defer client.Close()
	var out strings.Builder
	if err := runVerify(c.ctx, client, verify.Config{Addrs: addrs, Wait: 20 * time.Second}, outputTable, &out, io.Discard); err != nil {
		c.t.Fatalf("verify: %v\n%s", err, out.String())
	}
}

func join(want, more map[int32][]string) {
	for p, v := range more {
		want[p] = append(want[p], v...)
	}
}

// The whole of a node, three times over: what clients of any proxy were told
// is on every broker, whatever node or broker went away meanwhile.
func TestThreeNodesReplicate(t *testing.T) {
	c := startInCluster(t)
	for id := range c.nodes {
		c.awaitCatalog(id)
	}
	c.createTopic(2, "t", 3)
	want := make(map[int32][]string)
	for id := range c.nodes {
		join(want, c.produce(c.client(c.kafka(id)), "t", fmt.Sprint("through", id), 3, 5))
	}

	// The leader of partition 1 goes; a producer that knows it goes on.
	leaders := c.led(1, "t")
	dead := leaders[1]
	alive := dead%3 + 1
	var seeds []string
	for id := range c.nodes {
		seeds = append(seeds, c.kafka(id))
	}
	cl := c.client(seeds[0], kgo.SeedBrokers(seeds...))
	join(want, c.produce(cl, "t", "before", 3, 3))
	c.stop(dead)
	c.led(alive, "t", dead)
	join(want, c.produce(cl, "t", "without", 3, 5))

	// Recreated while that node is away: no old record may be seen there.
	c.createTopic(alive, "again", 1)
	old := c.produce(cl, "again", "old", 1, 4)
	c.start(dead)
	c.awaitCatalog(dead)
	if got := c.read(c.nodes[dead].cfg.Broker.BootstrapServer, "again", 0, 4); !slices.Equal(got, old[0]) {
		t.Errorf("broker %d holds %v, want %v", dead, got, old[0])
	}
	c.stop(dead)
	c.deleteTopic(alive, "again")
	c.createTopic(alive, "again", 1)
	fresh := c.produce(c.client(c.kafka(alive)), "again", "new", 1, 6)
	c.start(dead)
	c.awaitCatalog(dead)

	// The broker of a leader goes: its node hands over, records go on.
	leaders = c.led(dead, "t")
	sick := leaders[0]
	dir := filepath.Join(filepath.Dir(c.nodes[sick].cfg.DataDir), fmt.Sprint("broker", sick))
	c.nodes[sick].stopBroker()
	c.led(sick, "t", sick)
	join(want, c.produce(cl, "t", "brokerless", 3, 5))
	c.startBroker(sick, dir)
	for id := range c.nodes {
		c.shown(id, "three brokers", func(v *proxy.View) bool { return v.Topics["t"] != nil && len(v.Topics["t"].Partitions[0].ISR) == 3 })
	}

	c.identical()
	for id, n := range c.nodes {
		for p := range int32(3) {
			if got := c.read(n.cfg.Broker.BootstrapServer, "t", p, len(want[p])); !slices.Equal(got, want[p]) {
				t.Errorf("broker %d, partition %d: %v, want %v", id, p, got, want[p])
			}
		}
		if got := c.read(n.cfg.Broker.BootstrapServer, "again", 0, 6); !slices.Equal(got, fresh[0]) {
			t.Errorf("broker %d: the topic created again holds %v, want %v", id, got, fresh[0])
		}
	}
	if got := c.read(c.kafka(1), "t", 0, len(want[0])); !slices.Equal(got, want[0]) {
		t.Errorf("through a proxy: %v, want %v", got, want[0])
	}
}
