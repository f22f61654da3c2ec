package apply

import (
	"errors"
	"slices"
	"testing"

	"lockstep/fsm"
	"lockstep/kafkawire"
)

func TestCopyOfALogThatBeginsAboveZero(t *testing.T) {
	for name, edit := range map[string]func(w *copyWorld, p *partLog) (start, first int64){
		"at a batch": func(w *copyWorld, p *partLog) (int64, int64) {
			at := w.full.batches[13].BaseOffset()
			return at, at
		},
		"inside a batch": func(w *copyWorld, p *partLog) (int64, int64) {
			for _, b := range w.full.batches[13:] {
				if b.Count() > 2 {
					return b.BaseOffset() + 1, b.BaseOffset()
				}
			}
			return 0, 0
		},
		"at its end": func(w *copyWorld, p *partLog) (int64, int64) { return p.end, p.end },
	} {
		w := newCopyWorld(t, false)
		w.many(16)
		w.recover(2)
		w.many(12)
		p := w.peer(2)
		start, first := edit(w, p)
		if _, err := p.DeleteRecords(t.Context(), "", 0, start); err != nil {
			t.Fatal(err)
		}
		if err := w.fill(copyContext(t)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		w.same(p)
		if !w.local.batches[0].IsFiller() {
			t.Fatalf("%s: no filler", name)
		}
		now, err := w.l.restoreStart(t.Context(), 0, w.local.end)
		if err != nil || now != start || w.local.start != start {
			t.Errorf("%s: log start %d, %v, want %d", name, now, err, start)
		}
		// Another process does not know where the log began, and finds out.
		w.local.start, w.local.deletes = 0, nil
		w.local.batches = slices.Insert(slices.Clone(p.batches), 0, kafkawire.Batch(kafkawire.AppendFiller(nil, int32(first), w.full.pid, 0, 0)))
		clear(w.c.starts)
		if now, err = w.l.restoreStart(t.Context(), 0, w.local.end); err != nil || now != first {
			t.Errorf("%s: after a crash the log start is %d, %v, want %d", name, now, err, first)
		}
		if now, err = w.l.restoreStart(t.Context(), now, w.local.end); err != nil || now != first || len(w.local.deletes) != 1 {
			t.Errorf("%s: once more: %d, %v, %v", name, now, err, w.local.deletes)
		}
	}
}

func TestLogStartIsFoundAmongManyFillers(t *testing.T) {
	w := newCopyWorld(t, false)
	w.commit(3, 10)
	for _, n := range []int{0, 1, 2, 3, 50, 51} {
		w.local.empty()
		pid, next := w.full.pid, identity{0, 0, true}
		for range n {
			if err := w.local.append(kafkawire.AppendFiller(nil, 100, pid, next.epoch, next.seq)); err != nil {
				t.Fatal(err)
			}
			next = next.after(100)
		}
		for i := range 7 {
			b := slices.Clone([]byte(kafkawire.Stamp(nil, w.full.batches[0], pid, 0, next.seq)))
			if err := w.local.append(b); err != nil {
				t.Fatalf("%d fillers, batch %d: %v", n, i, err)
			}
			next = next.after(3)
		}
		reads := w.local.reads
		start, err := w.l.restoreStart(t.Context(), 0, w.local.end)
		if err != nil || start != int64(100*n) {
			t.Errorf("%d fillers: log start %d, %v", n, start, err)
		}
		if reads = w.local.reads - reads; n == 0 && reads != 1 || reads > 20 {
			t.Errorf("%d fillers: %d reads", n, reads)
		}
	}
}

func TestCompactedTopicsKeepTheirFillers(t *testing.T) {
	w := newCopyWorld(t, true)
	w.c.starts[copyTP] = 5
	w.local.policy, w.local.end = true, 9
	start, err := w.l.restoreStart(t.Context(), 0, 9)
	if err != nil || start != 0 || !slices.Equal(w.local.deletes, []int64{5}) {
		t.Errorf("log start %d, %v, asked for %v", start, err, w.local.deletes)
	}
}

var errStopHere = errors.New("stop here")

func TestCopyOfACompactedLogHoldsWhatSurvived(t *testing.T) {
	for round := range 8 {
		w := newCopyWorld(t, true)
		for range 3 {
			for range 15 {
				w.commit(int32(1+w.rng.IntN(12)), w.rng.IntN(40))
			}
			if round%2 == 0 {
				w.recover(w.want().Epoch + 2)
			}
		}
		p := w.peer(2)
		keep := 1 + round%4
		p.compact(t, w.rng, func(int64) bool { return w.rng.IntN(5) < keep })
		if round == 7 {
			p.compact(t, w.rng, func(int64) bool { return false })
		}
		// It stops some times on the way, as a broker that crashes does.
		for tries := 0; ; tries++ {
			left := w.rng.IntN(40)
			err := w.c.fill(copyContext(t), w.l, w.local.end, w.local.last(), w.want(), func(it item) error {
				if left--; left < 0 && tries < 6 {
					return errStopHere
				}
				return w.local.append(it.stampedCopy(copyTP.Topic))
			})
			if err == nil {
				break
			}
			if !errors.Is(err, errStopHere) {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		w.same(p)
		// The copy is compacted itself, and copied.
		second := w.local.copyOf(w.local.end)
		second.compact(t, w.rng, func(int64) bool { return w.rng.IntN(4) > 0 })
		w.peers.logs[2] = second
		w.local.empty()
		if err := w.fill(copyContext(t)); err != nil {
			t.Fatalf("round %d, copy of a copy: %v", round, err)
		}
		w.same(second)
	}
}

// A peer holds more than the copy needs: what goes beyond is left to the raft
// log, even where one batch of the peer's has both.
func TestCopyOfACompactedLogEndsWhereItShould(t *testing.T) {
	w := newCopyWorld(t, true)
	for range 20 {
		w.commit(int32(1+w.rng.IntN(12)), 10)
	}
	want := w.group.Only(copyTP).Partitions[copyTP]
	for range 20 {
		w.commit(int32(1+w.rng.IntN(12)), 10)
	}
	p := w.peer(2)
	p.compact(t, w.rng, func(offset int64) bool { return offset < want.NextOffset/2 || offset > want.NextOffset+20 })
	// The peer is a copy itself, with one filler across the end.
	if err := w.fill(copyContext(t)); err != nil {
		t.Fatal(err)
	}
	second := w.local.copyOf(w.local.end)
	i := slices.IndexFunc(second.batches, func(b kafkawire.Batch) bool {
		return b.BaseOffset() < want.NextOffset && lastOffset(b) >= want.NextOffset
	})
	if i < 0 || !second.batches[i].IsFiller() {
		t.Fatal("no filler stands across the end: the test shows nothing")
	}
	w.peers.logs[2] = second
	w.local.empty()
	err := w.c.fill(copyContext(t), w.l, 0, nil, want, func(it item) error { return w.local.append(it.stampedCopy(copyTP.Topic)) })
	if err != nil {
		t.Fatal(err)
	}
	if w.local.end != want.NextOffset || w.local.seq != want.Sequence {
		t.Errorf("ends at offset %d sequence %d, want %d and %d", w.local.end, w.local.seq, want.NextOffset, want.Sequence)
	}
}

// The log start that was committed counts, whatever peers had.
func TestCommittedLogStartIsRestored(t *testing.T) {
	w := newCopyWorld(t, false)
	for range 5 {
		w.commit(4, 10)
	}
	w.local.become(w.full, w.full.end)
	w.apply(fsm.Control(fsm.KindLogStart, fsm.LogStart{TP: copyTP, Offset: 9}))
	w.l.f.log.(*memLog).base = w.group.Encode()
	if start, err := w.l.restoreStart(t.Context(), 0, w.local.end); err != nil || start != 9 || w.local.start != 9 {
		t.Errorf("log start %d, %v", start, err)
	}
}

// A copy that goes on behind what it pushed itself is given the last batch as
// it was made, without a place.
func TestCopyGoesOnBehindABatchWithoutItsPlace(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(12)
	w.peer(2)
	w.local.become(w.full, w.full.batches[9].BaseOffset())
	last := slices.Clone([]byte(w.local.last()))
	clear(last[:8])
	err := w.c.fill(copyContext(t), w.l, w.local.end, last, w.want(), func(it item) error { return w.local.append(it.stampedCopy(copyTP.Topic)) })
	if err != nil {
		t.Fatal(err)
	}
	w.sameBatches()
}
