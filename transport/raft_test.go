package transport

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// countFSM counts what was applied and tells of every entry.
type countFSM struct{ applied chan string }

func (f *countFSM) Apply(l *raft.Log) any {
	f.applied <- string(l.Data)
	return nil
}
func (f *countFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("not in this test") }
func (f *countFSM) Restore(io.ReadCloser) error         { return errors.New("not in this test") }

// member is one Raft group on one node.
type member struct {
	node  *testNode
	group uint32
	raft  *raft.Raft
	trans *GroupTransport
	fsm   *countFSM
}

// startRaft starts a group on nodes that are bound, and delivers every member
// that becomes leader on the channel.
func startRaft(t *testing.T, group uint32, nodes ...*testNode) ([]*member, <-chan *member) {
	t.Helper()
	leaders := make(chan *member, 64)
	var servers []raft.Server
	for _, n := range nodes {
		servers = append(servers, raft.Server{ID: ServerID(n.cfg.Self.NodeID), Address: raft.ServerAddress(n.Addr().String())})
	}
	var members []*member
	for _, n := range nodes {
		m := &member{node: n, group: group, fsm: &countFSM{make(chan string, 64)}}
		conf := raft.DefaultConfig()
		conf.LocalID = ServerID(n.cfg.Self.NodeID)
		conf.HeartbeatTimeout, conf.ElectionTimeout = 200*time.Millisecond, 200*time.Millisecond
		conf.LeaderLeaseTimeout, conf.CommitTimeout = 100*time.Millisecond, 20*time.Millisecond
		conf.Logger = hclog.NewNullLogger()
		var err error
		if m.trans, err = n.RaftTransport(group, conf.Logger, 0); err != nil {
			t.Fatal(err)
		}
		store := raft.NewInmemStore()
		snaps := raft.NewInmemSnapshotStore()
		if err := raft.BootstrapCluster(conf, store, store, snaps, m.trans, raft.Configuration{Servers: servers}); err != nil {
			t.Fatal(err)
		}
		if m.raft, err = raft.NewRaft(conf, m.fsm, store, store, snaps, m.trans); err != nil {
			t.Fatal(err)
		}
		stopped := make(chan struct{})
		go func() {
			for {
				select {
				case leads := <-m.raft.LeaderCh():
					if leads {
						leaders <- m
					}
				case <-stopped:
					return
				}
			}
		}()
		t.Cleanup(func() {
			_ = m.trans.Close()
			if err := m.raft.Shutdown().Error(); err != nil {
				t.Errorf("shutdown: %v", err)
			}
			close(stopped)
		})
		members = append(members, m)
	}
	return members, leaders
}

// commit proposes on whoever leads, following leadership as it moves.
func commit(t *testing.T, leaders <-chan *member, data string) *member {
	t.Helper()
	for {
		m := within(t, leaders, "a leader")
		if err := m.raft.Apply([]byte(data), time.Second).Error(); err == nil {
			return m
		}
	}
}

func wantApplied(t *testing.T, data string, members ...*member) {
	t.Helper()
	for _, m := range members {
		for within(t, m.fsm.applied, fmt.Sprintf("%q on node %d", data, m.node.cfg.Self.NodeID)) != data {
			continue // an earlier proposal
		}
	}
}

func threeNodes(t *testing.T) []*testNode {
	t.Helper()
	var nodes []*testNode
	for id := int32(1); id <= 3; id++ {
		nodes = append(nodes, newNode(t, helloOf(id), admitAll))
	}
	introduceAll(nodes...)
	return nodes
}

func TestRaftTwoGroupsOnOnePort(t *testing.T) {
	nodes := threeNodes(t)
	zero, leadersZero := startRaft(t, 0, nodes...)
	one, leadersOne := startRaft(t, 1, nodes...)
	serveAll(t, nodes...)
	commit(t, leadersZero, "to group 0")
	commit(t, leadersOne, "to group 1")
	wantApplied(t, "to group 0", zero...)
	wantApplied(t, "to group 1", one...)
	for _, m := range append(zero, one...) {
		select {
		case extra := <-m.fsm.applied:
			t.Errorf("node %d group %d also applied %q", m.node.cfg.Self.NodeID, m.group, extra)
		default:
		}
	}
	if addr, id := one[0].raft.LeaderWithID(); id != "" && string(addr) != nodes[id[0]-'1'].Addr().String() {
		t.Errorf("leader %s is said to be at %s", id, addr)
	}
}

