package apply

import (
	"context"
	"errors"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/kafkawire"
)

// brokenAdmin is a broker whose topics are made and deleted with trouble.
type brokenAdmin struct {
	*local
	fail map[string]int // calls that fail: "delete", "create"; "deleted", "created": after they were executed
}

var errBroken = errors.New("broken on purpose")

func (b *brokenAdmin) failed(what string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail[what] > 0 {
		b.fail[what]--
		return errBroken
	}
	return nil
}

func (b *brokenAdmin) DeleteTopic(ctx context.Context, name string) error {
	if err := b.failed("delete"); err != nil {
		return err
	}
	return errors.Join(b.local.DeleteTopic(ctx, name), b.failed("deleted"))
}

func (b *brokenAdmin) CreateTopic(ctx context.Context, name string, partitions int32, config map[string]string) (broker.TopicInfo, error) {
	if err := b.failed("create"); err != nil {
		return broker.TopicInfo{}, err
	}
	info, err := b.local.CreateTopic(ctx, name, partitions, config)
	return info, errors.Join(err, b.failed("created"))
}

// quarantinedWorld has a topic of three partitions in two groups, of which the
// first is quarantined.
func quarantinedWorld(t *testing.T) (*world, *brokenAdmin) {
	t.Helper()
	w, broken := &world{}, &brokenAdmin{fail: make(map[string]int)}
	w.edit = quickly
	w.setUp(t, 2, func(c *Config) {
		trusting(c)
		broken.local = w.local
		c.Broker = broken
	})
	w.peer = &peerBroker{w: w}
	w.restart()
	w.open(1, 1, "a", 0, 1)
	w.open(2, 1, "a", 2)
	w.send(tpA, 10)
	w.send(tpB, 5)
	w.send(tpC, 5)
	w.settled()
	w.based(1)
	w.based(2)
	if err := w.applier.Rebuild(t.Context(), 1, false); !errors.Is(err, ErrNotQuarantined) {
		t.Errorf("rebuilt what is whole: %v", err)
	}
	w.applier.lane(tpA).quarantine(CauseCorrupt.because("offset 3: a flipped bit"))
	w.wantQuarantine(tpA, "corrupt: offset 3")
	return w, broken
}

