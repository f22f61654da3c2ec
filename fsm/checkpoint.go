package fsm

import "slices"

// CheckpointBytes is how many bytes of batches lie at most between two of a
// partition's checkpoints, give or take a batch, until MaxCheckpoints of them
// do not suffice: then every second one is dropped and the distance doubles.
const (
	CheckpointBytes = 1 << 20
	MaxCheckpoints  = 128
)

// Placed is a batch at its place in a partition's log, as every broker must
// show it.
type Placed struct {
	Base     int64
	Count    int32 // offsets that it takes
	CRC      uint32
	Sequence int32 // of the applier
	Epoch    int16 // of the applier
}

// Checkpoint is a place in a partition's log between two batches, with what
// whoever reads a broker's log from there needs to check it.
type Checkpoint struct {
	Offset   int64  // of the batch that follows
	Hash     uint64 // ChainHash over everything below Offset
	Sequence int32  // applier sequence of the batch that follows
}

// maxCoarse keeps the distance of checkpoints within 63 bits.
const maxCoarse = 40

// marks says when the next checkpoint is due. Like everything here it counts
// bytes of the log and nothing else, so that all nodes have the same ones.
type marks struct {
	coarse byte  // checkpoints are CheckpointBytes << coarse apart
	bytes  int64 // of batches since the last one
}

// mark notes that a batch was appended, and makes a checkpoint behind it if
// one is due.
func (p *Partition) mark(length int) {
	p.marks.bytes += int64(length)
	if p.marks.bytes >= CheckpointBytes<<p.marks.coarse {
		p.checkpoint()
	}
}

// checkpoint makes a checkpoint at the log end, where there is none yet.
func (p *Partition) checkpoint() {
	p.marks.bytes = 0
	if len(p.Checkpoints) >= MaxCheckpoints {
		kept := p.Checkpoints[:0]
		for i, c := range p.Checkpoints {
			if i%2 == 1 { // the newest stays
				kept = append(kept, c)
			}
		}
		p.Checkpoints = kept
		p.marks.coarse = min(p.marks.coarse+1, maxCoarse)
	}
	p.Checkpoints = append(p.Checkpoints, Checkpoint{Offset: p.NextOffset, Hash: p.Hash, Sequence: p.Sequence})
}

// dropCheckpointsBelow forgets what lies before the log start, all but the
// last one at or below it. Where that leaves few, the next ones are closer
// together again: else a partition that has long kept a little of much would
// end with none in what it keeps.
func (p *Partition) dropCheckpointsBelow(start int64) {
	n := 0
	for n+1 < len(p.Checkpoints) && p.Checkpoints[n+1].Offset <= start {
		n++
	}
	p.Checkpoints = slices.Delete(p.Checkpoints, 0, n)
	if len(p.Checkpoints) <= MaxCheckpoints/4 && p.marks.coarse > 0 {
		p.marks.coarse--
	}
}
