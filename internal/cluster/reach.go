package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"

	"lockstep/fsm"
	"lockstep/transport"
)

// methodReach asks another node whether it reaches the one that asks.
const methodReach = methodAnnounce + 40

const (
	// reachDial bounds one attempt to connect, reachTimeout all of them.
	reachDial    = 2 * time.Second
	reachTimeout = 4 * time.Second
)

// reachAnswer is what a node finds. Which addresses are tried is said by its own
// catalog and never by who asks: a node is nobody's way to connect elsewhere.
type reachAnswer struct {
	Dialed map[string]string `json:"dialed"` // by address: empty if reached, or why not
	// When the question came and the answer went, in nanoseconds since 1970.
	Came int64 `json:"came"`
	Went int64 `json:"went"`
}

// PeerReach is what another node says of this one.
type PeerReach struct {
	Error  string            `json:"error,omitempty"` // why it could not be asked
	Dialed map[string]string `json:"dialed,omitempty"`
	// Clock is how far the clock there is ahead of ours, good to Within.
	Clock  time.Duration `json:"clock_ns"`
	Within time.Duration `json:"within_ns"`
}

// Reach asks the other nodes that are alive whether they reach what this node
// advertises to clients and to nodes, and what time it is there. Any goroutine.
func (c *Cluster) Reach(ctx context.Context) map[int32]PeerReach {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	news, _ := c.roster.fresh()
	out := make(map[int32]PeerReach)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range c.node.Peers() {
		if id == c.cfg.Self || news[id] == nil { // status says who is away
			continue
		}
		wg.Go(func() {
			r := c.reachFrom(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			out[id] = r
		})
	}
	wg.Wait()
	return out
}

func (c *Cluster) reachFrom(ctx context.Context, id int32) PeerReach {
	begin := c.awake.now()
	raw, err := c.node.Call(ctx, id, methodReach, nil)
	end := c.awake.now()
	var a reachAnswer
	if err == nil {
		err = json.Unmarshal(raw, &a)
	}
	if err != nil {
		return PeerReach{Error: err.Error()}
	}
	// The four times of NTP (RFC 5905, section 8): what the dials took there is
	// no part of the way.
	came, went := time.Unix(0, a.Came).Sub(begin), time.Unix(0, a.Went).Sub(end)
	return PeerReach{Dialed: a.Dialed, Clock: (came + went) / 2, Within: ((came - went) / 2).Abs()}
}

// heardReach answers methodReach.
func (c *Cluster) heardReach(ctx context.Context, from transport.Hello, _ []byte) ([]byte, error) {
	a := reachAnswer{Dialed: make(map[string]string), Came: c.awake.now().UnixNano()}
	addrs := []string{c.node.Address(from.NodeID)}
	c.node.Catalog().Read(func(g *fsm.Group) {
		if n := g.Catalog.Nodes[from.NodeID]; n != nil {
			for _, addr := range n.Listeners {
				addrs = append(addrs, addr)
			}
			if n.Raft != "" && n.Raft != addrs[0] {
				addrs = append(addrs, n.Raft)
			}
		}
	})
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, addr := range addrs {
		if addr == "" {
			continue
		}
		wg.Go(func() {
			why := dialOnce(ctx, addr)
			mu.Lock()
			defer mu.Unlock()
			a.Dialed[addr] = why
		})
	}
	wg.Wait()
	a.Went = c.awake.now().UnixNano()
	raw, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("say who is reached: %w", err)
	}
	return raw, nil
}

// dialOnce connects and says nothing.
func dialOnce(ctx context.Context, addr string) (why string) {
	ctx, cancel := context.WithTimeout(ctx, reachDial)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err.Error()
	}
	_ = conn.Close() // nothing was said
	return ""
}
