package apply

import (
	"errors"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"

	"lockstep/fsm"
)

// behind commits a batch that the other nodes' brokers refuse, and more, on a node
// that then gets the state behind it from the leader, and never the batch.
func (w *world) behind(p *twin, tp fsm.TP) Refusal {
	w.t.Helper()
	part := w.heads[w.groups[tp]].Partitions[tp]
	r := Refusal{Group: w.groups[tp], TP: tp, Index: w.heads[w.groups[tp]].Index + 1, Offset: part.NextOffset, Hash: part.Hash, Sequence: part.Sequence}
	p.mu.Lock()
	p.ends[tp] = r.Offset
	p.mu.Unlock()
	for range 3 {
		w.commitSilently(w.groups[tp], w.appendCmd(tp, 2, 20))
	}
	w.logs[w.groups[tp]].install(w.heads[w.groups[tp]])
	return r
}

func (w *world) stands(b Batch, want string) {
	w.t.Helper()
	w.await("it says "+want, func() bool { return w.applier.Stands(b, 0) == want })
}

// everywhere lets the peer's broker have whatever is committed.
func (p *twin) everywhere(tp fsm.TP) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.ends, tp)
}

// A node that a leader's snapshot carries past a batch that the others' brokers
// refuse can never get it. It says that it lacks it, keeps it back, and goes on
// from the cut.
func TestLackOfARefusedBatch(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ wiped, down, restarted bool }{
		"at once":                  {},
		"its broker lacks more":    {wiped: true},
		"down when it is cut":      {down: true},
		"down, and lacks more":     {down: true, wiped: true},
		"restarted before the cut": {restarted: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, p := newCopyingWorld(t)
			w.open(1, 1, "a", 0)
			w.send(tpA, 5)
			w.settled()
			if c.wiped {
				w.stop()
				w.broker.stop()
				w.broker.wipe()
				w.broker.start()
				w.start()
			}
			r := w.behind(p, tpA)
			if c.restarted {
				w.restart()
			}
			w.stands(r.Batch(), StandsLacks)
			if s := w.applier.Stands(r.Batch(), 2); s != StandsLacks {
				t.Fatalf("asked for a pledge it says %s", s)
			}
			p.everywhere(tpA) // as if another broker took it now
			w.await("it keeps the batch back", func() bool {
				tr := w.applier.Status(1).Troubled
				return len(tr) == 1 && strings.Contains(tr[0].Reason, errPledged.Error())
			})
			if s := w.applier.Stands(r.Batch(), 0); s != StandsLacks {
				t.Errorf("pledged it says %s", s)
			}
			if c.down {
				w.stop()
			}
			w.cutAt(r)
			w.send(tpA, 2)
			if c.down {
				w.start()
			}
			w.settled()
			w.send(tpA, 4)
			w.settled()
			w.restart()
			w.settled()
			w.paths(map[Path]uint64{PathQuarantine: 0})
		})
	}
}

// A pledge that was given back lets the copy go on.
func TestPledgeOfALackIsGivenBack(t *testing.T) {
	t.Parallel()
	w, p := newCopyingWorld(t)
	w.open(1, 1, "a", 0)
	w.send(tpA, 5)
	w.settled()
	r := w.behind(p, tpA)
	w.stands(r.Batch(), StandsLacks)
	w.applier.Stands(r.Batch(), 2)
	w.applier.Stands(r.Batch(), 3)
	w.applier.Unpledge(tpA, 2)
	if s := w.applier.Stands(Batch{TP: tpA, Offset: r.Offset, Index: r.Index - 1}, 0); s != StandsUnknown {
		t.Errorf("of an entry that it had it says %s", s)
	}
	if s := w.applier.Stands(Batch{TP: tpA, Offset: r.Offset}, 0); s != StandsUnknown {
		t.Errorf("of an entry without a name it says %s", s)
	}
	p.everywhere(tpA)
	w.applier.Unpledge(tpA, 3)
	w.settled()
	if s := w.applier.Stands(r.Batch(), 0); s != StandsHeld {
		t.Errorf("holding it, it says %s", s)
	}
	// What came with a copy was here, whatever becomes of it.
	w.stop()
	w.broker.stop()
	w.broker.wipe()
	w.broker.start()
	p.mu.Lock()
	p.ends[tpA] = r.Offset
	p.mu.Unlock()
	l := w.logs[1]
	l.mu.Lock()
	l.base, l.first = w.heads[1].Encode(), w.heads[1].Index+1
	l.mu.Unlock()
	w.start()
	w.await("its copy has come as far as it can", func() bool {
		tr := w.applier.Status(1).Troubled
		return len(tr) == 1 && strings.Contains(tr[0].Reason, "its log ends at")
	})
	if s := w.applier.Stands(r.Batch(), 0); s != StandsUnknown {
		t.Errorf("of what it once had it says %s", s)
	}
}

