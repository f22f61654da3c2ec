package cluster

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/internal/node"
	"lockstep/transport"
)

// FuzzPeerCalls gives a node what another one may send it. Whatever that is, the
// node answers or refuses it, and what it took it can work with.
func FuzzPeerCalls(f *testing.F) {
	seed := func(method byte, v any) {
		raw, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(method, raw)
	}
	groups := []GroupReport{{Group: 0, Role: "leader", Leading: true, Term: 2, Applied: 9, Servers: map[int32]bool{1: true, 2: true}},
		{Group: 1, Role: "follower", Troubled: []apply.PartitionStatus{{Topic: "t", TopicID: 3, State: string(apply.StateCopying)}}, Unsound: 1},
		{Group: 2, Role: roleAway, NotReady: []fsm.TP{{Topic: 3}}}}
	seed(0, Announcement{Node: 2, Boot: "a", Number: 1, Broker: BrokerReport{Up: true}, Groups: groups, Recovery: &RecoveryReport{}})
	seed(0, Announcement{Node: 3, Groups: groups})
	b := apply.Batch{TP: fsm.TP{Topic: 3}, Offset: 7, Index: 9}
	seed(1, standsQuery{Batch: b, Pledge: true, Refusal: &apply.Refusal{Group: 1, TP: b.TP, Offset: 7, Index: 9, Code: 87}})
	seed(1, standsQuery{Batch: b, Release: true})
	seed(2, uint64(3))
	seed(3, transferOrder{Group: 1, To: 2})
	n := node.New(node.Config{ClusterID: "test", NodeID: 1, DataDir: f.TempDir(), Version: "test", Groups: testGroups,
		Listen: "127.0.0.1:1", Peers: map[int32]string{1: "127.0.0.1:1", 2: "127.0.0.1:2"}, Logger: hclog.NewNullLogger()})
	if err := n.Init(); err != nil {
		f.Fatal(err)
	}
	a := &fakeApplier{node: n, stands: apply.StandsLacks, concerns: make(map[uint32]uint64)}
	c := New(Config{Self: 1, ClusterID: "test", Groups: testGroups, Logger: hclog.NewNullLogger(),
		Broker: func() BrokerReport { return BrokerReport{Up: true} }}, n, a)
	ctx, cancel := context.WithCancel(f.Context())
	cancel() // nothing is waited for
	f.Fuzz(func(t *testing.T, method byte, payload []byte) {
		handlers := []transport.Handler{c.heard, c.heardStands, c.heardVerified, c.heardTransfer}
		answer, err := handlers[int(method)%len(handlers)](ctx, transport.Hello{NodeID: 2, Incarnation: "x"}, payload)
		if err != nil && answer != nil {
			t.Errorf("an answer and an error: %q, %v", answer, err)
		}
		news, _ := c.roster.fresh()
		for id, a := range news {
			if id != a.Node || id != 2 || len(a.Groups) != testGroups {
				t.Errorf("took an announcement of node %d with %d groups as one of node %d", a.Node, len(a.Groups), id)
			}
		}
		for _, h := range c.refusals.hearsay(nil) {
			if h.Batch().TP != h.TP || h.Index == 0 {
				t.Errorf("believes a refusal of nothing: %+v", h)
			}
		}
		c.build()
		c.Status()
		c.Members()
		c.Complete(fsm.TP{Topic: 3})
		c.settledSince(1)
		c.OthersTrusted(1, 5)
		if err := c.mayLeave(2); err != nil && err.Error() == "" {
			t.Error("a refusal without a reason")
		}
	})
}
