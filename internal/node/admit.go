package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"lockstep/fsm"
	"lockstep/transport"
)

// registerTimeout bounds one attempt of a node to register itself.
const registerTimeout = 5 * time.Second

var (
	errStranger = errors.New("not on record")
	// errTurn is for a node that is let in after another one: it is not kept out.
	errTurn = errors.New("this one is let in after that")
)

// Admit implements transport.Gate.
func (n *Node) Admit(peer transport.Hello, raftStream bool) error {
	member := n.Member()
	if member && peer.Recovery > n.recovery() {
		if why := n.shutOut(peer.NodeID, peer.Incarnation); why != "" {
			return errors.New(why) // recovered after it was removed: it leaves nobody behind
		}
		return n.leftBehind(peer)
	}
	if !raftStream {
		return nil // calls by strangers reach the join handler only
	}
	if !member {
		return errors.New("this node is not a member yet")
	}
	err := n.judgeRecovery(peer)
	if err == nil {
		err = n.judge(peer.NodeID, peer.Incarnation)
	}
	n.noteStranger(peer.NodeID, err)
	return err
}

// judgeRecovery keeps a node out that was not there when the cluster was
// recovered from the loss of its quorum: what it holds may have been given up.
func (n *Node) judgeRecovery(peer transport.Hello) error {
	if own := n.recovery(); peer.Recovery < own {
		return fmt.Errorf("node %d was not there at recovery %d of the cluster (it knows of %d): empty its data_dir and readmit it", peer.NodeID, own, peer.Recovery)
	}
	return nil
}

// leftBehind stops this node: the cluster was recovered without it, and with
// others like it, it could go on as if nothing had happened.
func (n *Node) leftBehind(peer transport.Hello) error {
	err := fmt.Errorf("the cluster was recovered without this node: node %d is of recovery %d, this one of %d; empty data_dir and readmit this node", peer.NodeID, peer.Recovery, n.recovery())
	n.fail(err)
	return err
}

func (n *Node) recovery() int16 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.identity.Recovery
}

// judge says whether a node is who the cluster knows under its id.
func (n *Node) judge(id int32, incarnation string) error {
	why := n.shutOut(id, incarnation)
	want, ok := n.onRecord(id)
	switch {
	case why == "" && ok && want == incarnation:
		return nil
	case !n.wasPutOut(id, incarnation) && n.configured(id, incarnation):
		return nil
	case why != "":
		return errors.New(why)
	case !ok:
		return fmt.Errorf("node %d is not registered yet: %w", id, errStranger)
	}
	return fmt.Errorf("node %[1]d has incarnation %.8[2]s, but %.8[3]s is registered: its data_dir is new, another's, or from before it was replaced; it neither votes nor counts until it is readmitted: if no other machine runs as node %[1]d, lockstep members replace %[1]d", id, incarnation, want)
}

// configured says whether an incarnation has a place in the newest
// configuration of the catalog's group: it was registered by an entry that may
// not have been applied here yet, and may never be if that very node is refused.
func (n *Node) configured(id int32, incarnation string) bool {
	s, ok := serverOf(n.Catalog().Servers(), id)
	return ok && incarnation != "" && s.ID == (&fsm.CatalogNode{ID: id, Incarnation: incarnation, Later: true}).RaftServer()
}

// shutOut says why an incarnation has no place in the cluster any more, empty
// if it may have one.
func (n *Node) shutOut(id int32, incarnation string) string {
	if c := n.registered(id); c != nil {
		if why := c.Refusal(incarnation); why != "" {
			return why
		}
	}
	if n.wasPutOut(id, incarnation) {
		return (&fsm.CatalogNode{ID: id, Former: incarnation}).Refusal(incarnation)
	}
	return ""
}

// wasPutOut says whether this node remembers that an incarnation was put out.
func (n *Node) wasPutOut(id int32, incarnation string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.identity.wasPutOut(id, incarnation)
}

// registered returns what the catalog has of a node, nil if nothing, or if the
// catalog here is older than what this node has written down.
func (n *Node) registered(id int32) *fsm.CatalogNode {
	version, nodes := n.catalogNodes()
	if version < n.writtenDown() {
		return nil
	}
	return nodes[id]
}

