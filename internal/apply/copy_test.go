package apply

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/kafkawire"
)

func copyContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	t.Cleanup(cancel)
	return ctx
}

// sameBatches checks that the local log is the peer's, byte for byte.
func (w *copyWorld) sameBatches() {
	w.t.Helper()
	if len(w.local.batches) != len(w.full.batches) {
		w.t.Fatalf("%d batches were copied, want %d", len(w.local.batches), len(w.full.batches))
	}
	for i, b := range w.full.batches {
		if !bytes.Equal(w.local.batches[i][16:], b[16:]) || w.local.batches[i].BaseOffset() != b.BaseOffset() {
			w.t.Fatalf("batch %d at offset %d differs", i, b.BaseOffset())
		}
	}
}

func TestCopiesAWholeLog(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(40)
	w.recover(3)
	w.many(40)
	w.commit(1, 3<<20) // more than one answer is meant to hold
	w.commit(5, 10)
	if n := len(w.want().Checkpoints); n < 3 {
		t.Fatalf("%d checkpoints: the test compares nothing", n)
	}
	w.peer(2)
	if err := w.fill(copyContext(t)); err != nil {
		t.Fatal(err)
	}
	w.sameBatches()
	p := w.c.progress(time.Now())
	if len(p.Partitions) != 0 || p.Percent != 100 || p.TotalBytes < 3<<20 || p.BytesPerSecond <= 0 {
		t.Errorf("progress after the copy: %+v", p)
	}
}

func TestCopyGoesOnFromWhatTheBrokerHolds(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(50)
	w.peer(2)
	for _, i := range []int{1, 17, 44, 49} {
		w.local.become(w.full, lastOffset(w.full.batches[i])+1)
		if err := w.fill(copyContext(t)); err != nil {
			t.Fatalf("from batch %d: %v", i, err)
		}
		w.sameBatches()
	}
}

// forge gives a batch other records, with a checksum that fits.
func forge(p *partLog, i int) {
	b := slices.Clone([]byte(p.batches[i]))
	b[len(b)-1] ^= 1
	p.batches[i] = sealed(b)
}

func TestCopyLeavesAPeerThatHoldsOtherBytes(t *testing.T) {
	for _, i := range []int{0, 13, 29} {
		w := newCopyWorld(t, false)
		w.many(30)
		forge(w.peer(2), i)
		w.peer(3)
		if err := w.fill(copyContext(t)); err != nil {
			t.Fatalf("batch %d: %v", i, err)
		}
		w.sameBatches()
		if w.peers.calls[2] == 0 {
			t.Errorf("batch %d: the first peer was not asked", i)
		}
	}
}

func TestCopyAppendsNothingThatIsNotProved(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(30)
	forge(w.peer(2), 22)
	ctx, cancel := context.WithCancel(copyContext(t))
	rounds := 0
	w.peers.wait = func() {
		if rounds++; rounds == 3 {
			cancel()
		}
	}
	if err := w.fill(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("with a wrong peer alone: %v", err)
	}
	if w.local.end == 0 || w.local.end > w.full.batches[22].BaseOffset() {
		t.Errorf("copied up to %d; the batch at %d is wrong, and there is a checkpoint before", w.local.end, w.full.batches[22].BaseOffset())
	}
	for i, b := range w.local.batches {
		if b.CRC() != w.full.batches[i].CRC() {
			t.Errorf("batch %d is not what was committed", i)
		}
	}
}

