package apply

import (
	"fmt"

	"lockstep/fsm"
	"lockstep/kafkawire"
)

// item is one committed batch on its way to the broker.
type item struct {
	index uint64 // of the Raft entry
	base  int64
	count int32
	seq   int32
	crc   uint32          // as stamped
	batch kafkawire.Batch // as committed; shared with Raft, never modified
}

func newItem(index uint64, r *fsm.Result) item {
	return item{index: index, base: r.BaseOffset, count: r.Count, seq: r.Sequence, crc: r.CRC, batch: r.Batch}
}

func (it *item) end() int64  { return it.base + int64(it.count) }
func (it *item) size() int64 { return int64(len(it.batch)) }

// stamped returns the bytes that every node's broker is given for the item.
func (it *item) stamped(topic uint64) []byte {
	return kafkawire.Stamp(make([]byte, 0, len(it.batch)), it.batch, fsm.ApplierProducerID(topic), 0, it.seq)
}

// compare says how a batch read from the broker differs from the item; empty
// if it is the item.
func (it *item) compare(topic uint64, got kafkawire.Batch) string {
	pid := fsm.ApplierProducerID(topic)
	switch {
	case got.BaseOffset() != it.base || got.Count() != it.count:
		return fmt.Sprintf("holds offsets %d+%d, committed are %d+%d", got.BaseOffset(), got.Count(), it.base, it.count)
	case got.ProducerID() != pid:
		return fmt.Sprintf("was written by producer %d, not by lockstep (%d)", got.ProducerID(), pid)
	case got.BaseSequence() != it.seq:
		return fmt.Sprintf("has sequence %d, committed is %d", got.BaseSequence(), it.seq)
	case got.CRC() != it.crc:
		return fmt.Sprintf("has CRC %08x, committed is %08x", got.CRC(), it.crc)
	}
	return ""
}
