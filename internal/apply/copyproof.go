package apply

import (
	"context"
	"errors"
	"fmt"
	"math"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/kafkawire"
)

// copyRun is one partition's copy. The goroutine of fill owns it, but for
// shown.
type copyRun struct {
	c    *copier
	l    *lane
	want *fsm.Partition
	push func(item) error
	last kafkawire.Batch // the local broker's, not compared yet; nil if there is none

	at     point          // behind what was pushed
	mark   fsm.Checkpoint // the last one at or below at.pos that at.hash goes back to
	proved bool           // everything between mark and at.pos is what was committed

	shown PartitionCopy // guarded by c.mu
}

// point is a place in a log, and what must stand there.
type point struct {
	pos      int64
	next     identity
	hash     uint64 // over everything below, if anchored
	anchored bool
}

// identity is the applier's identity on the batch at an offset.
type identity struct {
	epoch int16
	seq   int32
	known bool
}

// after is the identity n offsets further, in the same epoch.
func (p identity) after(n int64) identity {
	p.seq = int32((int64(p.seq) + n) & math.MaxInt32)
	return p
}

// identityOf is where a batch stands.
func identityOf(b kafkawire.Batch) identity {
	return identity{b.ProducerEpoch(), b.BaseSequence(), true}
}

// lastOffset is the offset of a batch's last record.
func lastOffset(b kafkawire.Batch) int64 { return b.BaseOffset() + int64(b.LastOffsetDelta()) }

// anchor finds out what the chain hash is where the copy begins: from the
// checkpoint before it, and what the local broker holds behind that.
func (r *copyRun) anchor(ctx context.Context, from int64) error {
	r.at = point{pos: from}
	if r.last != nil && lastOffset(r.last)+1 == from && r.last.Count() > 0 {
		r.at.next = identityOf(r.last).after(int64(r.last.LastOffsetDelta()) + 1)
	}
	if r.l.compacted {
		return nil // nothing says what compaction must leave
	}
	for _, cp := range r.want.Checkpoints {
		if cp.Offset <= from {
			r.mark = cp
		}
	}
	h, err := r.localHash(ctx, from)
	switch {
	case errors.Is(err, broker.ErrNoBatch): // retention took it: proofs begin at the next checkpoint
		return nil
	case err != nil:
		return err
	}
	r.at.hash, r.at.anchored, r.proved = h, true, r.mark.Offset == from
	return nil
}

// localHash computes the chain up to an offset from what the local broker
// holds behind the mark.
func (r *copyRun) localHash(ctx context.Context, to int64) (uint64, error) {
	ch := chain{topic: r.l.tp.Topic, pos: r.mark.Offset, hash: r.mark.Hash}
	for ch.pos < to {
		raw, err := r.localRange(ctx, ch.pos, to)
		if err != nil {
			return 0, err
		}
		if err := ch.add(raw, to); err != nil {
			if b, _, perr := kafkawire.ParseBatch(raw); perr == nil && b.IsFiller() {
				return 0, fmt.Errorf("%w: a filler", broker.ErrNoBatch)
			}
			return 0, distrustf("the broker's log: %v", err)
		}
	}
	return ch.hash, nil
}

// localRange reads what the local broker holds from an offset on. A broker that
// does not end at to yet is no finding: what was copied before may still be on
// its way to it, and a topic that is being made anew is empty.
func (r *copyRun) localRange(ctx context.Context, from, to int64) ([]byte, error) {
	for range emptyReads {
		raw, _, err := r.c.cfg.Broker.Range(ctx, r.l.name, r.l.tp.Partition, from, to, copyBytes)
		if err != nil && !errors.Is(err, broker.ErrNoBatch) {
			return nil, fmt.Errorf("read what the broker holds: %w", err)
		}
		if len(raw) > 0 {
			return r.l.asCommitted(raw), nil
		}
		_, end, eerr := r.c.cfg.Broker.LogEnd(ctx, r.l.name, r.l.tp.Partition)
		switch {
		case eerr != nil:
			return nil, fmt.Errorf("read the log end offset: %w", eerr)
		case end < to:
			return nil, fmt.Errorf("the broker's log ends at offset %d, what was copied up to %d is on its way: %w", end, to, errAgain)
		case err != nil:
			return nil, fmt.Errorf("read what the broker holds: %w", err)
		}
		if !pause(ctx, minCopyPause) {
			return nil, context.Cause(ctx)
		}
	}
	return nil, distrustf("the broker holds nothing at offset %d, below its log end", from)
}

// emptyReads of a log that should hold something are a finding.
const emptyReads = 5

// chain follows the batches of a log that has no holes.
type chain struct {
	topic uint64
	pos   int64
	hash  uint64
}

