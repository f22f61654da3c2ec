package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"lockstep/fsm"
	"lockstep/transport"
)

// How a node comes into a cluster. A node without state asks every peer. As
// long as all that answer have no state either, and are a majority, it begins
// the cluster with the configured peers. As soon as one answers that it is a
// member, this node waits to be let in: because its incarnation is among those
// that the cluster began with, or because the catalog's leader registered it in
// a committed entry. A node that comes back with another incarnation than the
// one on record lost its disk. It could vote away what it once acknowledged
// (hashicorp/raft grants votes on an empty log), so it gets no Raft stream and
// never starts a group.

const joinPause = 300 * time.Millisecond

type joinRequest struct {
	Member bool            `json:"member"`
	Node   fsm.CatalogNode `json:"node"`
}

type joinAnswer struct {
	// Incarnation of the node that answers.
	Incarnation string           `json:"incarnation"`
	Member      bool             `json:"member"`
	Admitted    bool             `json:"admitted"`
	Problem     string           `json:"problem,omitempty"`
	Known       map[int32]string `json:"known,omitempty"`
}

var errStranger = errors.New("not on record")

// Admit implements transport.Gate.
func (n *Node) Admit(peer transport.Hello, raftStream bool) error {
	if !raftStream {
		return nil // calls by strangers reach the join handler only
	}
	if !n.Member() {
		return errors.New("this node is not a member yet")
	}
	err := n.judge(peer.NodeID, peer.Incarnation)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		delete(n.strangers, peer.NodeID)
	} else if !errors.Is(err, errStranger) {
		n.strangers[peer.NodeID] = err.Error()
	}
	return err
}

// judge says whether a node is who the cluster knows under its id.
func (n *Node) judge(id int32, incarnation string) error {
	want, ok := n.onRecord(id)
	switch {
	case !ok:
		return fmt.Errorf("node %d is not registered yet: %w", id, errStranger)
	case want != incarnation:
		return fmt.Errorf("node %d has incarnation %.8s, but %.8s is registered: its data_dir is new or another's; it neither votes nor counts until it is readmitted", id, incarnation, want)
	}
	return nil
}

