package apply

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"lockstep/kafkawire"
)

func copyContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	t.Cleanup(cancel)
	return ctx
}

// sameBatches checks that the local log is the peer's, byte for byte.
func (w *copyWorld) sameBatches() {
	w.t.Helper()
	if len(w.local.batches) != len(w.full.batches) {
		w.t.Fatalf("%d batches were copied, want %d", len(w.local.batches), len(w.full.batches))
	}
	for i, b := range w.full.batches {
		if !bytes.Equal(w.local.batches[i][16:], b[16:]) || w.local.batches[i].BaseOffset() != b.BaseOffset() {
			w.t.Fatalf("batch %d at offset %d differs", i, b.BaseOffset())
		}
	}
}

func TestCopiesAWholeLog(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(40)
	w.recover(3)
	w.many(40)
	w.commit(1, 3<<20) // more than one answer is meant to hold
	w.commit(5, 10)
	if n := len(w.want().Checkpoints); n < 3 {
		t.Fatalf("%d checkpoints: the test compares nothing", n)
	}
	w.peer(2)
	if err := w.fill(copyContext(t)); err != nil {
		t.Fatal(err)
	}
	w.sameBatches()
	p := w.c.progress(time.Now())
	if len(p.Partitions) != 0 || p.Percent != 100 || p.TotalBytes < 3<<20 || p.BytesPerSecond <= 0 {
		t.Errorf("progress after the copy: %+v", p)
	}
}

func TestCopyGoesOnFromWhatTheBrokerHolds(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(50)
	w.peer(2)
	for _, i := range []int{1, 17, 44, 49} {
		w.local.become(w.full, lastOffset(w.full.batches[i])+1)
		if err := w.fill(copyContext(t)); err != nil {
			t.Fatalf("from batch %d: %v", i, err)
		}
		w.sameBatches()
	}
}

// forge gives a batch other records, with a checksum that fits.
func forge(p *partLog, i int) {
	b := slices.Clone([]byte(p.batches[i]))
	b[len(b)-1] ^= 1
	p.batches[i] = sealed(b)
}

func TestCopyLeavesAPeerThatHoldsOtherBytes(t *testing.T) {
	for _, i := range []int{0, 13, 29} {
		w := newCopyWorld(t, false)
		w.many(30)
		forge(w.peer(2), i)
		w.peer(3)
		if err := w.fill(copyContext(t)); err != nil {
			t.Fatalf("batch %d: %v", i, err)
		}
		w.sameBatches()
		if w.peers.calls[2] == 0 {
			t.Errorf("batch %d: the first peer was not asked", i)
		}
	}
}

func TestCopyAppendsNothingThatIsNotProved(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(30)
	forge(w.peer(2), 22)
	ctx, cancel := context.WithCancel(copyContext(t))
	rounds := 0
	w.peers.wait = func() {
		if rounds++; rounds == 3 {
			cancel()
		}
	}
	if err := w.fill(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("with a wrong peer alone: %v", err)
	}
	if w.local.end == 0 || w.local.end > w.full.batches[22].BaseOffset() {
		t.Errorf("copied up to %d; the batch at %d is wrong, and there is a checkpoint before", w.local.end, w.full.batches[22].BaseOffset())
	}
	for i, b := range w.local.batches {
		if b.CRC() != w.full.batches[i].CRC() {
			t.Errorf("batch %d is not what was committed", i)
		}
	}
}

