package apply

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"lockstep/fsm"
	"lockstep/kafkawire"
)

// item is one committed batch on its way to the broker.
type item struct {
	index uint64 // of the Raft entry
	base  int64
	count int32
	seq   int32
	epoch int16           // of the applier, as stamped
	crc   uint32          // as stamped
	maxMs int64           // the batch's max timestamp
	below uint64          // hash of the partition's log up to it
	batch kafkawire.Batch // as committed; may be shared with Raft, never modified
	raw   kafkawire.Batch // instead of batch: as it stands on a peer's broker, stamped
}

// fenceHorizon is how old a batch may be for the broker to remember, for as
// long as a few appends take, who wrote it. Kafka forgets a producer by the
// timestamps of its batches, not by when they came
// (ProducerStateManager.isProducerExpired), by default after a day.
const fenceHorizon = 12 * time.Hour

func newItem(index uint64, r *fsm.Result) item {
	return item{index: index, base: r.BaseOffset, count: r.Count, seq: r.Sequence, epoch: r.Epoch, crc: r.CRC,
		maxMs: r.Batch.MaxTimestamp(), below: r.Below, batch: r.Batch}
}

// own makes the item keep its batch alone alive: the bytes of an entry that
// holds many partitions' batches must not hang on the slowest of them.
func (it *item) own(entryBytes int) {
	if 2*len(it.batch) < entryBytes {
		it.batch = bytes.Clone(it.batch)
	}
}

// trace is the item without its bytes: enough to compare.
func (it *item) trace() *item {
	t := *it
	t.batch, t.raw = nil, nil
	return &t
}

// fences says whether the broker will refuse what does not follow this item,
// for as long as the next append takes.
func (it *item) fences(now time.Time) bool {
	return now.UnixMilli()-it.maxMs < fenceHorizon.Milliseconds()
}

func (it *item) end() int64  { return it.base + int64(it.count) }
func (it *item) size() int64 { return int64(len(it.batch) + len(it.raw)) }
func (it *item) load() load  { return load{it.size(), 1} }

// stamped returns the batch that every node's broker is given for the item: its
// header, and what follows, which lies where the item has it.
// What a peer's broker gave is taken out of a batch that was read from there: a
// producer sends base offset 0 and no leader epoch.
func (it *item) stamped(topic uint64) (head [kafkawire.BatchHeaderLen]byte, body []byte) {
	if it.raw != nil {
		copy(head[:], it.raw)
		clear(head[:8])
		copy(head[12:16], "\xff\xff\xff\xff")
		return head, it.raw[kafkawire.BatchHeaderLen:]
	}
	head = kafkawire.StampHead(it.batch, fsm.ApplierProducerID(topic), it.epoch, it.seq, it.crc)
	return head, it.batch[kafkawire.BatchHeaderLen:]
}

// stampedCopy is the same in one piece of its own.
func (it *item) stampedCopy(topic uint64) []byte {
	head, body := it.stamped(topic)
	return slices.Concat(head[:], body)
}

// compare says how a batch read from the broker differs from the item; empty
// if it is the item. Compaction takes records out of batches (LogCleaner), and
// a copy of what it left has batches of its own, so where it runs no more can be
// asked for than the same end, with the same sequence behind it.
func (it *item) compare(topic uint64, got kafkawire.Batch, compacted bool) string {
	switch {
	case foreign(topic, got) != "":
		return foreign(topic, got)
	case compacted && it.endsWith(got):
		return ""
	case got.BaseOffset() != it.base || got.LastOffsetDelta() != it.count-1:
		return fmt.Sprintf("holds offsets %d+%d, committed are %d+%d", got.BaseOffset(), int64(got.LastOffsetDelta())+1, it.base, it.count)
	case got.BaseSequence() != it.seq:
		return fmt.Sprintf("has sequence %d, committed is %d", got.BaseSequence(), it.seq)
	case got.CRC() != it.crc:
		return fmt.Sprintf("has CRC %08x, committed is %08x", got.CRC(), it.crc)
	}
	return ""
}

// endsWith says whether a batch ends where the item does, with the sequence that
// the item ends with.
func (it *item) endsWith(got kafkawire.Batch) bool {
	mine := it.identity().after(int64(it.count))
	theirs := identityOf(got).after(int64(got.LastOffsetDelta()) + 1)
	return lastOffset(got)+1 == it.end() && (theirs == mine || theirs.epoch != mine.epoch)
}

// foreign says that a batch on the broker was not written by any applier of
// this cluster for this topic; empty if it was.
func foreign(topic uint64, got kafkawire.Batch) string {
	if pid := fsm.ApplierProducerID(topic); got.ProducerID() != pid {
		return fmt.Sprintf("was written by producer %d, not by lockstep (%d): something else writes to this broker", got.ProducerID(), pid)
	}
	return ""
}
