package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"sync"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/kafkawire"
)

// weakBroker is a broker that keeps less than it promises: what it answers is
// edited on its way.
type weakBroker struct {
	*local

	mu    sync.Mutex
	batch func(b kafkawire.Batch) kafkawire.Batch // what is read; nil takes it out
	ends  func(start, end int64) (int64, int64)   // of LogEnd
	drop  func(a broker.Append) *broker.Result    // an answer to what is not executed
	reads int                                     // of Range
}

func (w *weakBroker) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// edited passes what was read of topic a through the edit.
func (w *weakBroker) edited(topic string, raw []byte) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.batch == nil || topic != "a" {
		return raw
	}
	var out []byte
	for len(raw) > 0 {
		b, rest, err := kafkawire.ParseBatch(raw)
		if err != nil {
			return append(out, raw...)
		}
		out = append(out, w.batch(append(kafkawire.Batch(nil), b...))...)
		raw = rest
	}
	return out
}

func (w *weakBroker) Range(ctx context.Context, topic string, partition int32, from, to int64, maxBytes int32) ([]byte, int64, error) {
	raw, start, err := w.local.Range(ctx, topic, partition, from, to, maxBytes)
	w.set(func() {
		w.reads++
		if w.ends != nil {
			start, _ = w.ends(start, 0)
		}
	})
	return w.edited(topic, raw), start, err
}

func (w *weakBroker) LastBatch(ctx context.Context, topic string, partition int32, end int64) ([]byte, error) {
	raw, err := w.local.LastBatch(ctx, topic, partition, end)
	return w.edited(topic, raw), err
}

func (w *weakBroker) LogEnd(ctx context.Context, topic string, partition int32) (start, end int64, err error) {
	start, end, err = w.local.LogEnd(ctx, topic, partition)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ends != nil && err == nil && topic == "a" {
		start, end = w.ends(start, end)
	}
	return start, end, err
}

func (w *weakBroker) Session(ctx context.Context) (Session, error) {
	s, err := w.local.Session(ctx)
	return weakSession{s, w}, err
}

type weakSession struct {
	Session
	w *weakBroker
}

func (s weakSession) Append(a broker.Append, done func(broker.Result)) {
	s.w.mu.Lock()
	drop := s.w.drop
	s.w.mu.Unlock()
	if drop != nil {
		if r := drop(a); r != nil {
			go done(*r)
			return
		}
	}
	s.Session.Append(a, done)
}

