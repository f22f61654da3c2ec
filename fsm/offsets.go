package fsm

import (
	"maps"
	"slices"
	"unicode/utf16"
)

// The committed offsets of consumer groups. Who is a member of a group, and in
// which generation, is known to the broker of the node that coordinates it; what
// the group has committed is known here, so that it outlives the coordinator.

// MaxOffsetMetadata is how much may be committed beside an offset, in UTF-16
// units (Kafka: offset.metadata.max.bytes, which is held against String.length).
const MaxOffsetMetadata = 4096

// MaxGroupID is the most bytes of a group's name: what a Kafka string can hold.
const MaxGroupID = 1<<15 - 1

// Kafka error codes of consumer groups.
const (
	codeMetadataTooLarge = 12
	codeNotCoordinator   = 16
	codeInvalidGroup     = 24
	codeGroupNotFound    = 69
)

// CommittedOffset is what a group has committed for a partition.
type CommittedOffset struct {
	Offset   int64
	Metadata string
	CommitMs int64 // the clock at the commit
	ExpireMs int64 // the clock at which it ends, asked for by the client; 0: as the group does
}

// ConsumerGroup is a group that has committed something. It is modified in
// place: readers copy what they need.
type ConsumerGroup struct {
	LiveMs  int64 // the clock when it was last known to have members; 0: never
	Offsets map[TP]CommittedOffset
}

// CommitOffsets is KindCommitOffsets decoded: the commits that a coordinator
// had waiting, in the order in which its broker accepted them.
type CommitOffsets struct {
	Commits []OffsetCommit
}

// OffsetCommit is one request of a client.
type OffsetCommit struct {
	Group       string
	Slot        int   // of the group
	Epoch       int64 // of the slot, under which the coordinator's broker accepted it
	Turn        int64 // in which the coordinator proposed it; it only grows
	Member      bool  // by a member of the group, not by a tool or a consumer without a group
	RetentionMs int64 // asked for by the client; negative: the default
	Offsets     []OffsetToCommit
}

// OffsetToCommit is one partition of a commit.
type OffsetToCommit struct {
	TP       TP
	Offset   int64
	Metadata string
}

// DeleteGroup forgets a group's offsets. The coordinator's broker has said that
// nobody is in it.
type DeleteGroup struct {
	Group []byte `json:"group"`
	Slot  int    `json:"slot"`
	Epoch int64  `json:"epoch"`
	Turn  int64  `json:"turn"`
}

// DeleteOffsets forgets the offsets of some partitions of a group.
type DeleteOffsets struct {
	Group      []byte `json:"group"`
	Slot       int    `json:"slot"`
	Epoch      int64  `json:"epoch"`
	Turn       int64  `json:"turn"`
	Partitions []TP   `json:"partitions"`
}

// TouchGroups says that groups have members: their offsets do not expire.
type TouchGroups struct {
	Groups [][]byte `json:"groups"`
}

// ExpireOffsets forgets what has not been committed, and is of a group without
// members, for longer than RetentionMs of the replicated clock. A group counts
// as one with members until QuietMs after it was last seen with any.
type ExpireOffsets struct {
	RetentionMs int64 `json:"retention_ms"`
	QuietMs     int64 `json:"quiet_ms,omitempty"`
}

// offsetArgs is catalogArgs for the commands of this file.
func offsetArgs(k Kind) any {
	switch k {
	case KindDeleteGroup:
		return new(DeleteGroup)
	case KindDeleteOffsets:
		return new(DeleteOffsets)
	case KindTouchGroups:
		return new(TouchGroups)
	case KindExpireOffsets:
		return new(ExpireOffsets)
	}
	return nil
}

// applyOffsets applies the commands of this file; false for any other. They
// make no new version of the catalog: no view of the cluster shows an offset.
func (c *Catalog) applyOffsets(args any, clockMs int64) (Result, bool) {
	switch a := args.(type) {
	case *CommitOffsets:
		return c.commitOffsets(a, clockMs), true
	case *DeleteGroup:
		return c.deleteGroup(a), true
	case *DeleteOffsets:
		return c.deleteOffsets(a), true
	case *TouchGroups:
		for _, name := range a.Groups {
			if g := c.Consumers[string(name)]; g != nil {
				g.LiveMs = clockMs
			}
		}
		return Result{}, true
	case *ExpireOffsets:
		return c.expireOffsets(a, clockMs), true
	}
	return Result{}, false
}

// coordinates says whether a slot still has the epoch that a coordinator acted
// under, and whether it is still the coordinator's turn. One that was replaced
// meanwhile must change nothing. Nor must what the coordinator once proposed
// without an answer, and that the network kept until now: a client has been
// told since of something later.
func (c *Catalog) coordinates(slot int, epoch, turn int64) bool {
	if slot < 0 || slot >= len(c.Coordinators) || epoch == 0 || c.Coordinators[slot].Epoch != epoch || turn < c.turns[slot] {
		return false
	}
	c.turns[slot] = turn
	return true
}

// LastTurn is the last turn that any coordinator has had.
func (c *Catalog) LastTurn() int64 { return slices.Max(c.turns[:]) }

