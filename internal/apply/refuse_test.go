package apply

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"

	"lockstep/fsm"
	"lockstep/internal/broker"
)

// poison commits a batch that every broker refuses, between others, and
// returns what the refusal says. The broker refuses until cure is called.
func (w *world) poison(tp fsm.TP, more int) (r Refusal, cure func()) {
	w.t.Helper()
	w.send(tp, 3)
	if err := w.visible(tp, w.end(tp)); err != nil {
		w.t.Fatal(err)
	}
	h := w.refuse(tp, kerr.InvalidRecord, -1)
	at := w.end(tp)
	w.send(tp, 1+more)
	return w.refusedAt(tp, at), func() { h.Remove() }
}

// cured ends the broker's refusals when nothing of what was cut is on its way
// to it any more: one that took it now would be wrong.
func (w *world) cured(tp fsm.TP, cure func()) {
	w.t.Helper()
	w.dealt(w.groups[tp])
	l := w.applier.lane(tp)
	w.await("the cut is obeyed", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		last := l.cuts[len(l.cuts)-1]
		return l.trim == nil && !l.again && l.serves() || l.refused != nil && l.refused.Index >= last.Index
	})
	cure()
	signal(l.stir) // its next try comes in a few seconds
}

// cutAt takes the refused batch out of the log, with what followed it.
func (w *world) cutAt(r Refusal) {
	w.t.Helper()
	cut := fsm.Cut{TP: r.TP, Index: r.Index, Offset: r.Offset, Hash: r.Hash, Sequence: r.Sequence}
	if res := w.commit(w.groups[r.TP], fsm.Control(fsm.KindCut, cut)); res[0].Verdict != fsm.Done {
		w.t.Fatalf("not cut: %+v", res[0])
	}
}

// A batch that every broker refuses is cut out. The partition goes on at its
// offset; other partitions never noticed; who waited is told.
func TestRefusedBatchIsCut(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		edit func(*Config)
		down bool // the applier is down when the cut is committed
	}{
		"at once":                      {nil, false},
		"while it falls behind":        {func(c *Config) { c.LaneBytes, c.GroupBytes = 1, 1 }, false},
		"while it is down":             {nil, true},
		"while it is down, and behind": {func(c *Config) { c.LaneBytes, c.GroupBytes = 1, 1 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1, c.edit)
			w.open(1, 1, "a", 0, 1)
			r, cure := w.poison(tpA, 8)
			cut, before := make(chan error, 1), make(chan error, 1)
			w.applier.WhenVisible(tpA, r.Offset, func(err error) { before <- err })
			w.applier.WhenVisible(tpA, w.end(tpA), func(err error) { cut <- err })
			w.send(tpB, 5)
			if err := w.visible(tpB, w.end(tpB)); err != nil {
				t.Fatal(err)
			}
			if r.Code != kerr.InvalidRecord.Code || r.Topic != "a" || r.Group != 1 {
				t.Errorf("refusal: %+v", r)
			}
			if c.down {
				w.stop()
				for _, ch := range []chan error{before, cut} {
					if err := <-ch; !errors.Is(err, ErrClosed) {
						t.Errorf("the applier was closed: %v", err)
					}
				}
			}
			w.cutAt(r)
			if !c.down {
				if err := <-cut; !errors.Is(err, ErrCut) {
					t.Errorf("a waiter beyond the cut got %v", err)
				}
			}
			w.send(tpA, 4)
			if c.down {
				w.start()
			}
			w.cured(tpA, cure)
			w.settled()
			if !c.down {
				if err := <-before; err != nil {
					t.Errorf("a waiter below the cut got %v", err)
				}
				w.paths(map[Path]uint64{PathCut: 1})
			}
			w.restart() // reads the batch again, which the broker would take now, and the cut
			w.settled()
			if _, _, ok := w.applier.Refused(tpA); ok || len(w.applier.Refusals()) > 0 {
				t.Error("still refused")
			}
		})
	}
}

