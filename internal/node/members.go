package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"lockstep/fsm"
	"lockstep/transport"
)

// Who the peers are. A node begins with those of raft.peers and of its
// identity; from then on the catalog says who comes and who goes. The address
// that raft.peers has for a node holds, whatever the node calls itself, until
// the catalog has another one than before.

// errNoVoter is returned for a node that does not vote in the group.
var errNoVoter = errors.New("it does not vote in the group")

// Server is a node in a group's configuration.
type Server struct {
	Node    int32
	ID      string // Raft's server id
	Address string
	Voter   bool
}

func serverOf(servers []Server, node int32) (Server, bool) {
	i := slices.IndexFunc(servers, func(s Server) bool { return s.Node == node })
	if i < 0 {
		return Server{}, false
	}
	return servers[i], true
}

// Servers returns the group's newest configuration, as far as this node knows
// it; nil before the group runs. Any goroutine.
func (g *Group) Servers() []Server {
	r := g.Raft()
	if r == nil {
		return nil
	}
	f := r.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	var out []Server
	for _, s := range f.Configuration().Servers {
		out = append(out, Server{Node: nodeID(s.ID), ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return out
}

// Voters returns the nodes that vote in the group, by ascending id; before the
// group runs, the peers that this node knows of. Any goroutine.
func (g *Group) Voters() []int32 {
	servers := g.Servers()
	if servers == nil {
		return g.n.Peers()
	}
	var out []int32
	for _, s := range servers {
		if s.Voter {
			out = append(out, s.Node)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// AddNonvoter, Promote and Remove change the group's configuration by one
// server and return when that is committed. Only a leader's changes succeed.
func (g *Group) AddNonvoter(id, address string) error {
	return g.change(func(r *raft.Raft) raft.IndexFuture {
		return r.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, changeTimeout)
	})
}

// Promote makes a server a voter; see AddNonvoter.
func (g *Group) Promote(id, address string) error {
	return g.change(func(r *raft.Raft) raft.IndexFuture {
		return r.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, changeTimeout)
	})
}

// Remove takes a server out; see AddNonvoter.
func (g *Group) Remove(id string) error {
	return g.change(func(r *raft.Raft) raft.IndexFuture {
		return r.RemoveServer(raft.ServerID(id), 0, changeTimeout)
	})
}

// changeTimeout bounds how long a change waits to be taken up by Raft.
const changeTimeout = 5 * time.Second

func (g *Group) change(f func(*raft.Raft) raft.IndexFuture) error {
	r := g.Raft()
	if r == nil || g.Leading.Get() == nil {
		return ErrNotLeader
	}
	if err := f(r).Error(); err != nil {
		return fmt.Errorf("change the members of group %d: %w", g.ID, err)
	}
	return nil
}

// Peers returns the ids of all nodes that this one knows, itself included, in
// ascending order. Any goroutine.
func (n *Node) Peers() []int32 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.peers))
}

// Address is the raft address of a node, empty if it is not known.
func (n *Node) Address(id int32) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peers[id]
}

func (n *Node) ownAddress() string { return n.Address(n.cfg.NodeID) }

// server is this node's id in the groups' configurations.
func (n *Node) server() raft.ServerID {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.identity.Server != "" {
		return raft.ServerID(n.identity.Server)
	}
	return transport.ServerID(n.cfg.NodeID)
}

// meetPeers watches every peer, and nobody else. Called by Open and by learn.
func (n *Node) meetPeers() {
	n.mu.Lock()
	var gone []context.CancelFunc
	for id, stop := range n.watched {
		if _, ok := n.peers[id]; !ok {
			gone = append(gone, stop)
			delete(n.watched, id)
		}
	}
	var come []func()
	for id := range n.peers {
		if _, ok := n.watched[id]; ok || id == n.cfg.NodeID {
			continue
		}
		ctx, cancel := context.WithCancel(n.ctx)
		n.watched[id] = cancel
		come = append(come, func() { n.watchPeer(ctx, id) })
	}
	n.mu.Unlock()
	for _, stop := range gone {
		stop()
	}
	for _, f := range come {
		n.spawn(f)
	}
}