// What was committed after a copy was taken out of service never came to it. It
// stays away for as long as that is pledged.
func TestQuarantinedCopyLacksWhatCameLater(t *testing.T) {
	t.Parallel()
	for _, restarted := range []bool{false, true} {
		w := newWorld(t, 1, nil)
		w.open(1, 1, "a", 0)
		w.send(tpA, 3)
		w.settled()
		before := Batch{TP: tpA, Offset: w.end(tpA) - 1, Index: w.heads[1].Index}
		w.applier.lane(tpA).quarantine("divergent: for the test")
		w.quarantined(tpA)
		part := w.heads[1].Partitions[tpA]
		r := Refusal{TP: tpA, Index: w.heads[1].Index + 1, Offset: part.NextOffset, Hash: part.Hash, Sequence: part.Sequence}
		w.send(tpA, 2)
		w.dealt(1)
		if restarted {
			w.restart()
			w.quarantined(tpA)
			w.dealt(1)
		}
		w.stands(r.Batch(), StandsLacks)
		if s := w.applier.Stands(before, 0); s != StandsUnknown {
			t.Errorf("of what it may have had it says %s", s)
		}
		if s := w.applier.Stands(r.Batch(), 2); s != StandsLacks {
			t.Fatalf("asked for a pledge it says %s", s)
		}
		if err := w.applier.Release(tpA); err != nil {
			t.Fatal(err)
		}
		w.await("it keeps away", func() bool {
			tr := w.applier.Status(1).Troubled
			return len(tr) == 1 && strings.Contains(tr[0].Reason, errPledged.Error())
		})
		w.cutAt(r)
		w.send(tpA, 1)
		w.settled()
	}
}

// A lane may begin at a leader's snapshot that the feeder has not come to. Who
// waits for a batch that may be cut in what it stands for is not told that it is
// there.
func TestLaneIsAtTheSnapshotFirst(t *testing.T) {
	t.Parallel()
	w, _ := newCopyingWorld(t)
	w.open(1, 1, "a", 0)
	w.send(tpA, 3)
	w.settled()
	p := w.heads[1].Partitions[tpA]
	r := Refusal{TP: tpA, Index: w.heads[1].Index + 1, Offset: p.NextOffset, Hash: p.Hash, Sequence: p.Sequence}
	got := make(chan error, 1)
	w.commitSilently(1, w.appendCmd(tpA, 1, 20))
	w.applier.WhenBatchVisible(tpA, r.Offset+1, fsm.Place{Index: r.Index}, func(err error) { got <- err })
	w.commitSilently(1, fsm.Control(fsm.KindCut, fsm.Cut{TP: tpA, Index: r.Index, Offset: r.Offset, Hash: r.Hash, Sequence: r.Sequence}))
	w.commitSilently(1, w.appendCmd(tpA, 2, 30))
	l := w.logs[1]
	l.mu.Lock()
	l.base, l.tail, l.first = w.heads[1].Encode(), w.heads[1].Index, uint64(len(l.entries))+1
	l.mu.Unlock()
	w.applier.feeders[1].forgetBase()
	w.applier.lane(tpA).interrupt(errAgain)
	if err := <-got; !errors.Is(err, ErrSkipped) {
		t.Errorf("who waits for what was cut got %v", err)
	}
	l.rebased.Set(l.rebased.Get() + 1)
	l.applied.Set(w.heads[1].Index)
	w.settled()
}