// Kafka has no reason to give for records that it cannot decompress: a batch that
// is answered so again and again is refused like any other.
func TestRefusedWithoutAReason(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 3)
	w.settled()
	h := w.refuse(tpA, kerr.UnknownServerError, -1)
	at := w.end(tpA)
	w.send(tpA, 3)
	first, later := make(chan error, 1), make(chan error, 1)
	w.applier.WhenVisible(tpA, at+1, func(err error) { first <- err })
	w.applier.WhenVisible(tpA, w.end(tpA), func(err error) { later <- err })
	r := w.refusedAt(tpA, at)
	w.cutAt(r)
	for _, ch := range []chan error{first, later} {
		var cut *CutError
		if err := <-ch; !errors.As(err, &cut) || cut.Offset != at || cut.Code != kerr.UnknownServerError.Code {
			t.Errorf("told %v, want what the broker said of the batch at offset %d", err, at)
		}
	}
	w.cured(tpA, func() { h.Remove() })
	w.send(tpA, 2)
	w.settled()
}

// Failures without a reason count in a row: a lost connection, or a reason, ends
// it, and another batch begins anew.
func TestFailuresWithoutAReasonInARow(t *testing.T) {
	t.Parallel()
	other := &refusal{code: kerr.NotLeaderForPartition.Code}
	mystery := &refusal{code: kerr.UnknownServerError.Code}
	for name, end := range map[string]func(*pipe){
		"connection lost": func(p *pipe) {
			p.sent = 1
			if err := p.answered(&broker.Result{Err: io.ErrUnexpectedEOF}, nil); !errors.Is(err, errLost) {
				t.Errorf("a lost connection is %v", err)
			}
		},
		"a reason":      func(p *pipe) { p.forGood(other, &p.pending[0]) },
		"another batch": func(p *pipe) { p.pending[0].base++ },
	} {
		p := &pipe{pending: []item{{index: 1, base: 7}}}
		for i := range 2*maxUnexplained - 2 {
			if i == maxUnexplained-1 {
				end(p)
			}
			if p.forGood(mystery, &p.pending[0]) {
				t.Errorf("%s: for good after %d failures", name, i+1)
			}
		}
		if !p.forGood(mystery, &p.pending[0]) {
			t.Errorf("%s: not for good after %d in a row", name, maxUnexplained)
		}
	}
}

// A restart reads the refused batch before it comes to the cut. The broker would
// take it by now, and must not be given it.
func TestRefusedBatchIsReadAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	r, cure := w.poison(tpA, 2)
	w.cutAt(r)
	w.cured(tpA, cure)
	w.send(tpA, 2)
	w.settled()
	whole := w.logs[1]
	w.stop()
	w.broker.stop() // so that the lane comes to the batch as if it were new
	w.broker.wipe()
	w.broker.start()
	upTo := &memLog{group: 1, entries: whole.entries}
	upTo.applied.Set(r.Index + 1)
	w.logs[1] = upTo
	w.start()
	w.await("it has what lies below", func() bool {
		_, end, err := w.local.Reader.LogEnd(t.Context(), "a", 0)
		return err == nil && end == r.Offset && w.applier.Ready(tpA, r.Offset)
	})
	upTo.applied.Set(uint64(len(whole.entries)))
	w.settled()
}

// The cut comes while what it takes is on its way to the broker, or waits to be
// sent again.
func TestCutOfWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 2)
	w.settled()
	met := make(chan struct{}, 1000)
	w.local.setFate(func(broker.Append) fate { met <- struct{}{}; return lostBefore })
	p := w.heads[1].Partitions[tpA]
	r := Refusal{TP: tpA, Index: w.heads[1].Index + 1, Offset: p.NextOffset, Hash: p.Hash, Sequence: p.Sequence}
	w.send(tpA, 3)
	<-met
	<-met
	w.cutAt(r)
	w.dealt(1)
	w.local.setFate(nil)
	w.send(tpA, 2)
	w.settled()
}

// What stands in the cut's own entry: before it, it is cut; after it, it stands.
func TestCutAmongAppends(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	r, cure := w.poison(tpA, 2)
	cut := fsm.Control(fsm.KindCut, fsm.Cut{TP: tpA, Index: r.Index, Offset: r.Offset, Hash: r.Hash, Sequence: r.Sequence})
	res := w.commit(1, w.appendCmd(tpA, 2, 10), cut, w.appendCmd(tpA, 3, 11), w.appendCmd(tpA, 1, 12))
	if res[1].Verdict != fsm.Done || res[2].BaseOffset != r.Offset {
		t.Fatalf("verdicts: %+v", res)
	}
	w.cured(tpA, cure)
	w.settled()
	w.restart()
	w.settled()
}