func TestCopyLeavesAPeerWithDamage(t *testing.T) {
	for name, damage := range map[string]func(p *partLog){
		"bad checksum": func(p *partLog) { b := slices.Clone([]byte(p.batches[9])); b[70] ^= 1; p.batches[9] = b },
		"foreign":      func(p *partLog) { b := slices.Clone([]byte(p.batches[9])); b[50] ^= 1; p.batches[9] = sealed(b) },
		"a hole":       func(p *partLog) { p.batches = slices.Delete(p.batches, 9, 10) },
		"cut off":      func(p *partLog) { p.batches[9] = p.batches[9][:100] },
		"control":      func(p *partLog) { b := slices.Clone([]byte(p.batches[9])); b[22] |= 0x20; p.batches[9] = sealed(b) },
		"twice":        func(p *partLog) { p.batches = slices.Insert(p.batches, 9, p.batches[9]) },
		"empty":        func(p *partLog) { p.batches[9] = rewritten(p.batches[9], nil, 0) },
	} {
		w := newCopyWorld(t, false)
		w.many(20)
		damage(w.peer(2))
		w.peer(3)
		if err := w.fill(copyContext(t)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		w.sameBatches()
	}
}

func TestCopyFindsThatTheLocalLogIsWrong(t *testing.T) {
	for name, behind := range map[string]int{"last batch": 1, "batch before the last": 2} {
		w := newCopyWorld(t, false)
		w.many(40)
		w.peer(2)
		// Two batches behind a checkpoint.
		i := slices.IndexFunc(w.full.batches, func(b kafkawire.Batch) bool { return b.BaseOffset() == w.want().Checkpoints[1].Offset }) + 2
		w.local.become(w.full, w.full.batches[i].BaseOffset())
		forge(w.local, i-behind)
		before := w.local.end
		err := w.fill(copyContext(t))
		var d *distrust
		if !errors.As(err, &d) || !strings.Contains(err.Error(), "node 2") {
			t.Errorf("%s: %v", name, err)
		}
		if w.local.end != before {
			t.Errorf("%s: batches were appended behind it", name)
		}
	}
}

// A log whose beginning was deleted proves nothing below the next checkpoint:
// only if every other node disagrees is the local log said to be wrong.
func TestCopyThatCannotBeProvedAsksEveryPeer(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(40)
	a := w.peer(2)
	w.peer(3)
	// All logs begin one batch behind a checkpoint, and the local one ends three
	// behind it.
	i := w.batchAt(w.want().Checkpoints[1].Offset)
	start, end := w.full.batches[i+1].BaseOffset(), w.full.batches[i+4].BaseOffset()
	forge(a, i+3)
	for _, p := range w.peers.logs {
		if _, err := p.DeleteRecords(t.Context(), "", 0, start); err != nil {
			t.Fatal(err)
		}
	}
	begin := func() {
		w.local.become(w.full, end)
		if _, err := w.local.DeleteRecords(t.Context(), "", 0, start); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	if err := w.fill(copyContext(t)); err != nil {
		t.Fatal(err)
	}
	if w.local.end != w.want().NextOffset || w.peers.calls[2] == 0 {
		t.Fatalf("copied up to %d, calls %v", w.local.end, w.peers.calls)
	}
	begin()
	forge(w.local, len(w.local.batches)-1)
	forge(w.local, len(w.local.batches)-2)
	if w.local.last().CRC() == a.batches[2].CRC() {
		w.local.batches[len(w.local.batches)-1][62] ^= 1
		sealed(w.local.last())
	}
	var d *distrust
	if err := w.fill(copyContext(t)); !errors.As(err, &d) || !strings.Contains(err.Error(), "no other node") {
		t.Fatalf("all peers disagree: %v", err)
	}
}

// batchAt is the batch that begins at an offset.
func (w *copyWorld) batchAt(offset int64) int {
	return slices.IndexFunc(w.full.batches, func(b kafkawire.Batch) bool { return b.BaseOffset() == offset })
}

// Behind the last checkpoint the log's end proves what stands there.
func TestCopyIsProvedAtItsEnd(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(12)
	for range 4 {
		w.commit(2, 10)
	}
	forge(w.peer(2), len(w.full.batches)-3)
	w.peer(3)
	if err := w.fill(copyContext(t)); err != nil {
		t.Fatal(err)
	}
	w.sameBatches()
}

// Where no checkpoint can prove anything any more, the last batch and the
// sequences must at least be right.
func TestCopyBehindTheLastCheckpoint(t *testing.T) {
	for name, damage := range map[string]func(b kafkawire.Batch, last bool){
		"last batch": func(b kafkawire.Batch, last bool) {
			if last {
				b[len(b)-1] ^= 1
			}
		},
		"sequence": func(b kafkawire.Batch, last bool) {
			if !last {
				b[56] ^= 8
			}
		},
	} {
		w := newCopyWorld(t, false)
		w.many(12)
		for range 4 {
			w.commit(2, 10)
		}
		n := len(w.full.batches)
		for _, node := range []int32{2, 3} {
			if _, err := w.peer(node).DeleteRecords(t.Context(), "", 0, w.full.batches[n-3].BaseOffset()); err != nil {
				t.Fatal(err)
			}
		}
		for i, b := range w.peers.logs[2].batches {
			b := slices.Clone([]byte(b))
			if i > 0 {
				damage(b, i == 2)
			}
			w.peers.logs[2].batches[i] = sealed(b)
		}
		if err := w.fill(copyContext(t)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i := range 3 {
			if got := w.local.batches[len(w.local.batches)-3+i]; got.CRC() != w.full.batches[n-3+i].CRC() {
				t.Errorf("%s: batch %d of the damaged log was taken", name, i)
			}
		}
		if w.peers.calls[2] == 0 {
			t.Errorf("%s: the damaged log was not asked for", name)
		}
	}
}

// More than can be held is appended before it is proved. If it turns out wrong,
// the copy says so of itself.
func TestCopyThatTurnsOutWrongIsDistrusted(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(45)
	w.want().Checkpoints = nil // as far apart as in a large partition
	forge(w.peer(2), 0)
	w.peers.fail[2] = 6
	w.peer(3)
	var d *distrust
	if err := w.fill(copyContext(t)); !errors.As(err, &d) {
		t.Errorf("%v", err)
	}
	if w.local.end == 0 {
		t.Error("nothing was appended: the test shows nothing")
	}
}

func TestCopyGoesOnWithAnotherPeerWhereOneFails(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(40)
	w.peer(2)
	w.peer(3)
	w.peers.fail[2] = 2
	if err := w.fill(copyContext(t)); err != nil {
		t.Fatal(err)
	}
	w.sameBatches()
	if w.peers.calls[2] != 3 || w.peers.first[3] == 0 {
		t.Errorf("calls %v, the other peer first asked for offset %d: what the first brought was not kept", w.peers.calls, w.peers.first[3])
	}
}

func TestCopyWaitsForAPeerThatHoldsAll(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(35)
	w.peer(2)
	w.peers.order = nil
	w.peers.limit = w.full.batches[33].BaseOffset()
	rounds := 0
	w.peers.wait = func() {
		switch rounds++; rounds {
		case 2:
			w.peers.order = []int32{2}
			if !strings.Contains(w.c.progress(time.Now()).Partitions[0].Reason, "no other node") {
				t.Errorf("progress does not say what hinders: %+v", w.c.progress(time.Now()))
			}
		case 4:
			w.peers.limit = 0
		}
	}
	if err := w.fill(copyContext(t)); err != nil {
		t.Fatal(err)
	}
	w.sameBatches()
	if rounds != 4 {
		t.Errorf("%d rounds", rounds)
	}
}

// What is appended stops a push as it stops everything else.
func TestCopyEndsWithItsPush(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(40)
	w.peer(2)
	err := w.c.fill(copyContext(t), w.l, 0, nil, w.want(), func(item) error { return errSuperseded })
	if !errors.Is(err, errSuperseded) {
		t.Fatal(err)
	}
}

// What was copied before may still be on its way to the broker when a copy goes
// on: a broker that ends below is waited for, and is no finding.
func TestCopyGoesOnAheadOfTheBroker(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(200)
	w.peer(2)
	last := w.full.copyOf(w.full.batches[100].BaseOffset()).last()
	from := last.BaseOffset() + int64(last.LastOffsetDelta()) + 1
	for name, end := range map[string]int64{"empty": 0, "behind": w.full.batches[60].BaseOffset()} {
		w.local.become(w.full, end)
		err := w.c.fill(copyContext(t), w.l, from, last, w.want(), func(item) error {
			t.Errorf("%s: a batch was brought that nothing is known to stand before", name)
			return nil
		})
		if !errors.Is(err, errAgain) {
			t.Errorf("%s: got %v, want another try", name, err)
		}
	}
}
