package cluster

import (
	"context"
	"sync/atomic"
	"time"

	"lockstep/internal/mutant"
	"lockstep/proxy"
)

const (
	// defaultLease stands for a lease that the configuration does not name.
	defaultLease = 400 * time.Millisecond
	// looksPerLimit is how often this node makes sure that it was not suspended.
	looksPerLimit = 4
)

// awake says whether this node's own word on what it leads can be believed. A
// process that was suspended (SIGSTOP, a machine that stood still) goes on with
// what it knew before, and Raft's own check of its lease comes some
// milliseconds too late for who reads at once.
//
// A goroutine looks at the clock many times in a lease. A gap of more than half
// a lease between two looks is a suspension: nothing is believed from then on
// until every leadership was confirmed by its majority, or lost, and the view
// shows it. Who asks before that goroutine runs again sees a look that is older
// than that.
//
// begin, look and run are for that goroutine; believed for any; settled and
// lift for the goroutine that builds the view.
type awake struct {
	limit time.Duration // a longer gap is a suspension
	now   func() time.Time

	looked    atomic.Pointer[time.Time] // when the clock was looked at last; nil before begin
	sleeps    atomic.Uint64             // suspensions that were noticed; counted before looked moves
	confirmed atomic.Uint64             // suspensions after which every leadership was confirmed or lost
	lifted    atomic.Uint64             // suspensions that the view is newer than
}

// gap is the time between two looks. The wall clock has a say because the
// monotonic one may stand still with the machine; if it was merely put forward,
// leaderships are confirmed once too often.
func gap(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)))
}

func (a *awake) begin() {
	now := a.now()
	a.looked.Store(&now)
}

// look returns how long this process was suspended since the last look, 0 if it
// was not.
func (a *awake) look() time.Duration {
	now := a.now()
	slept := gap(*a.looked.Load(), now)
	if slept > a.limit {
		a.sleeps.Add(1) // before looked: who sees the one sees the other
	} else {
		slept = 0
	}
	a.looked.Store(&now)
	return slept
}

// believed says whether the view's word on this node's leaderships holds.
func (a *awake) believed() bool {
	now := a.now()
	looked := a.looked.Load()
	if looked == nil || mutant.On(mutant.ServeWhenDeposed) {
		return true // nothing was led before the first look
	}
	return gap(*looked, now) <= a.limit && a.sleeps.Load() == a.lifted.Load()
}

// settled is taken before a view is built, and given to lift after it is shown.
func (a *awake) settled() uint64 { return a.confirmed.Load() }

func (a *awake) lift(settled uint64) { a.lifted.Store(settled) }

// run looks at the clock until the context ends. confirm returns when no
// leadership from before its call is left unconfirmed; shown asks for a view.
func (a *awake) run(ctx context.Context, confirm func(context.Context) error, slept func(time.Duration), shown func()) {
	t := time.NewTicker(max(a.limit/looksPerLimit, time.Millisecond))
	defer t.Stop()
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		suspended := a.look()
		if suspended == 0 {
			continue
		}
		slept(suspended)
		stop() // what was asked before this suspension may be answered by what came before it
		stop = a.round(ctx, a.sleeps.Load(), confirm, shown)
	}
}

// round confirms what is led after a suspension; stop ends it.
func (a *awake) round(ctx context.Context, which uint64, confirm func(context.Context) error, shown func()) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if confirm(ctx) == nil && ctx.Err() == nil {
			a.confirmed.Store(which)
			shown()
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// confirmOffices returns when every group that this node leads was confirmed by
// its majority, or is led by this node no more.
func (c *Cluster) confirmOffices(ctx context.Context) error {
	groups := c.node.Groups()
	errs := make(chan error, len(groups))
	for _, g := range groups {
		go func() { errs <- g.Confirm(ctx) }()
	}
	var first error
	for range groups {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (c *Cluster) watchAwake(ctx context.Context) {
	c.awake.run(ctx, c.confirmOffices, func(slept time.Duration) {
		c.log.Warn("this process stood still (stopped, or without CPU); it serves no reads until a majority confirms what it leads",
			"for", slept.Round(time.Millisecond).String(), "limit", c.awake.limit.String())
	}, c.poke)
}

// doubtful is the view without what this node leads, for as long as it is not
// known to lead it still.
func (s *snapshot) doubtful() *proxy.View {
	s.doubtOnce.Do(func() {
		v := *s.view
		v.Topics = make(map[string]*proxy.Topic, len(s.view.Topics))
		for name, t := range s.view.Topics {
			copied := *t
			copied.Partitions = make([]proxy.Partition, len(t.Partitions))
			for n, p := range t.Partitions {
				if p.Leader == v.Self {
					p.Leader = -1
				}
				copied.Partitions[n] = p
			}
			v.Topics[name] = &copied
		}
		s.doubt = &v
	})
	return s.doubt
}
