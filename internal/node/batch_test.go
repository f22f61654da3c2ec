package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"lockstep/fsm"
)

// fakeFuture is an entry that the test answers.
type fakeFuture struct {
	cmds    []fsm.Command
	elapsed uint32
	err     error
	results any
	done    chan struct{}
	index   uint64
}

func (f *fakeFuture) Error() error  { <-f.done; return f.err }
func (f *fakeFuture) Response() any { return f.results }
func (f *fakeFuture) Index() uint64 { return f.index }

func (f *fakeFuture) commitResults() {
	rs := make([]fsm.Result, len(f.cmds))
	for i, c := range f.cmds {
		rs[i].BaseOffset = int64(len(c.Body))
	}
	f.results = rs
}

// commit answers with one result per command, numbered by its body's length.
func (f *fakeFuture) commit() {
	f.commitResults()
	close(f.done)
}

func (f *fakeFuture) fail(err error) { f.err = err; close(f.done) }

// batcherRig runs a batcher over futures that the test answers.
type batcherRig struct {
	t       *testing.T
	b       *batcher
	entries chan *fakeFuture
	cancel  context.CancelFunc
	ended   chan struct{}

	mu      sync.Mutex
	answers map[string][]error
	order   []string

	patience time.Duration
}

func newBatcherRig(t *testing.T, entryBytes, inFlight int) *batcherRig {
	t.Helper()
	return newHeldBatcherRig(t, entryBytes, inFlight, nil)
}

func newHeldBatcherRig(t *testing.T, entryBytes, inFlight int, hold func() (bool, <-chan struct{}, <-chan struct{})) *batcherRig {
	t.Helper()
	r := &batcherRig{t: t, entries: make(chan *fakeFuture, 1000), ended: make(chan struct{}), answers: make(map[string][]error)}
	r.b = newBatcher(entryBytes, inFlight, func(data []byte) (raft.ApplyFuture, uint64) {
		elapsed, cmds, err := fsm.DecodeEntry(data)
		if err != nil {
			t.Errorf("the entry does not parse: %v", err)
		}
		f := &fakeFuture{cmds: cmds, elapsed: elapsed, done: make(chan struct{})}
		r.entries <- f
		return f, 7
	})
	if hold != nil {
		r.b.hold = hold
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() {
		defer close(r.ended)
		r.b.run(ctx)
	}()
	t.Cleanup(r.stop)
	return r
}

func (r *batcherRig) stop() {
	r.cancel()
	select {
	case <-r.ended:
	case <-time.After(testWait):
		r.t.Error("the batcher does not end")
	}
}

// propose queues a command whose body is name padded to size.
func (r *batcherRig) propose(name string, size int) { r.proposeKind(fsm.KindOpen, name, size) }

func (r *batcherRig) proposeKind(kind fsm.Kind, name string, size int) {
	body := append([]byte(name+"|"), bytes.Repeat([]byte{'.'}, size)...)
	r.b.propose(fsm.Command{Kind: kind, Body: body}, r.patience, func(res fsm.Result, err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if err == nil && res.BaseOffset != int64(len(body)) {
			err = fmt.Errorf("got the result of another command: %d", res.BaseOffset)
		}
		r.answers[name] = append(r.answers[name], err)
		r.order = append(r.order, name)
	})
}

func (r *batcherRig) entry() *fakeFuture {
	r.t.Helper()
	select {
	case f := <-r.entries:
		return f
	case <-time.After(testWait):
		r.t.Fatal("no entry was sent")
		return nil
	}
}

// none checks that nothing is sent; sync makes the batcher look at everything
// that was proposed before.
func (r *batcherRig) none(why string) {
	r.t.Helper()
	// Two wake-ups through a channel of capacity 1 mean that the loop has
	// been round with everything queued before the first.
	for range 2 {
		select {
		case r.b.wake <- struct{}{}:
		case <-time.After(testWait):
			r.t.Fatal("the batcher does not listen")
		}
	}
	select {
	case f := <-r.entries:
		r.t.Fatalf("%s: an entry with %v was sent", why, names(f))
	default:
	}
}

func names(f *fakeFuture) (out []string) {
	for _, c := range f.cmds {
		name, _, _ := bytes.Cut(c.Body, []byte("|"))
		out = append(out, string(name))
	}
	return out
}

func (r *batcherRig) answered(name string) error {
	r.t.Helper()
	deadline := time.After(testWait)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		r.mu.Lock()
		got := r.answers[name]
		r.mu.Unlock()
		if len(got) > 1 {
			r.t.Fatalf("%s was answered %d times", name, len(got))
		}
		if len(got) == 1 {
			return got[0]
		}
		select {
		case <-tick.C:
		case <-deadline:
			r.t.Fatalf("%s was never answered", name)
		}
	}
}

