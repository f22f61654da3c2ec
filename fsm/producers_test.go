package fsm

import (
	"fmt"
	"math"
	"math/rand"
	"testing"
)

// producerBatch is what a partition was given of one producer.
type producerBatch struct {
	epoch       int16
	first, last int32
	offset      int64
	count       int32
}

// producersModel decides what becomes of a batch from all that was ever
// appended, in the words of Kafka (ProducerStateManager, ProducerAppendInfo,
// ProducerStateEntry), with the two differences that are meant: an unknown
// producer begins at 0 unless one was forgotten, and time is the log's.
type producersModel struct {
	next    int64
	nowMs   int64
	forgot  bool
	history map[int64][]producerBatch
	usedMs  map[int64]int64
}

func newProducersModel() *producersModel {
	return &producersModel{history: make(map[int64][]producerBatch), usedMs: make(map[int64]int64)}
}

func (m *producersModel) append(s batchSpec) (v Verdict, code int16, base int64) {
	if used, known := m.usedMs[s.pid]; known && m.nowMs-used > ProducerExpiryMs {
		delete(m.usedMs, s.pid)
		delete(m.history, s.pid)
		m.forgot = true
	}
	b := producerBatch{epoch: s.epoch, first: s.seq, last: sequenceAfter(s.seq, s.count-1), offset: m.next, count: s.count}
	h := m.history[s.pid]
	switch {
	case len(h) == 0:
		if s.seq != 0 && !m.forgot {
			return Rejected, 45, 0
		}
	case s.epoch < h[len(h)-1].epoch:
		return Rejected, 47, 0
	case s.epoch > h[len(h)-1].epoch:
		if s.seq != 0 {
			return Rejected, 45, 0
		}
	default:
		for _, old := range h[max(0, len(h)-5):] {
			if old.epoch == b.epoch && old.first == b.first && old.last == b.last {
				return Duplicate, 0, old.offset
			}
		}
		if s.seq != sequenceAfter(h[len(h)-1].last, 1) {
			return Rejected, 45, 0
		}
	}
	m.history[s.pid] = append(h, b)
	m.usedMs[s.pid] = m.nowMs
	m.next += int64(s.count)
	return Appended, 0, b.offset
}

// sequenceAfter counts as a producer does: 0 follows the highest.
func sequenceAfter(seq, n int32) int32 {
	for range n {
		if seq == math.MaxInt32 {
			seq = 0
			continue
		}
		seq++
	}
	return seq
}

// producerScript is a partition and its model, driven by bytes: four make a step.
type producerScript struct {
	t       *testing.T
	m       *machine // its state goes through a snapshot now and then
	twin    *Group   // never did
	model   *producersModel
	steps   int
	reached map[string]int
}

func newProducerScript(t *testing.T) *producerScript {
	m := openMachine(t)
	return &producerScript{t: t, m: m, twin: again(t, m.Group), model: newProducersModel(), reached: make(map[string]int)}
}

// run plays every step of a script.
func (s *producerScript) run(script []byte) {
	for ; len(script) >= 4; script = script[4:] {
		s.step(script[0], script[1], script[2], script[3])
		s.steps++
	}
	if a, b := dumpPartition(s.m.Partitions[testTP]), dumpPartition(s.twin.Partitions[testTP]); a != b {
		s.t.Fatalf("a partition that was in a snapshot is\n%s\nanother is\n%s", a, b)
	}
}

