package apply

import (
	"testing"

	"lockstep/fsm"
	"lockstep/kafkawire"
)

// Fillers stand for what the source of a copy had deleted. They prove nothing,
// and what follows them is still checked.
func TestScrubPassesFillers(t *testing.T) {
	w, weak := newScrubbed(t, 1, nil)
	w.open(1, 1, "a", 0)
	for range 5 {
		w.commit(1, w.appendCmd(tpA, 3, 10))
	}
	w.settled()
	fill := func(b kafkawire.Batch) kafkawire.Batch {
		if b.BaseOffset() != 3 {
			return b
		}
		f := kafkawire.Batch(kafkawire.AppendFiller(nil, 3, fsm.ApplierProducerID(1), 0, 3))
		f[7] = 3
		return f
	}
	weak.set(func() { weak.batch = fill })
	w.scrubbed()
	w.scrubbed()
	if s := w.applier.Scrub(); s.Findings > 0 {
		t.Fatalf("%+v", s)
	}
	weak.set(func() {
		weak.batch = func(b kafkawire.Batch) kafkawire.Batch {
			if b.BaseOffset() == 9 {
				b[len(b)-3] ^= 4
			}
			return fill(b)
		}
	})
	w.wantQuarantine(tpA, "corrupt: offset 9")
}

// Retention may pass where the scrub reads: it begins anew at the log's start.
func TestScrubWhileRetentionPasses(t *testing.T) {
	w, weak := newScrubbed(t, 1, nil)
	w.restartWith(func(a *Applier) { a.ScrubWith(ScrubConfig{Broker: weak}) })
	w.open(1, 1, "a", 0)
	for range 24 {
		w.commit(1, w.appendCmd(tpA, 1, 100<<10))
	}
	w.settled()
	s := w.applier.scrubber
	u := s.subject(w.applier.lane(tpA))
	if more, err := s.step(t.Context(), u, 1); err != nil || !more || u.read.pos == 0 || u.read.pos > 20 {
		t.Fatalf("more %t, %v, %+v", more, err, u.read)
	}
	if err := w.broker.cluster.DeleteRecords("a", 0, 22); err != nil {
		t.Fatal(err)
	}
	for range 2 * unreadable {
		if _, err := s.step(t.Context(), u, 1); err != nil || u.strike != nil {
			t.Fatalf("%v, %+v", err, u.strike)
		}
	}
	if p := s.proofOf(u); p.to != 24 || !w.applier.Ready(tpA, 24) {
		t.Errorf("%+v", p)
	}
}
