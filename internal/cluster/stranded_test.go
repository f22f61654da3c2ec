package cluster

import (
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/internal/node"
	"lockstep/proxy"
)

// A batch that is committed, on a node that lost its broker and its leadership,
// is sent on to the new leader at once, whatever came last; while one of both is
// there, it waits.
func TestStrandedBatchIsSentOn(t *testing.T) {
	t.Parallel()
	const group = 1
	down := BrokerReport{Error: "connection refused"}
	for _, c := range []struct {
		name        string
		leads, up   bool
		then        func(m *member, g *node.Group)
		waitsBefore bool
	}{
		{"neither is there when it is committed", false, false, func(*member, *node.Group) {}, false},
		{"the broker goes last", false, true, func(m *member, _ *node.Group) { m.broker.Set(down) }, true},
		{"leadership goes last", true, false, func(_ *member, g *node.Group) { g.Leading.Set(nil) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			m := r.join(1, r.newNode(1)) // its Raft never runs: the test says who leads
			m.applier.held = true
			if !c.up {
				m.broker.Set(down)
			}
			g := m.node.Group(group)
			if c.leads {
				g.Leading.Set(new(node.Leadership))
			}
			got := make(chan proxy.AppendResult, 2)
			a := &appending{done: func(r proxy.AppendResult) { got <- r }, timer: time.NewTimer(time.Hour)}
			m.cluster.whenVisible(g, fsm.TP{Topic: 1}, &fsm.Result{BaseOffset: 7}, a)
			if c.waitsBefore && len(got) > 0 {
				t.Fatalf("told %+v, with the broker up: %v, leading: %v", <-got, c.up, c.leads)
			}
			m.cluster.run(func() { m.cluster.watchGroup(m.cluster.ctx, g) })
			m.cluster.run(func() { m.cluster.watchBroker(m.cluster.ctx) })
			c.then(m, g)
			select {
			case told := <-got:
				if told.Code != codeNotLeader {
					t.Errorf("told %+v, want to look for the leader", told)
				}
			case <-time.After(testWait):
				t.Fatal("the client waits for a broker that is gone")
			}
			m.applier.release(apply.ErrClosed) // the broker's word on it comes late
			if len(got) > 0 {
				t.Errorf("told a second time: %+v", <-got)
			}
		})
	}
}
