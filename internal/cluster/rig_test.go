package cluster

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/internal/node"
	"lockstep/internal/testaddr"
	"lockstep/internal/watch"
	"lockstep/proxy"
)

const (
	testWait   = 30 * time.Second
	testGroups = 3
)

// fakeApplier is a broker that has everything at once, unless it is told not to.
type fakeApplier struct {
	changes watch.Index
	node    *node.Node

	mu       sync.Mutex
	n        uint64
	unready  map[fsm.TP]bool
	ends     map[fsm.TP]int64 // where the broker's log ends, if it does not have everything
	trouble  map[uint32][]apply.PartitionStatus
	stuck    map[uint32]uint64 // what the broker has applied, where it does not go on
	behind   uint64            // entries that the broker never has yet
	held     bool              // what is committed does not become visible
	waiters  []func(error)
	concerns map[uint32]uint64 // Conclude's last word

	damage  []apply.Damage
	proofs  []apply.PartitionProof
	asked   int // for proofs
	rebuild func(topic uint64) error
	rebuilt []bool // calls of Rebuild, by force or not

	refusals []apply.Refusal
	stands   string
	wavers   bool // says unknown when it is asked to pledge
	pledges  int
	released int
	guilty   []string // reasons of QuarantineRefused
}

func (a *fakeApplier) edit(f func()) {
	a.mu.Lock()
	f()
	a.n++
	n := a.n
	a.mu.Unlock()
	a.changes.Set(n)
}

func (a *fakeApplier) Ready(tp fsm.TP, required int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	end, short := a.ends[tp]
	return !a.unready[tp] && (!short || required <= end)
}

func (a *fakeApplier) WhenVisible(_ fsm.TP, _ int64, fn func(error)) {
	a.mu.Lock()
	if a.held {
		a.waiters = append(a.waiters, fn)
		a.mu.Unlock()
		return
	}
	a.mu.Unlock()
	fn(nil)
}

func (a *fakeApplier) WhenBatchVisible(tp fsm.TP, end int64, _ fsm.Place, fn func(error)) {
	a.WhenVisible(tp, end, fn)
}

func (a *fakeApplier) WhenStarted(_ fsm.TP, _ int64, fn func(error)) { fn(nil) }

// release makes visible what was held, or ends it with err.
func (a *fakeApplier) release(err error) {
	a.mu.Lock()
	a.held = false
	w := a.waiters
	a.waiters = nil
	a.mu.Unlock()
	for _, fn := range w {
		fn(err)
	}
}

func (a *fakeApplier) Conclude(group uint32, applied uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.concerns[group] = applied
}

func (a *fakeApplier) Status(group uint32) apply.GroupStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := apply.GroupStatus{BrokerApplied: a.node.Group(group).Log().Applied().Get(), Troubled: a.trouble[group]}
	s.BrokerApplied -= min(s.BrokerApplied, a.behind)
	if at, ok := a.stuck[group]; ok {
		s.BrokerApplied = at
	}
	return s
}

func (a *fakeApplier) Changes() *watch.Index { return &a.changes }

func (a *fakeApplier) Damaged() []apply.Damage {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.damage)
}

func (a *fakeApplier) Verified(_ context.Context, topic uint64) []apply.PartitionProof {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	return slices.Clone(a.proofs)
}

// Rebuild does what its test says, or mends the damage.
func (a *fakeApplier) Rebuild(_ context.Context, topic uint64, force bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rebuilt = append(a.rebuilt, force)
	if a.rebuild != nil {
		return a.rebuild(topic)
	}
	a.damage = slices.DeleteFunc(a.damage, func(d apply.Damage) bool { return d.Topic == topic })
	return nil
}

func (a *fakeApplier) Refusals() []apply.Refusal {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.refusals)
}

func (a *fakeApplier) QuarantineRefused(_ apply.Batch, reason string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refusals = nil
	a.guilty = append(a.guilty, reason)
	return true
}

func (a *fakeApplier) Stands(_ apply.Batch, pledge int32) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if pledge != 0 {
		a.pledges++
		if a.wavers {
			return apply.StandsUnknown
		}
	}
	return a.stands
}

func (a *fakeApplier) Unpledge(fsm.TP, int32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.released++
}

// member is one node of the rig.
type member struct {
	id      int32
	node    *node.Node
	cluster *Cluster
	applier *fakeApplier
	broker  *watch.Value[BrokerReport]
}

