package apply

import (
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/broker"
)

func TestOverflowIsReadAgain(t *testing.T) {
	for name, edit := range map[string]func(*Config){
		"a lane's limit":      func(c *Config) { c.LaneBytes = 1000 },
		"the group's limit":   func(c *Config) { c.GroupBytes = 1000; c.LaneBytes = 100_000 },
		"less than one batch": func(c *Config) { c.LaneBytes, c.GroupBytes = 1, 1 },
		"one batch at a time": func(c *Config) { c.LaneBytes, c.GroupBytes = 400, 800 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1, edit)
			w.open(1, 1, "a", 0, 1, 2)
			w.local.setFate(func(broker.Append) fate { return held })
			var most int64
			for i := range 300 {
				w.send([]fsm.TP{tpA, tpB, tpC}[i%3], 1)
				if i%50 == 49 {
					w.dealt(1)
					most = max(most, w.applier.Status(1).QueuedBytes)
				}
			}
			w.dealt(1)
			if limit := 3*(w.cfg.LaneBytes+500) + 3*500; name != "the group's limit" && most > limit {
				t.Errorf("the lanes hold %d bytes, their limits allow %d", most, limit)
			}
			// While it catches up: lost connections and new batches.
			n := 0
			w.local.setFate(func(broker.Append) fate {
				if n++; n%40 == 0 {
					return lostAfter
				}
				return pass
			})
			w.step()
			w.send(tpA, 50)
			w.send(tpC, 50)
			w.settled()
			w.send(tpB, 3)
			w.settled()
		})
	}
}

// What waits for the broker is counted, until it is there.
func TestQueueIsCounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0, 1)
	w.send(tpA, 1)
	w.settled()
	w.local.setFate(func(broker.Append) fate { return held })
	w.send(tpA, 9)
	w.send(tpB, 2)
	w.dealt(1)
	if s := w.applier.Status(1); s.QueuedBatches != 11 || s.QueuedBytes < 11*61 {
		t.Errorf("11 batches wait, the status has %d of %d bytes", s.QueuedBatches, s.QueuedBytes)
	}
	w.local.setFate(func(broker.Append) fate { return pass })
	w.step()
	w.settled()
}

// A lane that fell behind loses its connection while everything it holds is
// under way and executed: it has nothing to send then, and must read on.
func TestCatchUpAfterEverythingHeldWasThere(t *testing.T) {
	w := newWorld(t, 1, func(c *Config) { c.LaneBytes = 1 })
	w.open(1, 1, "a", 0)
	w.send(tpA, 1)
	w.settled()
	w.local.setFate(func(broker.Append) fate { return held })
	l := w.applier.lane(tpA)
	idle := func() bool { return len(l.wake) == 0 }
	w.send(tpA, 1)
	w.dealt(1)
	w.await("the lane sent it", idle)
	w.send(tpA, 1) // reads again from here on
	w.dealt(1)
	w.await("the lane knows", idle)
	w.await("the broker executed it", func() bool {
		_, end, err := w.local.Reader.LogEnd(t.Context(), "a", 0)
		return err == nil && end == w.want[tpA][1].end()
	})
	w.local.setFate(nil)
	w.local.mu.Lock()
	s := w.local.current
	w.local.mu.Unlock()
	s.lose()
	if err := w.visible(tpA, w.end(tpA)); err != nil {
		t.Fatal(err)
	}
	w.step()
	w.settled()
}

// A broker loses its log while a lane reads again from the middle.
func TestRewindDuringCatchUp(t *testing.T) {
	w := newWorld(t, 1, func(c *Config) { c.LaneBytes = 600 })
	w.open(1, 1, "a", 0, 1)
	w.send(tpA, 10)
	w.settled()
	n, met := 0, make(chan struct{})
	w.local.setFate(func(broker.Append) fate {
		if n++; n == 30 {
			close(met)
		}
		if n >= 30 {
			return held
		}
		return pass
	})
	w.send(tpA, 200)
	<-met
	for range 20 { // what is read again waits for room
		if held := w.applier.Status(1).QueuedBytes; held > 600+500 {
			t.Fatalf("the lane holds %d bytes", held)
		}
		<-time.After(time.Millisecond)
	}
	w.broker.stop()
	w.broker.wipe()
	w.broker.start()
	w.local.setFate(nil)
	w.step()
	w.send(tpB, 5)
	w.send(tpA, 5)
	w.settled()
}
