package apply

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/broker"
)

// recreate ends topic 1 in both groups, in the given order, and begins topic 2
// under its name.
func recreate(w *world, first, second uint32) {
	w.closeTopic(first, 1)
	w.closeTopic(second, 1)
	w.open(first, 2, "a", 0, 1)
	w.open(second, 2, "a", 2)
}

var (
	newA = fsm.TP{Topic: 2, Partition: 0}
	newC = fsm.TP{Topic: 2, Partition: 2}
)

func oldTopic(t *testing.T) *world {
	w := newWorld(t, 2, nil)
	w.open(1, 1, "a", 0, 1)
	w.open(2, 1, "a", 2)
	w.send(tpA, 10)
	w.send(tpC, 10)
	w.settled()
	return w
}

func TestTopicDeletedAndCreatedAgain(t *testing.T) {
	t.Run("while the applier runs", func(t *testing.T) {
		w := oldTopic(t)
		recreate(w, 2, 1)
		w.send(newA, 10)
		w.send(newC, 12)
		w.settled()
	})
	t.Run("while it is down", func(t *testing.T) {
		w := oldTopic(t)
		w.stop()
		recreate(w, 1, 2)
		w.send(newA, 10) // as long as the old one
		w.send(newC, 12)
		w.start()
		w.settled()
		w.restart()
		w.settled()
	})
	t.Run("while the broker is down", func(t *testing.T) {
		w := oldTopic(t)
		w.broker.stop()
		recreate(w, 1, 2)
		w.send(newA, 10)
		w.restart()
		w.send(newC, 12)
		w.broker.start()
		w.settled()
	})
	t.Run("deleted for good", func(t *testing.T) {
		w := oldTopic(t)
		w.closeTopic(1, 1)
		w.closeTopic(2, 1)
		gone := func() bool {
			_, err := w.local.Topic(t.Context(), "a")
			return errors.Is(err, broker.ErrNoTopic)
		}
		w.await("the topic is gone", gone)
		w.restart() // opens and closes it once more, in the log
		w.open(1, 2, "b", 0)
		w.send(newA, 1)
		w.settled()
		if !gone() {
			t.Error("reading the log again brought a deleted topic back")
		}
	})
	t.Run("deleted while the applier is down", func(t *testing.T) {
		w := oldTopic(t)
		w.stop()
		w.closeTopic(2, 1)
		w.closeTopic(1, 1)
		w.start()
		w.await("the topic is gone", func() bool {
			_, err := w.local.Topic(t.Context(), "a")
			return errors.Is(err, broker.ErrNoTopic)
		})
	})
}