func (s *producerScript) step(what, epoch, seq, count byte) {
	switch {
	case what >= 250:
		s.m.Group = again(s.t, s.m.Group)
		s.reached["snapshot"]++
		return
	case what >= 244: // Most of a day, or one and more.
		s.elapse(ProducerExpiryMs/MaxElapsedMs - 1 + int(seq)%3)
		return
	}
	pid := ClientProducerBase + int64(what%3)
	h := s.model.history[pid]
	b := batchSpec{pid: pid, count: 1 + int32(count%4)}
	last := producerBatch{last: math.MaxInt32} // 0 follows
	if len(h) > 0 {
		last = h[len(h)-1]
	}
	b.epoch = max(0, last.epoch+[...]int16{0, 0, 0, 0, 0, 0, 1, -1}[epoch%8])
	switch seq % 8 {
	case 0:
		b.seq = 0
	case 1:
		b.seq = sequenceAfter(last.last, 2)
	case 2, 3: // One of the last seven as it was.
		if len(h) > 0 {
			old := h[max(0, len(h)-1-int(seq>>3)%7)]
			b.seq, b.count, b.epoch = old.first, old.count, old.epoch
		}
	case 4: // Near the highest.
		b.seq = math.MaxInt32 - int32(seq>>3)%4
	default:
		b.seq = sequenceAfter(last.last, 1)
	}
	s.send(b)
}

// elapse lets so many minutes go by on the log's clock.
func (s *producerScript) elapse(minutes int) {
	for range minutes {
		s.m.entry(MaxElapsedMs)
		if _, err := s.twin.Apply(s.m.Index, EncodeEntry(MaxElapsedMs, nil)); err != nil {
			s.t.Fatal(err)
		}
		s.model.nowMs += MaxElapsedMs
	}
}

func (s *producerScript) send(b batchSpec) {
	cmd := AppendCommand(testTP, makeBatch(b))
	r := s.m.one(cmd)
	again, err := s.twin.Apply(s.m.Index, EncodeEntry(0, []Command{cmd}))
	if err != nil {
		s.t.Fatal(err)
	}
	if show(&again[0]) != show(&r) {
		s.t.Fatalf("step %d, %+v: %s, and after a snapshot %s", s.steps, b, show(&again[0]), show(&r))
	}
	v, code, base := s.model.append(b)
	if r.Verdict != v || r.Code != code || v != Rejected && (r.BaseOffset != base || r.Count != b.count) {
		s.t.Fatalf("step %d, %+v: verdict %d, code %d, offset %d, count %d; want %d, %d, %d, %d", s.steps, b, r.Verdict, r.Code, r.BaseOffset, r.Count, v, code, base, b.count)
	}
	s.reached[fmt.Sprint("verdict ", v, " code ", code)]++
	if v == Appended && b.seq > sequenceAfter(b.seq, b.count) {
		s.reached["wrap"]++
	}
	if v == Appended && s.model.forgot && b.seq != 0 && len(s.model.history[b.pid]) == 1 {
		s.reached["began anywhere"]++
	}
}

// TestProducersLikeTheModel plays random scripts of three producers that repeat,
// skip, begin new epochs, wrap around and are forgotten, before and after
// snapshots.
func TestProducersLikeTheModel(t *testing.T) {
	reached := make(map[string]int)
	for seed := range int64(20) {
		rnd := rand.New(rand.NewSource(seed))
		script := make([]byte, 4*400)
		rnd.Read(script)
		s := newProducerScript(t)
		s.run(script)
		for what, n := range s.reached {
			reached[what] += n
		}
	}
	for _, what := range []string{"verdict 1 code 0", "verdict 2 code 0", "verdict 3 code 45", "verdict 3 code 47", "snapshot", "wrap", "began anywhere"} {
		if reached[what] < 20 {
			t.Errorf("%q happened %d times only", what, reached[what])
		}
	}
}

// FuzzProducers plays any script.
func FuzzProducers(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 7, 1, 0, 0, 2, 0, 0, 0, 10, 0, 255, 0, 0, 0, 0, 0, 2, 0})
	f.Add([]byte{0, 0, 0, 0, 244, 0, 2, 0, 0, 0, 4, 3, 0, 0, 7, 3, 1, 0, 4, 0, 1, 6, 0, 0, 1, 7, 7, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 4*64 {
			return
		}
		newProducerScript(t).run(script)
	})
}