// add goes on over raw, up to the offset to.
func (ch *chain) add(raw []byte, to int64) error {
	for len(raw) > 0 && ch.pos < to {
		b, rest, err := kafkawire.ParseBatch(raw)
		if err == nil {
			err = sound(ch.topic, b)
		}
		if err != nil {
			return err
		}
		if !whole(b) || b.BaseOffset() != ch.pos || lastOffset(b) >= to {
			return wrongf("the batch at offset %d+%d is not whole or not in its place, which is offset %d, with %d behind it",
				b.BaseOffset(), b.LastOffsetDelta(), ch.pos, to)
		}
		ch.hash = fsm.ChainHash(ch.hash, ch.pos, len(b), b.CRC())
		ch.pos = lastOffset(b) + 1
		raw = rest
	}
	return nil
}

// deleteHorizon is set by brokers alone, in batches that they compacted.
const deleteHorizon = 0x40

// sound checks a batch by itself.
func sound(topic uint64, b kafkawire.Batch) error {
	switch {
	case !b.ChecksumOK():
		return wrongf("the batch at offset %d does not have the checksum that it names", b.BaseOffset())
	case foreign(topic, b) != "":
		return wrongf("the batch at offset %d %s", b.BaseOffset(), foreign(topic, b))
	case b.IsControl() || b.IsTransactional():
		return wrongf("the batch at offset %d belongs to a transaction", b.BaseOffset())
	case b.BaseOffset() < 0 || b.LastOffsetDelta() < 0 || b.BaseOffset() > math.MaxInt64-1-int64(b.LastOffsetDelta()),
		b.Count() < 0 || int64(b.Count()) > int64(b.LastOffsetDelta())+1, b.BaseSequence() < 0 || b.ProducerEpoch() < 0:
		return wrongf("the header of the batch at offset %d contradicts itself", b.BaseOffset())
	}
	return nil
}

// whole says whether a batch has all of its records.
func whole(b kafkawire.Batch) bool {
	return b.Count() == b.LastOffsetDelta()+1 && b.Attributes()&deleteHorizon == 0
}

// compareLast compares the local broker's last batch with a peer's, as long as
// nothing has come behind it.
func (r *copyRun) compareLast(ctx context.Context, node int32) error {
	if r.last == nil || r.l.compacted || r.at.pos != r.shown.From || r.last.IsFiller() {
		return nil
	}
	answer, err := r.ask(ctx, node, r.last.BaseOffset(), 1)
	if err != nil || answer.status == copyBelowStart {
		return err
	}
	if len(answer.batches) == 0 {
		return fmt.Errorf("its log ends at offset %d", answer.end)
	}
	theirs, _, err := kafkawire.ParseBatch(answer.batches)
	if err == nil {
		err = sound(r.l.tp.Topic, theirs)
	}
	if err != nil {
		return wrongf("the batch at offset %d: %v", r.last.BaseOffset(), err)
	}
	if theirs.BaseOffset() == r.last.BaseOffset() && theirs.LastOffsetDelta() == r.last.LastOffsetDelta() &&
		theirs.CRC() == r.last.CRC() && len(theirs) == len(r.last) {
		return nil
	}
	for _, cp := range r.want.Checkpoints {
		if cp.Offset >= r.at.pos {
			return r.blame(ctx, node, cp)
		}
	}
	return r.blame(ctx, node, fsm.Checkpoint{Offset: r.want.NextOffset, Hash: r.want.Hash})
}

// blame decides who is wrong where a chain that stands on the local broker's
// log and goes on with a peer's does not meet a checkpoint: the peer's own log
// does, or it does not.
func (r *copyRun) blame(ctx context.Context, node int32, to fsm.Checkpoint) error {
	if !r.at.anchored {
		return errAgainst
	}
	if r.proved {
		return wrongf("its log up to offset %d has another hash than what was committed", to.Offset)
	}
	ch := chain{topic: r.l.tp.Topic, pos: r.mark.Offset, hash: r.mark.Hash}
	for ch.pos < to.Offset {
		answer, err := r.ask(ctx, node, ch.pos, copyBytes)
		switch {
		case err != nil:
			return err
		case answer.status == copyBelowStart:
			return errAgainst
		case len(answer.batches) == 0:
			return fmt.Errorf("its log ends at offset %d", ch.pos)
		}
		if err := ch.add(answer.batches, to.Offset); err != nil {
			return err
		}
	}
	if ch.hash != to.Hash {
		return wrongf("its log up to offset %d has another hash than what was committed", to.Offset)
	}
	return distrustf("the broker's log between offsets %d and %d is not what was committed, and that of node %d is", r.mark.Offset, r.at.pos, node)
}