// onRecord returns the incarnation that the cluster knows for a node: the
// catalog's word, else what this node wrote down when it came in.
func (n *Node) onRecord(id int32) (string, bool) {
	var registered string
	n.Catalog().Read(func(s *fsm.Group) {
		if c := s.Catalog.Nodes[id]; c != nil {
			registered = c.Incarnation
		}
	})
	if registered != "" {
		return registered, true
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
	n.mu.Lock()
	if !n.identity.Member {
		// Noted under the lock that begin takes: who was answered "no
		// state" is among those the cluster begins with.
		if !req.Member {
			n.met[from.NodeID] = from.Incarnation
		}
		n.mu.Unlock()
		return json.Marshal(joinAnswer{Incarnation: n.cfg.Self.Incarnation})
	}
	n.mu.Unlock()
	answer := joinAnswer{Incarnation: n.cfg.Self.Incarnation, Member: true}
	err := n.judge(from.NodeID, from.Incarnation)
	if errors.Is(err, errStranger) && !req.Member && n.Catalog().Leading.Get() != nil {
		err = n.admit(ctx, from, req.Node)
	}
	if err != nil {
		answer.Problem = err.Error()
		if !errors.Is(err, errStranger) {
			n.mu.Lock()
			n.strangers[from.NodeID] = answer.Problem
			n.mu.Unlock()
		}
		return json.Marshal(answer)
	}
	answer.Admitted = true
	answer.Known = n.allKnown()
	return json.Marshal(answer)
}

// admit registers a node that nobody has heard of.
func (n *Node) admit(ctx context.Context, from transport.Hello, node fsm.CatalogNode) error {
	if node.ID != from.NodeID || node.Incarnation != from.Incarnation {
		return errors.New("a node can only register itself")
	}
	r, err := n.Catalog().proposeAndWait(ctx, fsm.Control(fsm.KindRegisterNode, fsm.RegisterNode{Node: node}))
	switch {
	case err != nil:
		return fmt.Errorf("register node %d: %w: %w", node.ID, errStranger, err)
	case r.Verdict == fsm.Rejected:
		return errors.New(r.Message)
	}
	n.log.Info("node joined the cluster", "node", node.ID, "incarnation", node.Incarnation)
	return nil
}

func (n *Node) allKnown() map[int32]string {
	known := make(map[int32]string)
	for id := range n.cfg.Peers {
		if inc, ok := n.onRecord(id); ok {
			known[id] = inc
		}
	}
	return known
}

// join asks the peers until this node is a member; it reports false if the
// context ended first.
func (n *Node) join(ctx context.Context) bool {
	var majoritySince time.Time
	for {
		done, err := n.joinRound(ctx, &majoritySince)
		if err != nil {
			n.fail(fmt.Errorf("enter the cluster: %w", err))
			return false
		}
		if done {
			return true
		}
		again, stop := n.after(joinPause)
		select {
		case <-again:
		case <-ctx.Done():
			stop()
			return false
		}
	}
}

func (n *Node) joinRound(ctx context.Context, majoritySince *time.Time) (bool, error) {
	answers := n.askAll(ctx)
	members, problem := 0, ""
	for _, a := range answers {
		if !a.Member {
			continue
		}
		members++
		if a.Admitted {
			if a.Known == nil {
				a.Known = make(map[int32]string)
			}
			return true, n.enter(a.Known, nil)
		}
		problem = a.Problem
	}
	if members > 0 {
		n.setProblem("the cluster does not let this node in: " + problem)
		return false, nil
	}
	reached := len(answers) + 1
	if 2*reached <= len(n.cfg.Peers) {
		*majoritySince = time.Time{}
		n.setProblem(fmt.Sprintf("waiting for a majority of the peers: %d of %d are reached", reached, len(n.cfg.Peers)))
		return false, nil
	}
	if majoritySince.IsZero() {
		*majoritySince = time.Now()
	}
	if reached < len(n.cfg.Peers) && time.Since(*majoritySince) < n.cfg.JoinGrace {
		return false, nil
	}
	return true, n.begin(answers)
}

func (n *Node) setProblem(p string) {
	n.mu.Lock()
	changed := n.problem != p
	n.problem = p
	n.mu.Unlock()
	if changed && p != "" {
		n.log.Warn("not a member yet", "reason", p)
	}
}

// askAll asks every peer at once and returns who answered.
func (n *Node) askAll(ctx context.Context) map[int32]joinAnswer {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	raw, err := json.Marshal(joinRequest{Node: n.cfg.Self})
	if err != nil {
		n.log.Error("cannot encode a join request", "error", err)
		return nil
	}
	var mu sync.Mutex
	out := make(map[int32]joinAnswer)
	var wg sync.WaitGroup
	for id := range n.cfg.Peers {
		if id == n.cfg.NodeID {
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			var a joinAnswer
			body, err := n.transport.Call(ctx, id, methodJoin, raw)
			if err == nil {
				err = json.Unmarshal(body, &a)
			}
			if err != nil {
				n.log.Debug("peer does not answer", "node", id, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[id] = a
		}()
	}
	wg.Wait()
	return out
}

// begin makes this node one of those the cluster begins with. All of them
// write the same first configuration, so that it does not matter how many do.
func (n *Node) begin(answers map[int32]joinAnswer) error {
	conf := &raft.Configuration{}
	for _, id := range slices.Sorted(maps.Keys(n.cfg.Peers)) {
		conf.Servers = append(conf.Servers, raft.Server{ID: transport.ServerID(id), Address: raft.ServerAddress(n.cfg.Peers[id])})
	}
	n.log.Info("no peer has state: beginning the cluster", "reached", len(answers)+1, "peers", len(n.cfg.Peers), "groups", n.cfg.Groups)
	known := make(map[int32]string)
	for id, a := range answers {
		known[id] = a.Incarnation
	}
	return n.enter(known, conf)
}

// enter writes the stores and then the identity; a crash in between leaves a
// node without state, which starts over.
func (n *Node) enter(known map[int32]string, founders *raft.Configuration) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if founders != nil {
		// Whoever was told "no state" by this node may count on it.
		maps.Copy(known, n.met)
	}
	delete(known, n.cfg.NodeID)
	for _, g := range n.groups {
		if err := g.wipe(); err != nil {
			return err
		}
		if err := g.prepare(founders); err != nil {
			return err
		}
	}
	n.identity.Known, n.identity.Member = known, true
	if err := n.identity.save(n.cfg.DataDir); err != nil {
		return err
	}
	n.problem = ""
	return n.startGroups()
}

// register tells the catalog who and where this node is, until it knows.
func (n *Node) register(ctx context.Context) {
	for ctx.Err() == nil {
		r, err := n.Submit(ctx, fsm.CatalogGroup, fsm.Control(fsm.KindRegisterNode, fsm.RegisterNode{Node: n.cfg.Self}))
		switch {
		case err == nil && r.Verdict == fsm.Rejected:
			n.fail(fmt.Errorf("the catalog refuses this node: %s", r.Message))
			return
		case err == nil:
			return
		}
		n.log.Debug("cannot register yet", "error", err)
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

func (n *Node) writeDown() error {
	registered := make(map[int32]string)
	n.Catalog().Read(func(s *fsm.Group) {
		for id, c := range s.Catalog.Nodes {
			if id != n.cfg.NodeID {
				registered[id] = c.Incarnation
			}
		}
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	changed := false
	for id, inc := range registered {
		if n.identity.Known[id] != inc {
			n.identity.Known[id] = inc
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return n.identity.save(n.cfg.DataDir)
}
