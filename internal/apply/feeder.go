package apply

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"lockstep/fsm"
	"lockstep/internal/failpoint"
	"lockstep/internal/watch"
)

// feeder follows one group's log. Its goroutine owns the tail.
type feeder struct {
	a   *Applier
	id  uint32
	log Log

	bytes, batches atomic.Int64 // held by the lanes of this group

	// fresh carries the leader's commit index, numbered, for lanes whose
	// broker holds more than they have seen of the log.
	fresh  watch.Value[mark]
	freshN atomic.Uint64

	dealt watch.Index // cursor, for who waits for it

	bases
	horizon

	mu     sync.Mutex // guards what follows; held while an entry is dealt out
	tail   *fsm.Group // nil until the first base was taken up
	cursor uint64     // last entry dealt out
	lanes  map[fsm.TP]*lane
	over   map[*lane]struct{} // lanes that hold more than they may
	due    []func()           // to be called when mu is released
	closed []fsm.TP           // what is remembered of these is to be forgotten then
}

// mark is the n-th time that a leader's commit index became known.
type mark struct{ n, index uint64 }

func newFeeder(a *Applier, id uint32, log Log) *feeder {
	return &feeder{a: a, id: id, log: log, horizon: horizon{wanted: make(chan struct{}, 1), spacing: a.cfg.CandidateBytes, removing: make(map[uint64]uint64)},
		lanes: make(map[fsm.TP]*lane), over: make(map[*lane]struct{})}
}

func (f *feeder) conclude(index uint64) {
	f.fresh.Set(mark{n: f.freshN.Add(1), index: index})
}

// run deals out entries until the context ends. An entry that cannot be read
// ends the applier: nothing after it may be applied.
func (f *feeder) run(ctx context.Context) {
	defer f.stopLanes()
	// Before anything is applied, Raft has not restored the base.
	if _, err := f.log.Applied().Wait(ctx, 1); err != nil {
		return
	}
	idle := time.NewTimer(f.a.idleAfter)
	defer idle.Stop()
	armed := true
	for ctx.Err() == nil {
		applied, grown := f.log.Applied().Changed()
		_, moved := f.log.Rebased().Changed()
		if err := f.follow(ctx, applied); err != nil {
			f.a.log.Error("cannot follow the raft log: this node stops applying", "group", f.id, "error", err)
			f.a.cancel(fmt.Errorf("follow group %d: %w", f.id, err))
			return
		}
		if over, limit := f.overLimit(); over && f.hungry(limit) {
			f.a.flusher.nudge() // it asks for a candidate and flushes at once
		}
		if f.news() && !armed {
			idle.Reset(f.a.idleAfter)
			armed = true
		}
		select {
		case <-grown:
		case <-moved:
		case <-idle.C: // little is dealt out: what there is shall be trusted too
			armed = false
			f.offer()
		case <-f.wanted:
			f.offer()
		case <-ctx.Done():
		}
	}
}

// follow deals out entries up to applied, from a new base if there is one.
func (f *feeder) follow(ctx context.Context, applied uint64) error {
	for ctx.Err() == nil {
		if err := f.rebase(); err != nil {
			return err
		}
		if f.cursor >= applied {
			return nil
		}
		err := f.step(f.cursor + 1)
		if err == nil {
			continue
		}
		if !f.log.Gone(err) {
			return err
		}
		// The log was cut beyond here: a leader's snapshot took the place of
		// the base.
		before := f.cursor
		if aerr := f.adopt(); aerr != nil {
			return aerr
		}
		if f.cursor == before {
			return err
		}
	}
	return nil
}

func (f *feeder) stopLanes() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.lanes {
		l.stop(ErrClosed)
	}
}

// step deals out the entry at index. cursor is only written here and in adopt.
func (f *feeder) step(index uint64) error {
	failpoint.Hit(failpoint.DealBefore)
	data, err := f.log.Entry(index)
	if err != nil {
		return fmt.Errorf("read entry %d: %w", index, err)
	}
	f.mu.Lock()
	if data != nil {
		f.shed()
		var results []fsm.Result
		if results, err = f.tail.Apply(index, data); err != nil {
			f.mu.Unlock()
			return err
		}
		for i := range results {
			f.deal(index, len(data), &results[i])
		}
	}
	f.cursor = index
	f.unlock()
	f.dealt.Set(index)
	failpoint.Hit(failpoint.DealAfter)
	if data != nil && f.counted(len(data)) {
		f.offer()
	}
	return nil
}

// unlock releases mu and calls whoever is due: nothing may be locked then.
func (f *feeder) unlock() {
	due, closed := f.due, f.closed
	f.due, f.closed = nil, nil
	f.mu.Unlock()
	for _, fn := range due {
		fn()
	}
	if len(closed) == 0 {
		return
	}
	// All in one write, with nothing locked: a topic may have very many. A crash
	// before it leaves notes about ids that never come again.
	if err := errors.Join(f.a.wholes.forget(closed), f.a.turned.forget(closed...)); err != nil {
		f.a.log.Error("cannot forget what is remembered of partitions that are closed: look at the disk of data_dir", "error", err)
	}
}

