package apply

import (
	"fmt"
	"math/rand"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/kafkawire"
)

// Whatever becomes of one append, of the first or of one of five under way,
// every batch ends up on the broker once, in its place.
func TestOneAppendGoesWrong(t *testing.T) {
	fates := map[string]fate{"lost before it was sent": lostBefore, "lost before the answer": lostAfter,
		"executed after the next look at the log end": zombie, "answered without an offset": silent, "not executed and answered without an offset": failed}
	for name, f := range fates {
		for _, n := range []int{1, 2, 6} {
			t.Run(fmt.Sprintf("%s/append %d", name, n), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, 1, nil)
				w.open(1, 1, "a", 0, 1)
				if n > 1 {
					w.send(tpA, 3)
					w.settled()
				}
				met := w.local.once(n, f)
				w.send(tpA, 12)
				w.send(tpB, 12)
				<-met
				w.settled()
				w.send(tpA, 6)
				w.settled()
			})
		}
	}
}

// refuse makes the broker answer appends with an error, count times. With
// NOT_ENOUGH_REPLICAS_AFTER_APPEND kfake appends all the same.
func (w *world) refuse(tp fsm.TP, err *kerr.Error, count int) *kfake.FaultHandle {
	return w.broker.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: w.names[tp.Topic], Partitions: []int32{tp.Partition}, Err: err, Count: count})
}

func TestBrokerRefusesForAMoment(t *testing.T) {
	for _, err := range []*kerr.Error{kerr.NotEnoughReplicas, kerr.NotLeaderForPartition, kerr.NotEnoughReplicasAfterAppend, kerr.OutOfOrderSequenceNumber, kerr.DuplicateSequenceNumber, kerr.UnknownServerError} {
		t.Run(err.Message, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1, nil)
			w.open(1, 1, "a", 0, 1)
			w.refuse(tpA, err, 1) // the very first, when the broker knows nothing of the applier
			w.send(tpA, 10)
			w.settled()
			w.refuse(tpA, err, 3) // later ones are under way behind it
			w.send(tpA, 30)
			w.send(tpB, 3)
			w.settled()
		})
	}
}

// A broker that knows no producer takes any sequence: until it has answered
// once, a second batch would take the place of a first one that was refused.
func TestOneInFlightUntilTheFirstSuccess(t *testing.T) {
	old := time.Now().Add(-48 * time.Hour).UnixMilli()
	for name, c := range map[string]struct {
		at   int64
		want int
	}{"new records": {time.Now().UnixMilli(), maxInFlight}, "old records": {old, 1}, "records without a time": {-1, 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1, nil)
			w.open(1, 1, "a", 0)
			var mu sync.Mutex
			var seen int
			w.local.setFate(func(broker.Append) fate { mu.Lock(); defer mu.Unlock(); seen++; return held })
			count := func() int { mu.Lock(); defer mu.Unlock(); return seen }
			for i := range 20 {
				w.commit(1, fsm.AppendCommand(tpA, makeBatchAt(1, 10, byte(i), c.at)))
			}
			w.dealt(1)
			w.await("the first append", func() bool { return count() > 0 })
			if n := count(); n != 1 {
				t.Fatalf("%d appends before the first answer", n)
			}
			w.step() // answers one
			w.await("appends after the first answer", func() bool { return count() >= 1+c.want })
			if n := count(); n != 1+c.want {
				t.Fatalf("%d appends under way after the first answer, want %d", n-1, c.want)
			}
			w.local.setFate(nil)
			w.step()
			w.settled()
		})
	}
}

// step answers every append that is held now; later ones are held again.
func (w *world) step() {
	w.local.mu.Lock()
	defer w.local.mu.Unlock()
	close(w.local.release)
	w.local.release = make(chan struct{})
}

// A proxy dies with an append in a socket; the broker executes it after the
// next proxy has read the log end.
func TestAppendOfThePredecessorLandsLate(t *testing.T) {
	for _, before := range []int{0, 7} {
		t.Run(fmt.Sprint(before, " batches before"), func(t *testing.T) {
			w := newWorld(t, 1, nil)
			w.open(1, 1, "a", 0)
			w.send(tpA, before)
			w.settled()
			var mu sync.Mutex
			met := make(chan struct{})
			var once sync.Once
			w.local.setFate(func(broker.Append) fate {
				mu.Lock()
				defer mu.Unlock()
				once.Do(func() { close(met) })
				return zombie
			})
			w.send(tpA, 5)
			<-met
			w.stop()
			w.local.setFate(nil)
			w.send(tpA, 3)
			w.start()
			w.settled()
		})
	}
}

