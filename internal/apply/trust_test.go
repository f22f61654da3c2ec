package apply

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/internal/broker"
)

// gatedFlush is a flush that a test begins and ends.
type gatedFlush struct {
	began chan struct{}
	end   chan error
}

func newGatedFlush() *gatedFlush {
	return &gatedFlush{began: make(chan struct{}, 100), end: make(chan error, 100)}
}

func (g *gatedFlush) sync([]string) error {
	g.began <- struct{}{}
	return <-g.end
}

func flushingWorld(t *testing.T) (*world, *gatedFlush) {
	g := newGatedFlush()
	w := &world{}
	w.edit = func(a *Applier) {
		quickly(a)
		a.flusher.sync = g.sync
	}
	w.setUp(t, 1, func(c *Config) {
		trusting(c)
		c.LogDirs = []string{"/where/the/broker/writes"}
	})
	return w, g
}

// A flush counts for what the broker had when it began, not for what it got
// while it was under way.
func TestAFlushCountsForWhatWasAppliedBefore(t *testing.T) {
	t.Parallel()
	w, g := flushingWorld(t)
	w.open(1, 1, "a", 0)
	w.send(tpA, 1)
	w.settled()
	<-g.began
	for len(g.began) > 0 || w.heads[1].Index != w.applier.Status(1).Base { // up to here
		g.end <- nil
		w.await("it is trusted, or flushed again", func() bool {
			return len(g.began) > 0 || w.applier.Status(1).Base == w.heads[1].Index
		})
		if len(g.began) > 0 {
			<-g.began
		}
	}
	w.send(tpA, 1)
	first := w.heads[1].Index
	w.settled()
	<-g.began
	w.send(tpA, 1) // during the flush
	second := w.heads[1].Index
	w.settled()
	w.await("the second is applied", func() bool {
		f := w.applier.feeders[1]
		f.cmu.Lock()
		defer f.cmu.Unlock()
		n := len(f.candidates)
		return n > 0 && f.candidates[n-1].index == second && !f.candidates[n-1].applied.IsZero()
	})
	if got := w.applier.Status(1).Base; got >= first {
		t.Fatalf("entry %d is trusted before a flush has ended: the base is at %d", first, got)
	}
	g.end <- nil
	<-g.began // the next one has begun: the first has been taken
	if got := w.applier.Status(1); got.Base != first || got.Trusted != first {
		t.Fatalf("after a flush that began between entries %d and %d, the base is at %d and trusted %d", first, second, got.Base, got.Trusted)
	}
	g.end <- nil
	w.based(1)
	if m := w.applier.Metrics(); m.Flushes < 2 || m.FlushErrors != 0 {
		t.Errorf("flushes: %+v", m)
	}
}

// A flush that fails is worth nothing: age counts instead, from then on.
func TestFlushFails(t *testing.T) {
	t.Parallel()
	w, g := flushingWorld(t)
	w.stop()
	w.cfg.TrustAfter = 300 * time.Millisecond
	w.start()
	w.open(1, 1, "a", 0)
	w.send(tpA, 1)
	<-g.began
	failed := time.Now()
	g.end <- errors.New("no such directory")
	w.settled()
	w.based(1)
	if d := time.Since(failed); d < w.cfg.TrustAfter {
		t.Errorf("trusted %s after a failed flush", d)
	}
	if m := w.applier.Metrics(); m.FlushErrors != 1 {
		t.Errorf("flush errors: %+v", m)
	}
}

// That the newest flush failed is said until one goes well.
func TestUnflushedUntilAFlushGoesWell(t *testing.T) {
	t.Parallel()
	a := New(Config{Logger: hclog.NewNullLogger()})
	for i, err := range []error{nil, errors.New("no such directory"), nil, errors.New("no such directory"), errors.New("none again")} {
		a.flusher.ended(err)
		if m := a.Metrics(); m.Unflushed != (err != nil) {
			t.Errorf("after flush %d, which ended with %v: %+v", i, err, m)
		}
	}
}

func TestTrustByAge(t *testing.T) {
	t.Parallel()
	w := &world{edit: quickly}
	w.setUp(t, 1, func(c *Config) { trusting(c); c.TrustAfter = 400 * time.Millisecond })
	w.open(1, 1, "a", 0)
	w.local.setFate(func(broker.Append) fate { return held })
	w.send(tpA, 1)
	w.dealt(1)
	<-time.After(50 * time.Millisecond) // its age counts from the acknowledgement
	begun := time.Now()
	w.local.setFate(nil)
	w.step()
	w.settled()
	w.based(1)
	if d := time.Since(begun); d < w.cfg.TrustAfter {
		t.Errorf("trusted after %s", d)
	}
}

