package fsm

import (
	"fmt"
	"slices"
	"testing"

	"lockstep/kafkawire"
)

// bigBatch has 300 KiB: no multiple of it is a multiple of the distance.
func bigBatch() kafkawire.Batch { return makeBatch(batchSpec{count: 7, size: 300 << 10}) }

// logOf is what a test knows of a log by itself: the hash and the sequence at
// each place between two batches, and the bytes before it.
type logOf struct {
	at    map[int64]Checkpoint
	bytes map[int64]int64
}

func (l *logOf) append(p *Partition, b kafkawire.Batch) {
	if l.at == nil {
		l.at, l.bytes = make(map[int64]Checkpoint), map[int64]int64{p.NextOffset: 0}
	}
	before := l.bytes[p.NextOffset]
	p.append(b, 0)
	l.at[p.NextOffset] = Checkpoint{Offset: p.NextOffset, Hash: p.Hash, Sequence: p.Sequence}
	l.bytes[p.NextOffset] = before + int64(len(b))
}

// check holds the checkpoints to what they promise: few, true, ascending, and
// from a given one on not further apart than given.
func (l *logOf) check(t *testing.T, p *Partition, from int64, apart int64) {
	t.Helper()
	if n := len(p.Checkpoints); n > MaxCheckpoints {
		t.Fatalf("%d checkpoints", n)
	}
	last := from
	for i, c := range p.Checkpoints {
		if c != l.at[c.Offset] {
			t.Fatalf("checkpoint %d is %+v, the log has %+v there", i, c, l.at[c.Offset])
		}
		if i > 0 && c.Offset <= p.Checkpoints[i-1].Offset {
			t.Fatalf("checkpoints %v", p.Checkpoints)
		}
		if c.Offset <= from {
			continue
		}
		if gap := l.bytes[c.Offset] - l.bytes[last]; gap > apart {
			t.Fatalf("%d bytes between %d and %d, more than %d", gap, last, c.Offset, apart)
		}
		last = c.Offset
	}
	if gap := l.bytes[p.NextOffset] - l.bytes[last]; gap > apart {
		t.Fatalf("%d bytes after the last checkpoint, more than %d", gap, apart)
	}
}

// withBatches is the most that a distance of checkpoints can be: it ends with
// the batch that reaches it, and two of them may have become one.
func withBatches(apart int64, b kafkawire.Batch) int64 {
	return apart / CheckpointBytes * (CheckpointBytes + int64(len(b)))
}

func TestCheckpointsAreTrueAndFew(t *testing.T) {
	p := newPartition(testTP, "t", 0)
	b := bigBatch()
	var l logOf
	for range 2500 { // 730 MiB
		full := len(p.Checkpoints) == MaxCheckpoints
		l.append(p, b)
		if full && len(p.Checkpoints) < MaxCheckpoints {
			// The newest stay: they are what a reader of the end begins at.
			c := p.Checkpoints[len(p.Checkpoints)-2:]
			if gap := l.bytes[c[1].Offset] - l.bytes[c[0].Offset]; gap > withBatches(CheckpointBytes<<(p.marks.coarse-1), b) {
				t.Fatalf("%d bytes between the last two checkpoints", gap)
			}
		}
		total, apart := l.bytes[p.NextOffset], int64(CheckpointBytes)
		// Each distance lasts for MaxCheckpoints of them at least.
		for total > apart*MaxCheckpoints {
			apart *= 2
		}
		l.check(t, p, 0, withBatches(apart, b))
	}
	if n := len(p.Checkpoints); n < MaxCheckpoints/2 {
		t.Errorf("only %d checkpoints", n)
	}
}

// A partition that keeps the last few MiB of very much has checkpoints in what
// it keeps.
func TestCheckpointsFollowTheLogStart(t *testing.T) {
	p := newPartition(testTP, "t", 0)
	g := &Group{Partitions: map[TP]*Partition{testTP: p}}
	b := bigBatch()
	var l logOf
	for range 2500 {
		l.append(p, b)
	}
	if p.marks.coarse < 2 {
		t.Fatalf("distance of checkpoints is %d MiB", 1<<p.marks.coarse)
	}
	start := p.Checkpoints[50].Offset + 1
	g.logStart(&LogStart{TP: testTP, Offset: start})
	if p.Checkpoints[0].Offset > start || p.Checkpoints[1].Offset <= start {
		t.Fatalf("log start %d, checkpoints from %+v", start, p.Checkpoints[:2])
	}
	for i := range 400 {
		l.append(p, b)
		if i%20 == 0 {
			g.logStart(&LogStart{TP: testTP, Offset: p.NextOffset - 20*7})
		}
	}
	l.check(t, p, p.LogStart, withBatches(CheckpointBytes, b))
	coarse, checkpoints := p.marks, slices.Clone(p.Checkpoints)
	g.logStart(&LogStart{TP: testTP, Offset: p.LogStart})
	if p.marks != coarse || !slices.Equal(p.Checkpoints, checkpoints) {
		t.Error("a log start that is no news changed the checkpoints")
	}
}

// A cut leaves a checkpoint at the end, and from there on the distance counts.
func TestCheckpointsAfterACut(t *testing.T) {
	p := newPartition(testTP, "t", 0)
	b := bigBatch()
	var l logOf
	for i := range 600 {
		l.append(p, b)
		if i%7 != 6 {
			continue
		}
		to := l.at[p.NextOffset-3*7]
		p.cut(&Cut{TP: testTP, Offset: to.Offset, Hash: to.Hash, Sequence: to.Sequence}, uint64(i))
		if last := p.Checkpoints[len(p.Checkpoints)-1]; last != to {
			t.Fatalf("cut to %+v, last checkpoint %+v", to, last)
		}
		l.check(t, p, 0, withBatches(CheckpointBytes<<p.marks.coarse, b))
	}
	p.cut(&Cut{TP: testTP}, 1000)
	if len(p.Checkpoints) != 0 || p.marks.bytes != 0 || p.NextOffset != 0 || p.Hash != 0 || p.Sequence != 0 {
		t.Errorf("cut to nothing: %s", dumpPartition(p))
	}
}

func TestRecoveryChangesTheLastCheckpointsSequence(t *testing.T) {
	m := openMachine(t)
	b := makeBatch(batchSpec{size: CheckpointBytes, count: 3})
	m.one(AppendCommand(testTP, b))
	m.one(AppendCommand(testTP, b))
	m.one(Control(KindRecover, Recover{Number: 1}))
	r := m.one(AppendCommand(testTP, b))
	c := m.Partitions[testTP].Checkpoints
	if len(c) != 3 || c[0].Sequence != 3 || c[1].Sequence != r.Sequence || c[2].Sequence != 3 {
		t.Errorf("checkpoints %+v, the batch at the second has sequence %d", c, r.Sequence)
	}
}

// TestOtherBytesOtherCheckpoints: a copy is compared by them.
func TestOtherBytesOtherCheckpoints(t *testing.T) {
	last := func(fill byte) string {
		m := openMachine(t)
		m.send(batchSpec{fill: fill, size: 10})
		for range 4 {
			m.one(AppendCommand(testTP, bigBatch()))
		}
		c := m.Partitions[testTP].Checkpoints
		if len(c) == 0 {
			t.Fatal("no checkpoint")
		}
		return fmt.Sprint(c)
	}
	first, again, other := last(1), last(1), last(2)
	if first != again || first == other {
		t.Errorf("checkpoints %s, once more %s, of other bytes %s", first, again, other)
	}
}
