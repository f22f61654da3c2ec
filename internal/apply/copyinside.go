package apply

import (
	"fmt"

	"lockstep/fsm"
	"lockstep/kafkawire"
)

// continues says whether the broker's log, which ends inside the item, may be a
// copy of a compacted log that did not come to its end: such a copy has batches
// of its own, with the same sequences.
func (it *item) continues(at *attachment) bool {
	if at.last == nil || lastOffset(at.last)+1 != at.end || at.last.ProducerEpoch() != it.epoch {
		return false
	}
	there := identityOf(at.last).after(int64(at.last.LastOffsetDelta()) + 1)
	return there == it.identity().after(at.end-it.base)
}

// identity is what the applier stamps the item with.
func (it *item) identity() identity { return identity{it.epoch, it.seq, true} }

// goOnInside cuts the first item down to what the broker does not have of it.
func (p *pipe) goOnInside(at *attachment) error {
	it := &p.pending[0]
	rest, err := it.rest(p.l.tp.Topic, at.end)
	if err != nil {
		return CauseDivergent.distrust("the broker's log ends at offset %d, inside the committed batch %d+%d, which cannot be cut: %v",
			at.end, it.base, it.count, err)
	}
	freed := load{bytes: it.size() - rest.size()}
	p.pending[0] = rest
	p.agreed(at)
	p.last = nil // what stands before is not a committed batch
	p.l.advance(at.end, freed, rest.index)
	return nil
}

// rest is the item from an offset inside it on.
func (it *item) rest(topic uint64, offset int64) (item, error) {
	b, _, err := kafkawire.ParseBatch(it.stampedCopy(topic))
	if err != nil {
		return item{}, fmt.Errorf("read the batch at offset %d: %w", it.base, err)
	}
	var records []kafkawire.Record
	err = kafkawire.VisitRecords(b, survivorBytes, func(r kafkawire.Record) bool {
		if it.base+int64(r.OffsetDelta) >= offset {
			records = append(records, r)
		}
		return true
	})
	if err != nil {
		return item{}, err
	}
	here := it.identity().after(offset - it.base)
	raw, err := kafkawire.AppendBatch(nil, b.Codec(), records, fsm.ApplierProducerID(topic), here.epoch, here.seq)
	if err != nil {
		return item{}, err
	}
	made, _, err := kafkawire.ParseBatch(raw)
	if err != nil {
		return item{}, fmt.Errorf("make the rest of the batch at offset %d: %w", it.base, err)
	}
	return item{index: it.index, base: offset, count: made.Count(), seq: here.seq, epoch: here.epoch, crc: made.CRC(),
		maxMs: made.MaxTimestamp(), raw: made}, nil
}