// A broker that was out of sight may have lost what it had not flushed: what
// was applied before counts as applied when it is seen again.
func TestLostConnectionStartsTheClockAnew(t *testing.T) {
	t.Parallel()
	w, g := flushingWorld(t)
	w.open(1, 1, "a", 0)
	w.settled()
	<-g.began
	w.send(tpA, 3)
	w.settled()
	w.broker.stop()
	f := w.applier.feeders[1]
	w.await("the lane lost its connection", func() bool { return f.doubts.Load() > 0 })
	g.end <- nil
	for range 10 {
		w.applier.flusher.nudge()
		<-time.After(2 * time.Millisecond)
	}
	if got := w.logs[1].trusts(); len(got) > 0 {
		t.Fatalf("trusted up to %v, and nobody knows what the broker has", got)
	}
	w.broker.start()
	for range 20 {
		g.end <- nil
	}
	w.settled()
	w.based(1)
}

// Everything that was acknowledged and not flushed is gone after a power cut,
// on all machines at once: the log must still have it.
func TestPowerCutLosesNothing(t *testing.T) {
	t.Parallel()
	w, g := flushingWorld(t) // no peer: the log alone must do
	w.open(1, 1, "a", 0, 1)
	w.send(tpA, 5)
	w.settled()
	w.broker.stop() // what it has now is on disk
	flushed := t.TempDir()
	if err := os.CopyFS(flushed, os.DirFS(w.broker.dir)); err != nil {
		t.Fatal(err)
	}
	w.broker.start()
	for range 50 { // every flush that has begun by now ends
		g.end <- nil
	}
	w.settled()
	w.based(1)
	for len(g.end) > 0 { // no flush ends from here on
		if err := <-g.end; err != nil {
			t.Fatal(err)
		}
	}
	w.send(tpA, 20)
	w.send(tpB, 20)
	w.settled()
	w.stop()
	w.broker.stop()
	w.broker.wipe()
	if err := os.CopyFS(w.broker.dir, os.DirFS(flushed)); err != nil {
		t.Fatal(err)
	}
	w.broker.start()
	w.start()
	for range 50 {
		g.end <- nil
	}
	w.settled()
	w.paths(map[Path]uint64{PathReplay: 2, PathCopy: 0, PathWiped: 0})
	w.based(1)
}

// Candidates are states, and states may be large: only so many are kept.
func TestCandidatesAreBounded(t *testing.T) {
	t.Parallel()
	w, _ := flushingWorld(t)
	w.open(1, 1, "a", 0)
	most := 0
	for range 100 {
		w.send(tpA, 1)
		w.dealt(1)
		f := w.applier.feeders[1]
		f.cmu.Lock()
		most = max(most, len(f.candidates))
		for i := range f.candidates[1:] {
			if f.candidates[i].index >= f.candidates[i+1].index {
				t.Errorf("candidates are out of order")
			}
		}
		f.cmu.Unlock()
	}
	if most > maxCandidates {
		t.Errorf("%d candidates were kept", most)
	}
}

// A topic that is being deleted keeps its close in the log.
func TestRemovalHoldsTheBaseBack(t *testing.T) {
	t.Parallel()
	w := newTrustingWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.open(1, 2, "b", 0)
	w.send(tpA, 1)
	w.settled()
	w.based(1)
	before := w.applier.Status(1).Base
	lock, err := w.applier.topics.lock(t.Context(), "a", 1) // somebody is at it
	if err != nil {
		t.Fatal(err)
	}
	w.closeTopic(1, 1)
	closed := w.heads[1].Index
	w.send(newA, 2)
	w.settledBut()
	for range 10 {
		w.applier.flusher.nudge()
		<-time.After(2 * time.Millisecond)
	}
	if got := w.applier.Status(1).Base; got >= closed {
		t.Fatalf("the base is at %d, and the topic closed at %d still stands (it was at %d)", got, closed, before)
	}
	lock.unlock()
	w.based(1)
	if _, err := w.local.Topic(t.Context(), "a"); !errors.Is(err, broker.ErrNoTopic) {
		t.Errorf("the topic is still there: %v", err)
	}
}

