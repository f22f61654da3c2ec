package apply

import (
	"context"
	"errors"
	"sync"
	"testing"

	"lockstep/fsm"
	"lockstep/kafkawire"
	"lockstep/transport"
)

// twin is a peer whose broker holds what was committed, from a log start on.
type twin struct {
	w *world

	mu    sync.Mutex
	start map[fsm.TP]int64
	ends  map[fsm.TP]int64 // where its logs end, of those that do not hold everything
	asked int
}

func (p *twin) Complete(fsm.TP) []int32 { return []int32{2} }

func (p *twin) Call(_ context.Context, _ int32, _ uint8, payload []byte) ([]byte, error) {
	req, err := decodeCopyRequest(payload)
	if err != nil {
		return nil, err
	}
	log := &partLog{}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.mu.Lock()
	end, short := p.ends[req.tp]
	p.mu.Unlock()
	for _, it := range p.w.want[req.tp] {
		if short && it.base >= end {
			break
		}
		if err := log.append(it.stampedCopy(req.tp.Topic)); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if _, err := log.DeleteRecords(context.Background(), "", 0, p.start[req.tp]); err != nil {
		return nil, err
	}
	return log.serve(req, 0), nil
}

// newCopyingWorld has a trusting world with a copier that asks a twin.
func newCopyingWorld(t *testing.T) (*world, *twin) {
	t.Helper()
	w := newTrustingWorld(t, 1, nil)
	p := &twin{w: w, start: make(map[fsm.TP]int64), ends: make(map[fsm.TP]int64)}
	w.edit = func(a *Applier) {
		quickly(a)
		a.CopyFrom(CopyConfig{Peers: p, Broker: w.local, Method: 17})
	}
	w.restart()
	return w, p
}

// TestWipedBrokerIsCopied goes all the way: the base moves, the broker loses
// its disk, and what the log no longer holds comes from a peer.
func TestWipedBrokerIsCopied(t *testing.T) {
	w, p := newCopyingWorld(t)
	w.open(1, 1, "a", 0, 1)
	w.send(tpA, 20)
	w.send(tpB, 20)
	w.settled()
	w.based(1)
	p.mu.Lock()
	p.start[tpB] = w.want[tpB][7].base
	p.mu.Unlock()
	w.stop()
	w.broker.stop()
	w.broker.wipe()
	w.broker.start()
	w.start()
	w.send(tpA, 2)
	w.send(tpB, 2)
	for _, tp := range []fsm.TP{tpA, tpB} {
		if err := w.visible(tp, w.end(tp)); err != nil {
			t.Fatalf("%s: %v", tp, err)
		}
	}
	w.paths(map[Path]uint64{PathWiped: 2, PathQuarantine: 0})
	if p.asked == 0 {
		t.Fatal("no peer was asked")
	}
	for tp, from := range map[fsm.TP]int{tpA: 0, tpB: 7} {
		start, end, err := w.local.LogEnd(t.Context(), "a", tp.Partition)
		if err != nil || start != w.want[tp][from].base || end != w.end(tp) {
			t.Errorf("%s: log %d to %d, %v, want %d to %d", tp, start, end, err, w.want[tp][from].base, w.end(tp))
		}
		log := w.local.brokerLog(t, "a", tp.Partition)
		if len(log) != len(w.want[tp])-from {
			t.Fatalf("%s: %d batches, want %d", tp, len(log), len(w.want[tp])-from)
		}
		for i, b := range log {
			if diff := w.want[tp][from+i].compare(tp.Topic, b, false); diff != "" {
				t.Errorf("%s: batch %d %s", tp, i, diff)
			}
		}
	}
	if c := w.applier.CopyProgress(); len(c.Partitions) != 0 || c.TotalBytes == 0 {
		t.Errorf("progress after the copies: %+v", c)
	}
	// It serves others in its turn, and starts again from where its logs begin.
	w.based(1)
	w.restart()
	if err := w.visible(tpB, w.end(tpB)); err != nil {
		t.Fatal(err)
	}
	answer := w.heardCopy(copyRequest{tpB, 0, copyBytes})
	if answer.status != copyBelowStart || answer.start != w.want[tpB][7].base {
		t.Errorf("a request below the log start: %+v", answer)
	}
}

func (w *world) heardCopy(req copyRequest) copyAnswer {
	w.t.Helper()
	raw, err := w.applier.HeardCopy(w.t.Context(), req.encode())
	if err != nil {
		w.t.Fatal(err)
	}
	answer, err := decodeCopyAnswer(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer
}

func TestReadyLanesAnswerRequestsForCopies(t *testing.T) {
	w, _ := newCopyingWorld(t)
	w.open(1, 1, "a", 0)
	w.send(tpA, 30)
	w.settled()
	var got []kafkawire.Batch
	for next := int64(0); next < w.end(tpA); {
		answer := w.heardCopy(copyRequest{tpA, next, 300})
		if answer.status != copyOK || answer.end != w.end(tpA) || len(answer.batches) == 0 {
			t.Fatalf("from offset %d: %+v", next, answer)
		}
		for raw := answer.batches; len(raw) > 0; {
			b, rest, err := kafkawire.ParseBatch(raw)
			if err != nil {
				t.Fatal(err)
			}
			got, raw, next = append(got, b), rest, lastOffset(b)+1
		}
	}
	for i, b := range got {
		if diff := w.want[tpA][i].compare(tpA.Topic, b, false); diff != "" {
			t.Errorf("batch %d %s", i, diff)
		}
	}
	if len(got) != 30 {
		t.Errorf("%d batches", len(got))
	}
	if a := w.heardCopy(copyRequest{tpA, w.end(tpA), 300}); a.status != copyOK || len(a.batches) > 0 || a.end != w.end(tpA) {
		t.Errorf("at the end: %+v", a)
	}
	if a := w.heardCopy(copyRequest{tpB, 0, 300}); a.status != copyUnknown {
		t.Errorf("a partition that is not here: %+v", a)
	}
	w.applier.lane(tpA).quarantine("for the test")
	w.await("it is quarantined", func() bool { return !w.applier.Ready(tpA, 0) })
	if a := w.heardCopy(copyRequest{tpA, 0, 300}); a.status != copyNotReady {
		t.Errorf("quarantined: %+v", a)
	}
	if _, err := w.applier.HeardCopy(t.Context(), []byte("nonsense")); !errors.Is(err, errCopyMessage) {
		t.Errorf("nonsense: %v", err)
	}
}

// An answer of one batch of the largest size fits a message between nodes.
func TestLargestBatchFitsAMessage(t *testing.T) {
	const largestBatch = 16 << 20 // raft.max_entry_bytes, by default
	if n := copyAnswerLen + largestBatch; n > transport.DefaultMaxMessage {
		t.Errorf("%d bytes do not fit %d", n, transport.DefaultMaxMessage)
	}
}

// A copy of a compacted log has batches of its own. One that ended before its
// time may end inside a batch that the raft log still has: what is missing of
// it is appended, and nothing is said to be wrong.
func TestCompactedCopyThatEndsInsideABatch(t *testing.T) {
	for _, mine := range []bool{true, false} {
		w := newTrustingWorld(t, 1, nil)
		w.openWith(map[string]string{"cleanup.policy": "compact"})
		w.send(tpA, 4)
		w.settled()
		w.stop()
		it := newItem(0, &w.commit(1, w.appendCmd(tpA, 9, 20))[0])
		w.commit(1, w.appendCmd(tpA, 2, 30))
		stored, _, err := kafkawire.ParseBatch(it.stampedCopy(1))
		if err != nil {
			t.Fatal(err)
		}
		var all []kafkawire.Record
		if err := kafkawire.VisitRecords(stored, 1<<20, func(r kafkawire.Record) bool { all = append(all, r); return true }); err != nil {
			t.Fatal(err)
		}
		for i := range int32(4) {
			epoch, seq := it.epoch, it.seq+i
			if !mine { // nobody of this cluster wrote that
				epoch, seq = it.epoch+1, i
			}
			raw, err := kafkawire.AppendBatch(nil, 0, all[i:i+1], stored.ProducerID(), epoch, seq)
			if err != nil {
				t.Fatal(err)
			}
			if r := w.local.rawAppend(t, "a", 0, raw); r.Err != nil || r.Code != 0 {
				t.Fatalf("%+v", r)
			}
		}
		w.start()
		if !mine {
			w.wantQuarantine(tpA, "inside the committed batch")
			continue
		}
		if err := w.visible(tpA, w.end(tpA)); err != nil {
			t.Fatal(err)
		}
		w.await("it is ready", func() bool { return w.applier.Ready(tpA, w.end(tpA)) })
		var got []kafkawire.Record
		for _, b := range w.local.brokerLog(t, "a", 0) {
			if b.BaseOffset() >= it.base && b.BaseOffset() < it.end() {
				if err := kafkawire.VisitRecords(b, 1<<20, func(r kafkawire.Record) bool { got = append(got, r); return true }); err != nil {
					t.Fatal(err)
				}
			}
		}
		if len(got) != 9 {
			t.Fatalf("%d records", len(got))
		}
		for i := range got {
			if got[i].TimestampMs != all[i].TimestampMs || string(got[i].Payload) != string(all[i].Payload) {
				t.Errorf("record %d differs", i)
			}
		}
		w.await("nothing is held", func() bool { return w.applier.Status(1).QueuedBytes == 0 && w.applier.Status(1).QueuedBatches == 0 })
		w.restart()
		if err := w.visible(tpA, w.end(tpA)); err != nil {
			t.Fatal(err)
		}
	}
}