// seal gives a batch the checksum of what it holds.
func seal(b kafkawire.Batch) kafkawire.Batch {
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// newScrubbed is a world whose logs are read through all the time.
func newScrubbed(t *testing.T, groups uint32, edit func(*Config)) (*world, *weakBroker) {
	w, weak := &world{}, &weakBroker{}
	w.edit = func(a *Applier) {
		a.ScrubWith(ScrubConfig{Broker: weak, Interval: 100 * time.Millisecond})
		a.conclusionAfter = 0
	}
	w.setUp(t, groups, func(c *Config) {
		weak.local = w.local
		c.Broker = weak
		if edit != nil {
			edit(c)
		}
	})
	return w, weak
}

// openWith opens partition 0 of topic 1 with settings.
func (w *world) openWith(config map[string]string) {
	w.t.Helper()
	w.level++
	w.names[1], w.groups[tpA] = "a", 1
	w.commit(1, fsm.Control(fsm.KindOpen, fsm.Open{Level: w.level, Topic: 1, Name: "a", Total: 1, Partitions: []int32{0}, Config: config}))
}

// scrubbed waits until the scrub has been through all logs once more.
func (w *world) scrubbed() {
	w.t.Helper()
	now := time.Now()
	for _, tp := range w.partitions() {
		w.await(tp.String()+" is read through", func() bool {
			l := w.applier.lane(tp)
			if l == nil {
				return false
			}
			p := w.applier.scrubber.proofOf(w.applier.scrubber.subject(l))
			return p.at.After(now) && p.to == w.end(tp)
		})
	}
}

// concluding is a leader that says again and again how much is committed, until
// partition 0 of topic 1 is not served.
func (w *world) concluding() {
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	for w.t.Context().Err() == nil && w.applier.Ready(tpA, 0) {
		w.applier.Conclude(1, w.logs[1].applied.Get())
		<-t.C
	}
}

// Whatever becomes of a log that nobody reads or writes, the scrub finds it,
// says what and where, and the other partitions go on.
func TestScrubFinds(t *testing.T) {
	at := func(offset int64, edit func(b kafkawire.Batch) kafkawire.Batch) func(*world, *weakBroker) {
		return func(_ *world, weak *weakBroker) {
			weak.set(func() {
				weak.batch = func(b kafkawire.Batch) kafkawire.Batch {
					if b.BaseOffset() == offset {
						return edit(b)
					}
					return b
				}
			})
		}
	}
	cases := map[string]struct {
		lie   func(w *world, weak *weakBroker)
		words string
	}{
		"a flipped bit":         {at(3, func(b kafkawire.Batch) kafkawire.Batch { b[len(b)-3] ^= 4; return b }), "corrupt: offset 3: the batch there does not have its checksum"},
		"other bytes":           {at(3, func(b kafkawire.Batch) kafkawire.Batch { b[len(b)-3] ^= 4; return seal(b) }), "divergent: offset 0: something between there and offset 15"},
		"another last batch":    {at(12, func(b kafkawire.Batch) kafkawire.Batch { b[len(b)-3] ^= 4; return seal(b) }), "divergent: offset 12: the last batch there"},
		"another writer":        {at(3, func(b kafkawire.Batch) kafkawire.Batch { b[50] ^= 1; return seal(b) }), "foreign-write: offset 3"},
		"a hole":                {at(3, func(b kafkawire.Batch) kafkawire.Batch { return nil }), "divergent: offset 3: nothing stands there: the next batch is at offset 6"},
		"another length":        {at(3, func(b kafkawire.Batch) kafkawire.Batch { b[11] = 1; return b }), "corrupt: offset 3: what stands there is no batch"},
		"a batch in a batch":    {at(3, func(b kafkawire.Batch) kafkawire.Batch { b[7] = 2; return b }), "divergent: offset 3: it lies inside a batch that begins at offset 2"},
		"fewer offsets":         {at(3, func(b kafkawire.Batch) kafkawire.Batch { b[26]--; return seal(b) }), "divergent: offset"},
		"a number out of order": {at(3, func(b kafkawire.Batch) kafkawire.Batch { b[56]++; return seal(b) }), "divergent: offset 3: the batch there has sequence 4"},
		"nothing at all": {func(_ *world, weak *weakBroker) {
			weak.set(func() { weak.batch = func(kafkawire.Batch) kafkawire.Batch { return nil } })
		}, "divergent: offset 0: nothing stands there"},
		"a foreign write": {func(w *world, _ *weakBroker) { w.local.rawAppend(w.t, "a", 0, makeBatch(2, 5, 1)) },
			"foreign-write: offset 15: the batch there was written by producer -1"},
		"more than was committed": {func(w *world, _ *weakBroker) {
			w.local.rawAppend(w.t, "a", 0, kafkawire.Stamp(nil, makeBatch(1, 9, 200), fsm.ApplierProducerID(1), 0, 15))
			go w.concluding()
		}, "too-long: offset 15: the broker's log ends at offset 16, but only 15 offsets were ever committed"},
		"offsets that hold nothing": {func(w *world, weak *weakBroker) {
			weak.set(func() { weak.ends = func(start, end int64) (int64, int64) { return start, end + 2 } })
			go w.concluding()
		}, "too-long: offset 15: the broker's log ends at offset 17"},
		"deleted history": {func(w *world, _ *weakBroker) {
			if err := w.broker.cluster.DeleteRecords("a", 0, 5); err != nil {
				w.t.Error(err)
			}
		}, "divergent: offset 0: the broker's log starts at offset 5: it deleted what its topic keeps for ever"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, weak := newScrubbed(t, 2, nil)
			w.openWith(map[string]string{"retention.ms": "-1"})
			w.open(2, 2, "b", 0)
			for range 5 { // at offsets 0, 3, 6, 9 and 12
				w.commit(1, w.appendCmd(tpA, 3, 10))
			}
			w.send(fsm.TP{Topic: 2}, 4)
			w.settled()
			c.lie(w, weak)
			w.wantQuarantine(tpA, c.words)
			reason := w.quarantined(tpA)
			if CauseOf(reason) == "" || w.applier.Quarantines()[CauseOf(reason)] != 1 {
				t.Errorf("counted as %v, found %q", w.applier.Quarantines(), reason)
			}
			if s := w.applier.Scrub(); s.Findings != 1 || !strings.Contains(s.LastFinding, "a/0: ") {
				t.Errorf("status %+v", s)
			}
			weak.set(func() { weak.batch = nil })
			w.send(fsm.TP{Topic: 2}, 3)
			if err := w.visible(fsm.TP{Topic: 2}, w.end(fsm.TP{Topic: 2})); err != nil {
				t.Error(err)
			}
		})
	}
}