func TestQuarantine(t *testing.T) {
	always := func(f fate) func(*world) {
		return func(w *world) {
			w.local.setFate(func(a broker.Append) fate {
				if a.Partition == tpA.Partition {
					return f
				}
				return pass
			})
		}
	}
	refused := func(err *kerr.Error) func(*world) { return func(w *world) { w.refuse(tpA, err, -1) } }
	cases := map[string]struct {
		trouble func(*world)
		words   string
	}{
		"wrong base offset":  {always(liar), "the broker put the batch committed at offset"},
		"never an offset":    {always(silent), "does not say where"},
		"corrupt":            {refused(kerr.CorruptMessage), "cannot take what the others took"},
		"too large":          {refused(kerr.MessageTooLarge), "cannot take what the others took"},
		"invalid record":     {refused(kerr.InvalidRecord), "cannot take what the others took"},
		"sequence, for good": {refused(kerr.OutOfOrderSequenceNumber), "5 times in a row"},
		"epoch, for good":    {refused(kerr.InvalidProducerEpoch), "5 times in a row"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1, nil)
			w.open(1, 1, "a", 0, 1)
			w.send(tpA, 2)
			w.settled()
			c.trouble(w)
			before := w.end(tpA)
			w.send(tpA, 20)
			if strings.HasPrefix(c.words, "cannot take") {
				w.refusedAt(tpA, before)
				if !w.applier.QuarantineRefused(Batch{TP: tpA, Offset: before}, "this broker cannot take what the others took") {
					t.Error("not refused")
				}
			}
			if name != "never an offset" { // the batch is there, and found there
				w.wantQuarantine(tpA, c.words)
			} else {
				w.local.once(1, pass)
			}
			// The others go on, and what this one held is given back.
			w.send(tpB, 30)
			w.send(tpA, 10)
			if err := w.visible(tpB, w.end(tpB)); err != nil {
				t.Fatal(err)
			}
			w.compare(tpB)
			if name != "never an offset" {
				if w.applier.Ready(tpA, before) || !w.applier.Ready(tpB, w.end(tpB)) {
					t.Error("the partition in trouble is served, or the other is not")
				}
				w.await("nothing is held", func() bool { return w.applier.Status(1).QueuedBytes == 0 && w.applier.Status(1).QueuedBatches == 0 })
			}
		})
	}
}

// TestRandomFaults runs several partitions in several groups through random
// faults, restarts of broker and applier, and lost ends of the log.
func TestRandomFaults(t *testing.T) {
	for seed := range int64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			randomFaults(t, seed)
		})
	}
}

func randomFaults(t *testing.T, seed int64) {
	rnd := rand.New(rand.NewSource(seed))
	w := newWorld(t, 2, func(c *Config) {
		if seed%2 == 1 {
			c.LaneBytes, c.GroupBytes = 2000, 6000
		}
	})
	w.open(1, 1, "a", 0, 1)
	w.open(2, 1, "a", 2)
	w.open(2, 2, "b", 0)
	tps := w.partitions()
	var mu sync.Mutex
	faults := rand.New(rand.NewSource(seed + 1000))
	unruly := func(broker.Append) fate {
		mu.Lock()
		defer mu.Unlock()
		switch faults.Intn(60) {
		case 0:
			return lostBefore
		case 1:
			return lostAfter
		case 2:
			return zombie
		case 3:
			return silent
		}
		return pass
	}
	for range 12 {
		w.local.setFate(unruly)
		for range 40 {
			tp := tps[rnd.Intn(len(tps))]
			var cmds []fsm.Command
			for range 1 + rnd.Intn(3) {
				cmds = append(cmds, w.appendCmd(tp, int32(1+rnd.Intn(4)), rnd.Intn(300)))
			}
			w.commit(w.groups[tp], cmds...)
			if rnd.Intn(25) == 0 {
				w.refuse(tp, kerr.NotEnoughReplicas, 1)
			}
		}
		switch rnd.Intn(5) {
		case 0:
			w.broker.stop()
			w.broker.start()
		case 1:
			w.restart()
		case 2: // the log loses its end: with a socket's worth of zombies less, or they would fill it
			w.local.setFate(nil)
			for _, tp := range tps {
				w.send(tp, 1)
			}
			w.settled()
			restore := w.broker.saved()
			for _, tp := range tps {
				w.send(tp, 1+rnd.Intn(8))
			}
			w.settled()
			w.broker.stop()
			restore()
			w.broker.start()
		}
	}
	w.local.setFate(nil)
	for _, tp := range tps { // a lane that has nothing to send may not know yet what its broker lost
		w.send(tp, 1)
	}
	w.settled()
}

func TestItemComparesAll(t *testing.T) {
	batch := makeBatch(3, 10, 1)
	it := item{base: 10, count: 3, seq: 77}
	it.crc = kafkawire.StampedCRC(batch, fsm.ApplierProducerID(5), 0, 77)
	it.batch = batch
	stored := func(base byte, edit func(b []byte)) kafkawire.Batch {
		b := it.stampedCopy(5)
		b[7] = base
		if edit != nil {
			edit(b)
		}
		return b
	}
	cases := map[string]struct {
		got       kafkawire.Batch
		same      bool
		compacted bool // the same where records may have been taken out
	}{
		"itself":         {stored(10, nil), true, true},
		"another leader": {stored(10, func(b []byte) { b[15] = 9 }), true, true},
		"another offset": {stored(11, nil), false, false},
		"another crc":    {stored(10, func(b []byte) { b[17] ^= 1 }), false, true},
		"another span":   {stored(10, func(b []byte) { b[26] = 1 }), false, false},
		"fewer records":  {stored(10, func(b []byte) { b[60] = 1; b[17] ^= 1 }), false, true},
		"another writer": {stored(10, func(b []byte) { b[50] ^= 1 }), false, false},
		"another number": {stored(10, func(b []byte) { b[56] ^= 1 }), false, false},
	}
	for name, c := range cases {
		if diff := it.trace().compare(5, c.got, false); (diff == "") != c.same {
			t.Errorf("%s: %q", name, diff)
		}
		if diff := it.trace().compare(5, c.got, true); (diff == "") != c.compacted {
			t.Errorf("%s, compacted: %q", name, diff)
		}
	}
}

// A batch of a few bytes must not keep an entry of a few hundred kilobytes.
func TestItemsDoNotPinTheirEntry(t *testing.T) {
	entry := make([]byte, 1000)
	small, large := item{batch: entry[:100]}, item{batch: entry[:900]}
	small.own(len(entry))
	large.own(len(entry))
	entry[99], entry[0] = 1, 1
	if len(small.batch) != 100 || small.batch[99] != 0 {
		t.Error("a small batch still aliases its entry")
	}
	if large.batch[0] != 1 {
		t.Error("a batch that is its entry was copied for nothing")
	}
}
