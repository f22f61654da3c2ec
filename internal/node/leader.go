package node

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"lockstep/transport"
)

// transferNote is what a leader tells the others before it hands over, so that
// each can say why the leader changed.
type transferNote struct {
	Group uint32    `json:"group"`
	From  int32     `json:"from"`
	To    int32     `json:"to"`
	Why   string    `json:"why"`
	at    time.Time // when it was heard
}

// noteValid is how long after a note a change of leader is its doing.
const noteValid = 5 * time.Second

// watchLeader writes one line for every change of leader, with the whole story.
//
// An observation says that there is something to look at; what is true is read
// from Raft. The first leader may have been seen before the observer was
// there, and observations are dropped when too many wait.
func (g *Group) watchLeader(ctx context.Context, r *raft.Raft, changes <-chan raft.Observation) {
	s := leaderStory{first: true, since: time.Now()}
	_, now := r.LeaderWithID()
	for {
		g.tellLeader(r, &s, nodeID(now))
		select {
		case <-ctx.Done():
			return
		case o := <-changes:
			if gone := o.Data.(raft.LeaderObservation).LeaderID == ""; gone {
				g.tellLeader(r, &s, 0) // the same leader may be back by now
			}
			_, now = r.LeaderWithID()
		}
	}
}

// leaderStory is what the next line about a group's leader tells.
type leaderStory struct {
	old   int32     // the last leader, 0 if there was none
	lost  time.Time // since when there is none, zero if there is one
	first bool      // none was seen yet
	since time.Time // when the watch began
}

func (g *Group) tellLeader(r *raft.Raft, s *leaderStory, leader int32) {
	if leader == 0 {
		if s.lost.IsZero() && !s.first {
			s.lost = g.lostSince(r, s.old)
		}
		g.setLeader(func(w *leaderWords) { w.raft = 0 })
		return
	}
	gap := time.Duration(0)
	switch {
	case !s.lost.IsZero():
		gap = time.Since(s.lost)
	case s.first:
		gap = time.Since(s.since)
	}
	if s.first || leader != s.old || !s.lost.IsZero() {
		l := LeaderChange{At: time.Now(), Group: g.ID, From: s.old, To: leader, Term: r.CurrentTerm(),
			Why: g.why(s.first, s.old, leader), Gap: gap.Round(time.Millisecond)}
		g.n.changes.add(l)
		g.log.Info("leader changed", "group", g.ID, "old", l.From, "new", l.To, "term", l.Term, "why", l.Why, "gap", l.Gap.String())
	}
	s.old, s.lost, s.first = leader, time.Time{}, false
	g.setLeader(func(w *leaderWords) { w.raft = leader })
}

// leaderWords are what a group's Leader is made of. Raft's word is owned by
// watchLeader, the others' by who calls Hear.
type leaderWords struct {
	mu           sync.Mutex
	raft, others int32
}

// Hear notes who leads a group that this node does not hold, as the others say;
// 0 if nobody is known to, or this node holds the group: of that, Raft alone
// knows. While Raft knows a leader, that is the leader. What is heard may be
// older than what Raft has seen since. One goroutine at a time.
func (g *Group) Hear(leader int32) { g.setLeader(func(w *leaderWords) { w.others = leader }) }

func (g *Group) setLeader(change func(*leaderWords)) {
	w := &g.words
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w)
	if leader := cmp.Or(w.raft, w.others); g.Leader.Get() != leader {
		g.Leader.Set(leader)
	}
}

// lostSince is when the group last had the old leader, as far as this node
// knows. A leader hears from no leader: its own last contact is from before its
// term.
func (g *Group) lostSince(r *raft.Raft, old int32) time.Time {
	if t := r.LastContact(); old != g.n.cfg.NodeID && !t.IsZero() && time.Since(t) < time.Minute {
		return t
	}
	return time.Now()
}

// why explains a change of leader.
func (g *Group) why(first bool, old, leader int32) string {
	g.mu.Lock()
	note := g.note
	g.mu.Unlock()
	switch {
	case note.From == old && note.To == leader && time.Since(note.at) < noteValid:
		return fmt.Sprintf("node %d handed over: %s", old, note.Why)
	case first:
		return "first leader seen since this node started"
	case old == leader:
		return fmt.Sprintf("node %d lost its majority and won again", leader)
	case time.Since(g.n.changes.diedAt(old)) < noteValid:
		return fmt.Sprintf("the process of node %d is gone: killed or crashed", old)
	default:
		return fmt.Sprintf("no heartbeat from node %d within the election timeout", old)
	}
}

func nodeID(id raft.ServerID) int32 { return transport.NodeOf(id) }

// Transfer hands leadership of a group that this node leads to another node,
// which must be caught up. It returns when the other has taken over, or with
// the reason why not; leadership then stays here or is open to election.
func (g *Group) Transfer(ctx context.Context, to int32, why string) error {
	r := g.Raft()
	if r == nil || r.State() != raft.Leader {
		return ErrNotLeader
	}
	server, ok := serverOf(g.Servers(), to)
	if !ok || !server.Voter {
		return fmt.Errorf("transfer group %d to node %d: %w", g.ID, to, errNoVoter)
	}
	office := g.Leading.Get()
	note := transferNote{Group: g.ID, From: g.n.cfg.NodeID, To: to, Why: why}
	g.setNote(note)
	g.n.tellAll(methodNote, note)
	done := make(chan error, 1)
	go func() {
		done <- r.LeadershipTransferToServer(raft.ServerID(server.ID), raft.ServerAddress(server.Address)).Error()
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("transfer group %d to node %d: %w", g.ID, to, err)
		}
		return g.outOf(ctx, office)
	case <-ctx.Done():
		return fmt.Errorf("transfer group %d to node %d: %w", g.ID, to, context.Cause(ctx))
	}
}

// outOf waits until this node knows that it is out of an office: Raft's word
// on it comes a moment after the transfer is through.
func (g *Group) outOf(ctx context.Context, office *Leadership) error {
	for {
		l, changed := g.Leading.Changed()
		if l == nil || l != office {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("leave office in group %d: %w", g.ID, context.Cause(ctx))
		}
	}
}

func (g *Group) setNote(n transferNote) {
	n.at = time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.note = n
}

// heardNote answers methodNote.
func (n *Node) heardNote(_ context.Context, from transport.Hello, payload []byte) ([]byte, error) {
	if err := n.Admit(from, true); err != nil {
		return nil, err
	}
	var note transferNote
	if err := json.Unmarshal(payload, &note); err != nil {
		return nil, fmt.Errorf("read a transfer note: %w", err)
	}
	if g := n.Group(note.Group); g != nil && note.From == from.NodeID {
		g.setNote(note)
	}
	return nil, nil
}