// A base may hold what was cut out of the log since. A broker that has what came to
// stand there instead, up to the very offset where the base ends, is right.
func TestBaseHoldsWhatWasCut(t *testing.T) {
	t.Parallel()
	w, _ := newCopyingWorld(t)
	w.open(1, 1, "a", 0)
	r, cure := w.poison(tpA, 3)
	base, index, end := w.heads[1].Encode(), w.heads[1].Index, w.end(tpA)
	w.cutAt(r)
	w.cured(tpA, cure)
	w.commit(1, w.appendCmd(tpA, int32(end-r.Offset)-1, 40), w.appendCmd(tpA, 1, 41))
	w.settled()
	for range 2 { // the broker has it, or nothing
		w.stop()
		l := w.logs[1]
		l.mu.Lock()
		l.base, l.tail, l.first = base, index, index+1
		l.mu.Unlock()
		w.start()
		w.settled()
		w.paths(map[Path]uint64{PathQuarantine: 0})
		w.stop()
		w.broker.stop()
		w.broker.wipe()
		w.broker.start()
		w.start()
	}
}

// A lane that had the batch on its broker, and has lost it, does not let it be cut.
func TestLostBatchIsNotLetGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 2)
	w.settled()
	restore := w.broker.saved()
	at := w.end(tpA)
	index := w.heads[1].Index + 1
	w.send(tpA, 2)
	w.settled()
	w.broker.stop()
	restore()
	w.broker.start()
	h := w.refuse(tpA, kerr.InvalidRecord, -1)
	r := w.refusedAt(tpA, at)
	if r.Index != index {
		t.Fatalf("refused: %+v", r)
	}
	if s := w.applier.Stands(r.Batch(), 0); s != StandsUnknown {
		t.Errorf("of what it has lost it says %s", s)
	}
	h.Remove()
	signal(w.applier.lane(tpA).stir)
	w.settled()
}

// A leader's snapshot carries a node past a batch that its own broker refused. It
// still says so, also after a restart; once the broker took the batch, it does not.
func TestRefusalOutlivesASnapshot(t *testing.T) {
	t.Parallel()
	w, p := newCopyingWorld(t)
	w.open(1, 1, "a", 0)
	r, cure := w.poison(tpA, 2)
	gaps := func(edit func([][2]uint64) [][2]uint64) {
		w.logs[1].mu.Lock()
		defer w.logs[1].mu.Unlock()
		w.logs[1].gaps = edit(w.logs[1].gaps)
	}
	p.mu.Lock()
	p.ends[tpA] = r.Offset
	p.mu.Unlock()
	w.commitSilently(1, w.appendCmd(tpA, 1, 30))
	w.logs[1].install(w.heads[1])
	w.stands(r.Batch(), StandsRefused)
	l := w.applier.lane(tpA)
	w.await("it copies", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.settled && l.need > r.Offset
	})
	if s := w.applier.Stands(r.Batch(), 2); s != StandsLacks {
		t.Errorf("asked for a pledge while it copies it says %s", s)
	}
	w.applier.Unpledge(tpA, 2)
	w.restart()
	w.stands(r.Batch(), StandsLacks)
	// It goes on saying what it refused: with everybody's entry gone nobody else
	// would ask for the cut.
	said := w.applier.Refusals()
	if len(said) != 1 || said[0].Since.IsZero() {
		t.Fatalf("it says that it refused %+v", said)
	}
	said[0].Since = r.Since
	if said[0] != r {
		t.Errorf("it says that it refused %+v, want %+v", said[0], r)
	}
	cure()
	p.everywhere(tpA)
	w.settled()
	if said := w.applier.Refusals(); len(said) > 0 {
		t.Errorf("it has what it refused once, and says %+v", said)
	}
	gaps(func([][2]uint64) [][2]uint64 { return nil })
	w.stop()
	w.broker.stop()
	w.broker.wipe()
	w.broker.start()
	p.mu.Lock()
	p.ends[tpA] = r.Offset
	p.mu.Unlock()
	log := w.logs[1]
	log.mu.Lock()
	log.base, log.first = w.heads[1].Encode(), w.heads[1].Index+1
	log.mu.Unlock()
	w.start()
	w.await("its copy has come as far as it can", func() bool {
		tr := w.applier.Status(1).Troubled
		return len(tr) == 1 && strings.Contains(tr[0].Reason, "its log ends at")
	})
	if s := w.applier.Stands(r.Batch(), 0); s != StandsUnknown {
		t.Errorf("of what it once took it says %s", s)
	}
}

