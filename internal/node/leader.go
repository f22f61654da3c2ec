package node

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
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
func (g *Group) watchLeader(ctx context.Context, changes <-chan raft.Observation) {
	var old int32
	var lost time.Time
	first := true
	since := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-changes:
			r := o.Raft
			leader := nodeID(o.Data.(raft.LeaderObservation).LeaderID)
			if leader == 0 {
				if lost.IsZero() {
					lost = lostSince(r)
				}
				g.Leader.Set(0)
				continue
			}
			gap := time.Duration(0)
			switch {
			case !lost.IsZero():
				gap = time.Since(lost)
			case first:
				gap = time.Since(since)
			}
			if first || leader != old || !lost.IsZero() {
				g.log.Info("leader changed", "group", g.ID, "old", old, "new", leader, "term", r.CurrentTerm(),
					"why", g.why(first, old, leader), "gap", gap.Round(time.Millisecond).String())
			}
			old, lost, first = leader, time.Time{}, false
			g.Leader.Set(leader)
		}
	}
}

// lostSince is when the group last had a leader, as far as this node knows.
func lostSince(r *raft.Raft) time.Time {
	if t := r.LastContact(); !t.IsZero() && time.Since(t) < time.Minute {
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
	default:
		return fmt.Sprintf("no heartbeat from node %d", old)
	}
}

func nodeID(id raft.ServerID) int32 {
	n, err := strconv.ParseInt(string(id), 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

// Transfer hands leadership of a group that this node leads to another node,
// which must be caught up. It returns when the other has taken over, or with
// the reason why not; leadership then stays here or is open to election.
func (g *Group) Transfer(ctx context.Context, to int32, why string) error {
	r := g.Raft()
	if r == nil || r.State() != raft.Leader {
		return ErrNotLeader
	}
	note := transferNote{Group: g.ID, From: g.n.cfg.NodeID, To: to, Why: why}
	g.setNote(note)
	g.n.tellAll(ctx, methodNote, note)
	done := make(chan error, 1)
	go func() {
		done <- r.LeadershipTransferToServer(transport.ServerID(to), raft.ServerAddress(g.n.cfg.Peers[to])).Error()
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("transfer group %d to node %d: %w", g.ID, to, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("transfer group %d to node %d: %w", g.ID, to, context.Cause(ctx))
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
	var note transferNote
	if err := json.Unmarshal(payload, &note); err != nil {
		return nil, fmt.Errorf("read a transfer note: %w", err)
	}
	if g := n.Group(note.Group); g != nil && note.From == from.NodeID {
		g.setNote(note)
	}
	return nil, nil
}
