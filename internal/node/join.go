package node

import (
	"cmp"
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

const (
	joinPause = 300 * time.Millisecond
	askLimit  = 2 * time.Second // one round of questions
	notYet    = "not a member yet: asking the peers"
)

type joinRequest struct {
	// Enter asks to be registered if nobody has heard of this node. The first
	// question never does: a member that knows the node under another
	// incarnation must have had its say.
	Enter bool            `json:"enter,omitempty"`
	Node  fsm.CatalogNode `json:"node"`
	// Served: this data_dir has been a member's already.
	Served bool `json:"served,omitempty"`
}

type joinAnswer struct {
	// Incarnation of the node that answers.
	Incarnation string  `json:"incarnation"`
	Peers       []int32 `json:"peers"` // its raft.peers
	Member      bool    `json:"member"`
	Admitted    bool    `json:"admitted"`
	// Changed: before the cluster began, the node that asks was seen under
	// another incarnation.
	Changed bool `json:"changed,omitempty"`
	// Refused: the node is known under another incarnation.
	Refused bool             `json:"refused,omitempty"`
	Problem string           `json:"problem,omitempty"`
	Known   map[int32]string `json:"known,omitempty"`
	// Catalog is the version of the catalog that a member answers from: of two
	// that contradict each other, the newer is right. 0 from a build of before.
	Catalog uint64 `json:"catalog,omitempty"`
	// Former are the incarnations that were put out, as far as the member that
	// answers remembers.
	Former map[int32][]string `json:"former,omitempty"`
	// Recovery is the member's recovery number.
	Recovery int16 `json:"recovery,omitempty"`
	// Server is the asking node's id in the groups' configurations.
	Server string `json:"server,omitempty"`
}

// welcome is what the cluster tells a node that it lets in.
type welcome struct {
	recovery int16
	server   string
	catalog  uint64
	former   map[int32][]string
}

// sighting is what was seen of a node before the cluster began.
type sighting struct {
	incarnation string // the newest
	changed     bool   // there was another one before
}

func (s sighting) seen(incarnation string) sighting {
	return sighting{incarnation, s.changed || s.incarnation != "" && s.incarnation != incarnation}
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
	answers := n.askAll(ctx, false)
	if members(answers) {
		return n.seekEntry(ctx, answers)
	}
	reached := len(answers) + 1
	if n.cfg.Join {
		n.setProblem("waiting for a member of the cluster: with raft.join this node begins none")
		return false, nil
	}
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
	return n.begin(ctx, answers)
}

func members(answers map[int32]joinAnswer) bool {
	for _, a := range answers {
		if a.Member {
			return true
		}
	}
	return false
}

// seekEntry enters a cluster that has begun, if nobody in it objects.
func (n *Node) seekEntry(ctx context.Context, answers map[int32]joinAnswer) (bool, error) {
	in, problem := welcomed(answers)
	if in == nil && problem == "" {
		answers = n.askAll(ctx, true)
		in, problem = welcomed(answers)
	}
	if in == nil {
		n.setProblem("the cluster does not let this node in: " + cmp.Or(problem, "it has no leader that could register it yet"))
		return false, nil
	}
	n.mu.Lock()
	n.entering = true
	n.adopted = welcome{in.Recovery, in.Server, in.Catalog, in.Former}
	n.mu.Unlock()
	known := make(map[int32]string)
	maps.Copy(known, in.Known)
	return n.enter(ctx, known, nil)
}

// welcomed returns the answer that lets this node in, else nil, and the problem
// if one refuses it. The newest word counts: a machine that was put out, or is
// behind, may refuse whom the cluster has let in since. Of the same age, a
// refusal does, and one whose age is not known.
func welcomed(answers map[int32]joinAnswer) (in *joinAnswer, problem string) {
	var refusal *joinAnswer
	var by int32
	for id, a := range answers {
		switch {
		case a.Refused:
			if refusal == nil || a.newer(refusal) {
				refusal, by = &a, id
			}
		case a.Admitted:
			if in == nil || a.newer(in) {
				in = &a
			}
		}
	}
	switch {
	case refusal == nil:
		return in, ""
	case in != nil && refusal.Catalog != 0 && in.newer(refusal):
		return in, ""
	}
	return nil, fmt.Sprintf("node %d says: %s", by, refusal.Problem)
}

// newer says whether an answer is from a newer catalog than another one.
func (a *joinAnswer) newer(than *joinAnswer) bool {
	return cmp.Or(cmp.Compare(a.Recovery, than.Recovery), cmp.Compare(a.Catalog, than.Catalog)) > 0
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
func (n *Node) askAll(ctx context.Context, enter bool) map[int32]joinAnswer {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	raw, err := json.Marshal(joinRequest{Enter: enter, Node: n.cfg.Self, Served: n.Member()})
	if err != nil {
		n.log.Error("cannot encode a join request", "error", err)
		return nil
	}
	var mu sync.Mutex
	out := make(map[int32]joinAnswer)
	var wg sync.WaitGroup
	for _, id := range n.Peers() {
		if id == n.cfg.NodeID {
			continue
		}
		wg.Go(func() {
			a, err := n.ask(ctx, id, raw)
			if err != nil {
				n.log.Debug("peer does not answer", "node", id, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[id] = a
		})
	}
	wg.Wait()
	return out
}

func (n *Node) ask(ctx context.Context, id int32, raw []byte) (joinAnswer, error) {
	var a joinAnswer
	body, err := n.transport.Call(ctx, id, methodJoin, raw)
	if err == nil {
		err = json.Unmarshal(body, &a)
	}
	if err == nil && !a.Member {
		n.mu.Lock()
		n.met[id] = n.met[id].seen(a.Incarnation)
		n.mu.Unlock()
	}
	return a, err
}

// begin makes this node one of those the cluster begins with. All of them
// write the same first configuration, so that it does not matter how many do.
func (n *Node) begin(ctx context.Context, answers map[int32]joinAnswer) (bool, error) {
	for id, a := range answers {
		if !slices.Equal(a.Peers, n.Peers()) {
			n.setProblem(fmt.Sprintf("raft.peers differ: nodes %v here, %v on node %d; make them equal on all nodes", n.Peers(), a.Peers, id))
			return false, nil
		}
	}
	known, problem := n.decide(answers)
	if problem != "" {
		n.setProblem(problem)
		return false, nil
	}
	conf := &raft.Configuration{}
	for _, id := range n.Peers() {
		conf.Servers = append(conf.Servers, raft.Server{ID: transport.ServerID(id), Address: raft.ServerAddress(n.cfg.Peers[id])})
	}
	n.log.Info("no peer has state: beginning the cluster", "reached", len(answers)+1, "peers", len(n.cfg.Peers), "groups", n.cfg.Groups)
	return n.enter(ctx, known, conf)
}

// decide fixes with which incarnations the cluster begins: all that were heard
// of, because each of them may count on it. From here on this node no longer
// says that it has no state. A node that was seen under two incarnations may
// have begun the cluster under the first; only if everybody is here, and has
// no state, it surely has not.
func (n *Node) decide(answers map[int32]joinAnswer) (known map[int32]string, problem string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	known = make(map[int32]string)
	all := len(answers)+1 == len(n.cfg.Peers)
	for id, a := range answers {
		if a.Changed && !all {
			return nil, fmt.Sprintf("node %d has seen this node with another data_dir: waiting for all peers, as the cluster may have begun with that", id)
		}
	}
	for id, s := range n.met {
		if id == n.cfg.NodeID {
			continue
		}
		if a, ok := answers[id]; ok && a.Incarnation != s.incarnation {
			return nil, fmt.Sprintf("node %d answers with incarnation %.8s and asks with %.8s: do two nodes have that id?", id, a.Incarnation, s.incarnation)
		}
		if s.changed && !all {
			return nil, fmt.Sprintf("node %d lost its data_dir before the cluster began: waiting for all peers", id)
		}
		known[id] = s.incarnation
	}
	n.entering = true
	return known, ""
}

// enter writes the stores and then the identity; a crash in between leaves a
// node without state, which starts over.
func (n *Node) enter(ctx context.Context, known map[int32]string, founders *raft.Configuration) (bool, error) {
	delete(known, n.cfg.NodeID)
	for _, g := range n.groups {
		if ctx.Err() != nil {
			return false, nil
		}
		if err := g.wipe(); err != nil {
			return false, err
		}
		if err := g.prepare(founders); err != nil {
			return false, err
		}
	}
	member := *n.identity // nobody else replaces it before this node is a member
	member.Known, member.Member, member.Recovery = known, true, max(member.Recovery, n.adopted.recovery)
	if s := n.adopted.server; s != string(transport.ServerID(n.cfg.NodeID)) {
		member.Server = s
	}
	member.Catalog, member.Former = n.adopted.catalog, n.adopted.former
	if err := member.save(n.cfg.DataDir); err != nil {
		return false, err
	}
	// It ends connections: before anybody is told that this node is a member.
	if member.Recovery > 0 {
		n.transport.SetRecovery(member.Recovery)
	}
	n.mu.Lock()
	n.identity, n.problem = &member, ""
	n.mu.Unlock()
	err := n.startGroups()
	if errors.Is(err, ErrStopped) {
		return false, nil
	}
	return err == nil, err
}