func (w *world) uuid(name string) [16]byte {
	w.t.Helper()
	info, err := w.local.Admin.Topic(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return info.UUID
}

// back waits until a quarantined partition is served again.
func (w *world) back(tp fsm.TP) {
	w.t.Helper()
	w.await(tp.String()+" is back", func() bool { return w.applier.Ready(tp, w.end(tp)) })
}

// A rebuild makes the whole topic anew and copies it. Nobody serves less
// meanwhile, and a restart finds nothing wrong any more.
func TestRebuild(t *testing.T) {
	w, _ := quarantinedWorld(t)
	if d := w.applier.Damaged(); len(d) != 1 || d[0].Topic != 1 || d[0].Name != "a" || len(d[0].Partitions) != 1 || d[0].Begun {
		t.Errorf("damage %+v", d)
	}
	old := w.uuid("a")
	full := map[int32]int64{0: w.end(tpA), 1: w.end(tpB), 2: w.end(tpC)}
	w.local.setFate(func(a broker.Append) fate {
		missing := int64(kafkawire.Batch(a.Head[:]).BaseSequence()) < full[a.Partition]
		if missing && w.applier.Ready(fsm.TP{Topic: 1, Partition: a.Partition}, 0) {
			t.Errorf("partition %d is being copied, and ready", a.Partition)
		}
		return pass
	})
	w.send(tpA, 2) // what comes in the meantime is not lost
	if err := w.applier.Rebuild(t.Context(), 1, false); err != nil {
		t.Fatal(err)
	}
	w.send(tpA, 2)
	w.back(tpA)
	w.local.setFate(nil)
	w.settled()
	if w.uuid("a") == old {
		t.Error("the old topic is still there")
	}
	if d := w.applier.Damaged(); len(d) > 0 {
		t.Errorf("damage %+v", d)
	}
	w.restart()
	w.settled()
	if err := w.applier.Rebuild(t.Context(), 7, false); !errors.Is(err, ErrNotOpen) {
		t.Errorf("a topic that is not there: %v", err)
	}
}

// Wherever a rebuild is interrupted, it is done again: after the same process's
// error, or after a restart.
func TestRebuildIsDoneAgain(t *testing.T) {
	for _, at := range []string{"delete", "deleted", "create", "created"} {
		for _, restarted := range []bool{false, true} {
			t.Run(at+map[bool]string{true: ", and the proxy restarts"}[restarted], func(t *testing.T) {
				t.Parallel()
				w, broken := quarantinedWorld(t)
				broken.mu.Lock()
				broken.fail[at] = 1
				broken.mu.Unlock()
				if err := w.applier.Rebuild(t.Context(), 1, false); !errors.Is(err, errBroken) {
					t.Fatalf("got %v", err)
				}
				if restarted {
					w.restart()
					w.dealt(1)
				}
				if d := w.applier.Damaged(); len(d) != 1 || !d[0].Begun {
					t.Errorf("damage %+v", d)
				}
				if w.applier.Ready(tpA, 0) {
					t.Error("a quarantined partition is ready")
				}
				w.send(tpA, 3)
				if err := w.applier.Rebuild(t.Context(), 1, false); err != nil {
					t.Fatal(err)
				}
				w.back(tpA)
				w.settled()
				if d := w.applier.Damaged(); len(d) > 0 {
					t.Errorf("damage %+v", d)
				}
			})
		}
	}
}

// A topic that somebody else made, and that holds records, is not deleted but
// by force.
func TestRebuildLeavesForeignTopics(t *testing.T) {
	w, _ := quarantinedWorld(t)
	w.stop()
	if err := w.local.Admin.DeleteTopic(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.local.Admin.CreateTopic(t.Context(), "a", 3, nil); err != nil {
		t.Fatal(err)
	}
	w.local.rawAppend(t, "a", 1, makeBatch(1, 5, 1))
	w.start()
	w.wantQuarantine(tpB, "foreign-write: the broker already has a topic")
	theirs := w.uuid("a")
	if err := w.applier.Rebuild(t.Context(), 1, false); !errors.Is(err, ErrNotOurs) {
		t.Fatalf("got %v", err)
	}
	if w.uuid("a") != theirs || w.applier.Damaged()[0].Begun {
		t.Fatal("it was touched")
	}
	if err := w.applier.Rebuild(t.Context(), 1, true); err != nil {
		t.Fatal(err)
	}
	for _, tp := range w.partitions() {
		w.back(tp)
	}
	w.settled()
}

// A topic that ends while it is quarantined takes its quarantine along.
func TestQuarantineEndsWithItsTopic(t *testing.T) {
	w, _ := quarantinedWorld(t)
	w.closeTopic(1, 1)
	w.closeTopic(2, 1)
	w.open(1, 2, "a", 0)
	w.send(newA, 3)
	w.settled()
	if d := w.applier.Damaged(); len(d) > 0 {
		t.Errorf("damage %+v", d)
	}
	w.restartWith(func(a *Applier) {
		quickly(a)
		a.ScrubWith(ScrubConfig{Broker: w.local, Interval: time.Second})
	})
	w.await("it is forgotten", func() bool { return len(w.applier.quarantines.of(1)) == 0 })
	w.settled()
}

// What a node says of an offset, and that it keeps to it while a cut is decided.
func TestStands(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0, 1)
	r, cure := w.poison(tpA, 2)
	at := func(offset int64, pledge bool) string {
		return w.applier.Stands(Batch{tpA, offset, r.Index}, map[bool]int32{true: 2}[pledge])
	}
	l := w.applier.lane(tpA)
	w.await("a pledge", func() bool { return at(r.Offset, true) == StandsRefused }) // unknown while it tries
	if at(r.Offset-1, false) != StandsHeld || at(r.Offset+1, false) != StandsUnknown {
		t.Error("what lies before and behind the refused batch")
	}
	if s := w.applier.Stands(Batch{TP: fsm.TP{Topic: 9}}, 0); s != StandsUnknown {
		t.Errorf("a partition that is not here: %s", s)
	}
	// The broker would take it now, and must not be asked.
	cure()
	sent := make(chan struct{}, 100)
	w.local.setFate(func(a broker.Append) fate {
		if a.Partition == 0 {
			sent <- struct{}{}
		}
		return pass
	})
	for range 20 {
		signal(l.stir)
		w.send(tpB, 1)
		if err := w.visible(tpB, w.end(tpB)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-sent:
		t.Fatal("it tried the batch again after it had pledged not to")
	default:
	}
	w.applier.Unpledge(tpA, 2)
	w.await("it tries again", func() bool { signal(l.stir); return w.applier.Ready(tpA, w.end(tpA)) })
	if at(r.Offset, true) != StandsHeld {
		t.Error("it holds the batch now")
	}
	w.settled()
	l.quarantine("x")
	w.quarantined(tpA)
	if at(0, false) != StandsUnknown {
		t.Error("a quarantined copy says nothing")
	}
}

// A lane that is trying its refused batch just now cannot promise anything.
func TestNoPledgeWhileTrying(t *testing.T) {
	a := &Applier{lanes: make(map[fsm.TP]*lane)}
	l := &lane{tp: tpA}
	a.lanes[tpA] = l
	l.state, l.refused, l.serving = StateRefused, &Refusal{Offset: 5}, func(error) {}
	five := Batch{tpA, 5, 0}
	if a.Stands(five, 3) != StandsUnknown || l.pledged() {
		t.Error("it pledged in the middle of a try")
	}
	if a.Stands(five, 0) != StandsRefused || l.pledged() {
		t.Error("a question without a pledge")
	}
	l.serving = nil
	if a.Stands(five, 3) != StandsRefused || !l.pledged() {
		t.Error("it did not pledge at rest")
	}
	if a.Unpledge(tpA, 3); l.pledged() {
		t.Error("the pledge was not given back")
	}
}

// After a cut another batch has the offset. What is said of one is nothing that
// is said of the other.
func TestStandsNamesTheEntry(t *testing.T) {
	a := &Applier{lanes: make(map[fsm.TP]*lane)}
	l := &lane{tp: tpA}
	l.acked = 5
	a.lanes[tpA] = l
	l.state, l.refused = StateRefused, &Refusal{TP: tpA, Offset: 5, Index: 30}
	old, present, unnamed := Batch{tpA, 5, 20}, Batch{tpA, 5, 30}, Batch{tpA, 5, 0}
	if got := a.Stands(old, 0); got != StandsUnknown {
		t.Errorf("another batch is refused at that offset: %s", got)
	}
	if a.QuarantineRefused(old, "x") {
		t.Error("a copy is given up for a batch that is in no log any more")
	}
	for _, b := range []Batch{present, unnamed} {
		if got := a.Stands(b, 0); got != StandsRefused {
			t.Errorf("%+v: %s", b, got)
		}
	}
	l.cuts, l.refused, l.state, l.acked = []cut{{Index: 25, Offset: 5}}, nil, StateReady, 6
	for b, want := range map[Batch]string{old: StandsUnknown, present: StandsHeld, unnamed: StandsHeld, {tpA, 4, 20}: StandsHeld} {
		if got := a.Stands(b, 0); got != want {
			t.Errorf("after the cut %+v: %s, want %s", b, got, want)
		}
	}
}

// A pledge is given back by who has it.
func TestPledgesHaveOwners(t *testing.T) {
	a := &Applier{lanes: make(map[fsm.TP]*lane)}
	l := &lane{tp: tpA}
	l.state, l.refused = StateRefused, &Refusal{TP: tpA, Offset: 5}
	a.lanes[tpA] = l
	for _, id := range []int32{1, 2} {
		a.Stands(l.refused.Batch(), id)
	}
	a.Unpledge(tpA, 3)
	if a.Unpledge(tpA, 1); !l.pledged() {
		t.Error("node 2's pledge was given back by others")
	}
	if a.Unpledge(tpA, 2); l.pledged() {
		t.Error("a pledge without an owner")
	}
}
