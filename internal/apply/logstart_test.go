package apply

import (
	"errors"
	"testing"

	"lockstep/fsm"
)

func (w *world) deleteBelow(tp fsm.TP, offset int64) {
	w.t.Helper()
	r := w.commit(w.groups[tp], fsm.Control(fsm.KindLogStart, fsm.LogStart{TP: tp, Offset: offset}))[0]
	if r.Verdict != fsm.Done || r.BaseOffset != offset {
		w.t.Fatalf("log start %d: %+v", offset, r)
	}
}

// startsAt waits until the broker's log of partition 0 of topic a starts there.
func (w *world) startsAt(offset int64) {
	w.t.Helper()
	w.await("the broker's log start", func() bool {
		start, _, err := w.local.Reader.LogEnd(w.t.Context(), "a", 0)
		return err == nil && start == offset
	})
}

// What is deleted from the log's beginning is deleted on the broker, whenever
// it is there, and not before the broker has what lies below.
func TestRecordsAreDeletedOnTheBroker(t *testing.T) {
	w := oldTopic(t)
	started := make(chan error, 1)
	w.applier.WhenStarted(tpA, 5, func(err error) { started <- err })
	w.deleteBelow(tpA, 5)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	w.startsAt(5)

	// Down when it was said; the applier goes on.
	w.broker.stop()
	w.send(tpA, 4)
	end := w.end(tpA)
	w.deleteBelow(tpA, end)
	w.send(tpA, 1)
	w.broker.start()
	w.startsAt(end)
	if err := w.visible(tpA, w.end(tpA)); err != nil {
		t.Fatal(err)
	}

	// Down, and the applier begins anew without it, from a base.
	w.broker.stop()
	w.send(tpA, 1)
	end = w.end(tpA)
	w.deleteBelow(tpA, end)
	w.stop()
	w.broker.start()
	w.start()
	w.startsAt(end)
	w.send(tpA, 1)
	if err := w.visible(tpA, w.end(tpA)); err != nil {
		t.Fatal(err)
	}

	w.applier.WhenStarted(tpA, end+1, func(err error) { started <- err })
	w.closeTopic(1, 1)
	if err := <-started; !errors.Is(err, ErrClosed) {
		t.Errorf("waiting for a topic that is closed: %v", err)
	}
	w.applier.WhenStarted(fsm.TP{Topic: 99}, 1, func(err error) { started <- err })
	if err := <-started; !errors.Is(err, ErrNotOpen) {
		t.Errorf("a partition that is not open: %v", err)
	}
}

// A broker that was set back to an old state is told again what the base says,
// though the entries that said it are passed over.
func TestBaseCarriesSettingsAndLogStart(t *testing.T) {
	w := newTrustingWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 10)
	w.settled()
	w.stop()
	restore := w.broker.saved()
	w.start()
	w.setConfig(1, 1, map[string]string{"retention.ms": "1000000"}, 1)
	w.deleteBelow(tpA, 5)
	w.startsAt(5)
	w.brokerSays("retention.ms", "1000000")
	w.based(1)
	w.stop()
	w.broker.stop()
	restore()
	w.broker.start()
	if start, _, err := w.local.Reader.LogEnd(t.Context(), "a", 0); err != nil || start != 0 {
		t.Fatalf("the broker was not set back: log start %d, %v", start, err)
	}
	w.start()
	w.startsAt(5)
	w.brokerSays("retention.ms", "1000000")
}
