package cluster

import (
	"net"
	"testing"
	"time"

	"lockstep/internal/testaddr"
)

// The other nodes say whether they reach what a node advertises, and how their
// clocks stand; one that is away is not waited for.
func TestReach(t *testing.T) {
	open, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	closed := testaddr.Local().Free(t)

	const ahead = time.Minute
	r := newRig(t, func(c *Config) {
		if c.Self == 3 {
			c.clock = func() time.Time { return time.Now().Add(ahead) }
		}
	})
	r.clients = map[int32]string{1: open.Addr().String(), 2: closed}
	r.start(1, 2, 3)
	for _, m := range r.members {
		r.sees(m, "three nodes", func(s *snapshot) bool { return s.view.CatalogReady && len(s.view.Nodes) == 3 })
	}
	got := r.members[1].cluster.Reach(r.ctx())
	if len(got) != 2 {
		t.Fatalf("two others run, and %v answered", got)
	}
	for id, want := range map[int32]time.Duration{2: 0, 3: ahead} {
		v := got[id]
		if off := v.Clock - want; v.Error != "" || off.Abs() > v.Within+time.Millisecond {
			t.Errorf("the clock of node %d is %s ahead within %s, want %s (%s)", id, v.Clock, v.Within, want, v.Error)
		}
		for _, addr := range []string{r.clients[1], r.peers[1]} {
			if why, tried := v.Dialed[addr]; !tried || why != "" {
				t.Errorf("node %d, which can reach %s: tried %t, %q", id, addr, tried, why)
			}
		}
	}
	for _, from := range []int32{1, 3} {
		if why := r.members[2].cluster.Reach(r.ctx())[from].Dialed[closed]; why == "" {
			t.Errorf("node %d reaches a port that nobody listens on", from)
		}
	}
	r.stop(3)
	r.sees(r.members[1], "a node away", func(*snapshot) bool {
		news, _ := r.members[1].cluster.roster.fresh()
		return news[3] == nil
	})
	begin := time.Now()
	if got := r.members[1].cluster.Reach(r.ctx()); len(got) != 1 || got[2].Error != "" {
		t.Errorf("with node 3 away: %v", got)
	}
	if took := time.Since(begin); took > reachTimeout {
		t.Errorf("it took %s", took)
	}
}