// rig is three nodes in one process: real Raft over real sockets, brokers that
// the test plays.
type rig struct {
	t       *testing.T
	dir     string
	host    *testaddr.Host
	peers   map[int32]string
	edit    func(*Config)
	members map[int32]*member
	clients map[int32]string // what a node advertises, if not a port that nobody minds
}

func newRig(t *testing.T, edit func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), host: testaddr.New(), peers: make(map[int32]string), edit: edit, members: make(map[int32]*member)}
	for id := int32(1); id <= 3; id++ {
		r.peers[id] = r.host.Free(t)
	}
	t.Cleanup(func() {
		for id := range r.members {
			r.stop(id)
		}
	})
	return r
}

// running starts all three and waits until clients are shown a whole cluster,
// with every group led at home: group g by node g+1.
func running(t *testing.T, edit func(*Config)) *rig {
	t.Helper()
	r := newRig(t, edit)
	r.start(1, 2, 3)
	for _, m := range r.members {
		r.sees(m, "three nodes and a catalog", func(s *snapshot) bool {
			return s.view.CatalogReady && len(s.view.Nodes) == 3 && slices.Equal(s.leaders, []int32{1, 2, 3})
		})
	}
	return r
}

func (r *rig) dataDir(id int32) string { return filepath.Join(r.dir, fmt.Sprint(id)) }

// newNode makes a node that is not open.
func (r *rig) newNode(id int32) *node.Node {
	r.t.Helper()
	log := hclog.NewNullLogger()
	if os.Getenv("LOCKSTEP_TEST_LOG") != "" {
		log = hclog.New(&hclog.LoggerOptions{Name: fmt.Sprintf("n%d", id), Level: hclog.Debug})
	}
	n := node.New(node.Config{ClusterID: "test", NodeID: id, DataDir: r.dataDir(id), Version: "test",
		Listen: r.peers[id], Peers: maps.Clone(r.peers), Groups: testGroups, LogStore: node.StoreWAL,
		MaxAppendEntries: 16, EntryBytes: 256 << 10, MaxInFlightEntries: 8, SegmentBytes: 1 << 20,
		Timing: node.Timing{HeartbeatTimeout: 500 * time.Millisecond, ElectionTimeout: 500 * time.Millisecond,
			LeaseTimeout: 500 * time.Millisecond, CommitTimeout: 20 * time.Millisecond,
			StoreTimeout: 20 * time.Second, JoinGrace: 500 * time.Millisecond},
		Self:   fsm.CatalogNode{Rack: rackOf(id), Raft: r.peers[id], Listeners: map[string]string{"PLAINTEXT": cmp.Or(r.clients[id], fmt.Sprintf("localhost:%d", 9091+id))}},
		Logger: log})
	if err := n.Init(); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// join puts a cluster on top of a node that is not open, and opens it. The
// node is opened by the caller, before or after.
func (r *rig) join(id int32, n *node.Node) *member {
	m := &member{id: id, node: n, broker: new(watch.Value[BrokerReport]),
		applier: &fakeApplier{node: n, unready: make(map[fsm.TP]bool), trouble: make(map[uint32][]apply.PartitionStatus), concerns: make(map[uint32]uint64)}}
	m.broker.Set(BrokerReport{Up: true, Since: time.Now()})
	cfg := Config{Self: id, ClusterID: "test", Version: "test", Groups: testGroups, MaxBatchBytes: 1 << 20,
		Lease:  time.Minute, // a loaded machine is no suspension
		Broker: m.broker.Get, BrokerChanged: func() <-chan struct{} { _, c := m.broker.Changed(); return c },
		UnreachableAfter: 100 * time.Millisecond, RebalanceDelay: time.Hour, Logger: hclog.NewNullLogger()}
	if r.edit != nil {
		r.edit(&cfg)
	}
	m.cluster = New(cfg, n, m.applier)
	r.members[id] = m
	return m
}

func (r *rig) start(ids ...int32) {
	r.t.Helper()
	for _, id := range ids {
		m := r.join(id, r.newNode(id))
		m.cluster.Open()
		if err := m.node.Open(); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) stop(ids ...int32) {
	r.t.Helper()
	for _, id := range ids {
		m := r.members[id]
		delete(r.members, id)
		m.applier.release(apply.ErrClosed)
		if err := errors.Join(m.cluster.Close(), m.node.Close()); err != nil {
			r.t.Errorf("close node %d: %v", id, err)
		}
	}
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	r.t.Cleanup(cancel)
	return ctx
}

// sees waits until what a node shows clients satisfies ok.
func (r *rig) sees(m *member, what string, ok func(*snapshot) bool) {
	r.t.Helper()
	ctx := r.ctx()
	for {
		s, changed := m.cluster.view.Changed()
		if ok(s) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			r.t.Fatalf("node %d does not see %s: leaders %v, %+v", m.id, what, s.leaders, *s.view)
		}
	}
}

// leads is what a snapshot shows as a partition's leader, 0 if it has no such.
func leads(s *snapshot, topic string, p int) int32 {
	t := s.view.Topics[topic]
	if t == nil || p >= len(t.Partitions) {
		return 0
	}
	return t.Partitions[p].Leader
}

// holds waits until a group's state machine on a node satisfies ok.
func (r *rig) holds(m *member, group uint32, what string, ok func(*fsm.Group) bool) {
	r.t.Helper()
	ctx := r.ctx()
	g := m.node.Group(group)
	for {
		_, changed := g.Log().Applied().Changed()
		var is bool
		g.Read(func(s *fsm.Group) { is = ok(s) })
		if is {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			r.t.Fatalf("node %d, group %d: not in time: %s", m.id, group, what)
		}
	}
}

// reports waits until a node's status satisfies ok; there is no channel for
// what a person reads.
func (r *rig) reports(m *member, what string, ok func(Status) bool) {
	r.t.Helper()
	ctx := r.ctx()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		s := m.cluster.Status()
		if ok(s) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("node %d does not report %s: healthy %v, %q", m.id, what, s.Healthy, s.Problems)
		}
	}
}

