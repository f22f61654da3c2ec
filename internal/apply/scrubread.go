package apply

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"lockstep/fsm"
	"lockstep/kafkawire"
)

// finding is something on the local broker that was not committed, or is not
// there though it was.
type finding struct {
	cause  Cause
	offset int64
	text   string
	doubt  int // how often it must be found in a row to be believed
}

func (f *finding) reason() string { return f.cause.because("offset %d: %s", f.offset, f.text) }

func (f *finding) same(o *finding) bool {
	return o != nil && f.cause == o.cause && f.offset == o.offset
}

// believed is how often a finding is made before it counts: what was read is
// read once more.
const believed = 2

func found(cause Cause, offset int64, format string, args ...any) *finding {
	return &finding{cause: cause, offset: offset, text: fmt.Sprintf(format, args...), doubt: believed}
}

// committed is what a state machine says of a partition's log.
type committed struct {
	next     int64
	logStart int64
	hash     uint64
	last     fsm.Placed
	marks    []fsm.Checkpoint
}

// committed returns what the feeder's state machine says of the lane's
// partition now, false if it does not have it.
func (l *lane) committed() (committed, bool) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if l.f.tail == nil {
		return committed{}, false
	}
	p := l.f.tail.Partitions[l.tp]
	if p == nil {
		return committed{}, false
	}
	return committed{next: p.NextOffset, logStart: p.LogStart, hash: p.Hash, last: p.LastBatch, marks: slices.Clone(p.Checkpoints)}, true
}

// reading is one way through a partition's log, from its start on. Everything
// below pos was looked at.
type reading struct {
	began time.Time
	first bool // nothing was read yet
	pos   int64
	size  int64 // bytes read

	chained bool   // chain is the hash of everything below pos
	chain   uint64 // see fsm.ChainHash
	anchor  int64  // everything below was found to be what the state machine says; 0: nothing was

	ordered bool // a batch with a sequence stands before pos
	seq     int32
	epoch   int16
}

// newReading begins at a log's start. The chain begins with the empty log, or
// with the first checkpoint that is met.
func newReading(start int64, want *committed) *reading {
	r := &reading{began: time.Now(), first: true, pos: start, chained: start == 0}
	for _, c := range want.marks {
		if c.Offset == start {
			r.chained, r.chain, r.anchor = true, c.Hash, start
		}
	}
	return r
}

// proved is the offset up to which the log was compared with what was
// committed, as far as that can be: of a log without a checkpoint since its
// start, and of a compacted one, no hash is known.
func (r *reading) proved() int64 {
	if r.chained {
		return r.anchor
	}
	return r.pos
}

// take checks the batch that the broker has at pos, and goes on behind it. to
// is where what may be judged ends.
func (r *reading) take(tp fsm.TP, b kafkawire.Batch, want *committed, to int64, compacted bool) *finding {
	base, next := b.BaseOffset(), b.BaseOffset()+int64(b.LastOffsetDelta())+1
	switch {
	case b.LastOffsetDelta() < 0 || next <= r.pos:
		return found(CauseCorrupt, r.pos, "the broker has a batch there that says it holds offsets %d to %d", base, next-1)
	case !b.ChecksumOK():
		return found(CauseCorrupt, base, "the batch there does not have its checksum, %08x", b.CRC())
	case foreign(tp.Topic, b) != "":
		return found(CauseForeign, base, "the batch there %s", foreign(tp.Topic, b))
	case base > r.pos && !compacted:
		return found(CauseDivergent, r.pos, "nothing stands there: the next batch is at offset %d", base)
	case base < r.pos && !r.first && !compacted:
		return found(CauseDivergent, r.pos, "it lies inside a batch that begins at offset %d, behind one that ends there", base)
	case next > to:
		return found(CauseDivergent, base, "the batch there ends at offset %d, no committed one does", next)
	}
	if !compacted {
		if f := r.follow(b, want, base, next); f != nil {
			return f
		}
	} else {
		r.chained = false
	}
	r.pos, r.first = next, false
	return nil
}

// follow checks what holds where no records are taken out: sequences go on,
// and so does the chain.
func (r *reading) follow(b kafkawire.Batch, want *committed, base, next int64) *finding {
	if b.IsFiller() {
		// A copy put it there, over offsets that its source had deleted.
		r.chained, r.ordered = false, false
		return r.meet(want, base, next)
	}
	seq, epoch := b.BaseSequence(), b.ProducerEpoch()
	switch {
	case !r.ordered || r.first:
	case epoch == r.epoch && seq != r.seq:
		return found(CauseDivergent, base, "the batch there has sequence %d, the one before it ends at %d", seq, r.seq)
	case epoch < r.epoch || epoch > r.epoch && seq != 0:
		return found(CauseDivergent, base, "the batch there has epoch %d and sequence %d, behind epoch %d", epoch, seq, r.epoch)
	}
	count := b.LastOffsetDelta() + 1
	r.ordered, r.epoch, r.seq = true, epoch, int32((int64(seq)+int64(count))&math.MaxInt32)
	r.chain = fsm.ChainHash(r.chain, base, len(b), b.CRC())
	if next == want.next && want.last.Count > 0 {
		if w := want.last; base != w.Base || count != w.Count || b.CRC() != w.CRC || seq != w.Sequence || epoch != w.Epoch {
			return found(CauseDivergent, base, "the last batch there holds %d offsets with CRC %08x, committed are %d with CRC %08x at offset %d",
				count, b.CRC(), w.Count, w.CRC, w.Base)
		}
	}
	return r.meet(want, base, next)
}

// meet compares the chain where the state machine has something to compare it
// with.
func (r *reading) meet(want *committed, base, next int64) *finding {
	i, _ := slices.BinarySearchFunc(want.marks, base+1, func(c fsm.Checkpoint, at int64) int { return cmp.Compare(c.Offset, at) })
	if i < len(want.marks) && want.marks[i].Offset < next {
		return found(CauseDivergent, base, "the batch there ends at offset %d, a committed one begins at %d", next, want.marks[i].Offset)
	}
	hash, ok := want.hash, next == want.next
	if i < len(want.marks) && want.marks[i].Offset == next {
		hash, ok = want.marks[i].Hash, true
	}
	switch {
	case !ok:
		return nil
	case r.chained && r.chain != hash:
		return found(CauseDivergent, r.anchor, "something between there and offset %d is not what was committed: its hash is %016x, not %016x", next, r.chain, hash)
	}
	r.chained, r.chain, r.anchor = true, hash, next
	return nil
}

// holds says whether a log may start at an offset. Brokers delete by
// themselves what a topic's settings let go; where they let nothing go,
// everything from the log start on that was agreed on must be there.
func (want *committed) holds(start int64, o *fsm.Open) *finding {
	if o == nil || start <= want.logStart {
		return nil
	}
	forever := func(key string) bool { v, set := o.Config[key]; return set && v == "-1" }
	_, sized := o.Config["retention.bytes"]
	if !forever("retention.ms") || sized && !forever("retention.bytes") {
		return nil
	}
	return found(CauseDivergent, want.logStart, "the broker's log starts at offset %d: it deleted what its topic keeps for ever", start)
}