func TestCutRaftMakesTheOthersElect(t *testing.T) {
	nodes := threeNodes(t)
	for _, n := range nodes {
		n.Handle(methodEcho, echo)
	}
	members, leaders := startRaft(t, 0, nodes...)
	serveAll(t, nodes...)
	old := commit(t, leaders, "before")
	wantApplied(t, "before", members...)

	old.node.CutRaft()
	next := commit(t, leaders, "after")
	if next == old {
		t.Fatal("the node that was cut off still commits")
	}
	for _, m := range members {
		if m != old {
			wantApplied(t, "after", m)
		}
	}
	isRaft := func(c *conn) bool { return c.kind == kindRaft }
	if n := old.node.reg.count(isRaft); n != 0 {
		t.Errorf("%d raft streams on the node that was cut off", n)
	}
	if _, err := next.node.Call(testContext(t), old.node.cfg.Self.NodeID, methodEcho, nil); err != nil {
		t.Errorf("calls must go on: %v", err)
	}
	l, err := old.node.layer(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.dial(next.node.cfg.Self.NodeID, time.Second); !errors.Is(err, ErrRaftCut) {
		t.Errorf("dial after the cut: %v", err)
	}
}

// The gate withdraws a node, its streams are dropped, and the rest elects.
func TestDropPeerAfterAdmissionWasWithdrawn(t *testing.T) {
	var out atomic.Int32
	out.Store(-1)
	gate := GateFunc(func(h Hello, raftStream bool) error {
		if raftStream && h.NodeID == out.Load() {
			return errors.New("admission withdrawn")
		}
		return nil
	})
	var nodes []*testNode
	for id := int32(1); id <= 3; id++ {
		nodes = append(nodes, newNode(t, helloOf(id), gate))
	}
	introduceAll(nodes...)
	members, leaders := startRaft(t, 0, nodes...)
	serveAll(t, nodes...)
	old := commit(t, leaders, "before")
	wantApplied(t, "before", members...)

	id := old.node.cfg.Self.NodeID
	out.Store(id)
	for _, n := range nodes {
		n.DropPeer(id)
	}
	if next := commit(t, leaders, "after"); next == old {
		t.Fatal("the withdrawn node still commits")
	}
}

// answerVotes plays the Raft of a group: it grants every vote, but only once n
// requests wait, so that n connections are in use at the same time.
func answerVotes(g *GroupTransport, n int, stop <-chan struct{}) {
	var waiting []raft.RPC
	for {
		select {
		case rpc := <-g.Consumer():
			if waiting = append(waiting, rpc); len(waiting) < n {
				continue
			}
			for _, w := range waiting {
				w.Respond(&raft.RequestVoteResponse{Granted: true}, nil)
			}
			waiting, n = nil, 1
		case <-stop:
			return
		}
	}
}

// A restarted peer leaves dead connections in raft's pool. None may cost a vote.
func TestVoteSurvivesDeadPooledConnections(t *testing.T) {
	a, b := pair(t)
	introduceAll(a, b)
	ga, err := a.RaftTransport(0, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	gb, err := b.RaftTransport(0, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	serveAll(t, a, b)
	stop := make(chan struct{})
	defer close(stop)
	go answerVotes(gb, raftMaxPool, stop)

	vote := func() error {
		var resp raft.RequestVoteResponse
		err := ga.RequestVote(ServerID(2), "stale:1", &raft.RequestVoteRequest{Term: 1}, &resp)
		if err == nil && !resp.Granted {
			err = errors.New("not granted")
		}
		return err
	}
	var wg sync.WaitGroup
	for range raftMaxPool {
		wg.Go(func() {
			if err := vote(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b.DropPeer(1)
	if err := vote(); err != nil {
		t.Fatalf("first vote after the peer's connections ended: %v", err)
	}
}

func TestRaftTransportOpensOncePerGroup(t *testing.T) {
	a, _ := pair(t)
	g, err := a.RaftTransport(1, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.RaftTransport(1, nil, 0); err == nil {
		t.Error("a group was opened twice")
	}
	if _, err := a.RaftTransport(2, nil, 0); err == nil {
		t.Error("a group above the number of groups was opened")
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.RaftTransport(1, nil, 0); err != nil {
		t.Errorf("a closed group cannot be opened again: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.RaftTransport(0, nil, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("opened after Close: %v", err)
	}
}

// A changed address wins over the one in Raft's configuration.
func TestServerAddressFollowsSetPeer(t *testing.T) {
	a, b := pair(t)
	serveAll(t, a, b)
	a.SetPeer(2, "moved.example:7400")
	for id, want := range map[raft.ServerID]raft.ServerAddress{"2": "moved.example:7400", "9": "known", "two": "known"} {
		if addr := a.addressOf(id, "known"); addr != want {
			t.Errorf("server %q is at %s, want %s", id, addr, want)
		}
	}
}

// An address may be used again: by a node that comes where another one was,
// which is still known so that it can be told why it is refused. Raft's
// messages go to who is meant, over no connection that was opened to the other.
func TestAnAddressIsUsedAgain(t *testing.T) {
	a, b := pair(t)
	ga, err := a.RaftTransport(0, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	gb, err := b.RaftTransport(0, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	serveAll(t, a, b)
	a.SetPeer(3, b.Addr().String()) // who was there before
	go func() {
		for {
			select {
			case rpc := <-gb.Consumer():
				rpc.Respond(&raft.RequestVoteResponse{Granted: true}, nil)
			case <-b.ctx.Done():
				return
			}
		}
	}()
	ask := func(id raft.ServerID) error {
		var resp raft.RequestVoteResponse
		return ga.RequestVote(id, raft.ServerAddress(b.Addr().String()), &raft.RequestVoteRequest{}, &resp)
	}
	for range 2 { // the second over the connection of the first
		if err := ask("2.0123456789abcdef"); err != nil {
			t.Fatalf("node 2, at an address that was node 3's: %v", err)
		}
	}
	if err := ask("3"); err == nil || !strings.Contains(err.Error(), "is answered by node 2") {
		t.Errorf("node 3 is asked at node 2: %v", err)
	}
	if err := ask("9"); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("a node that nobody knows is asked: %v", err)
	}
}
