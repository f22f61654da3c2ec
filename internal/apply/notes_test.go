package apply

import (
	"testing"

	bolt "go.etcd.io/bbolt"
)

// What a node that finds its copy wrong again says of what it served since the last
// time: not that it lacks it, in no moment.
func TestQuarantinedAgainLacksNothingItServed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 3)
	w.settled()
	w.applier.lane(tpA).quarantine("divergent: for the test")
	w.quarantined(tpA)
	if err := w.applier.Release(tpA); err != nil {
		t.Fatal(err)
	}
	w.back(tpA)
	w.settled()
	w.send(tpA, 2)
	w.settled()
	served := Batch{TP: tpA, Offset: w.want[tpA][len(w.want[tpA])-1].base, Index: w.heads[1].Index}
	w.local.rawAppend(t, "a", 0, makeBatch(2, 5, 1)) // past the applier
	said := make(chan string, 1)
	w.commitSilently(1, w.appendCmd(tpA, 1, 20))
	w.applier.WhenVisible(tpA, w.end(tpA), func(error) { said <- w.applier.Stands(served, 0) })
	w.logs[1].applied.Set(w.heads[1].Index)
	w.quarantined(tpA)
	if s := <-said; s == StandsLacks {
		t.Errorf("of what it served it says %s", s)
	}
}

// Nobody is told that the broker took a batch after all while it is written down
// that it never did.
func TestTakenIsToldWhenTheRefusalIsForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	r, cure := w.poison(tpA, 0)
	told := make(chan error, 1)
	w.applier.WhenVisible(tpA, r.Offset+1, func(err error) { told <- err })
	if err := w.applier.turned.store.db.Close(); err != nil {
		t.Fatal(err)
	}
	cure()
	signal(w.applier.lane(tpA).stir)
	if err := <-told; err == nil {
		t.Error("told that it is there")
	}
}

// The partitions of a topic that is closed are forgotten in one write.
func TestClosedPartitionsAreForgottenAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	var parts []int32
	for p := range int32(40) {
		parts = append(parts, p)
	}
	w.open(1, 1, "a", parts...)
	w.settled()
	for _, tp := range w.partitions() {
		if err := w.applier.wholes.note(tp, 1); err != nil {
			t.Fatal(err)
		}
		if err := w.applier.turned.note(turned{Batch: Batch{TP: tp, Index: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	closed, before := w.partitions(), w.writes()
	w.closeTopic(1, 1)
	w.await("all are forgotten", func() bool {
		for _, tp := range closed {
			if w.applier.wholes.of(tp) != 0 || w.applier.turned.of(tp) != nil {
				return false
			}
		}
		return true
	})
	if n := w.writes() - before; n > 8 {
		t.Errorf("%d writes for %d partitions", n, len(closed))
	}
}

// writes numbers the writes to the node's own notes.
func (w *world) writes() (n int) {
	w.t.Helper()
	if err := w.applier.wholes.store.db.View(func(tx *bolt.Tx) error { n = tx.ID(); return nil }); err != nil {
		w.t.Fatal(err)
	}
	return n
}
