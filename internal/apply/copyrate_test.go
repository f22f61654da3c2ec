package apply

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

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
