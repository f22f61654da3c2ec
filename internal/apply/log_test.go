package apply

import (
	"errors"
	"strings"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/kafkawire"
)

// A broker that lost the end of its log, or all of it, is filled again, and
// serves nothing before it has everything that it had.
func TestBrokerLosesItsLog(t *testing.T) {
	for _, c := range []struct {
		name string
		lose func(w *world, restore func())
	}{
		{"the end", func(w *world, restore func()) { restore() }},
		{"all", func(w *world, _ func()) { w.broker.wipe() }},
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(c.name+map[bool]string{true: ", and the proxy restarts"}[restarted], func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, 2, nil)
				w.open(1, 1, "a", 0, 1)
				w.open(2, 1, "a", 2)
				w.send(tpA, 5)
				w.settled()
				restore := w.broker.saved()
				w.send(tpA, 20)
				w.send(tpB, 9)
				w.send(tpC, 3)
				w.settled()
				full := make(map[int32]int64) // a sequence counts offsets, as long as it does not wrap
				for _, tp := range w.partitions() {
					full[tp.Partition] = w.end(tp)
				}
				if restarted {
					w.stop()
				}
				w.broker.stop()
				c.lose(w, restore)
				w.local.setFate(func(a broker.Append) fate {
					missing := int64(kafkawire.Batch(a.Head[:]).BaseSequence()) < full[a.Partition]
					if !restarted && missing && w.applier.Ready(fsm.TP{Topic: 1, Partition: a.Partition}, 0) {
						t.Errorf("partition %d lacks what it once had, and is ready", a.Partition)
					}
					return pass
				})
				w.broker.start()
				if restarted {
					w.start()
				}
				w.send(tpA, 1)
				if err := w.visible(tpA, full[0]); err != nil {
					t.Fatal(err)
				}
				w.local.setFate(nil)
				w.settled()
			})
		}
	}
}

// Somebody deletes the topic on the running broker. The partition that nobody
// writes to is filled again too.
func TestTopicVanishesFromTheBroker(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.open(1, 1, "a", 0, 1)
	w.open(2, 1, "a", 2)
	w.send(tpA, 5)
	w.send(tpB, 5)
	w.send(tpC, 5)
	w.settled()
	if err := w.local.DeleteTopic(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.send(tpA, 1)
	w.await("the broker has everything again", func() bool {
		for _, tp := range w.partitions() {
			_, end, err := w.local.Reader.LogEnd(t.Context(), "a", tp.Partition)
			if err != nil || end != w.end(tp) {
				return false
			}
		}
		return true
	})
	w.settled()
}

// Retention may have deleted everything: the end stands, and nothing can be
// compared.
func TestLogStartMoved(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 10)
	w.settled()
	for _, all := range []bool{false, true} {
		to := int64(-1)
		if !all {
			to = w.end(tpA) - 1
		}
		if err := w.broker.cluster.DeleteRecords("a", 0, to); err != nil {
			t.Fatal(err)
		}
		w.restart()
		if err := w.visible(tpA, w.end(tpA)); err != nil {
			t.Fatal(err)
		}
		w.local.once(1, lostAfter)
		w.send(tpA, 4)
		if err := w.visible(tpA, w.end(tpA)); err != nil {
			t.Fatal(err)
		}
	}
	if _, end, err := w.local.Reader.LogEnd(t.Context(), "a", 0); err != nil || end != w.end(tpA) {
		t.Errorf("the broker ends at %d (%v), committed are %d", end, err, w.end(tpA))
	}
}