// Appends of the old topic that are on their way when it is deleted must not
// land in the new one, nor those of a group whose log is read later.
func TestOldAppendsNeverReachTheNewTopic(t *testing.T) {
	w := oldTopic(t)
	sent := make(chan struct{}, 100)
	w.local.setFate(func(a broker.Append) fate {
		sent <- struct{}{}
		return late
	})
	w.send(tpA, 5)
	w.send(tpC, 5)
	<-sent
	<-sent
	// Group 2 does not know yet that the topic is closed.
	w.closeTopic(1, 1)
	w.open(1, 2, "a", 0, 1)
	w.send(newA, 3)
	w.dealt(1)
	w.await("the old topic is asked back", func() bool {
		topics := w.applier.topics
		topics.mu.Lock()
		defer topics.mu.Unlock()
		u := topics.uses[1]
		return u != nil && u.revoking
	})
	early := make(chan error, 1)
	w.applier.WhenVisible(newA, 1, func(err error) { early <- err })
	select {
	case err := <-early:
		t.Fatalf("the new topic was made while appends to the old one were on their way: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	w.local.setFate(nil)
	w.step() // lets them go
	w.closeTopic(2, 1)
	w.open(2, 2, "a", 2)
	w.send(newC, 3)
	w.settled()
}

// A broker that has just started may not list its topics yet: neither is one
// taken for deleted then, nor for lost.
func TestBrokerThatDoesNotListItsTopicsYet(t *testing.T) {
	t.Run("when one is deleted", func(t *testing.T) {
		w := oldTopic(t)
		w.local.mu.Lock()
		w.local.blind = 1
		w.local.mu.Unlock()
		recreate(w, 1, 2)
		w.send(newA, 3)
		w.settled()
	})
	t.Run("when one is looked for", func(t *testing.T) {
		w := oldTopic(t)
		info, err := w.local.Topic(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		w.stop()
		w.local.mu.Lock()
		w.local.blind = 5
		w.local.mu.Unlock()
		w.start()
		w.send(tpA, 3)
		w.settled()
		if now, err := w.local.Topic(t.Context(), "a"); err != nil || now.UUID != info.UUID {
			t.Errorf("the topic was made anew: %v", err)
		}
	})
}

// The groups' logs have no common order: one may open a topic that the other
// has closed long ago.
func TestGroupsInAnyOrder(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.open(1, 1, "a", 0, 1)
	w.send(tpA, 3)
	w.settled()
	w.closeTopic(1, 1)
	w.await("the topic is gone", func() bool {
		_, err := w.local.Topic(t.Context(), "a")
		return errors.Is(err, broker.ErrNoTopic)
	})
	w.open(2, 1, "a", 2) // the other group is far behind
	w.send(tpC, 3)
	if err := w.visible(tpC, w.end(tpC)); !errors.Is(err, ErrClosed) {
		t.Errorf("a partition of a topic that is gone: %v", err)
	}
	w.open(1, 2, "a", 0, 1)
	w.send(newA, 3)
	if err := w.visible(newA, w.end(newA)); err != nil {
		t.Fatal(err)
	}
	w.closeTopic(2, 1) // must not take the new topic with it
	w.open(2, 2, "a", 2)
	w.send(newC, 3)
	w.settled()
}

// A topic that was closed before the broker ever had it is not made later, by
// a group whose log is read after that.
func TestTopicClosedBeforeItWasMade(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.broker.stop()
	w.open(1, 1, "a", 0, 1)
	w.closeTopic(1, 1)
	w.await("the end of the topic is noted", func() bool {
		b, _, _ := w.applier.topics.look(1)
		return b.Gone
	})
	w.open(2, 1, "a", 2)
	w.send(tpC, 1)
	w.broker.start()
	if err := w.visible(tpC, w.end(tpC)); !errors.Is(err, ErrClosed) {
		t.Errorf("a partition of a topic that was closed: %v", err)
	}
	if _, err := w.local.Topic(t.Context(), "a"); !errors.Is(err, broker.ErrNoTopic) {
		t.Errorf("the topic was made after all: %v", err)
	}
}

func TestTopicGrows(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 3)
	w.settled()
	w.open(2, 1, "a", 2)
	w.open(1, 1, "a", 1)
	w.send(tpB, 3)
	w.send(tpC, 3)
	w.settled()
	if info, err := w.local.Topic(t.Context(), "a"); err != nil || info.Partitions != 3 {
		t.Errorf("the broker has %d partitions (%v)", info.Partitions, err)
	}
}

func TestForeignTopic(t *testing.T) {
	t.Run("with records", func(t *testing.T) {
		w := newWorld(t, 1, nil)
		if _, err := w.local.CreateTopic(t.Context(), "a", 2, nil); err != nil {
			t.Fatal(err)
		}
		w.local.rawAppend(t, "a", 1, makeBatch(1, 5, 1))
		w.open(1, 1, "a", 0, 1)
		w.open(1, 2, "b", 0)
		w.send(tpA, 1)
		w.send(newA, 1)
		w.wantQuarantine(tpA, "did not create")
		w.wantQuarantine(tpB, "did not create")
		if err := w.visible(newA, 1); err != nil {
			t.Fatal(err)
		}
		if got := w.local.brokerLog(t, "a", 1); len(got) != 1 {
			t.Errorf("the foreign topic was touched: %d batches", len(got))
		}
	})
	t.Run("empty", func(t *testing.T) {
		w := newWorld(t, 1, nil)
		info, err := w.local.CreateTopic(t.Context(), "a", 7, nil)
		if err != nil {
			t.Fatal(err)
		}
		w.open(1, 1, "a", 0, 1)
		w.send(tpA, 3)
		w.settled()
		if now, err := w.local.Topic(t.Context(), "a"); err != nil || now.UUID == info.UUID || now.Partitions != 2 {
			t.Errorf("the topic is still the foreign one: %+v, %v", now, err)
		}
	})
	t.Run("in place of ours", func(t *testing.T) {
		w := oldTopic(t)
		w.stop()
		if err := w.local.DeleteTopic(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if _, err := w.local.CreateTopic(t.Context(), "a", 3, nil); err != nil {
			t.Fatal(err)
		}
		w.start()
		w.settled() // it was empty: filled again
		w.stop()
		if err := w.local.DeleteTopic(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if _, err := w.local.CreateTopic(t.Context(), "a", 3, nil); err != nil {
			t.Fatal(err)
		}
		w.local.rawAppend(t, "a", 0, makeBatch(1, 5, 1))
		w.start()
		w.wantQuarantine(tpA, "did not create")
	})
}

func TestOpenFailsOnBadBindings(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.stop()
	a := New(w.cfg)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Open(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("opened after Close: %v", err)
	}
	b, err := openBindings(filepath.Join(w.cfg.DataDir, "bindings.db"))
	if err != nil {
		t.Fatal(err)
	}
	want := binding{Name: "a", UUID: [16]byte{1, 2}, Gone: true}
	if err := b.put(7, want); err != nil {
		t.Fatal(err)
	}
	if all, err := b.all(); err != nil || len(all) != 1 || all[7] != want {
		t.Errorf("bindings are %v (%v)", all, err)
	}
	// Somebody else holds the file.
	a = New(w.cfg)
	if err := a.Open(nil); err == nil {
		t.Error("two appliers use one data_dir")
	}
	_ = a.Close()
	_ = b.close()
	if err := os.WriteFile(filepath.Join(w.cfg.DataDir, "bindings.db"), []byte("not bolt, and long enough to look at"), 0o600); err != nil {
		t.Fatal(err)
	}
	a = New(w.cfg)
	if err := a.Open(nil); err == nil {
		t.Error("a file that is no bindings file was opened")
	}
	_ = a.Close()
	if err := os.Remove(filepath.Join(w.cfg.DataDir, "bindings.db")); err != nil {
		t.Fatal(err)
	}
	w.start() // for the clean-up
}

func TestCloseLeavesNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	w := newWorld(t, 2, func(c *Config) { c.LaneBytes = 500 })
	w.open(1, 1, "a", 0, 1)
	w.open(2, 1, "a", 2)
	w.local.setFate(func(broker.Append) fate { return held })
	w.send(tpA, 100)
	w.send(tpC, 100)
	w.dealt(1)
	w.dealt(2)
	w.stop()
	if err := w.applier.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	w.local.setFate(nil)
	w.step()
	_ = w.local.health.Close()
	_ = w.local.appender.Close()
	_ = w.local.Admin.Close()
	_ = w.local.Reader.Close()
	w.broker.stop()
	timeout := time.After(testWait)
	for runtime.NumGoroutine() > before {
		select {
		case <-timeout:
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		case <-time.After(10 * time.Millisecond):
		}
	}
}
