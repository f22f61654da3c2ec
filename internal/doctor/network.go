package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"syscall"
	"time"
)

const (
	dialLimit = 3 * time.Second
	clockWarn = time.Second
)

// Peer is another node.
type Peer struct {
	ID      int32
	Address string
}

// AddressChecks look at names: those that clients are given, and the peers'.
func AddressChecks(advertised []string, peers []Peer) []Check {
	var checks []Check
	for _, addr := range advertised {
		checks = append(checks, Check{"advertised " + addr, func(ctx context.Context) []Finding {
			if why := resolve(ctx, addr); why != nil {
				return []Finding{{Severity: Error, What: why.Error(), Why: "clients are told to come here", Next: "correct advertised_listeners, or the name service"}}
			}
			return ok("the name resolves")
		}})
	}
	for _, p := range peers {
		checks = append(checks, Check{fmt.Sprintf("peer %d", p.ID), func(ctx context.Context) []Finding { return dialPeer(ctx, p) }})
	}
	return checks
}

func resolve(ctx context.Context, addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	_, err = net.DefaultResolver.LookupHost(ctx, host)
	return err
}

func dialPeer(ctx context.Context, p Peer) []Finding {
	if err := resolve(ctx, p.Address); err != nil {
		return []Finding{{Severity: Error, What: fmt.Sprintf("%s: %v", p.Address, err), Why: "this node cannot find it", Next: "correct raft.peers, or the name service"}}
	}
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", p.Address)
	if err != nil {
		return []Finding{{Severity: Warning, What: fmt.Sprintf("%s: %v", p.Address, err), Why: "without a majority of the nodes nothing is acknowledged",
			Next: "start that node, or open its internode port to this machine"}}
	}
	_ = c.Close() // nothing was said
	return ok("%s is reached", p.Address)
}

// ReadableTokenCheck warns of an admin token that is sent in plain HTTP to an
// address outside loopback.
func ReadableTokenCheck(listen string) Check {
	return Check{"admin token", func(context.Context) []Finding {
		return []Finding{{Severity: Warning, What: "admin.token_file is set, and the admin port at " + listen + " speaks plain HTTP",
			Why: "who reads the token on its way can change the cluster", Next: "set admin.tls, or let admin.listen be on loopback"}}
	}}
}

// Running is what the node says of itself and the cluster at its admin port.
type Running struct {
	Problems []string
	Versions map[int32]string // of the nodes that are alive
	Peers    map[int32]PeerView
	Unasked  string // why the node did not ask its peers
}

// PeerView is what another node that runs finds when it is asked about this one.
type PeerView struct {
	Error string // why it cannot be asked
	// Dialed are the addresses that this node advertises, to clients and to
	// nodes: empty if they were reached, or why not.
	Dialed map[string]string
	// Clock is how far the clock there is ahead, good to Within.
	Clock, Within time.Duration
}

// RunningCheck asks the node, if it runs; where it does not, its ports must be
// free.
func RunningCheck(ask func(ctx context.Context) (*Running, error), ports map[string]string) Check {
	return Check{"node", func(ctx context.Context) []Finding {
		st, err := ask(ctx)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return portsFree(ctx, ports)
		case err != nil:
			return unknown("look at the node's log", "the admin port does not tell how the node is: %v", err)
		}
		var out []Finding
		for _, p := range st.Problems {
			out = append(out, Finding{Severity: Error, What: p, Why: "the cluster is not healthy", Next: "see docs/operations.md, and lockstep status"})
		}
		seen := make(map[string]int32)
		for id, v := range st.Versions {
			seen[v] = id
		}
		if len(seen) > 1 {
			out = append(out, Finding{Severity: Warning, What: fmt.Sprintf("the nodes run %d versions: %v", len(seen), st.Versions),
				Why: "an older node stops at the first command that it does not know", Next: "finish the upgrade"})
		}
		out = append(out, others(st.Peers)...)
		if st.Unasked != "" {
			out = append(out, unknown("upgrade the node", "whether other nodes reach this one is not known: %s", st.Unasked)...)
		}
		if out == nil {
			out = ok("it runs, and the cluster is healthy")
			if n := len(st.Peers); n > 0 {
				out = append(out, ok("%d other nodes reach what it advertises; their clocks are within %s", n, clockWarn)...)
			}
		}
		return out
	}}
}

func portsFree(ctx context.Context, ports map[string]string) []Finding {
	var out []Finding
	for key, addr := range ports {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err != nil {
			out = append(out, Finding{Severity: Error, What: fmt.Sprintf("%s %s: %v", key, addr, err), Why: "the node could not start",
				Next: "end what listens there (ss -ltnp names it), or give another address"})
			continue
		}
		_ = ln.Close() // it was free
	}
	if out == nil {
		return ok("it does not run; its ports are free")
	}
	return out
}

// others says what the other nodes that run find when they try to reach this
// one, and how their clocks stand.
func others(views map[int32]PeerView) (out []Finding) {
	for _, id := range slices.Sorted(maps.Keys(views)) {
		v := views[id]
		if v.Error != "" {
			out = append(out, unknown("look at that node's log; a node of an older version cannot be asked", "node %d does not say whether it reaches this one: %s", id, v.Error)...)
			continue
		}
		for _, addr := range slices.Sorted(maps.Keys(v.Dialed)) {
			if why := v.Dialed[addr]; why != "" {
				f := Finding{Severity: Error, What: fmt.Sprintf("node %d does not reach %s, which this node advertises: %s", id, addr, why),
					Why:  "clients there, or that node itself, cannot come to this one",
					Next: "correct advertised_listeners or raft.advertise, the name service, or the firewall between them"}
				if local(addr) {
					f.Severity, f.Why = Warning, "only clients on this machine come to such an address, as may be meant"
				}
				out = append(out, f)
			}
		}
		if v.Clock.Abs() > clockWarn+v.Within {
			out = append(out, Finding{Severity: Warning, What: fmt.Sprintf("the clock of node %d is %s off", id, v.Clock.Round(10*time.Millisecond)),
				Why: "records are refused whose time lies outside a topic's limits, retention deletes at different times, and logs cannot be compared", Next: "let chrony or ntpd keep the clocks"})
		}
	}
	return out
}