func wantNames(t *testing.T, f *fakeFuture, want ...string) {
	t.Helper()
	if got := fmt.Sprint(names(f)); got != fmt.Sprint(want) {
		t.Fatalf("the entry holds %s, want %v", got, want)
	}
}

// Nothing in flight: at once. Else what comes is collected until the entry in
// flight is through.
func TestBatcherSendsAtOnceThenCollects(t *testing.T) {
	r := newBatcherRig(t, 1000, 4)
	r.propose("a", 10)
	first := r.entry()
	wantNames(t, first, "a")
	r.propose("b", 10)
	r.propose("c", 10)
	r.none("one is in flight and little waits")
	first.commit()
	second := r.entry()
	wantNames(t, second, "b", "c")
	second.commit()
	for _, n := range []string{"a", "b", "c"} {
		if err := r.answered(n); err != nil {
			t.Errorf("%s: %v", n, err)
		}
	}
}

// A full entry is sent beside others in flight, up to the limit, and no entry
// is larger than it may be unless a single command is.
func TestBatcherFillsThePipeline(t *testing.T) {
	r := newBatcherRig(t, 1000, 3)
	r.propose("a", 10)
	a := r.entry()
	r.propose("b", 600)
	r.none("less than an entry waits")
	r.propose("c", 600) // together too much for one entry
	wantNames(t, r.entry(), "b")
	r.none("c alone is not a full entry")
	r.propose("huge", 5000)
	wantNames(t, r.entry(), "c")
	r.propose("d", 5000)
	r.none("three are in flight")
	a.commit()
	wantNames(t, r.entry(), "huge")
	r.none("three are in flight")
}