// Who asks for a batch that was cut is told so, however late and whatever stands
// at its offsets by then; who asks for what stands there by right gets it, also
// before the cut is dealt out and from the cut's own entry.
func TestLateAskerOfACutBatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	r, cure := w.poison(tpA, 0)
	gone := fsm.Result{At: fsm.Place{Index: r.Index}, BaseOffset: r.Offset, Count: 1}
	// These ask for what is about to be committed: a cut, then a batch at the
	// same offset.
	next, cut := w.heads[1].Index+1, make(chan error, 1)
	stands := make(chan error, 2)
	w.applier.WhenBatchVisible(tpA, r.Offset+1, gone.At, func(err error) { cut <- err })
	w.applier.WhenBatchVisible(tpA, r.Offset+1, fsm.Place{Index: next, Nth: 1}, func(err error) { stands <- err })
	res := w.commit(1, fsm.Control(fsm.KindCut, fsm.Cut{TP: tpA, Index: r.Index, Offset: r.Offset, Hash: r.Hash, Sequence: r.Sequence}),
		w.appendCmd(tpA, 3, 10))
	if res[0].Verdict != fsm.Done || res[1].BaseOffset != r.Offset || res[1].At != (fsm.Place{Index: next, Nth: 1}) {
		t.Fatalf("verdicts: %+v", res)
	}
	if err := <-cut; !errors.Is(err, ErrCut) {
		t.Errorf("an early asker got %v", err)
	}
	w.cured(tpA, cure)
	w.settled()
	if err := <-stands; err != nil {
		t.Errorf("who asked for what stands got %v", err)
	}
	w.applier.WhenBatchVisible(tpA, r.Offset+1, gone.At, func(err error) { cut <- err })
	if err := <-cut; !errors.Is(err, ErrCut) {
		t.Errorf("a late asker got %v", err)
	}
	w.applier.WhenBatchVisible(tpA, res[1].EndOffset(), res[1].At, func(err error) { stands <- err })
	if err := <-stands; err != nil {
		t.Errorf("who asked late for what stands got %v", err)
	}
}

// One batch after the other may be refused, also the first of a partition.
func TestCutTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	h := w.refuse(tpA, kerr.InvalidRecord, -1)
	for range 3 {
		at := w.end(tpA)
		w.send(tpA, 2)
		w.cutAt(w.refusedAt(tpA, at))
		w.await("the refusal is over", func() bool { return len(w.applier.Refusals()) == 0 })
	}
	h.Remove()
	w.send(tpA, 2)
	w.settled()
}

// Somebody changes the broker's settings: it takes the batch after all, and
// then everything that followed.
func TestRefusalIsCured(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	_, cure := w.poison(tpA, 8)
	if s := w.applier.Status(1); s.QueuedBytes > 500 || s.QueuedBatches != 1 {
		t.Errorf("a refused partition holds %d batches, %d bytes", s.QueuedBatches, s.QueuedBytes)
	}
	cure()
	signal(w.applier.lane(tpA).stir) // its next try comes in a few seconds
	w.settled()
}

// A broker that took the batch all the same, and had it cut, is not right.
func TestCutOfWhatTheBrokerHolds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 2)
	w.settled()
	p := w.heads[1].Partitions[tpA]
	r := Refusal{TP: tpA, Index: w.heads[1].Index + 1, Offset: p.NextOffset, Hash: p.Hash, Sequence: p.Sequence}
	w.send(tpA, 1)
	if err := w.visible(tpA, w.end(tpA)); err != nil {
		t.Fatal(err)
	}
	w.cutAt(r)
	w.wantQuarantine(tpA, "cut out of the log")
}

