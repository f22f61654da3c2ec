package node

import (
	"slices"
	"sync"
	"time"
)

// LeaderChange is one change of a group's leader, as this node saw it.
type LeaderChange struct {
	At    time.Time     `json:"at"` // when this node knew of the new leader
	Group uint32        `json:"group"`
	From  int32         `json:"from"` // 0 if this node had seen none before
	To    int32         `json:"to"`
	Term  uint64        `json:"term"`
	Why   string        `json:"why"`
	Gap   time.Duration `json:"gap_ns"` // without a leader, as far as this node knows
}

// maxLeaderChanges bounds what a node remembers; its log has all.
const maxLeaderChanges = 32

// leaderChanges are the last changes of leaders of all groups, and which peers'
// processes ended. The zero value is empty. Safe for use by many goroutines.
type leaderChanges struct {
	mu   sync.Mutex
	last []LeaderChange      // oldest first, at most maxLeaderChanges
	died map[int32]time.Time // when a peer's process was last found gone

	count map[uint32]int           // of all changes, by group
	gap   map[uint32]time.Duration // without a leader before them, by group
}

func (c *leaderChanges) add(l LeaderChange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count == nil {
		c.count, c.gap = make(map[uint32]int), make(map[uint32]time.Duration)
	}
	c.count[l.Group]++
	c.gap[l.Group] += l.Gap
	if len(c.last) == maxLeaderChanges {
		c.last = slices.Delete(c.last, 0, 1)
	}
	c.last = append(c.last, l)
}

// of returns how often a group's leader changed since this node started, and
// how long the group was without one before these changes.
func (c *leaderChanges) of(group uint32) (count int, gap time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count[group], c.gap[group]
}

func (c *leaderChanges) noteDeath(peer int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.died == nil {
		c.died = make(map[int32]time.Time)
	}
	c.died[peer] = time.Now()
}

// diedAt is when a peer's process was last found gone, zero if never.
func (c *leaderChanges) diedAt(peer int32) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.died[peer]
}

// LeaderChanges returns the last changes of leaders that this node saw since it
// started, the newest first, of all groups together. Any goroutine.
func (n *Node) LeaderChanges() []LeaderChange {
	n.changes.mu.Lock()
	defer n.changes.mu.Unlock()
	out := slices.Clone(n.changes.last)
	slices.Reverse(out)
	return out
}

// GoneSince is when a peer's process was last found gone (its connections ended
// and its port refused new ones), zero if never. It may be back since. Any
// goroutine.
func (n *Node) GoneSince(peer int32) time.Time { return n.changes.diedAt(peer) }