// Commands of one caller keep their order, whatever their sizes.
func TestBatcherKeepsOrder(t *testing.T) {
	r := newBatcherRig(t, 1000, 8)
	const n = 500
	for i := range n {
		r.propose(fmt.Sprint(i), i*37%700)
	}
	next := 0
	for next < n {
		f := r.entry()
		for _, name := range names(f) {
			if name != fmt.Sprint(next) {
				t.Fatalf("command %s came when %d was due", name, next)
			}
			next++
		}
		f.commit()
	}
	for i := range n {
		if err := r.answered(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
}

// At shutdown everything is answered once: what was proposed with an unknown
// outcome, what was not with ErrStopped.
func TestBatcherAnswersAllAtShutdown(t *testing.T) {
	r := newBatcherRig(t, 100, 2)
	r.propose("flying", 10)
	r.entry()
	r.propose("waiting", 10)
	r.none("one is in flight")
	r.stop()
	r.propose("late", 10)
	if err := r.answered("flying"); !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("in flight: %v", err)
	}
	for _, name := range []string{"waiting", "late"} {
		if err := r.answered(name); !errors.Is(err, ErrStopped) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Only what Raft surely did not append may be tried again.
func TestBatcherSortsErrors(t *testing.T) {
	for _, tc := range []struct{ raft, want error }{
		{raft.ErrNotLeader, ErrNotLeader},
		{raft.ErrEnqueueTimeout, ErrNotLeader},
		{raft.ErrLeadershipTransferInProgress, ErrNotLeader},
		{raft.ErrLeadershipLost, ErrUnknownOutcome},
		{raft.ErrRaftShutdown, ErrUnknownOutcome},
		{errors.New("write failed"), ErrUnknownOutcome},
	} {
		r := newBatcherRig(t, 100, 2)
		r.propose("a", 1)
		r.entry().fail(tc.raft)
		if err := r.answered("a"); !errors.Is(err, tc.want) || errors.Is(err, ErrNotLeader) != errors.Is(tc.want, ErrNotLeader) {
			t.Errorf("%v became %v, want %v", tc.raft, err, tc.want)
		}
	}
}

// The clock's step is capped, never negative, and loses no time to rounding.
func TestBatcherClock(t *testing.T) {
	r := newBatcherRig(t, 100, 1)
	var sum time.Duration
	start := time.Now()
	for range 20 {
		r.propose("x", 1)
		f := r.entry()
		sum += time.Duration(f.elapsed) * time.Millisecond
		f.commit()
		<-time.After(1500 * time.Microsecond) // the clock itself is under test
	}
	if real := time.Since(start); sum > real || sum < real-20*time.Millisecond {
		t.Errorf("the entries say %s, the clock %s", sum, real)
	}
	b := newBatcher(100, 1, func(data []byte) (raft.ApplyFuture, uint64) {
		elapsed, _, err := fsm.DecodeEntry(data)
		if err != nil || elapsed != fsm.MaxElapsedMs {
			t.Errorf("a step of an hour became %d ms, %v", elapsed, err)
		}
		f := &fakeFuture{done: make(chan struct{})}
		f.fail(raft.ErrNotLeader)
		return f, 7
	})
	b.clock = time.Now().Add(-time.Hour)
	b.send(context.Background(), nil)
	b.wg.Wait()
}

// While the log has no room records wait, in order, and what controls the group
// does not.
func TestBatcherHoldsRecords(t *testing.T) {
	var mu sync.Mutex
	held, room := true, make(chan struct{})
	r := newHeldBatcherRig(t, 1000, 4, func() (bool, <-chan struct{}, <-chan struct{}) {
		mu.Lock()
		defer mu.Unlock()
		return held, room, nil
	})
	r.proposeKind(fsm.KindAppend, "a", 10)
	r.proposeKind(fsm.KindAppend, "b", 10)
	r.none("the log is full")
	r.propose("open", 10)
	open := r.entry()
	wantNames(t, open, "open")
	open.commit()
	if err := r.answered("open"); err != nil {
		t.Error(err)
	}
	r.none("the log is still full")
	mu.Lock()
	held = false
	close(room)
	room = make(chan struct{})
	mu.Unlock()
	first := r.entry()
	wantNames(t, first, "a", "b")
	first.commit()
	for _, n := range []string{"a", "b"} {
		if err := r.answered(n); err != nil {
			t.Errorf("%s: %v", n, err)
		}
	}
}

// What became of an entry that was in the log when leadership was lost is told
// as it is, early or late, and that it is not known when patience ends.
func TestBatcherLearnsFates(t *testing.T) {
	ok := func(r *batcherRig, f *fakeFuture, index, term uint64) {
		f.commitResults()
		r.b.fates.applied(applied{index, term, f.results.([]fsm.Result)})
	}
	for _, tc := range []struct {
		name string
		then func(r *batcherRig, f *fakeFuture)
		want error
	}{
		{"the same term", func(r *batcherRig, f *fakeFuture) { ok(r, f, 9, 7) }, nil},
		{"another term", func(r *batcherRig, f *fakeFuture) { ok(r, f, 9, 8) }, ErrNotLeader},
		{"a later entry", func(r *batcherRig, f *fakeFuture) { ok(r, f, 10, 8) }, ErrNotLeader},
		{"a snapshot", func(r *batcherRig, f *fakeFuture) { r.b.fates.restored(12) }, ErrUnknownOutcome},
		{"an earlier entry", func(r *batcherRig, f *fakeFuture) { ok(r, f, 8, 7); r.stop() }, ErrUnknownOutcome},
	} {
		for _, before := range []bool{true, false} {
			r := newBatcherRig(t, 100, 2)
			r.patience = testWait
			r.propose("a", 1)
			f := r.entry()
			f.index = 9
			if before {
				tc.then(r, f)
			}
			f.fail(raft.ErrLeadershipLost)
			if !before {
				tc.then(r, f)
			}
			if err := r.answered("a"); !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) {
				t.Errorf("%s, before %v: %v, want %v", tc.name, before, err, tc.want)
			}
			r.stop()
			if n := len(r.b.fates.waiting); n != 0 {
				t.Errorf("%s: %d wait for ever", tc.name, n)
			}
		}
	}
}