// catalogNodes returns the nodes of the catalog as it is here, which are not to
// be changed, and its version.
func (n *Node) catalogNodes() (version uint64, nodes map[int32]*fsm.CatalogNode) {
	n.Catalog().Read(func(s *fsm.Group) { version, nodes = s.Catalog.Version, s.Catalog.Nodes })
	return version, nodes
}

// writtenDown is the version of the catalog that the identity is from.
func (n *Node) writtenDown() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.identity.Catalog
}

// onRecord returns the incarnation that the cluster knows for a node: the
// catalog's word, else what this node wrote down.
func (n *Node) onRecord(id int32) (string, bool) {
	if c := n.registered(id); c != nil {
		return c.Incarnation, c.Incarnation != ""
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if id == n.cfg.NodeID {
		return n.identity.Incarnation, true
	}
	inc, ok := n.identity.Known[id]
	return inc, ok
}

// heardJoin answers methodJoin, the one call that strangers may make.
func (n *Node) heardJoin(ctx context.Context, from transport.Hello, payload []byte) ([]byte, error) {
	var req joinRequest
	if err := json.Unmarshal(payload, &req); err != nil {
		return nil, fmt.Errorf("read a join request: %w", err)
	}
	answer := joinAnswer{Incarnation: n.cfg.Self.Incarnation, Peers: n.Peers()}
	member, s, err := n.meet(from)
	if err != nil {
		return nil, err
	}
	if !member {
		answer.Changed = s.changed
		return json.Marshal(answer)
	}
	answer.Member, answer.Recovery, answer.Catalog = true, n.recovery(), n.readUpTo()
	err = n.judge(from.NodeID, from.Incarnation)
	if errors.Is(err, errStranger) && req.Enter {
		err = n.admit(ctx, from, req)
	} else if err == nil && req.Enter {
		n.announce(ctx, from, req.Node)
	}
	if errors.Is(err, errTurn) {
		n.noteStranger(from.NodeID, nil)
	} else {
		n.noteStranger(from.NodeID, err)
	}
	if err != nil {
		answer.Problem, answer.Refused = err.Error(), !errors.Is(err, errStranger)
		return json.Marshal(answer)
	}
	if answer.Server = n.calledServer(from.NodeID, from.Incarnation); answer.Server == "" {
		answer.Problem = "registered, but this node has not read it yet: the next answer lets the node in"
		return json.Marshal(answer)
	}
	answer.Admitted, answer.Former = true, n.putOutSoFar()
	answer.Catalog, answer.Known = n.allKnown()
	return json.Marshal(answer)
}

// calledServer is what a node that is let in is called in the groups'
// configurations, empty if that is not known here yet.
func (n *Node) calledServer(id int32, incarnation string) string {
	if c := n.registered(id); c != nil {
		if c.Incarnation != incarnation {
			return ""
		}
		return c.RaftServer()
	}
	founder := string(transport.ServerID(id))
	if s, ok := serverOf(n.Catalog().Servers(), id); ok && s.ID == founder {
		return founder
	}
	return ""
}

// meet notes a node that was heard of, as long as this one is not a member.
// Who is answered "no state" is among those the cluster begins with: begin
// looks under the same lock, and nobody is answered so from then on.
func (n *Node) meet(from transport.Hello) (member bool, s sighting, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.identity.Member {
		return true, s, nil
	}
	if n.entering {
		return false, s, errors.New("this node is entering the cluster: ask again")
	}
	s = n.met[from.NodeID].seen(from.Incarnation)
	n.met[from.NodeID] = s
	return false, s, nil
}

// admit registers a node that nobody has heard of, whoever leads the catalog:
// the node may not reach the leader itself.
func (n *Node) admit(ctx context.Context, from transport.Hello, req joinRequest) error {
	node := req.Node
	if node.ID != from.NodeID || node.Incarnation != from.Incarnation {
		return errors.New("a node can only register itself")
	}
	if err := n.expected(node.ID, req.Served); err != nil {
		return err
	}
	r, err := n.Submit(ctx, fsm.CatalogGroup, fsm.Control(fsm.KindRegisterNode, fsm.RegisterNode{Node: node}))
	switch {
	case err != nil:
		return fmt.Errorf("register node %d: %w: %w", node.ID, errStranger, err)
	case r.Verdict == fsm.Rejected:
		return errors.New(r.Message)
	}
	n.log.Info("node joined the cluster", "node", node.ID, "incarnation", node.Incarnation)
	return nil
}

// announce registers a member that is elsewhere than the catalog says: nobody
// reaches it there, and so it does not hear who leads.
func (n *Node) announce(ctx context.Context, from transport.Hello, node fsm.CatalogNode) {
	c := n.registered(node.ID)
	if node.ID != from.NodeID || node.Incarnation != from.Incarnation || c == nil || c.Raft == node.Raft {
		return
	}
	if _, err := n.Submit(ctx, fsm.CatalogGroup, fsm.Control(fsm.KindRegisterNode, fsm.RegisterNode{Node: node})); err != nil {
		n.log.Debug("cannot register a node's new address yet", "node", node.ID, "error", err) // it asks again
		return
	}
	n.log.Info("node has a new address", "node", node.ID, "old", c.Raft, "new", node.Raft)
}

// readUpTo is the version of the catalog that this node answers from.
func (n *Node) readUpTo() uint64 {
	version, _ := n.catalogNodes()
	return max(version, n.writtenDown())
}

// putOutSoFar returns the incarnations that were put out, by node.
func (n *Node) putOutSoFar() map[int32][]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.identity.Former // replaced, never changed
}