// writeDown takes over what the catalog says of the peers, and keeps it in the
// identity: after a node has entered, only learn does.
func (n *Node) writeDown() error {
	version, nodes := n.catalogNodes()
	n.mu.Lock()
	old := n.identity
	if version < old.Catalog {
		// After a start the catalog is what the newest snapshot holds, until a
		// leader is found.
		n.mu.Unlock()
		return nil
	}
	next := *old
	next.Catalog = version
	// It may be old all the same, on a node that has nothing else to go by. Who
	// is not in it yet stays.
	next.Known, next.Peers = maps.Clone(old.Known), make(map[int32]string)
	maps.Copy(next.Peers, old.Peers)
	next.Outdated = maps.Clone(old.Outdated)
	moved := make(map[int32]string) // the catalog's news
	for id, c := range nodes {
		next.putOut(id, c.Former)
		switch {
		case c.State == fsm.NodeGone:
			if id != n.cfg.NodeID {
				delete(n.peers, id) // the transport knows it still: it is told why it is refused
			}
			delete(next.Known, id)
			delete(next.Peers, id)
			delete(next.Outdated, id)
			continue
		case c.Raft == "":
			continue
		}
		next.Peers[id] = c.Raft
		if had := old.Peers[id]; id != n.cfg.NodeID && (n.peers[id] == "" || had != "" && had != c.Raft) {
			if listed := n.cfg.Peers[id]; listed != "" && listed != c.Raft {
				next.Outdated[id] = listed
			}
			if n.peers[id] != c.Raft {
				moved[id] = c.Raft
			}
			n.peers[id] = c.Raft
		}
		switch {
		case id == n.cfg.NodeID:
		case c.Incarnation == "":
			delete(next.Known, id)
		default:
			next.Known[id] = c.Incarnation
		}
	}
	n.mu.Unlock()
	for id, addr := range moved {
		n.transport.SetPeer(id, addr)
	}
	n.dropFormer(old, nodes)
	n.warnOfPeers(nodes)
	n.tellServer(nodes[n.cfg.NodeID])
	n.meetPeers()
	if (old.Catalog > 0 || version == 0) && maps.Equal(next.Known, old.Known) && maps.Equal(next.Peers, old.Peers) && maps.Equal(next.Outdated, old.Outdated) &&
		maps.EqualFunc(next.Former, old.Former, slices.Equal) {
		return nil
	}
	if err := next.save(n.cfg.DataDir); err != nil {
		return err
	}
	n.mu.Lock()
	n.identity = &next
	n.mu.Unlock()
	return nil
}

// warnOfPeers tells the operator, once for each set of them, which members
// raft.peers leaves out. A node begins a cluster with a majority of raft.peers:
// one that lists itself alone, and lost its data_dir, with nobody else.
func (n *Node) warnOfPeers(nodes map[int32]*fsm.CatalogNode) {
	var missing []int32
	for id, c := range nodes {
		if _, listed := n.cfg.Peers[id]; !listed && c.State == fsm.NodeMember {
			missing = append(missing, id)
		}
	}
	slices.Sort(missing)
	if n.cfg.Join || slices.Equal(missing, n.missed) {
		return
	}
	if n.missed = missing; len(missing) > 0 {
		n.log.Warn("raft.peers leaves members out", "members", fmt.Sprint(missing),
			"why", "should this node lose its data_dir, it could begin a cluster of its own",
			"next", "list them, or set raft.join: true, before the next start")
	}
}

// tellServer says so if the catalog has this very incarnation under another
// Raft server id than it calls itself: it takes part in no election, and nobody
// could tell why. It takes that back when the catalog says otherwise.
func (n *Node) tellServer(c *fsm.CatalogNode) {
	why := ""
	if c != nil && c.Incarnation == n.Incarnation() && c.RaftServer() != string(n.server()) {
		why = fmt.Sprintf("this node calls itself %[1]s in the groups, and the catalog calls it %[2]s: it cannot lead, whatever it votes; stop it, empty its data_dir, then lockstep members replace %[3]d",
			n.server(), c.RaftServer(), c.ID)
	}
	n.mu.Lock()
	changed := n.misnamed != why
	n.misnamed = why
	n.mu.Unlock()
	if changed && why != "" {
		n.log.Warn("this member cannot lead", "reason", why)
	}
}

// dropFormer closes the connections of an incarnation that was put out: what is
// open was admitted before.
func (n *Node) dropFormer(old *identity, nodes map[int32]*fsm.CatalogNode) {
	for id, c := range nodes {
		if had := old.Known[id]; id != n.cfg.NodeID && c.Former != "" && had == c.Former {
			n.transport.DropPeer(id)
		}
	}
}
