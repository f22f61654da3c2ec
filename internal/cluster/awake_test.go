package cluster

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

// fakeClock is a clock that stands until a test moves it.
type fakeClock struct{ at atomic.Int64 }

func (c *fakeClock) now() time.Time        { return time.Unix(1<<30, c.at.Load()) }
func (c *fakeClock) sleep(d time.Duration) { c.at.Add(int64(d)) }
func newAwake(c *fakeClock) (a *awake)     { return &awake{limit: 200 * time.Millisecond, now: c.now} }
func wantBelief(t *testing.T, a *awake, want bool, when string) {
	t.Helper()
	if got := a.believed(); got != want {
		t.Fatalf("%s: believed is %v", when, got)
	}
}

// Who asks before the goroutine that looks at the clock, and who asks after it
// has looked once more, are both refused until the leaderships are confirmed
// and a view that knows is shown.
func TestNothingIsBelievedAfterASuspension(t *testing.T) {
	t.Parallel()
	c := new(fakeClock)
	a := newAwake(c)
	a.begin()
	wantBelief(t, a, true, "awake")
	c.sleep(a.limit)
	if slept := a.look(); slept != 0 {
		t.Fatalf("a pause within the limit is taken for a suspension of %v", slept)
	}
	wantBelief(t, a, true, "after a pause within the limit")

	c.sleep(a.limit + 1)
	wantBelief(t, a, false, "before the next look")
	if slept := a.look(); slept != a.limit+1 {
		t.Fatalf("the suspension took %v", slept)
	}
	wantBelief(t, a, false, "after the first look")
	c.sleep(a.limit / 2)
	a.look()
	wantBelief(t, a, false, "after more looks")
	before := a.settled() // of a view that is being built
	a.confirmed.Store(a.sleeps.Load())
	a.lift(before)
	wantBelief(t, a, false, "confirmed, with a view from before")
	a.lift(a.settled())
	wantBelief(t, a, true, "confirmed and shown")
}

// A majority that was asked before the last suspension confirms nothing: its
// answers may have lain in a socket.
func TestConfirmationFromBeforeASuspension(t *testing.T) {
	t.Parallel()
	c := new(fakeClock)
	a := newAwake(c)
	a.begin()
	rounds := make(chan chan struct{})
	shown, suspended := make(chan struct{}, 2), make(chan struct{}, 2)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.run(ctx, func(ctx context.Context) error {
			answer := make(chan struct{})
			rounds <- answer
			<-answer
			return nil // whatever became of ctx
		}, func(time.Duration) { suspended <- struct{}{} }, func() { shown <- struct{}{} })
	}()
	defer func() { cancel(); <-done }()

	c.sleep(time.Second)
	<-suspended
	first := <-rounds
	c.sleep(time.Second)
	<-suspended
	close(first)
	second := <-rounds
	a.lift(a.settled())
	wantBelief(t, a, false, "with an answer from before the second suspension")
	close(second)
	for late := time.After(testWait); a.settled() != 2; { // the first round may have shown something, too
		select {
		case <-shown:
		case <-late:
			t.Fatal("the second suspension was never confirmed")
		}
	}
	a.lift(a.settled())
	wantBelief(t, a, true, "with an answer from after it")
}

// The wall clock tells of a machine that stood still together with its
// monotonic clock.
func TestGapSeesTheWallClock(t *testing.T) {
	t.Parallel()
	now := time.Now()
	if got := gap(now, now.Round(0).Add(time.Minute)); got != time.Minute {
		t.Errorf("a gap of %v, want a minute", got)
	}
	if got := gap(now, now.Add(time.Second)); got != time.Second {
		t.Errorf("a gap of %v, want a second", got)
	}
}

// A leader that was suspended does not name itself before a majority has
// confirmed it, and does again after that.
func TestSuspendedLeaderIsConfirmedFirst(t *testing.T) {
	t.Parallel()
	var slept [4]atomic.Int64
	r := running(t, func(cfg *Config) {
		d := &slept[cfg.Self]
		cfg.clock = func() time.Time { return time.Now().Add(time.Duration(d.Load())) }
		cfg.Lease = 8 * time.Second // a loaded machine is no suspension
	})
	topic := r.create(r.members[1], "t", 1)
	lead := r.leaderOf(topicGroup(topic, 0))
	ours := func() bool {
		v := lead.cluster.View()
		return v.Leads(v.Topics["t"], 0)
	}
	if !ours() {
		t.Fatal("the leader does not name itself")
	}
	index := lead.node.Group(topicGroup(topic, 0)).Raft().LastIndex()
	slept[lead.id].Add(int64(time.Hour))
	if ours() {
		t.Error("it names itself right after it was suspended")
	}
	if _, err := lead.cluster.EndOffset(r.ctx(), topic, 0, false); err == nil {
		t.Error("it tells the end of the log right after it was suspended")
	}
	r.until("the leader is confirmed", ours)
	if now := lead.node.Group(topicGroup(topic, 0)).Raft().LastIndex(); now <= index {
		t.Errorf("nothing was committed to confirm it: last index %d, before %d", now, index)
	}
}

// until is for what has no channel to wait on: what clients see between two
// views.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	ctx := r.ctx()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("not in time: %s", what)
		}
	}
}