func TestCopyLeavesAPeerWithDamage(t *testing.T) {
	for name, damage := range map[string]func(p *partLog){
		"bad checksum": func(p *partLog) { b := slices.Clone([]byte(p.batches[9])); b[70] ^= 1; p.batches[9] = b },
		"foreign":      func(p *partLog) { b := slices.Clone([]byte(p.batches[9])); b[50] ^= 1; p.batches[9] = sealed(b) },
		"a hole":       func(p *partLog) { p.batches = slices.Delete(p.batches, 9, 10) },
		"cut off":      func(p *partLog) { p.batches[9] = p.batches[9][:100] },
		"control":      func(p *partLog) { b := slices.Clone([]byte(p.batches[9])); b[22] |= 0x20; p.batches[9] = sealed(b) },
		"twice":        func(p *partLog) { p.batches = slices.Insert(p.batches, 9, p.batches[9]) },
		"empty":        func(p *partLog) { p.batches[9] = rewritten(p.batches[9], nil, 0) },
	} {
		w := newCopyWorld(t, false)
		w.many(20)
		damage(w.peer(2))
		w.peer(3)
		if err := w.fill(copyContext(t)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		w.sameBatches()
	}
}

func TestCopyFindsThatTheLocalLogIsWrong(t *testing.T) {
	for name, behind := range map[string]int{"last batch": 1, "batch before the last": 2} {
		w := newCopyWorld(t, false)
		w.many(40)
		w.peer(2)
		// Two batches behind a checkpoint.
		i := slices.IndexFunc(w.full.batches, func(b kafkawire.Batch) bool { return b.BaseOffset() == w.want().Checkpoints[1].Offset }) + 2
		w.local.become(w.full, w.full.batches[i].BaseOffset())
		forge(w.local, i-behind)
		before := w.local.end
		err := w.fill(copyContext(t))
		var d *distrust
		if !errors.As(err, &d) || !strings.Contains(err.Error(), "node 2") {
			t.Errorf("%s: %v", name, err)
		}
		if w.local.end != before {
			t.Errorf("%s: batches were appended behind it", name)
		}
	}
}

// A log whose beginning was deleted proves nothing below the next checkpoint:
// only if every other node disagrees is the local log said to be wrong.
func TestCopyThatCannotBeProvedAsksEveryPeer(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(40)
	a := w.peer(2)
	w.peer(3)
	// All logs begin one batch behind a checkpoint, and the local one ends three
	// behind it.
	i := w.batchAt(w.want().Checkpoints[1].Offset)
	start, end := w.full.batches[i+1].BaseOffset(), w.full.batches[i+4].BaseOffset()
	forge(a, i+3)
	for _, p := range w.peers.logs {
		if _, err := p.DeleteRecords(t.Context(), "", 0, start); err != nil {
			t.Fatal(err)
		}
	}
	begin := func() {
		w.local.become(w.full, end)
		if _, err := w.local.DeleteRecords(t.Context(), "", 0, start); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	if err := w.fill(copyContext(t)); err != nil {
		t.Fatal(err)
	}
	if w.local.end != w.want().NextOffset || w.peers.calls[2] == 0 {
		t.Fatalf("copied up to %d, calls %v", w.local.end, w.peers.calls)
	}
	begin()
	forge(w.local, len(w.local.batches)-1)
	forge(w.local, len(w.local.batches)-2)
	if w.local.last().CRC() == a.batches[2].CRC() {
		w.local.batches[len(w.local.batches)-1][62] ^= 1
		sealed(w.local.last())
	}
	var d *distrust
	if err := w.fill(copyContext(t)); !errors.As(err, &d) || !strings.Contains(err.Error(), "no other node") {
		t.Fatalf("all peers disagree: %v", err)
	}
}

// batchAt is the batch that begins at an offset.
func (w *copyWorld) batchAt(offset int64) int {
	return slices.IndexFunc(w.full.batches, func(b kafkawire.Batch) bool { return b.BaseOffset() == offset })
}

// Behind the last checkpoint the log's end proves what stands there.
func TestCopyIsProvedAtItsEnd(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(12)
	for range 4 {
		w.commit(2, 10)
	}
	forge(w.peer(2), len(w.full.batches)-3)
	w.peer(3)
	if err := w.fill(copyContext(t)); err != nil {
		t.Fatal(err)
	}
	w.sameBatches()
}

// Where no checkpoint can prove anything any more, the last batch and the
// sequences must at least be right.
func TestCopyBehindTheLastCheckpoint(t *testing.T) {
	for name, damage := range map[string]func(b kafkawire.Batch, last bool){
		"last batch": func(b kafkawire.Batch, last bool) {
			if last {
				b[len(b)-1] ^= 1
			}
		},
		"sequence": func(b kafkawire.Batch, last bool) {
			if !last {
				b[56] ^= 8
			}
		},
	} {
		w := newCopyWorld(t, false)
		w.many(12)
		for range 4 {
			w.commit(2, 10)
		}
		n := len(w.full.batches)
		for _, node := range []int32{2, 3} {
			if _, err := w.peer(node).DeleteRecords(t.Context(), "", 0, w.full.batches[n-3].BaseOffset()); err != nil {
				t.Fatal(err)
			}
		}
		for i, b := range w.peers.logs[2].batches {
			b := slices.Clone([]byte(b))
			if i > 0 {
				damage(b, i == 2)
			}
			w.peers.logs[2].batches[i] = sealed(b)
		}
		if err := w.fill(copyContext(t)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i := range 3 {
			if got := w.local.batches[len(w.local.batches)-3+i]; got.CRC() != w.full.batches[n-3+i].CRC() {
				t.Errorf("%s: batch %d of the damaged log was taken", name, i)
			}
		}
		if w.peers.calls[2] == 0 {
			t.Errorf("%s: the damaged log was not asked for", name)
		}
	}
}

// More than can be held is appended before it is proved. If it turns out wrong,
// the copy says so of itself.
func TestCopyThatTurnsOutWrongIsDistrusted(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(45)
	w.want().Checkpoints = nil // as far apart as in a large partition
	forge(w.peer(2), 0)
	w.peers.fail[2] = 6
	w.peer(3)
	var d *distrust
	if err := w.fill(copyContext(t)); !errors.As(err, &d) {
		t.Errorf("%v", err)
	}
	if w.local.end == 0 {
		t.Error("nothing was appended: the test shows nothing")
	}
}

func TestCopyGoesOnWithAnotherPeerWhereOneFails(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(40)
	w.peer(2)
	w.peer(3)
	w.peers.fail[2] = 2
	if err := w.fill(copyContext(t)); err != nil {
		t.Fatal(err)
	}
	w.sameBatches()
	if w.peers.calls[2] != 3 || w.peers.first[3] == 0 {
		t.Errorf("calls %v, the other peer first asked for offset %d: what the first brought was not kept", w.peers.calls, w.peers.first[3])
	}
}

func TestCopyWaitsForAPeerThatHoldsAll(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(35)
	w.peer(2)
	w.peers.order = nil
	w.peers.limit = w.full.batches[33].BaseOffset()
	rounds := 0
	w.peers.wait = func() {
		switch rounds++; rounds {
		case 2:
			w.peers.order = []int32{2}
			if !strings.Contains(w.c.progress(time.Now()).Partitions[0].Reason, "no other node") {
				t.Errorf("progress does not say what hinders: %+v", w.c.progress(time.Now()))
			}
		case 4:
			w.peers.limit = 0
		}
	}
	if err := w.fill(copyContext(t)); err != nil {
		t.Fatal(err)
	}
	w.sameBatches()
	if rounds != 4 {
		t.Errorf("%d rounds", rounds)
	}
}

// What is appended stops a push as it stops everything else.
func TestCopyEndsWithItsPush(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(40)
	w.peer(2)
	err := w.c.fill(copyContext(t), w.l, 0, nil, w.want(), func(item) error { return errSuperseded })
	if !errors.Is(err, errSuperseded) {
		t.Fatal(err)
	}
}

func TestCopyOfALogThatBeginsAboveZero(t *testing.T) {
	for name, edit := range map[string]func(w *copyWorld, p *partLog) (start, first int64){
		"at a batch": func(w *copyWorld, p *partLog) (int64, int64) {
			at := w.full.batches[13].BaseOffset()
			return at, at
		},
		"inside a batch": func(w *copyWorld, p *partLog) (int64, int64) {
			for _, b := range w.full.batches[13:] {
				if b.Count() > 2 {
					return b.BaseOffset() + 1, b.BaseOffset()
				}
			}
			return 0, 0
		},
		"at its end": func(w *copyWorld, p *partLog) (int64, int64) { return p.end, p.end },
	} {
		w := newCopyWorld(t, false)
		w.many(16)
		w.recover(2)
		w.many(12)
		p := w.peer(2)
		start, first := edit(w, p)
		if _, err := p.DeleteRecords(t.Context(), "", 0, start); err != nil {
			t.Fatal(err)
		}
		if err := w.fill(copyContext(t)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		w.same(p)
		if !w.local.batches[0].IsFiller() {
			t.Fatalf("%s: no filler", name)
		}
		now, err := w.l.restoreStart(t.Context(), 0, w.local.end)
		if err != nil || now != start || w.local.start != start {
			t.Errorf("%s: log start %d, %v, want %d", name, now, err, start)
		}
		// Another process does not know where the log began, and finds out.
		w.local.start, w.local.deletes = 0, nil
		w.local.batches = slices.Insert(slices.Clone(p.batches), 0, kafkawire.Batch(kafkawire.AppendFiller(nil, int32(first), w.full.pid, 0, 0)))
		clear(w.c.starts)
		if now, err = w.l.restoreStart(t.Context(), 0, w.local.end); err != nil || now != first {
			t.Errorf("%s: after a crash the log start is %d, %v, want %d", name, now, err, first)
		}
		if now, err = w.l.restoreStart(t.Context(), now, w.local.end); err != nil || now != first || len(w.local.deletes) != 1 {
			t.Errorf("%s: once more: %d, %v, %v", name, now, err, w.local.deletes)
		}
	}
}

func TestLogStartIsFoundAmongManyFillers(t *testing.T) {
	w := newCopyWorld(t, false)
	w.commit(3, 10)
	for _, n := range []int{0, 1, 2, 3, 50, 51} {
		w.local.empty()
		pid, next := w.full.pid, identity{0, 0, true}
		for range n {
			if err := w.local.append(kafkawire.AppendFiller(nil, 100, pid, next.epoch, next.seq)); err != nil {
				t.Fatal(err)
			}
			next = next.after(100)
		}
		for i := range 7 {
			b := slices.Clone([]byte(kafkawire.Stamp(nil, w.full.batches[0], pid, 0, next.seq)))
			if err := w.local.append(b); err != nil {
				t.Fatalf("%d fillers, batch %d: %v", n, i, err)
			}
			next = next.after(3)
		}
		reads := w.local.reads
		start, err := w.l.restoreStart(t.Context(), 0, w.local.end)
		if err != nil || start != int64(100*n) {
			t.Errorf("%d fillers: log start %d, %v", n, start, err)
		}
		if reads = w.local.reads - reads; n == 0 && reads != 1 || reads > 20 {
			t.Errorf("%d fillers: %d reads", n, reads)
		}
	}
}

func TestCompactedTopicsKeepTheirFillers(t *testing.T) {
	w := newCopyWorld(t, true)
	w.c.starts[copyTP] = 5
	w.local.policy, w.local.end = true, 9
	start, err := w.l.restoreStart(t.Context(), 0, 9)
	if err != nil || start != 0 || !slices.Equal(w.local.deletes, []int64{5}) {
		t.Errorf("log start %d, %v, asked for %v", start, err, w.local.deletes)
	}
}

var errStopHere = errors.New("stop here")

func TestCopyOfACompactedLogHoldsWhatSurvived(t *testing.T) {
	for round := range 8 {
		w := newCopyWorld(t, true)
		for range 3 {
			for range 15 {
				w.commit(int32(1+w.rng.IntN(12)), w.rng.IntN(40))
			}
			if round%2 == 0 {
				w.recover(w.want().Epoch + 2)
			}
		}
		p := w.peer(2)
		keep := 1 + round%4
		p.compact(t, w.rng, func(int64) bool { return w.rng.IntN(5) < keep })
		if round == 7 {
			p.compact(t, w.rng, func(int64) bool { return false })
		}
		// It stops some times on the way, as a broker that crashes does.
		for tries := 0; ; tries++ {
			left := w.rng.IntN(40)
			err := w.c.fill(copyContext(t), w.l, w.local.end, w.local.last(), w.want(), func(it item) error {
				if left--; left < 0 && tries < 6 {
					return errStopHere
				}
				return w.local.append(it.stamped(copyTP.Topic))
			})
			if err == nil {
				break
			}
			if !errors.Is(err, errStopHere) {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		w.same(p)
		// The copy is compacted itself, and copied.
		second := w.local.copyOf(w.local.end)
		second.compact(t, w.rng, func(int64) bool { return w.rng.IntN(4) > 0 })
		w.peers.logs[2] = second
		w.local.empty()
		if err := w.fill(copyContext(t)); err != nil {
			t.Fatalf("round %d, copy of a copy: %v", round, err)
		}
		w.same(second)
	}
}

// A peer holds more than the copy needs: what goes beyond is left to the raft
// log, even where one batch of the peer's has both.
func TestCopyOfACompactedLogEndsWhereItShould(t *testing.T) {
	w := newCopyWorld(t, true)
	for range 20 {
		w.commit(int32(1+w.rng.IntN(12)), 10)
	}
	want := w.group.Only(copyTP).Partitions[copyTP]
	for range 20 {
		w.commit(int32(1+w.rng.IntN(12)), 10)
	}
	p := w.peer(2)
	p.compact(t, w.rng, func(offset int64) bool { return offset < want.NextOffset/2 || offset > want.NextOffset+20 })
	// The peer is a copy itself, with one filler across the end.
	if err := w.fill(copyContext(t)); err != nil {
		t.Fatal(err)
	}
	second := w.local.copyOf(w.local.end)
	i := slices.IndexFunc(second.batches, func(b kafkawire.Batch) bool {
		return b.BaseOffset() < want.NextOffset && lastOffset(b) >= want.NextOffset
	})
	if i < 0 || !second.batches[i].IsFiller() {
		t.Fatal("no filler stands across the end: the test shows nothing")
	}
	w.peers.logs[2] = second
	w.local.empty()
	err := w.c.fill(copyContext(t), w.l, 0, nil, want, func(it item) error { return w.local.append(it.stamped(copyTP.Topic)) })
	if err != nil {
		t.Fatal(err)
	}
	if w.local.end != want.NextOffset || w.local.seq != want.Sequence {
		t.Errorf("ends at offset %d sequence %d, want %d and %d", w.local.end, w.local.seq, want.NextOffset, want.Sequence)
	}
}

// The log start that was committed counts, whatever peers had.
func TestCommittedLogStartIsRestored(t *testing.T) {
	w := newCopyWorld(t, false)
	for range 5 {
		w.commit(4, 10)
	}
	w.local.become(w.full, w.full.end)
	w.apply(fsm.Control(fsm.KindLogStart, fsm.LogStart{TP: copyTP, Offset: 9}))
	w.l.f.log.(*memLog).base = w.group.Encode()
	if start, err := w.l.restoreStart(t.Context(), 0, w.local.end); err != nil || start != 9 || w.local.start != 9 {
		t.Errorf("log start %d, %v", start, err)
	}
}

func TestFourLanesCopyAtOnce(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(20)
	w.peer(2)
	const lanes = 9
	var now, most atomic.Int32
	entered, gate := make(chan struct{}, lanes), make(chan struct{})
	w.peers.hook = func() {
		most.Store(max(most.Load(), now.Add(1)))
		entered <- struct{}{}
		<-gate
		now.Add(-1)
	}
	done := make(chan error, lanes)
	for range lanes {
		go func() {
			done <- w.c.fill(copyContext(t), w.l, 0, nil, w.want(), func(item) error { return nil })
		}()
	}
	for range copyingLanes {
		<-entered
	}
	select {
	case <-entered:
		t.Error("a fifth lane copies")
	case <-time.After(20 * time.Millisecond):
	}
	go func() {
		for range entered {
		}
	}()
	close(gate)
	for range lanes {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if most.Load() > copyingLanes {
		t.Errorf("%d lanes copied at once", most.Load())
	}
	close(entered)
}

func TestCopyProgressOnTheWay(t *testing.T) {
	w := newCopyWorld(t, false)
	w.many(40)
	w.peer(2)
	calls := 0
	var at CopyProgress
	w.peers.hook = func() {
		if calls++; calls == 4 {
			at = w.c.progress(time.Now().Add(time.Second))
		}
	}
	if err := w.fill(copyContext(t)); err != nil {
		t.Fatal(err)
	}
	if len(at.Partitions) != 1 || at.Percent <= 0 || at.Percent >= 100 || at.BytesPerSecond <= 0 || at.Left <= 0 {
		t.Fatalf("progress: %+v", at)
	}
	p := at.Partitions[0]
	if p.Topic != "copied" || p.Partition != copyTP.Partition || p.Peer != 2 || p.From != 0 || p.At <= 0 || p.At >= p.To ||
		p.To != w.want().NextOffset || p.Bytes < 2<<20 || p.Started.IsZero() {
		t.Errorf("partition: %+v", p)
	}
}

func TestCopyRequestsAndAnswersSurviveTheWire(t *testing.T) {
	req := copyRequest{tp: copyTP, from: 1 << 40, max: 5}
	if got, err := decodeCopyRequest(req.encode()); err != nil || got != req {
		t.Errorf("%+v, %v", got, err)
	}
	ans := copyAnswer{status: copyOK, start: 3, end: 1 << 41, batches: []byte("batches")}
	got, err := decodeCopyAnswer(ans.encode())
	if err != nil || got.status != ans.status || got.start != 3 || got.end != ans.end || string(got.batches) != "batches" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range [][]byte{nil, {1}, req.encode()[:24], append(req.encode(), 0), append([]byte{2}, req.encode()[1:]...)} {
		if _, err := decodeCopyRequest(bad); !errors.Is(err, errCopyMessage) {
			t.Errorf("request %x: %v", bad, err)
		}
	}
	for _, bad := range []copyAnswer{{status: 9}, {start: -1}, {start: 3, end: 2}, {status: copyNotReady, batches: []byte{1}}} {
		if _, err := decodeCopyAnswer(bad.encode()); !errors.Is(err, errCopyMessage) {
			t.Errorf("answer %+v: %v", bad, err)
		}
	}
}

func FuzzCopyMessages(f *testing.F) {
	f.Add(copyRequest{tp: copyTP, from: 9, max: 5}.encode())
	f.Add(copyAnswer{end: 9, batches: []byte{1, 2, 3}}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if req, err := decodeCopyRequest(b); err == nil && !bytes.Equal(req.encode(), b) {
			t.Errorf("request %x became %x", b, req.encode())
		}
		if ans, err := decodeCopyAnswer(b); err == nil && !bytes.Equal(ans.encode(), b) {
			t.Errorf("answer %x became %x", b, ans.encode())
		}
	})
}

// Whatever a peer answers, nothing but its log's bytes can be appended, and
// nothing panics.
func FuzzCopyFromAPeer(f *testing.F) {
	w := newCopyWorld(&testing.T{}, false)
	w.commit(3, 10)
	w.commit(2, 10)
	f.Add(bytes.Join([][]byte{w.full.batches[0], w.full.batches[1]}, nil), false)
	f.Add([]byte(rewritten(w.full.batches[0], nil, 0)), true)
	f.Fuzz(func(t *testing.T, raw []byte, compacted bool) {
		w.l.compacted = compacted
		r := &copyRun{c: w.c, l: w.l, want: w.want(), push: func(item) error { return nil }}
		s := &stretch{r: r}
		if err := s.takeAll(t.Context(), raw); err == nil && s.at.pos > w.want().NextOffset {
			t.Fatalf("took up to %d", s.at.pos)
		}
	})
}

func TestBucketSpreadsWhatIsTaken(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newBucket(1000)
	b.now = func() time.Time { return now }
	if d := b.owe(1000); d != 0 {
		t.Errorf("the first second's bytes wait %v", d)
	}
	if d := b.owe(500); d != 500*time.Millisecond {
		t.Errorf("500 more wait %v", d)
	}
	if d := b.owe(500); d != time.Second {
		t.Errorf("500 behind them wait %v", d)
	}
	now = now.Add(1500 * time.Millisecond)
	if d := b.owe(600); d != 100*time.Millisecond {
		t.Errorf("600 after 1.5 s wait %v", d)
	}
	now = now.Add(time.Hour)
	if d := b.owe(1200); d != 200*time.Millisecond {
		t.Errorf("an idle hour is worth more than a second: %v", d)
	}
	if d := newBucket(0).owe(1 << 60); d != 0 {
		t.Errorf("no rate waits %v", d)
	}
}

func TestMeterLooksBackTenSeconds(t *testing.T) {
	var m meter
	at := time.Unix(5000, 0)
	if got := m.perSecond(at); got != 0 {
		t.Errorf("at the start: %v", got)
	}
	for range 30 {
		m.add(at, 100)
		at = at.Add(time.Second)
	}
	if got := m.perSecond(at); got != 100 {
		t.Errorf("100 a second are %v", got)
	}
	if got := m.perSecond(at.Add(5 * time.Second)); got != 50 {
		t.Errorf("5 s of silence later: %v", got)
	}
	if got := m.perSecond(at.Add(time.Minute)); got != 0 {
		t.Errorf("a minute later: %v", got)
	}
	at = at.Add(time.Minute)
	m.add(at, 700)
	if got := m.perSecond(at.Add(2 * time.Second)); got != 350 {
		t.Errorf("2 s after a new start: %v", got)
	}
}
