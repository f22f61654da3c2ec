package apply

import (
	"context"
	"time"

	"lockstep/internal/failpoint"
	"lockstep/internal/mutant"
)

const (
	// flushGap lies at least between the begins of two flushes, unless a log
	// is over its limit: they cost the broker its write-back cache.
	flushGap = time.Second
	// flushAgain is how long after a failed one the next is tried.
	flushAgain = 30 * time.Second
	// limitCheck is how often a log that is over its limit is looked at when
	// nothing else happens: what other nodes say may have changed.
	limitCheck = time.Second
)

// flusher decides when the broker's files are on disk, for all groups. Its
// goroutine owns everything in it but wake.
type flusher struct {
	a    *Applier
	wake chan struct{}             // capacity 1
	sync func(dirs []string) error // flushes the file systems; replaced by tests
	done chan error                // the outcome of the flush under way; capacity 1
	gap  time.Duration

	begun   uint64    // number of flushes
	running bool      // one is under way
	at      time.Time // when the newest began
	err     error     // of the newest, nil if it went well
	broken  bool      // the file system failed to write: what it says is believed no more
}

func newFlusher(a *Applier) *flusher {
	return &flusher{a: a, wake: make(chan struct{}, 1), done: make(chan error, 1), sync: syncDirs, gap: flushGap}
}

// nudge makes the flusher look again. Any goroutine may call it.
func (fl *flusher) nudge() { signal(fl.wake) }

func (fl *flusher) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		timer.Stop()
		if wait := fl.round(time.Now()); wait > 0 {
			timer.Reset(wait)
		}
		select {
		case <-fl.wake:
		case <-timer.C:
		case err := <-fl.done:
			fl.ended(err)
		case <-ctx.Done():
		}
	}
}

// round does what is due, and returns how long until something else is; 0 if
// nothing is known to be.
func (fl *flusher) round(now time.Time) time.Duration {
	var wait time.Duration
	sooner := func(d time.Duration) {
		if d = max(d, time.Millisecond); wait == 0 || d < wait {
			wait = d
		}
	}
	need, hurry := false, false
	for _, f := range fl.a.feeders {
		some := f.weigh(now, fl.begun)
		if fl.byAge() || mutant.On(mutant.CompactTooEarly) {
			if c := f.take(func(c *candidate) bool {
				return now.Sub(c.applied) >= fl.a.cfg.TrustAfter || mutant.On(mutant.CompactTooEarly)
			}); c != nil {
				sooner(fl.a.cfg.TrustAfter - now.Sub(c.applied))
			}
		}
		over, limit := f.overLimit()
		need, hurry = need || some, hurry || over
		if over {
			if f.hungry(limit) {
				signal(f.wanted)
			}
			f.declare()
			sooner(limitCheck)
		}
	}
	if need && len(fl.a.cfg.LogDirs) > 0 && !fl.running && !fl.broken {
		gap := fl.gap
		switch {
		case fl.err != nil:
			gap = flushAgain
		case hurry:
			gap = 0
		}
		if since := now.Sub(fl.at); fl.begun == 0 || since >= gap {
			fl.begin(now)
		} else {
			sooner(gap - since)
		}
	}
	return wait
}

// byAge says whether what the broker acknowledged is trusted when it is old
// enough.
func (fl *flusher) byAge() bool { return len(fl.a.cfg.LogDirs) == 0 || fl.err != nil }

// begin starts a flush in a goroutine of its own: it may hang for as long as
// the disk does, and nothing ends it. Close does not wait for it.
func (fl *flusher) begin(now time.Time) {
	fl.begun++
	fl.at, fl.running = now, true
	dirs := fl.a.cfg.LogDirs
	go func() {
		failpoint.Hit(failpoint.FlushBefore)
		err := fl.sync(dirs)
		failpoint.Hit(failpoint.FlushAfter)
		fl.done <- err
	}()
}

// ended takes the outcome of a flush. It counts for what was applied before it
// began.
func (fl *flusher) ended(err error) {
	fl.running = false
	fl.err = err
	fl.a.counts.flushes.Add(1)
	fl.a.counts.unflushed.Store(err != nil)
	if err == nil {
		for _, f := range fl.a.feeders {
			f.take(func(c *candidate) bool { return c.flushes < fl.begun })
		}
		return
	}
	fl.a.counts.flushErrors.Add(1)
	next := "look at broker.log_dirs: they must name the broker's log directories as this node sees them"
	if isWriteError(err) {
		fl.broken = true
		next = "look at the disk of the broker's log directories; this node asks it no more until it is restarted"
	}
	fl.a.log.Error("cannot flush the broker's log directories: what it acknowledged is trusted by age instead", "error", err, "next", next)
	for _, f := range fl.a.feeders { // their age counts from now: what the failed flush was to write may be lost
		f.doubts.Add(1)
	}
}

// brokerUp says whether the broker is reachable now.
func (a *Applier) brokerUp() bool {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return a.cfg.Broker.WaitUp(ctx) == nil
}