// submit proposes a step of the catalog's leader, as a node that then crashes.
func (r *rig) submit(n *node.Node, group uint32, kind fsm.Kind, body any) fsm.Result {
	r.t.Helper()
	res, err := n.Submit(r.ctx(), group, fsm.Control(kind, body))
	if err != nil || res.Verdict == fsm.Rejected {
		r.t.Fatalf("submit %T: %+v, %v", body, res, err)
	}
	return res
}

func (r *rig) create(m *member, name string, partitions int32) *proxy.Topic {
	r.t.Helper()
	if err := m.cluster.CreateTopic(r.ctx(), proxy.TopicSpec{Name: name, Partitions: partitions}); err != nil {
		r.t.Fatalf("create %s at node %d: %v", name, m.id, err)
	}
	return m.cluster.View().Topics[name]
}

// leaderOf is the member that clients are told leads a group.
func (r *rig) leaderOf(group uint32) *member {
	r.t.Helper()
	var any *member
	for _, any = range r.members {
		break
	}
	var id int32
	r.sees(any, "a leader", func(s *snapshot) bool { id = s.leaders[group]; return id > 0 && r.members[id] != nil })
	// Others may see it earlier than the leader itself does.
	r.sees(r.members[id], "itself as the leader", func(s *snapshot) bool { return s.leaders[group] == id })
	return r.members[id]
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batch is a record batch of one record; pid -1 for none.
func batch(pid int64, seq int32, value string) []byte {
	rec := kmsg.Record{Value: []byte(value)}
	body := rec.AppendTo(nil)[1:]
	records := append(binary.AppendVarint(nil, int64(len(body))), body...)
	b := kmsg.RecordBatch{PartitionLeaderEpoch: -1, Magic: 2, ProducerID: pid, FirstSequence: seq, NumRecords: 1, Records: records}
	if pid < 0 {
		b.ProducerEpoch, b.FirstSequence = -1, -1
	}
	b.Length = int32(49 + len(records))
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], castagnoli))
	return raw
}

// produce appends at a member and waits for the answer.
func (r *rig) produce(m *member, t *proxy.Topic, p int32, raw []byte) proxy.AppendResult {
	r.t.Helper()
	done := make(chan proxy.AppendResult, 2)
	m.cluster.Append(t, p, raw, time.Now().Add(testWait), func(a proxy.AppendResult) { done <- a })
	select {
	case a := <-done:
		return a
	case <-time.After(2 * testWait):
		r.t.Fatal("Append was never answered")
		return proxy.AppendResult{}
	}
}