// settledBut waits until all is on the broker, whatever else is under way.
func (w *world) settledBut() {
	w.t.Helper()
	for _, tp := range w.partitions() {
		if err := w.visible(tp, w.end(tp)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// A leader's snapshot takes the place of the log: partitions that are gone are
// closed, new ones opened, the others get what they lack.
func TestLeadersSnapshot(t *testing.T) {
	t.Parallel()
	for _, running := range []bool{true, false} {
		t.Run(map[bool]string{true: "while it runs", false: "while it is down"}[running], func(t *testing.T) {
			w := newTrustingWorld(t, 1, nil)
			w.group(0)
			w.restart()
			create := fsm.Control(fsm.KindCreateTopic, fsm.CreateTopic{Name: "a", Partitions: 1, Groups: 1})
			w.commit(0, create)
			w.open(1, 1, "a", 0, 1)
			w.open(1, 2, "b", 0)
			w.send(tpA, 5)
			w.send(newA, 5)
			w.settled()
			got := make(chan error, 2)
			w.applier.WhenVisible(tpA, 1000, func(err error) { got <- err })
			// Of a batch that may be cut in entries that this node never sees,
			// nobody can say whether it is what stands at its offsets later.
			unsure, head := make(chan error, 2), w.heads[1].Index
			end := w.heads[1].Partitions[newA].NextOffset
			w.applier.WhenBatchVisible(newA, end+1, fsm.Place{Index: head + 1}, func(err error) { unsure <- err })
			if !running {
				w.stop()
			}
			// Entries that this node never sees.
			data := func(cmds ...fsm.Command) []fsm.Command { return cmds }
			w.commitSilently(1, data(w.appendCmd(newA, 3, 10))...)
			w.commitSilently(1, fsm.Control(fsm.KindClose, fsm.Close{Level: 10, Topic: 1, Name: "a"}))
			w.commitSilently(1, fsm.Control(fsm.KindOpen, fsm.Open{Level: 11, Topic: 3, Name: "c", Total: 2, Partitions: []int32{0, 1}}))
			w.level = 11
			for _, n := range []int32{0, 1} {
				w.groups[fsm.TP{Topic: 3, Partition: n}] = 1
				delete(w.groups, fsm.TP{Topic: 1, Partition: n})
			}
			w.names[3] = "c"
			tpX := fsm.TP{Topic: 3, Partition: 1}
			w.commitSilently(1, w.appendCmd(tpX, 2, 10))
			w.logs[1].install(w.heads[1])
			w.commit(0, fsm.Control(fsm.KindDeleteTopic, fsm.DeleteTopic{Topic: 1}))
			w.commit(0, fsm.Control(fsm.KindTopicClosed, fsm.TopicClosed{Topic: 1}))
			if !running {
				w.start()
			}
			if err := <-got; !errors.Is(err, ErrClosed) {
				t.Errorf("a waiter on a partition that is gone got %v", err)
			}
			if running {
				if err := <-unsure; !errors.Is(err, ErrSkipped) {
					t.Errorf("a waiter on a batch of the skipped entries got %v", err)
				}
				w.applier.WhenBatchVisible(newA, end+1, fsm.Place{Index: head + 1}, func(err error) { unsure <- err })
				if err := <-unsure; !errors.Is(err, ErrSkipped) {
					t.Errorf("a late one got %v", err)
				}
			}
			w.send(newA, 2)
			w.send(tpX, 2)
			w.settled()
			w.await("the closed topic is gone from the broker", func() bool {
				_, err := w.local.Topic(t.Context(), "a")
				return errors.Is(err, broker.ErrNoTopic)
			})
			want := map[Path]uint64{PathCopy: 1, PathWiped: 1}
			if running {
				want[PathRebase] = 1
			}
			w.paths(want)
			w.restart()
			w.settled()
		})
	}
}

// Waiters may come before the feeder: what was committed is waited for.
func TestWaiterComesBeforeTheFeeder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2, nil)
	f := w.applier.feeders[2]
	f.mu.Lock() // the feeder stands still
	w.open(2, 1, "a", 0)
	w.commit(2, w.appendCmd(tpA, 1, 10))
	got := make(chan error, 1)
	w.applier.WhenVisible(tpA, 1, func(err error) { got <- err })
	select {
	case err := <-got:
		t.Errorf("answered with %v before the feeder came", err)
	case <-time.After(50 * time.Millisecond):
	}
	f.mu.Unlock()
	if err := <-got; err != nil {
		t.Error(err)
	}
	f.mu.Lock()
	w.commit(2, w.appendCmd(tpA, 1, 10))
	w.applier.WhenVisible(tpC, 1, func(err error) { got <- err })
	f.mu.Unlock()
	if err := <-got; !errors.Is(err, ErrNotOpen) {
		t.Errorf("a partition that nobody opened: %v", err)
	}
}

func TestSyncDirs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syncDirs([]string{dir}); err != nil {
		t.Errorf("a directory that is there: %v", err)
	}
	err := syncDirs([]string{dir, filepath.Join(dir, "b")})
	if !errors.Is(err, os.ErrNotExist) || isWriteError(err) {
		t.Errorf("one that is not: %v", err)
	}
}

// Topics that come and go, and refused batches, tell nothing of what the
// broker has: they must not hold the base back for ever.
func TestChurnDoesNotStartTheClockAnew(t *testing.T) {
	t.Parallel()
	w := &world{edit: quickly}
	w.setUp(t, 1, func(c *Config) { trusting(c); c.TrustAfter = 300 * time.Millisecond })
	w.open(1, 1, "a", 0)
	w.send(tpA, 3)
	w.settled()
	want := w.heads[1].Index
	for id := uint64(2); w.applier.Status(1).Base < want; id++ {
		if id == 200 {
			t.Fatal("the base does not move while topics come and go")
		}
		w.open(1, id, "b", 0)
		tp := fsm.TP{Topic: id}
		w.send(tp, 1)
		if err := w.visible(tp, 1); err != nil {
			t.Fatal(err)
		}
		w.closeTopic(1, id)
		w.await("the topic is gone", func() bool { b, _, _ := w.applier.topics.look(id); return b.Gone })
	}
}