// shed takes lanes that hold too much off the feed before the next entry: from
// a copy of their partition's state they will read again from the log. f.mu is
// held.
func (f *feeder) shed() {
	for l := range f.over {
		delete(f.over, l)
		if l.held() > f.a.cfg.LaneBytes { // still
			l.fallBehind(f.tail)
		}
	}
	if f.bytes.Load() <= f.a.cfg.GroupBytes {
		return
	}
	for _, l := range f.lanes {
		if l.held() > crowdedLaneBytes {
			l.fallBehind(f.tail)
		}
	}
}

// deal hands one verdict to whom it concerns. f.mu is held.
func (f *feeder) deal(index uint64, entryBytes int, r *fsm.Result) {
	switch {
	case r.Verdict == fsm.Appended:
		l := f.lanes[r.TP]
		if l.push(newItem(index, r), entryBytes) {
			f.over[l] = struct{}{}
		}
	case (r.Kind == fsm.KindOpen || r.Kind == fsm.KindOpenAdopted) && r.Verdict == fsm.Done:
		f.a.topics.declare(r.Open)
		for _, tp := range r.Opened {
			f.addLane(newLane(f, tp, r.Open, index, nil))
		}
	case r.Kind == fsm.KindConfig && r.Verdict == fsm.Done && r.Open != nil:
		f.a.topics.declare(r.Open)
	case r.Kind == fsm.KindClose && r.Verdict == fsm.Done:
		for _, tp := range r.Closed {
			f.removeLane(tp)
		}
		f.remove(r.Close, index)
	case r.Kind == fsm.KindLogStart && r.Verdict == fsm.Done:
		if l := f.lanes[r.TP]; l != nil {
			l.raiseStart(r.BaseOffset)
		}
	case r.Kind == fsm.KindCut && r.Verdict == fsm.Done:
		f.cut(index, r)
	case r.Kind == fsm.KindTopicClosed && r.Verdict == fsm.Done:
		f.a.topics.sweep(f.tail.Catalog.Over)
	case (r.Kind == fsm.KindTopicOpened || r.Kind == fsm.KindTopicConfigured || r.Kind == fsm.KindPlaceGroup) && r.Verdict == fsm.Done:
		f.a.topics.present(f.tail.Catalog)
	}
}

func (f *feeder) addLane(l *lane) {
	f.lanes[l.tp] = l
	f.a.startLane(l)
}

func (f *feeder) removeLane(tp fsm.TP) {
	delete(f.over, f.lanes[tp])
	delete(f.lanes, tp)
	f.a.dropLane(tp)
	f.a.flusher.nudge()
	f.closed = append(f.closed, tp)
	if err := f.a.cuts.drop(tp); err != nil {
		f.a.log.Error("cannot forget the cuts of a partition that is closed: look at the disk of data_dir", "error", err)
	}
}

// cut takes the end of a partition's log back. f.mu is held.
func (f *feeder) cut(index uint64, r *fsm.Result) {
	l := f.lanes[r.TP]
	if l == nil {
		return
	}
	c := cut{Index: index, Offset: r.BaseOffset, Nth: r.At.Nth, Hash: r.Below, Known: true}
	// First: a restart must know of it before the broker has what comes behind it.
	if err := f.a.cuts.add(r.TP, c); err != nil {
		f.a.log.Error("cannot write down a cut: look at the disk of data_dir", "error", err)
	}
	waiters, why := l.cutFrom(c)
	f.a.log.Warn("a batch that no broker takes was cut out of the log, with what followed it: its producer is told so, those of what followed to try again",
		"topic", l.name, "partition", r.TP.Partition, "group", f.id, "offset", r.BaseOffset)
	f.a.count(PathCut)
	f.due = append(f.due, func() {
		for _, w := range waiters {
			w.fn(why)
		}
	})
}

func (f *feeder) status() GroupStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := GroupStatus{BrokerApplied: f.cursor, Partitions: len(f.lanes), QueuedBytes: f.bytes.Load(), QueuedBatches: f.batches.Load(), Base: f.baseIndex.Load()}
	f.cmu.Lock()
	s.Trusted = f.trusted
	f.cmu.Unlock()
	for _, l := range f.lanes {
		oldest, trouble := l.status()
		if oldest > 0 && oldest-1 < s.BrokerApplied {
			s.BrokerApplied = oldest - 1
		}
		if trouble != nil {
			s.Troubled = append(s.Troubled, *trouble)
			if st := State(trouble.State); st == StateQuarantined || st == StateRebuilding {
				s.Trusted = 0
			}
		}
	}
	return s
}