// A batch was refused and cut; the node reads of neither the cut nor of what came
// instead, but gets the state behind them.
func TestSnapshotFromBehindTheCut(t *testing.T) {
	t.Parallel()
	for _, more := range []int{0, 2} {
		w, _ := newCopyingWorld(t)
		w.open(1, 1, "a", 0)
		r, cure := w.poison(tpA, 2)
		if s := w.applier.Stands(r.Batch(), 2); s != StandsRefused && s != StandsUnknown {
			t.Fatal(s)
		}
		w.commitSilently(1, fsm.Control(fsm.KindCut, fsm.Cut{TP: tpA, Index: r.Index, Offset: r.Offset, Hash: r.Hash, Sequence: r.Sequence}))
		for range more {
			w.commitSilently(1, w.appendCmd(tpA, 2, 30))
		}
		cure()
		w.logs[1].install(w.heads[1])
		w.settled()
	}
}

// What was cut is not waited for: neither by a copy that was out of service when it
// was cut, nor by one that reads nothing of the cut.
func TestReadyBehindACut(t *testing.T) {
	t.Parallel()
	part := &fsm.Partition{NextOffset: 4}
	for name, learn := range map[string]func(*lane){
		"out of service": func(l *lane) {
			l.state = StateQuarantined
			if waiters, _ := l.cutFrom(cut{Index: 12, Offset: 4}); len(waiters) > 0 {
				t.Errorf("%d wait", len(waiters))
			}
			l.state = StateReady
		},
		"from a snapshot": func(l *lane) { l.rebased(part) },
	} {
		l := &lane{service: service{state: StateReady}}
		l.acked, l.high, l.had, l.reach = 4, 9, 9, 9
		if l.ready(0) {
			t.Errorf("%s: ready without what it once had", name)
		}
		learn(l)
		if !l.ready(0) {
			t.Errorf("%s: not ready with all that there is", name)
		}
	}
}

// A batch was refused, and cut while the node was down. The broker would take it by
// now: it is not given it before the node has read on.
func TestRefusedBatchIsNotTriedUnread(t *testing.T) {
	t.Parallel()
	for _, isCut := range []bool{true, false} {
		w := newWorld(t, 1, nil)
		w.open(1, 1, "a", 0, 1)
		r, cure := w.poison(tpA, 2)
		w.stop()
		cure()
		if isCut {
			w.commitSilently(1, fsm.Control(fsm.KindCut, fsm.Cut{TP: tpA, Index: r.Index, Offset: r.Offset, Hash: r.Hash, Sequence: r.Sequence}))
		}
		w.start()
		w.await("it is attached", func() bool {
			l := w.applier.lane(tpA)
			if l == nil {
				return false
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.settled
		})
		for range 20 { // what was sent before them is there by then
			if _, _, err := w.local.Reader.LogEnd(t.Context(), "a", 1); err != nil {
				t.Fatal(err)
			}
		}
		if _, end, err := w.local.Reader.LogEnd(t.Context(), "a", 0); err != nil || end != r.Offset {
			t.Errorf("the broker ends at offset %d, %v: it was given the batch at %d", end, err, r.Offset)
		}
		w.logs[1].applied.Set(w.heads[1].Index)
		w.applier.Conclude(1, w.heads[1].Index)
		w.settled()
		w.paths(map[Path]uint64{PathQuarantine: 0})
	}
}
