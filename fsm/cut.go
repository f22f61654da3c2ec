package fsm

import (
	"cmp"
	"math"
	"slices"
)

// LogStart raises a partition's log start offset. One that is lower than what
// the partition has changes nothing. Its result carries TP, and the log start
// offset afterwards as BaseOffset.
type LogStart struct {
	TP     TP    `json:"tp"`
	Offset int64 `json:"offset"`
}

// Cut takes everything from Offset on out of a partition's log: the batch at
// Offset was refused for good by every member's broker, and none holds
// anything from there on. Nothing of it was acknowledged. Its result is Done
// only if it cut, with TP, Offset as BaseOffset, and Sequence and Epoch of the
// next batch.
type Cut struct {
	TP TP `json:"tp"`
	// Index is that of the Raft entry with the refused batch. Two nodes may
	// propose the same cut: the second must not take what was appended at
	// Offset after the first. A cut whose entry lies before the partition's
	// last cut has no effect.
	Index    uint64 `json:"index"`
	Offset   int64  `json:"offset"`   // of the refused batch
	Hash     uint64 `json:"hash"`     // Partition.Hash just before it
	Sequence int32  `json:"sequence"` // the refused batch's Result.Sequence
}

// Recover tells a group that it goes on after its quorum was lost, under a
// higher recovery number. One that is not higher changes nothing.
type Recover struct {
	Number int16 `json:"number"`
	// Survivor is the node that holds what counts from here on: in the catalog
	// the others are put out.
	Survivor int32 `json:"survivor,omitempty"`
}

const codeOffsetOutOfRange = 1 // OFFSET_OUT_OF_RANGE

func (g *Group) logStart(a *LogStart) Result {
	p, ok := g.Partitions[a.TP]
	if !ok {
		return g.notOpen(a.TP)
	}
	if a.Offset > p.NextOffset {
		r := rejected(codeOffsetOutOfRange, "offset %d is beyond the log end offset %d", a.Offset, p.NextOffset)
		r.TP = a.TP
		return r
	}
	if a.Offset > p.LogStart {
		p.LogStart = a.Offset
		p.dropCheckpointsBelow(a.Offset)
	}
	return Result{TP: a.TP, BaseOffset: p.LogStart}
}

func (g *Group) notOpen(tp TP) Result {
	r := rejected(codeUnknownTopic, "partition is not open")
	r.TP = tp
	return r
}

func (g *Group) recover(a *Recover) Result {
	if a.Number <= g.Recovery {
		return Result{}
	}
	g.Recovery = a.Number
	for _, p := range g.Partitions {
		p.recover(a.Number)
	}
	if g.Catalog != nil && a.Survivor != 0 && g.Catalog.recoverMembers(g.Index, a.Survivor) {
		g.Catalog.Version = g.Index
	}
	return Result{}
}

// recover begins the log's next epoch. A broker takes a producer's new epoch
// from sequence 0 only (ProducerAppendInfo.checkSequence), and refuses the old
// one from then on.
func (p *Partition) recover(number int16) {
	p.Epoch, p.EpochStart, p.Sequence = number, p.NextOffset, 0
	if n := len(p.Checkpoints); n > 0 && p.Checkpoints[n-1].Offset == p.NextOffset {
		p.Checkpoints[n-1].Sequence = 0
	}
}

func (g *Group) cut(a *Cut) Result {
	p, ok := g.Partitions[a.TP]
	if !ok {
		return g.notOpen(a.TP)
	}
	r := p.refuseCut(a, g.Index)
	if r.Verdict != Rejected {
		p.cut(a, g.Index)
		r.BaseOffset, r.Sequence, r.Epoch, r.Below = p.NextOffset, p.Sequence, p.Epoch, p.Hash
	}
	r.TP = a.TP
	return r
}

// Left returns what a later cut leaves of the partition: the same log up to
// offset, where hash is its hash. Nothing of p is shared or changed.
func (p *Partition) Left(offset int64, hash uint64) *Partition {
	c := p.clone()
	c.cut(&Cut{Offset: offset, Hash: hash}, p.lastCut)
	return c
}

// CutAfter says whether the log was cut in an entry after index.
func (p *Partition) CutAfter(index uint64) bool { return p.lastCut > index }

