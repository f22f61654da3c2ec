package fsm

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
)

// The body of KindCommitOffsets, the only command of the catalog that clients
// cause many of a second, and the section of a state that holds what is
// committed. Numbers are uvarints, strings have their length before them; an
// offset is 8 bytes, little-endian.
//
//	count      commits:
//	string       group
//	number       slot, epoch, turn
//	byte         1 if by a member
//	number       retention in milliseconds plus 1, 0 for the default
//	count        partitions: topic, number, offset, metadata
//
//	count      groups of a state, by name:
//	string       group
//	number       clock when it was last known to have members
//	count        partitions, in order: topic, number, offset, metadata, clock at
//	             the commit, clock at its end or 0

// Smallest sizes, so that a hostile count takes no memory.
const (
	minCommitSize    = 7
	minCommittedSize = 11
	minConsumersSize = 3 + minCommittedSize + 2
)

// CommitCommand encodes commits. Groups and metadata may hold any bytes.
func CommitCommand(commits []OffsetCommit) Command {
	b := binary.AppendUvarint(nil, uint64(len(commits)))
	for i := range commits {
		c := &commits[i]
		b = appendString(b, c.Group)
		b = binary.AppendUvarint(b, uint64(c.Slot))
		b = binary.AppendUvarint(b, uint64(c.Epoch))
		b = binary.AppendUvarint(b, uint64(c.Turn))
		b = append(b, flag(c.Member))
		b = binary.AppendUvarint(b, uint64(max(c.RetentionMs, -1)+1))
		b = binary.AppendUvarint(b, uint64(len(c.Offsets)))
		for j := range c.Offsets {
			o := &c.Offsets[j]
			b = appendCommitted(b, o.TP, o.Offset, o.Metadata)
		}
	}
	return Command{Kind: KindCommitOffsets, Body: b}
}

func flag(on bool) byte {
	if on {
		return 1
	}
	return 0
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendCommitted(b []byte, tp TP, offset int64, metadata string) []byte {
	b = binary.AppendUvarint(b, tp.Topic)
	b = binary.AppendUvarint(b, uint64(uint32(tp.Partition)))
	b = binary.LittleEndian.AppendUint64(b, uint64(offset))
	return appendString(b, metadata)
}

// committed reads what appendCommitted wrote.
func (r *stateReader) committed() (tp TP, offset int64, metadata string) {
	tp.Topic = r.number("topic", math.MaxUint64)
	tp.Partition = r.int31("partition")
	offset = int64(r.uint64("offset"))
	return tp, offset, r.string("metadata")
}

// decodeCommit is the inverse of CommitCommand. It keeps nothing of body.
func decodeCommit(body []byte) (*CommitOffsets, error) {
	r := &stateReader{rest: body}
	a := &CommitOffsets{Commits: make([]OffsetCommit, r.count("commits", minCommitSize))}
	for i := range a.Commits {
		c := &a.Commits[i]
		c.Group = r.string("group")
		c.Slot = int(r.int31("slot"))
		c.Epoch = r.int63("epoch")
		c.Turn = r.int63("turn")
		c.Member = r.flag("member")
		c.RetentionMs = r.int63("retention") - 1
		c.Offsets = make([]OffsetToCommit, r.count("partitions", minCommittedSize))
		for j := range c.Offsets {
			o := &c.Offsets[j]
			o.TP, o.Offset, o.Metadata = r.committed()
		}
		if r.err != nil {
			break
		}
	}
	if len(r.rest) > 0 {
		r.fail("%d bytes follow the commits", len(r.rest))
	}
	if r.err != nil {
		return nil, fmt.Errorf("commit offsets: %w: %w", ErrCorruptEntry, r.err)
	}
	return a, nil
}

func (r *stateReader) flag(what string) bool {
	b := r.bytes(what, 1)
	if b != nil && b[0] > 1 {
		r.fail("%s is %d", what, b[0])
	}
	return b != nil && b[0] == 1
}

// appendConsumers encodes what is committed.
func (c *Catalog) appendConsumers(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(c.Consumers)))
	for _, name := range slices.Sorted(maps.Keys(c.Consumers)) {
		g := c.Consumers[name]
		b = appendString(b, name)
		b = binary.AppendUvarint(b, uint64(g.LiveMs))
		b = binary.AppendUvarint(b, uint64(len(g.Offsets)))
		for _, tp := range g.sorted() {
			o := g.Offsets[tp]
			b = appendCommitted(b, tp, o.Offset, o.Metadata)
			b = binary.AppendUvarint(b, uint64(o.CommitMs))
			b = binary.AppendUvarint(b, uint64(o.ExpireMs))
		}
	}
	return b
}

// consumers reads what appendConsumers wrote into c. The clock is the state's.
func (r *stateReader) consumers(c *Catalog, clockMs int64) {
	last := ""
	for i := range r.count("consumer groups", minConsumersSize) {
		name := r.string("consumer group")
		if i > 0 && name <= last {
			r.fail("consumer group %q stands after %q", name, last)
		}
		g := &ConsumerGroup{LiveMs: r.clock("consumer group", clockMs), Offsets: make(map[TP]CommittedOffset)}
		if len(name) > MaxGroupID {
			r.fail("a consumer group's name has %d bytes", len(name))
		}
		r.committedOffsets(c, g, clockMs)
		if r.err != nil {
			return
		}
		last, c.Consumers[name] = name, g
	}
}

func (r *stateReader) committedOffsets(c *Catalog, g *ConsumerGroup, clockMs int64) {
	n := r.count("committed offsets", minCommittedSize+2)
	if n == 0 {
		r.fail("a consumer group without offsets")
	}
	var last TP
	for i := range n {
		var o CommittedOffset
		var tp TP
		tp, o.Offset, o.Metadata = r.committed()
		o.CommitMs = r.clock("commit", clockMs)
		o.ExpireMs = r.int63("end of an offset")
		switch {
		case r.err != nil:
			return
		case i > 0 && compareTP(last, tp) >= 0:
			r.fail("the offset of %s stands after that of %s", tp, last)
		case !c.hasPartition(tp):
			r.fail("an offset of %s, which the catalog does not have", tp)
		case metadataTooLarge(o.Metadata):
			r.fail("an offset with %d bytes of metadata", len(o.Metadata))
		}
		g.Offsets[tp], last = o, tp
	}
}

// clock reads a moment that is not after now.
func (r *stateReader) clock(what string, now int64) int64 {
	return int64(r.number("clock of a "+what, uint64(now)))
}