func TestForeignRecords(t *testing.T) {
	stamped := func(topic uint64, seq int32) kafkawire.Batch {
		return kafkawire.Stamp(nil, makeBatch(1, 9, 200), fsm.ApplierProducerID(topic), 0, seq)
	}
	t.Run("while the proxy is down", func(t *testing.T) {
		w := newWorld(t, 1, nil)
		w.open(1, 1, "a", 0, 1)
		w.send(tpA, 3)
		w.settled()
		w.stop()
		if r := w.local.rawAppend(t, "a", 0, makeBatch(1, 5, 1)); r.Code != 0 {
			t.Fatal(r)
		}
		w.start()
		w.wantQuarantine(tpA, "something else writes to this broker")
		w.send(tpB, 2)
		if err := w.visible(tpB, w.end(tpB)); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("while it runs", func(t *testing.T) {
		w := newWorld(t, 1, nil)
		w.open(1, 1, "a", 0)
		w.send(tpA, 3)
		w.settled()
		w.local.rawAppend(t, "a", 0, makeBatch(1, 5, 1))
		w.send(tpA, 1)
		w.wantQuarantine(tpA, "at offset")
	})
	t.Run("another batch at the end", func(t *testing.T) {
		w := newWorld(t, 1, nil)
		w.open(1, 1, "a", 0)
		w.send(tpA, 1)
		w.settled()
		w.stop()
		w.commit(1, fsm.AppendCommand(tpA, makeBatch(1, 9, 100)))
		w.local.rawAppend(t, "a", 0, stamped(1, 1)) // its place, its writer, its number, other bytes
		w.start()
		w.wantQuarantine(tpA, "has CRC")
	})
	t.Run("the end inside a batch", func(t *testing.T) {
		w := newWorld(t, 1, nil)
		w.open(1, 1, "a", 0)
		w.send(tpA, 1)
		w.settled()
		w.stop()
		w.commit(1, w.appendCmd(tpA, 5, 10))
		w.local.rawAppend(t, "a", 0, stamped(1, 1))
		w.start()
		w.wantQuarantine(tpA, "inside the committed batch")
	})
}

// A broker that comes back with as much as it had, but not the same, is found
// out by its last batch.
func TestSameLengthOtherBytes(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 3)
	w.settled()
	w.stop() // its lane is now this test's
	it := w.want[tpA][2]
	stored := kafkawire.Batch(it.stampedCopy(tpA.Topic))
	stored[7] = byte(it.base)
	p := &pipe{l: w.applier.feeders[1].lanes[tpA], last: it.trace()}
	at := &attachment{end: it.end(), last: stored}
	if err := p.begin(at); err != nil || !at.agreed {
		t.Fatalf("the batch it wrote: agreed %t, %v", at.agreed, err)
	}
	stored[20] ^= 1 // the checksum
	var d *distrust
	if err := p.begin(&attachment{end: it.end(), last: stored}); !errors.As(err, &d) {
		t.Fatalf("another batch: %v", err)
	}
}

// What the applier wrote, but nobody committed, is told from what this node has
// not read yet by a leader's commit index alone.
func TestLongerThanTheLog(t *testing.T) {
	extra := makeBatch(1, 9, 7)
	begin := func(t *testing.T, patience time.Duration) *world {
		w := newWorld(t, 1, nil)
		w.open(1, 1, "a", 0)
		w.send(tpA, 3)
		w.settled()
		w.stop()
		w.local.rawAppend(t, "a", 0, kafkawire.Stamp(nil, extra, fsm.ApplierProducerID(1), 0, w.heads[1].Partitions[tpA].Sequence))
		w.start()
		w.applier.conclusionAfter = patience
		w.dealt(1)
		w.await("the lane waits", func() bool {
			tr := w.applier.Status(1).Troubled
			return len(tr) == 1 && strings.Contains(tr[0].Reason, "not read that far")
		})
		return w
	}
	t.Run("and a leader says so", func(t *testing.T) {
		w := begin(t, 0)
		if w.applier.Ready(tpA, 0) {
			t.Error("it is served before anybody knows")
		}
		w.applier.Conclude(1, w.heads[1].Index)
		w.applier.Conclude(1, w.heads[1].Index)
		w.wantQuarantine(tpA, "were ever committed")
	})
	t.Run("but the rest is committed", func(t *testing.T) {
		w := begin(t, 0)
		w.applier.Conclude(1, w.heads[1].Index+1) // not seen here yet
		w.applier.Conclude(1, w.heads[1].Index+1)
		got := make(chan error, 1)
		w.applier.WhenVisible(tpA, 1<<40, func(err error) { got <- err })
		select {
		case err := <-got:
			t.Fatalf("quarantined before this node has read what the leader has: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		w.commit(1, fsm.AppendCommand(tpA, extra))
		w.applier.Conclude(1, w.heads[1].Index)
		if err := w.visible(tpA, w.end(tpA)); err != nil {
			t.Fatal(err, w.applier.Status(1))
		}
	})
	t.Run("and the word may be old", func(t *testing.T) {
		w := begin(t, time.Hour)
		for range 10 {
			w.applier.Conclude(1, w.heads[1].Index)
		}
		got := make(chan error, 1)
		w.applier.WhenVisible(tpA, w.end(tpA), func(err error) { got <- err })
		select {
		case err := <-got:
			t.Fatalf("quarantined on hearsay: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		w.commit(1, fsm.AppendCommand(tpA, extra))
		if err := <-got; err != nil {
			t.Fatalf("quarantined on hearsay: %v", err)
		}
	})
}

func TestWaiters(t *testing.T) {
	w := newWorld(t, 1, nil)
	got := make(chan error, 1)
	tell := func(err error) { got <- err }
	w.applier.WhenVisible(tpA, 0, tell)
	if err := <-got; !errors.Is(err, ErrNotOpen) {
		t.Errorf("a partition never opened: %v", err)
	}
	w.open(1, 1, "a", 0, 1)
	w.dealt(1)
	calls := 0
	var end int64 = 3
	w.applier.WhenVisible(tpA, end, func(err error) {
		calls++
		// Nothing is locked meanwhile.
		if err != nil || !w.applier.Ready(tpA, end) || w.applier.Status(1).Partitions != 2 {
			t.Errorf("visible: %v", err)
		}
		w.applier.WhenVisible(tpA, end, tell)
	})
	w.commit(1, w.appendCmd(tpA, 2, 1))
	if err := w.visible(tpA, 2); err != nil {
		t.Fatal(err)
	}
	if w.applier.Ready(tpA, end) {
		t.Error("ready with less than is required")
	}
	w.commit(1, w.appendCmd(tpA, 1, 1))
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	w.send(tpA, 5)
	w.settled()
	if calls != 1 {
		t.Errorf("a waiter was called %d times", calls)
	}
	w.applier.WhenVisible(tpA, 1000, tell)
	w.closeTopic(1, 1)
	if err := <-got; !errors.Is(err, ErrClosed) {
		t.Errorf("the partition was closed: %v", err)
	}
	w.open(1, 2, "b", 0)
	w.dealt(1)
	tpX := fsm.TP{Topic: 2}
	w.applier.WhenVisible(tpX, 1000, tell)
	w.stop()
	if err := <-got; !errors.Is(err, ErrClosed) {
		t.Errorf("the applier was closed: %v", err)
	}
	w.applier.WhenVisible(tpX, 0, tell)
	if err := <-got; !errors.Is(err, ErrClosed) {
		t.Errorf("after the applier was closed: %v", err)
	}
}

// An entry that this build cannot read stops the applier, and says which.
func TestUnreadableEntryStopsTheApplier(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 2)
	w.settled()
	if w.applier.Err() != nil {
		t.Fatal(w.applier.Err())
	}
	index := w.logs[1].add([]byte{9, 9})
	w.logs[1].applied.Set(index)
	<-w.applier.Failed()
	if err := w.applier.Err(); !errors.Is(err, fsm.ErrUnknownCommand) {
		t.Errorf("got %v", err)
	}
}