// Others may take a partition out of service, at any moment, and let it back.
func TestQuarantineFromOutside(t *testing.T) {
	t.Parallel()
	nothing := func() {}
	for name, prepare := range map[string]func(w *world) (after func()){
		"when it is ready": func(*world) func() { return nothing },
		"when appends are under way": func(w *world) func() {
			w.local.setFate(func(broker.Append) fate { return held })
			w.send(tpA, 3)
			return nothing
		},
		"when the broker is down": func(w *world) func() { w.broker.stop(); return w.broker.start },
		"when it waits for another turn": func(w *world) func() {
			h := w.refuse(tpA, kerr.NotEnoughReplicas, -1)
			w.send(tpA, 3)
			return h.Remove
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1, nil)
			w.open(1, 1, "a", 0)
			w.send(tpA, 3)
			w.settled()
			after := prepare(w)
			l := w.applier.lane(tpA)
			l.quarantine("divergent: somebody says so")
			if w.applier.Ready(tpA, 0) {
				t.Error("ready after it was quarantined")
			}
			l.quarantine("another reason")
			w.local.setFate(nil)
			w.step()
			w.wantQuarantine(tpA, "somebody says so")
			after()
			w.send(tpA, 3)
			w.dealt(1)
			if err := w.applier.Release(tpA); err != nil {
				t.Fatal(err)
			}
			w.await("it is back", func() bool { return w.applier.Ready(tpA, 0) })
			w.settled()
			w.paths(map[Path]uint64{PathQuarantine: 1})
		})
	}
}

// A copy of what the others hold cannot be refused by one broker alone without
// something being wrong with it.
func TestRefusedCopy(t *testing.T) {
	t.Parallel()
	w := newTrustingWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 3)
	w.settled()
	w.based(1)
	w.stop()
	w.broker.stop()
	w.broker.wipe()
	w.broker.start()
	w.refuse(tpA, kerr.MessageTooLarge, -1)
	w.start()
	w.wantQuarantine(tpA, "what the others hold")
}

// Whatever is refused, cut, lost or restarted, in any order, the broker ends up
// with what was committed.
func TestRandomCuts(t *testing.T) {
	t.Parallel()
	for seed := range 3 {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1, func(c *Config) {
				if seed == 1 {
					c.LaneBytes, c.GroupBytes = 300, 600
				}
			})
			w.open(1, 1, "a", 0, 1)
			for i := range 6 {
				r, cure := w.poison(tpA, (i*7+seed)%5)
				w.send(tpB, 4)
				switch (i + seed) % 4 {
				case 0:
					w.restart()
					w.refusedAt(tpA, r.Offset)
				case 1:
					w.broker.stop() // it comes back willing to take the batch
					w.cutAt(r)
					w.dealt(1)
					w.broker.start()
				case 2:
					w.stop()
					w.cutAt(r)
					w.start()
				}
				if w.end(tpA) > r.Offset {
					w.cutAt(r)
				}
				if i%2 == 0 {
					w.send(tpA, 2)
				}
				w.cured(tpA, cure)
			}
			w.settled()
		})
	}
}

// What others found, or an answer said, counts before the state shows it.
func TestServes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		s    service
		want bool
	}{
		"ready":       {service{state: StateReady}, true},
		"attaching":   {service{state: StateAttaching}, false},
		"copying":     {service{state: StateCopying}, false},
		"to be ended": {service{state: StateReady, doom: "why"}, false},
		"refused":     {service{state: StateReady, refused: &Refusal{}}, false},
	} {
		l := &lane{service: c.s}
		l.acked = 5
		if l.serves() != c.want || l.ready(5) != c.want || l.ready(6) {
			t.Errorf("%s: serves %t, ready %t", name, l.serves(), l.ready(5))
		}
	}
}

// The broker's refusal of a batch that was cut out meanwhile is no refusal of
// what will stand at its offset.
func TestRefusalOfWhatWasCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 3)
	w.settled()
	w.stop() // its lane is now this test's
	l := w.applier.feeders[1].lanes[tpA]
	l.state = StateReady
	first := item{index: 9, base: 3, count: 1, batch: makeBatch(1, 10, 1)}
	p := &pipe{l: l, pending: []item{first}}
	if _, why := l.cutFrom(cut{Index: 12, Offset: 3}); why.Offset != 3 {
		t.Fatal(why)
	}
	p.park(&refusal{code: kerr.InvalidRecord.Code})
	if l.refused != nil {
		t.Errorf("refused: %s", l.refused)
	}
	p.obey()
	if len(p.pending) != 0 {
		t.Errorf("%d batches that were cut are still to be sent", len(p.pending))
	}
	p.pending = []item{{index: 13, base: 3, count: 1, batch: first.batch}}
	p.park(&refusal{code: kerr.InvalidRecord.Code})
	if l.refused == nil || l.refused.Index != 13 {
		t.Errorf("the batch that came to stand there: %+v", l.refused)
	}
}
