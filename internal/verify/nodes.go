package verify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"lockstep/internal/admin"
	"lockstep/internal/cluster"
)

// target is a node that is compared.
type target struct {
	id   int32
	addr string // of its admin port, as reached from here
}

// findNodes asks the addresses given who is there and finds the other nodes by
// what they registered. It returns which nodes cannot be compared, and why.
func (r *run) findNodes(ctx context.Context) (missing []string, err error) {
	found := make(map[int32]finding)
	var known *cluster.Status
	var errs []error
	for _, addr := range r.cfg.Addrs {
		st, _, err := r.client.Status(ctx, addr)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if known == nil {
			known = &st
		} else if known.ClusterID != st.ClusterID {
			return nil, fmt.Errorf("%w: node %d of %s, and %s belongs to %s", ErrOtherCluster, known.NodeID, known.ClusterID, addr, st.ClusterID)
		}
		found[st.NodeID] = finding{addr: addr, status: &st}
	}
	if known == nil {
		return nil, fmt.Errorf("%w\n%w", ErrNoNode, errors.Join(errs...))
	}
	for _, g := range known.Groups {
		if g.Placed != nil {
			r.placed[g.Group] = g.Placed
		}
	}
	for i := range known.Nodes {
		n := &known.Nodes[i]
		f, ok := found[n.ID]
		if !ok {
			if f, err = r.reach(ctx, known.ClusterID, n); err != nil {
				missing = append(missing, fmt.Sprintf("node %d cannot be asked: %v", n.ID, err))
				continue
			}
		}
		if b := f.brokerOf(n.ID); b.State != "up" {
			missing = append(missing, fmt.Sprintf("the broker of node %d is %s: %s", n.ID, b.State, b.Error))
			continue
		}
		r.nodes = append(r.nodes, target{id: n.ID, addr: f.addr})
	}
	slices.SortFunc(r.nodes, func(a, b target) int { return int(a.id - b.id) })
	return missing, nil
}

// finding is a node that answered.
type finding struct {
	addr   string
	status *cluster.Status
}

// brokerOf is what the node says of its own broker.
func (f finding) brokerOf(id int32) cluster.BrokerStatus {
	for _, n := range f.status.Nodes {
		if n.ID == id {
			return n.Broker
		}
	}
	return cluster.BrokerStatus{State: "unknown"}
}

// reach asks a node at the address it registered. An address that names no
// host is tried on the node's Raft host. Whoever answers must be that node:
// 127.0.0.1 is somebody else on every machine.
func (r *run) reach(ctx context.Context, clusterID string, n *cluster.NodeStatus) (finding, error) {
	if n.Admin == "" {
		return finding{}, errors.New("it registered no admin address; name it with --admin")
	}
	addr, note := n.Admin, ""
	host, port, err := net.SplitHostPort(n.Admin)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		raftHost, _, err := net.SplitHostPort(n.Raft)
		if err != nil {
			return finding{}, fmt.Errorf("its admin address %s names no host; name it with --admin", n.Admin)
		}
		addr = net.JoinHostPort(raftHost, port)
		note = fmt.Sprintf(" (its admin.listen is %s, which names no host, so its Raft host was tried)", n.Admin)
	}
	addr = admin.Registered(addr)
	st, _, err := r.client.Status(ctx, addr)
	switch {
	case err != nil:
		return finding{}, fmt.Errorf("%w%s; if it runs, name its admin address with --admin", err, note)
	case st.NodeID != n.ID || st.ClusterID != clusterID:
		return finding{}, fmt.Errorf("%s is answered by node %d of cluster %s%s; name its admin address with --admin",
			addr, st.NodeID, st.ClusterID, note)
	}
	return finding{addr: addr, status: &st}, nil
}
