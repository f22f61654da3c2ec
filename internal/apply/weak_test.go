package apply

import (
	"strings"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/kafkawire"
)

// A broker whose guarantees are weaker than Kafka's lies in one of these ways
// (facts on such brokers: offsets that go back after a restart, holes, patched
// headers, history deleted at every start, answers that mean nothing). Each is
// noticed: the partition is put right, or quarantined; nobody is served what is
// not there.
func TestWeakBrokers(t *testing.T) {
	cases := map[string]struct {
		lie   func(w *world, weak *weakBroker)
		words string // of the quarantine; empty: it is put right
		// The broker contradicts itself, so nothing can be said of the log:
		// it is not served, and looked at again.
		unserved bool
	}{
		"an answer without an offset, and nothing written": {lie: func(w *world, _ *weakBroker) {
			w.local.onceOf("a", failed)
		}},
		"never an offset, and nothing written": {lie: func(w *world, _ *weakBroker) {
			w.local.setFate(func(a broker.Append) fate {
				if a.Topic == "a" {
					return failed
				}
				return pass
			})
		}, words: "base-offset: the broker does not say where it put the batch"},
		"another offset": {lie: func(w *world, _ *weakBroker) {
			w.local.onceOf("a", liar)
		}, words: "base-offset: the broker put the batch committed at offset"},
		"acknowledged, and not written": {lie: func(w *world, weak *weakBroker) {
			end := w.end(tpA)
			weak.set(func() {
				weak.drop = func(a broker.Append) *broker.Result {
					if a.Topic != "a" {
						return nil
					}
					weak.drop = nil
					return &broker.Result{BaseOffset: end}
				}
			})
		}},
		"offsets used again after a restart": {lie: func(w *world, _ *weakBroker) {
			restore := w.broker.saved()
			w.send(tpA, 9)
			w.settled()
			w.based(1)
			w.broker.stop()
			restore()
			w.broker.start()
		}},
		"nothing left after a restart": {lie: func(w *world, _ *weakBroker) {
			w.broker.stop()
			w.broker.wipe()
			w.broker.start()
		}},
		"an end beyond what was written": {lie: func(w *world, weak *weakBroker) {
			weak.set(func() { weak.ends = func(start, end int64) (int64, int64) { return start, end + 3 } })
			w.local.current.lose()
		}, words: "no batch at that offset", unserved: true},
		"an old batch for a new one": {lie: func(w *world, weak *weakBroker) {
			weak.set(func() {
				weak.batch = func(b kafkawire.Batch) kafkawire.Batch {
					if b.BaseOffset() == 1 { // with the header of its place, and what it held before
						b[len(b)-3] ^= 1
						return seal(b)
					}
					return b
				}
			})
		}, words: "divergent"},
		"a patched header over an old checksum": {lie: func(w *world, weak *weakBroker) {
			weak.set(func() {
				weak.batch = func(b kafkawire.Batch) kafkawire.Batch {
					if b.BaseOffset() == 1 {
						b[40] ^= 1 // max timestamp
					}
					return b
				}
			})
		}, words: "corrupt: offset 1"},
		"history deleted, and a start that says otherwise": {lie: func(w *world, weak *weakBroker) {
			if err := w.broker.cluster.DeleteRecords("a", 0, 6); err != nil {
				w.t.Error(err)
			}
			weak.set(func() { weak.ends = func(_, end int64) (int64, int64) { return 0, end } })
			w.local.current.lose()
		}, words: "divergent: offset 0: nothing stands there"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, weak := newWeakWorld(t)
			other := fsm.TP{Topic: 2}
			w.open(1, 1, "a", 0)
			w.open(1, 2, "b", 0)
			w.send(tpA, 6)
			w.settled()
			w.based(1)
			c.lie(w, weak)
			w.send(tpA, 3)
			w.send(other, 3)
			if c.words == "" {
				w.await("it is put right", func() bool {
					_, end, err := w.local.Reader.LogEnd(t.Context(), "a", 0)
					ready := w.applier.Ready(tpA, w.end(tpA))
					return err == nil && end == w.end(tpA) && ready
				})
				w.settled()
				return
			}
			if c.unserved {
				w.await("it is not served", func() bool {
					tr := w.applier.Status(1).Troubled
					return len(tr) == 1 && tr[0].Topic == "a" && strings.Contains(tr[0].Reason, c.words) && !w.applier.Ready(tpA, 0)
				})
				return
			}
			reason := w.quarantined(tpA)
			if !strings.Contains(reason, c.words) {
				t.Errorf("quarantined because %q, want %q", reason, c.words)
			}
			weak.set(func() { weak.batch, weak.ends = nil, nil })
			w.local.setFate(nil)
			if err := w.visible(other, w.end(other)); err != nil {
				t.Error(err)
			}
		})
	}
}

// newWeakWorld is scrubbed all the time, with a peer to copy from and a base
// that follows at once.
func newWeakWorld(t *testing.T) (*world, *weakBroker) {
	t.Helper()
	w, weak := &world{}, &weakBroker{}
	w.edit = func(a *Applier) {
		quickly(a)
		a.ScrubWith(ScrubConfig{Broker: weak, Interval: 100 * time.Millisecond})
		a.conclusionAfter = 0
	}
	w.setUp(t, 1, func(c *Config) {
		trusting(c)
		weak.local = w.local
		c.Broker = weak
	})
	w.peer = &peerBroker{w: w}
	w.restart()
	return w, weak
}

// onceOf gives the next append to a topic a fate.
func (b *local) onceOf(topic string, f fate) {
	met := false
	b.setFate(func(a broker.Append) fate {
		if met || a.Topic != topic {
			return pass
		}
		met = true
		return f
	})
}
