package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"lockstep/transport"
)

// Raft notices a dead leader by silence alone. A process that was killed says
// so at once: its connections end, and its port refuses new ones. Each node
// keeps one call open to every peer for that. Who learns that a leader's
// process is gone asks for an election as soon as the leader's lease has run
// out, instead of after the much longer heartbeat timeout, which can therefore
// be long enough for a busy machine. A false alarm costs nothing: the others
// refuse the pre-vote while they hear from the leader.

const (
	// stagger keeps the followers apart. The first to give the leader up is
	// refused by the next, which then is elected by it.
	stagger = 100 * time.Millisecond
	// hasteEnds is when a group goes back to its normal timeouts even if
	// nobody was elected.
	hasteEnds = 5 * time.Second
	// watchPause is the pause before a peer that cannot be watched is tried
	// again.
	watchPause = 250 * time.Millisecond
	// watchHeld is how long a peer keeps the call open that has nothing against
	// this node.
	watchHeld = time.Second
	// refuseTries and refusePause bound how long a peer whose connections
	// ended is asked whether its process is gone.
	refuseTries = 10
	refusePause = 10 * time.Millisecond
)

// heardWatch answers methodWatch when the caller gives up or this node stops,
// and at once to a node that was removed.
func (n *Node) heardWatch(ctx context.Context, from transport.Hello, _ []byte) ([]byte, error) {
	if why := n.shutOut(from.NodeID, from.Incarnation); why != "" {
		return nil, errors.New(why)
	}
	select {
	case <-ctx.Done():
	case <-n.ctx.Done():
	}
	return nil, nil
}

// watchPeer keeps a call open to one peer, and raises the alarm when its
// process is gone.
func (n *Node) watchPeer(ctx context.Context, peer int32) {
	defer n.heed(peer, nil) // it is no peer any more
	for ctx.Err() == nil {
		held := time.AfterFunc(watchHeld, func() { n.heed(peer, nil) })
		_, err := n.transport.Call(ctx, peer, methodWatch, nil)
		held.Stop()
		var refusal *transport.RemoteError
		if errors.As(err, &refusal) {
			n.heed(peer, refusal)
		}
		if errors.Is(err, transport.ErrConnLost) && n.refuses(ctx, peer) {
			n.peerDied(ctx, peer)
		}
		again, stop := n.after(watchPause)
		select {
		case <-again:
		case <-ctx.Done():
		}
		stop()
	}
}

// heed notes that a peer says that this node was removed, or, with nil, that it
// does not. A member that is behind may say so for a while; a machine that is
// none is not believed at all: it would keep a healthy node from leading.
func (n *Node) heed(peer int32, refusal *transport.RemoteError) {
	told := ""
	if refusal != nil {
		if err := n.judge(refusal.From.NodeID, refusal.From.Incarnation); err != nil {
			n.log.Debug("a stranger says that this node was removed", "node", peer, "error", err)
		} else {
			told = fmt.Sprintf("node %d says: %s", peer, refusal.Error())
		}
	}
	n.mu.Lock()
	before := n.told[peer]
	if told == "" {
		delete(n.told, peer)
	} else {
		n.told[peer] = told
	}
	n.mu.Unlock()
	if told != "" && before == "" {
		n.log.Warn("told to be no member", "reason", told)
	}
}

// refuses says whether nobody listens at a peer's port any more. A process that
// is being killed loses its connections a moment before its port, so an answer
// that is neither is asked for again.
func (n *Node) refuses(ctx context.Context, peer int32) bool {
	for range refuseTries {
		try, cancel := context.WithTimeout(ctx, watchPause)
		_, err := n.transport.Call(try, peer, methodWatch, nil)
		heldOpen := try.Err() != nil
		cancel()
		switch {
		case errors.Is(err, transport.ErrNotSent) && errors.Is(err, syscall.ECONNREFUSED):
			return true
		case heldOpen:
			return false
		}
		again, stop := n.after(refusePause)
		select {
		case <-again:
		case <-ctx.Done():
		}
		stop()
	}
	return false
}

// peerDied hastens an election in every group that the peer led.
func (n *Node) peerDied(ctx context.Context, peer int32) {
	n.log.Info("peer's process is gone", "node", peer)
	n.changes.noteDeath(peer)
	for _, g := range n.groups {
		if g.Leader.Get() == peer {
			n.spawn(func() { g.hasten(ctx, peer) })
		}
	}
}

// hasten gives the dead leader up as soon as its lease has run out.
func (g *Group) hasten(ctx context.Context, dead int32) {
	r := g.Raft()
	if r == nil {
		return
	}
	lease := g.n.cfg.LeaseTimeout
	due, stop := g.n.after(time.Until(r.LastContact().Add(lease + g.n.rank(dead)*stagger + time.Millisecond)))
	defer stop()
	end, stopEnd := g.n.after(hasteEnds)
	defer stopEnd()
	normal := r.ReloadableConfig()
	hasty := normal
	hasty.HeartbeatTimeout = lease
	hurried := false
	for {
		leader, changed := g.Leader.Changed()
		if leader != 0 && leader != dead {
			break
		}
		select {
		case <-changed:
			continue
		case <-due:
			hurried = true
			if err := r.ReloadConfig(hasty); err != nil {
				g.log.Warn("cannot hasten the election", "error", err)
			}
			due = nil
			continue
		case <-end:
		case <-ctx.Done():
		}
		break
	}
	if hurried {
		if err := r.ReloadConfig(normal); err != nil {
			g.log.Warn("cannot go back to the normal heartbeat timeout", "error", err)
		}
	}
}

// rank is this node's place among the survivors.
func (n *Node) rank(dead int32) time.Duration {
	ids := n.Peers()
	ids = slices.DeleteFunc(ids, func(id int32) bool { return id == dead })
	return time.Duration(slices.Index(ids, n.cfg.NodeID))
}