// commitOffsets gives every partition of every commit its code, in order. Codes
// is nil if all are 0.
func (c *Catalog) commitOffsets(a *CommitOffsets, clockMs int64) Result {
	var codes []int16
	good := true
	for i := range a.Commits {
		commit := &a.Commits[i]
		code := int16(0)
		switch {
		case len(commit.Group) > MaxGroupID:
			code = codeInvalidGroup
		case !c.coordinates(commit.Slot, commit.Epoch, commit.Turn):
			code = codeNotCoordinator
		}
		for j := range commit.Offsets {
			one := code
			if one == 0 {
				one = c.commitOffset(commit, &commit.Offsets[j], clockMs)
			}
			codes = append(codes, one)
			good = good && one == 0
		}
		if g := c.Consumers[commit.Group]; code == 0 && g != nil && commit.Member {
			g.LiveMs = clockMs
		}
	}
	if good {
		return Result{}
	}
	return Result{Codes: codes}
}

func (c *Catalog) commitOffset(commit *OffsetCommit, o *OffsetToCommit, clockMs int64) int16 {
	switch {
	case !c.hasPartition(o.TP):
		return codeUnknownTopic
	case metadataTooLarge(o.Metadata):
		return codeMetadataTooLarge
	}
	g := c.Consumers[commit.Group]
	if g == nil {
		g = &ConsumerGroup{Offsets: make(map[TP]CommittedOffset)}
		c.Consumers[commit.Group] = g
	}
	kept := CommittedOffset{Offset: o.Offset, Metadata: o.Metadata, CommitMs: clockMs}
	if commit.RetentionMs >= 0 {
		kept.ExpireMs = clockMs + min(commit.RetentionMs, maxRetentionMs)
	}
	g.Offsets[o.TP] = kept
	return 0
}

func metadataTooLarge(s string) bool {
	if len(s) <= MaxOffsetMetadata {
		return false
	}
	units := 0
	for _, r := range s { // a byte that is no UTF-8 counts as one
		units += utf16.RuneLen(r)
	}
	return units > MaxOffsetMetadata
}

// maxRetentionMs is a thousand years: a clock that it is added to does not
// overflow.
const maxRetentionMs = 1000 * 365 * 24 * 3600 * 1000

// hasPartition says whether there is such a partition to commit for.
func (c *Catalog) hasPartition(tp TP) bool {
	t := c.Topics[tp.Topic]
	return t != nil && t.State != TopicDeleting && tp.Partition >= 0 && int(tp.Partition) < len(t.Groups)
}

func (c *Catalog) deleteGroup(a *DeleteGroup) Result {
	switch {
	case !c.coordinates(a.Slot, a.Epoch, a.Turn):
		return rejected(codeNotCoordinator, "the group has moved to another coordinator")
	case c.Consumers[string(a.Group)] == nil:
		return rejected(codeGroupNotFound, "no such group")
	}
	delete(c.Consumers, string(a.Group))
	return Result{}
}

func (c *Catalog) deleteOffsets(a *DeleteOffsets) Result {
	if !c.coordinates(a.Slot, a.Epoch, a.Turn) {
		return rejected(codeNotCoordinator, "the group has moved to another coordinator")
	}
	g := c.Consumers[string(a.Group)]
	if g == nil {
		return rejected(codeGroupNotFound, "no such group")
	}
	for _, tp := range a.Partitions {
		delete(g.Offsets, tp)
	}
	c.dropIfEmpty(string(a.Group))
	return Result{}
}

func (c *Catalog) dropIfEmpty(group string) {
	if len(c.Consumers[group].Offsets) == 0 {
		delete(c.Consumers, group)
	}
}

// expireOffsets follows OffsetMetadataManager.cleanupExpiredOffsets: an offset
// ends so long after its commit, but not before its group has been without
// members for as long. One whose client has asked for a time ends then, but not
// while its group has members.
func (c *Catalog) expireOffsets(a *ExpireOffsets, clockMs int64) Result {
	if a.RetentionMs < 0 || a.QuietMs < 0 {
		return rejected(codeInvalidRequest, "a retention is not negative")
	}
	for name, g := range c.Consumers {
		if g.LiveMs != 0 && clockMs-g.LiveMs < a.QuietMs {
			continue
		}
		maps.DeleteFunc(g.Offsets, func(_ TP, o CommittedOffset) bool {
			if o.ExpireMs != 0 {
				return clockMs >= o.ExpireMs
			}
			return clockMs-max(o.CommitMs, g.LiveMs) >= a.RetentionMs
		})
		c.dropIfEmpty(name)
	}
	return Result{}
}

// forgetTopic drops what was committed for a topic that goes.
func (c *Catalog) forgetTopic(topic uint64) {
	for name, g := range c.Consumers {
		maps.DeleteFunc(g.Offsets, func(tp TP, _ CommittedOffset) bool { return tp.Topic == topic })
		c.dropIfEmpty(name)
	}
}

// sorted returns the partitions that a group has committed for, in order.
func (g *ConsumerGroup) sorted() []TP {
	return slices.SortedFunc(maps.Keys(g.Offsets), compareTP)
}