// Batches that the broker acknowledged and does not have are appended again,
// though nobody writes to the partition.
func TestScrubFindsWhatWasNotKept(t *testing.T) {
	w, weak := newScrubbed(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 4)
	w.settled()
	end := w.end(tpA)
	weak.set(func() {
		weak.drop = func(broker.Append) *broker.Result { weak.drop = nil; return &broker.Result{BaseOffset: end} }
	})
	w.send(tpA, 1)
	if err := w.visible(tpA, end+1); err != nil { // it said so
		t.Fatal(err)
	}
	w.await("the broker has it", func() bool {
		_, got, err := w.local.Reader.LogEnd(t.Context(), "a", 0)
		return err == nil && got == w.end(tpA)
	})
	w.settled()
	if s := w.applier.Scrub(); s.Findings != 0 {
		t.Errorf("%+v", s)
	}
}

// A log that starts above 0 is compared from the first checkpoint on, and by
// its checksums before that.
func TestScrubFromACheckpoint(t *testing.T) {
	w, weak := newScrubbed(t, 1, nil)
	w.open(1, 1, "a", 0)
	for range 24 {
		w.commit(1, w.appendCmd(tpA, 1, 100<<10))
	}
	w.settled()
	marks := w.heads[1].Partitions[tpA].Checkpoints
	if len(marks) != 2 || marks[0].Offset != 11 {
		t.Fatalf("checkpoints %+v", marks)
	}
	if err := w.broker.cluster.DeleteRecords("a", 0, 5); err != nil {
		t.Fatal(err)
	}
	w.scrubbed()
	weak.set(func() {
		weak.batch = func(b kafkawire.Batch) kafkawire.Batch {
			if b.BaseOffset() == 13 {
				b[len(b)-3] ^= 4
				return seal(b)
			}
			return b
		}
	})
	w.wantQuarantine(tpA, "divergent: offset 11: something between there and offset 22 is not what was committed")
}

