package node

import (
	"context"
	"errors"
	"testing"
)

// A leader is confirmed by an entry that a majority took after it was asked; one
// that has lost its majority is confirmed by nobody, and the question ends when
// it has left its office.
func TestConfirm(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, nil)
	c.start(1, 2, 3)
	c.settled()
	lead := c.leader(fsmGroup)
	g := lead.Group(fsmGroup)
	before := g.Raft().LastIndex()
	if err := g.Confirm(c.ctx()); err != nil {
		t.Fatalf("confirm a leader: %v", err)
	}
	if last := g.Raft().LastIndex(); last <= before {
		t.Errorf("confirmed with nothing committed: last index %d, before %d", last, before)
	}
	for id := range c.nodes {
		if id != lead.cfg.NodeID {
			c.stop(id)
		}
	}
	if err := g.Confirm(c.ctx()); err != nil {
		t.Fatalf("confirm a leader that lost its majority: %v", err)
	}
	if g.Leading.Get() != nil {
		t.Error("a leader without a majority was confirmed")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.Confirm(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("confirm one that does not lead: %v", err)
	}
}

const fsmGroup = 1