// allKnown returns the incarnations on record and the version of the catalog
// that they are from.
func (n *Node) allKnown() (version uint64, known map[int32]string) {
	for {
		version, known = n.readUpTo(), make(map[int32]string)
		for _, id := range n.Peers() {
			if inc, ok := n.onRecord(id); ok {
				known[id] = inc
			}
		}
		if n.readUpTo() == version {
			return version, known
		}
	}
}

// expected says whether a node may register that the catalog does not have: a
// founder, which the groups began with, or one that an operator added. A
// data_dir that has served is of another time than the place that is kept.
func (n *Node) expected(id int32, served bool) error {
	version, nodes := n.catalogNodes()
	if version < n.writtenDown() {
		return fmt.Errorf("this node has not read the catalog to its end yet: %w", errStranger)
	}
	if c := nodes[id]; c != nil {
		if c.State == fsm.NodeAwaited && served {
			return fmt.Errorf("node %d is awaited with an empty data_dir, and this one has been a member's: empty it, then start the node again", id)
		}
		for _, other := range nodes {
			if other.ID != id && c.State == fsm.NodeAwaited && (other.State == fsm.NodeJoining || other.State == fsm.NodeLeaving) {
				// The catalog says the same, and each time it costs an entry of the log.
				return fmt.Errorf("node %d is %s: %w", other.ID, other.State, errTurn)
			}
		}
		return nil
	}
	if _, ok := serverOf(n.Catalog().Servers(), id); ok {
		return nil
	}
	return fmt.Errorf("nobody awaits node %d: lockstep members add %d --address HOST:PORT lets it in", id, id)
}

// register tells the catalog who and where this node is, until it knows. A node
// that moved does not hear who leads: its peers pass it on.
func (n *Node) register(ctx context.Context) {
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, registerTimeout)
		r, err := n.Submit(try, fsm.CatalogGroup, fsm.Control(fsm.KindRegisterNode, fsm.RegisterNode{Node: n.cfg.Self}))
		cancel()
		switch {
		case err == nil && r.Verdict == fsm.Rejected:
			n.fail(fmt.Errorf("the catalog refuses this node: %s", r.Message))
			return
		case err == nil:
			return
		}
		n.log.Debug("cannot register yet", "error", err)
		n.askAll(ctx, true)
		again, stop := n.after(joinPause)
		select {
		case <-again:
		case <-ctx.Done():
		}
		stop()
	}
}

// learn keeps what the catalog says of incarnations where it is read before
// the catalog is.
func (n *Node) learn(ctx context.Context) {
	for {
		_, changed := n.Catalog().CatalogChanged().Changed()
		if err := n.writeDown(); err != nil {
			n.fail(err)
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