// refuseCut says why a cut has no effect. It was decided on a state that may
// have gone on since.
func (p *Partition) refuseCut(a *Cut, index uint64) Result {
	switch seq, _ := p.sequenceAt(a.Offset); {
	case a.Index == 0 || a.Index >= index:
		return rejected(codeInvalidRequest, "a cut names the raft entry of the refused batch, not %d", a.Index)
	case a.Index < p.lastCut: // what stands in the cut's own entry stands behind it
		return rejected(codeInvalidRequest, "entry %d lies before the cut at %d", a.Index, p.lastCut)
	case a.Offset >= p.NextOffset || a.Offset < p.LogStart:
		return rejected(codeOffsetOutOfRange, "offset %d is not within [%d,%d)", a.Offset, p.LogStart, p.NextOffset)
	case !p.boundary(a.Offset):
		return rejected(codeInvalidRequest, "offset %d lies within a batch", a.Offset)
	case a.Offset > p.EpochStart && a.Sequence != seq:
		return rejected(codeInvalidRequest, "sequence %d at offset %d, not %d", seq, a.Offset, a.Sequence)
	}
	if i, ok := slices.BinarySearchFunc(p.Checkpoints, a.Offset, checkpointAt); ok && p.Checkpoints[i].Hash != a.Hash {
		return rejected(codeInvalidRequest, "hash %016x at offset %d, not %016x", p.Checkpoints[i].Hash, a.Offset, a.Hash)
	}
	return Result{}
}

// boundary says whether a batch may begin at an offset below the log end, as
// far as batches are remembered.
func (p *Partition) boundary(offset int64) bool {
	if l := &p.LastBatch; l.Count > 0 && offset > l.Base {
		return false
	}
	for e := p.recent.Front(); e != nil; e = e.Next() {
		for _, k := range e.Value.(*producer).kept {
			if k.offset < offset && offset < k.offset+int64(k.count) {
				return false
			}
		}
	}
	return true
}

func checkpointAt(c Checkpoint, offset int64) int { return cmp.Compare(c.Offset, offset) }

// sequenceAt returns the applier's sequence for a batch at an offset, if the
// log is to go on there, and where its epoch then began. Sequences count
// offsets. A cut behind the beginning of the epoch takes all of the epoch with
// it: it begins anew there, with sequence 0.
func (p *Partition) sequenceAt(offset int64) (seq int32, epochStart int64) {
	if offset <= p.EpochStart {
		return 0, offset
	}
	return int32((int64(p.Sequence) - (p.NextOffset - offset)) & math.MaxInt32), p.EpochStart
}

// cut rolls the partition back to an offset.
//
// An idempotent producer whose batches are cut was told a retriable error for
// them, or nothing yet, and sends them again with the same sequences. They
// must be neither duplicates (they are nowhere) nor out of order (a fatal error
// for some clients): so its last sequence goes back to before the first one
// that was cut, even if no batch of it is left to remember. Whatever comes next
// must be that one: if a later one overtook it and was taken, the first could
// never follow (KAFKA-15591). Repeats of batches that stand below the cut are
// still answered as duplicates while they are kept, and refused after. If the
// client gives up the refused batch instead, it goes on with the next epoch
// from sequence 0 (KIP-360), which is taken too. Only where a batch may have
// been cut that was not kept any more (a producer with more than five in
// flight) is the producer forgotten, and any sequence taken from it.
//
// Not rolled back are the order in which producers are forgotten, and which
// ones were: those that went for a cut batch's producer stay forgotten.
func (p *Partition) cut(a *Cut, index uint64) {
	p.Sequence, p.EpochStart = p.sequenceAt(a.Offset)
	p.NextOffset, p.Hash = a.Offset, a.Hash
	p.LastBatch = Placed{}
	p.lastCut = index
	for e := p.recent.Front(); e != nil; {
		next := e.Next()
		if !e.Value.(*producer).cut(a.Offset) {
			p.forget(e)
		}
		e = next
	}
	n, _ := slices.BinarySearchFunc(p.Checkpoints, a.Offset, checkpointAt)
	p.Checkpoints = p.Checkpoints[:n]
	// How many bytes lie between the last checkpoint and here is not known:
	// there is one here, then.
	if p.marks.bytes = 0; a.Offset > 0 {
		p.checkpoint()
	}
}

// cut takes the batches from offset on out of the producer's state. It returns
// false if it cannot tell what the producer's next sequence is.
func (pr *producer) cut(offset int64) bool {
	n := len(pr.kept)
	for n > 0 && pr.kept[n-1].offset >= offset {
		n--
	}
	if n < len(pr.kept) {
		pr.lastSeq = addSequence(pr.kept[n].first, -1)
		pr.kept = pr.kept[:n]
	}
	return n > 0 || pr.gone < offset
}
