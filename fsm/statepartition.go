package fsm

import (
	"encoding/binary"
	"math"
)

// The encoding of a partition. A number that is mostly near another one is
// written as the distance from it.
//
//	topic, partition, name
//	next offset, sequence, 8 bytes hash, log start, epoch, epoch start
//	coarseness and bytes of the checkpoints to come, raft index of the last cut
//	last batch: count; if not 0: base, 4 bytes CRC, sequence, epoch
//	count of checkpoints; each: offset - the one before, 8 bytes hash, sequence
//	1 if a producer was forgotten, else 0
//	count of producers, used last first; each:
//	  id, epoch, last sequence, clock - used, gone + 1
//	  count of kept batches, newest first; each:
//	    what lies between its end and the base of the next (the log end), count
//
// The sequences of the kept batches follow from the producer's last one.

// The least that a partition and its parts take.
const (
	minPartitionSize  = 24
	minCheckpointSize = 10
	minProducerSize   = 6
)

func (p *Partition) appendTo(b []byte, nowMs int64) []byte {
	b = appendNumbers(b, int64(p.TP.Topic), int64(uint32(p.TP.Partition)))
	b = appendBytes(b, []byte(p.Name))
	b = appendNumbers(b, p.NextOffset, int64(p.Sequence))
	b = binary.LittleEndian.AppendUint64(b, p.Hash)
	b = appendNumbers(b, p.LogStart, int64(p.Epoch), p.EpochStart, int64(p.marks.coarse), p.marks.bytes, int64(p.lastCut))
	l := &p.LastBatch
	b = appendNumbers(b, int64(l.Count))
	if l.Count > 0 {
		b = appendNumbers(b, l.Base)
		b = binary.LittleEndian.AppendUint32(b, l.CRC)
		b = appendNumbers(b, int64(l.Sequence), int64(l.Epoch))
	}
	b = appendNumbers(b, int64(len(p.Checkpoints)))
	before := int64(0)
	for _, c := range p.Checkpoints {
		b = appendNumbers(b, c.Offset-before)
		b = binary.LittleEndian.AppendUint64(b, c.Hash)
		b = appendNumbers(b, int64(c.Sequence))
		before = c.Offset
	}
	forgot := int64(0)
	if p.forgot {
		forgot = 1
	}
	b = appendNumbers(b, forgot, int64(p.recent.Len()))
	for e := p.recent.Front(); e != nil; e = e.Next() {
		b = e.Value.(*producer).appendTo(b, p.NextOffset, nowMs)
	}
	return b
}

func (pr *producer) appendTo(b []byte, end, nowMs int64) []byte {
	b = appendNumbers(b, pr.id, int64(pr.epoch), int64(pr.lastSeq), nowMs-pr.usedMs, pr.gone+1, int64(len(pr.kept)))
	for i := len(pr.kept) - 1; i >= 0; i-- {
		k := &pr.kept[i]
		b = appendNumbers(b, end-k.offset-int64(k.count), int64(k.count))
		end = k.offset
	}
	return b
}

func appendNumbers(b []byte, vs ...int64) []byte {
	for _, v := range vs {
		b = binary.AppendUvarint(b, uint64(v))
	}
	return b
}

// partition reads what Partition.appendTo wrote.
func (r *stateReader) partition(nowMs int64) *Partition {
	tp := TP{Topic: r.number("topic id", math.MaxUint64), Partition: int32(uint32(r.number("partition", math.MaxUint32)))}
	p := newPartition(tp, r.string("topic name"), 0)
	p.NextOffset = r.int62("next offset")
	p.Sequence = r.int31("sequence")
	p.Hash = r.uint64("hash")
	p.LogStart = int64(r.number("log start", uint64(p.NextOffset)))
	p.Epoch = r.int15("epoch")
	p.EpochStart = int64(r.number("epoch start", uint64(p.NextOffset)))
	p.marks.coarse = byte(r.number("coarseness", maxCoarse))
	p.marks.bytes = r.int62("bytes since the last checkpoint")
	p.lastCut = r.number("last cut", math.MaxUint64)
	if l := &p.LastBatch; r.lastBatch(l) && l.Base+int64(l.Count) != p.NextOffset {
		r.fail("last batch of %s ends at %d, the log at %d", tp, l.Base+int64(l.Count), p.NextOffset)
	}
	before := int64(0)
	n := r.count("checkpoints", minCheckpointSize)
	if n > MaxCheckpoints {
		r.fail("%s has %d checkpoints", tp, n)
	}
	for i := 0; i < n && r.err == nil; i++ {
		before += int64(r.number("checkpoint", uint64(p.NextOffset-before)))
		c := Checkpoint{Offset: before, Hash: r.uint64("hash of a checkpoint"), Sequence: r.int31("sequence of a checkpoint")}
		if i > 0 && p.Checkpoints[i-1].Offset == before {
			r.fail("%s has two checkpoints at %d", tp, before)
		}
		p.Checkpoints = append(p.Checkpoints, c)
	}
	r.producers(p, nowMs)
	return p
}

func (r *stateReader) lastBatch(l *Placed) bool {
	if l.Count = r.int31("last batch"); l.Count == 0 {
		return false
	}
	l.Base = r.int62("base of the last batch")
	l.CRC = r.uint32("CRC of the last batch")
	l.Sequence = r.int31("sequence of the last batch")
	l.Epoch = r.int15("epoch of the last batch")
	return r.err == nil
}

func (r *stateReader) producers(p *Partition, nowMs int64) {
	p.forgot = r.number("forgotten producers", 1) == 1
	n := r.count("producers", minProducerSize)
	if n > MaxProducers {
		r.fail("%s has %d producers", p.TP, n)
	}
	for i := 0; i < n && r.err == nil; i++ {
		pr := &producer{id: r.int63("producer id"), epoch: r.int15("producer epoch"), lastSeq: r.int31("last sequence")}
		pr.usedMs = nowMs - int64(r.number("age of a producer", uint64(nowMs)))
		pr.gone = int64(r.number("batches of a producer", uint64(p.NextOffset))) - 1
		r.kept(pr, p.NextOffset)
		if _, ok := p.producers[pr.id]; ok {
			r.fail("%s has producer %d twice", p.TP, pr.id)
			return
		}
		p.producers[pr.id] = p.recent.PushBack(pr)
	}
}

// kept reads a producer's batches, the newest first, from the log end down.
func (r *stateReader) kept(pr *producer, end int64) {
	n := int(r.number("kept batches", keptBatches))
	if n == 0 || r.err != nil {
		return
	}
	pr.kept = make([]keptBatch, n)
	last := pr.lastSeq
	for i := n - 1; i >= 0; i-- {
		k := &pr.kept[i]
		end -= int64(r.number("place of a kept batch", uint64(end)))
		k.count = int32(r.number("size of a kept batch", min(uint64(end), math.MaxInt32)))
		if k.count == 0 {
			r.fail("a kept batch of producer %d is empty", pr.id)
			return
		}
		end -= int64(k.count)
		k.offset, k.last = end, last
		k.first = addSequence(last, 1-k.count)
		last = addSequence(k.first, -1)
	}
	if pr.gone >= end {
		r.fail("producer %d has kept batches below %d", pr.id, pr.gone)
	}
}