// Nothing is found where nothing is wrong: while records come, the log is
// deleted from its front, the broker restarts, the topic is deleted, created
// again, and vanishes.
func TestScrubDoesNotCryWolf(t *testing.T) {
	w, _ := newScrubbed(t, 2, nil)
	w.open(1, 1, "a", 0, 1)
	w.open(2, 1, "a", 2)
	check := func(after string) {
		t.Helper()
		if s := w.applier.Scrub(); s.Findings > 0 {
			t.Fatalf("after %s: %+v", after, s)
		}
	}
	for round := range 3 {
		for range 40 {
			w.send(tpA, 2)
			w.send(tpC, 1)
		}
		w.scrubbed()
		check("appends")
		if err := w.broker.cluster.DeleteRecords("a", 0, w.end(tpA)-3-int64(round)); err != nil {
			t.Fatal(err)
		}
		w.send(tpA, 5)
		w.scrubbed()
		check("retention")
		w.broker.stop()
		w.send(tpA, 3)
		w.broker.start()
		w.send(tpB, 3)
		w.scrubbed()
		check("a restart of the broker")
		w.restart()
		w.scrubbed()
		check("a restart of the applier")
	}
	if err := w.local.DeleteTopic(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.scrubbed() // it is found missing, though nobody writes
	recreate(w, 1, 2)
	w.send(newA, 10)
	w.send(newC, 12)
	w.scrubbed()
	check("all of it")
	w.settled()
}

// On a compacted topic records go from the middle, and no hash holds.
func TestScrubOfACompactedTopic(t *testing.T) {
	w, weak := newScrubbed(t, 1, nil)
	weak.set(func() {
		weak.batch = func(b kafkawire.Batch) kafkawire.Batch {
			if o := b.BaseOffset(); o == 0 || o == 2 || o == 3 {
				return nil
			}
			return b
		}
	})
	w.openWith(map[string]string{"cleanup.policy": "compact"})
	for range 8 {
		w.commit(1, w.appendCmd(tpA, 1, 10))
	}
	w.scrubbed()
	if s := w.applier.Scrub(); s.Findings > 0 || !w.applier.Ready(tpA, 8) {
		t.Fatalf("%+v", s)
	}
	weak.set(func() {
		weak.batch = func(b kafkawire.Batch) kafkawire.Batch {
			if b.BaseOffset() == 4 {
				b[len(b)-1] ^= 1
			}
			return b
		}
	})
	w.wantQuarantine(tpA, "corrupt: offset 4")
}

// Verified reads now, and says no where a partition is not served.
func TestVerified(t *testing.T) {
	w, weak := newScrubbed(t, 2, nil)
	w.restartWith(func(a *Applier) { a.ScrubWith(ScrubConfig{Broker: weak}) })
	w.open(1, 1, "a", 0, 1)
	w.open(2, 1, "a", 2)
	w.send(tpA, 9)
	w.send(tpC, 4)
	w.settled()
	proofs := w.applier.Verified(t.Context(), 1)
	if len(proofs) != 3 {
		t.Fatalf("%+v", proofs)
	}
	for i, p := range proofs {
		if tp := (fsm.TP{Topic: 1, Partition: int32(i)}); p.Partition != int32(i) || !p.Ready || p.Verified != w.end(tp) {
			t.Errorf("%+v, committed are %d", p, w.end(tp))
		}
	}
	weak.set(func() { weak.reads = 0 })
	w.send(tpA, 1)
	w.settled()
	if p := w.applier.Verified(t.Context(), 1)[0]; p.Verified != w.end(tpA) {
		t.Errorf("%+v", p)
	}
	weak.set(func() {
		if weak.reads != 1 {
			t.Errorf("%d reads for one batch", weak.reads)
		}
		weak.batch = func(b kafkawire.Batch) kafkawire.Batch { b[len(b)-3] ^= 4; return b }
	})
	w.send(tpC, 1)
	w.settled()
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	defer cancel()
	if p := w.applier.Verified(ctx, 1); p[2].Ready || !strings.Contains(p[2].Reason, "corrupt") || !p[1].Ready {
		t.Errorf("%+v", p)
	}
	if p := w.applier.Verified(t.Context(), 7); len(p) != 0 {
		t.Errorf("a topic that is not there: %+v", p)
	}
}

// restartWith restarts with another edit of the applier.
func (w *world) restartWith(edit func(*Applier)) {
	w.t.Helper()
	w.stop()
	w.edit = edit
	w.start()
}

// A quarantine outlives the process, and ends by command.
func TestQuarantineIsDurable(t *testing.T) {
	w, weak := newScrubbed(t, 1, nil)
	w.open(1, 1, "a", 0, 1)
	w.send(tpA, 4)
	w.settled()
	if err := w.applier.Release(tpA); !errors.Is(err, ErrNotQuarantined) {
		t.Errorf("released what is not quarantined: %v", err)
	}
	weak.set(func() {
		weak.batch = func(b kafkawire.Batch) kafkawire.Batch {
			if b.BaseOffset() == 1 {
				b[len(b)-3] ^= 4
			}
			return b
		}
	})
	w.wantQuarantine(tpA, "corrupt")
	weak.set(func() { weak.batch = nil })
	for range 2 {
		w.restart()
		w.send(tpA, 1)
		w.send(tpB, 1)
		w.wantQuarantine(tpA, "corrupt")
		if err := w.visible(tpB, w.end(tpB)); err != nil {
			t.Fatal(err)
		}
		if n := w.applier.Quarantines()[CauseCorrupt]; n != 0 {
			t.Errorf("a quarantine of before counts %d times", n)
		}
	}
	if err := w.applier.Release(tpA); err != nil {
		t.Fatal(err)
	}
	w.await("the partition is back", func() bool { return w.applier.Ready(tpA, w.end(tpA)) })
	w.settled()
	w.restart()
	w.settled()
}
