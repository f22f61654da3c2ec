package apply

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"lockstep/fsm"
	"lockstep/internal/failpoint"
	"lockstep/internal/watch"
)

// feeder follows one group's log. Its goroutine owns the tail.
type feeder struct {
	a   *Applier
	id  uint32
	log Log

	bytes atomic.Int64 // held by the lanes of this group

	// fresh carries the leader's commit index, numbered, for lanes whose
	// broker holds more than they have seen of the log.
	fresh  watch.Value[mark]
	freshN atomic.Uint64

	mu     sync.Mutex // guards what follows; held while an entry is dealt out
	tail   *fsm.Group
	cursor uint64 // last entry dealt out
	lanes  map[fsm.TP]*lane
	over   map[*lane]struct{} // lanes that hold more than they may
}

// mark is the n-th time that a leader's commit index became known.
type mark struct{ n, index uint64 }

func newFeeder(a *Applier, id uint32, log Log) *feeder {
	return &feeder{a: a, id: id, log: log, tail: fsm.NewGroup(id),
		lanes: make(map[fsm.TP]*lane), over: make(map[*lane]struct{})}
}

func (f *feeder) conclude(index uint64) {
	f.fresh.Set(mark{n: f.freshN.Add(1), index: index})
}

// run deals out entries until the context ends. An entry that cannot be read
// ends the applier: nothing after it may be applied.
func (f *feeder) run(ctx context.Context) {
	defer f.stopLanes()
	for ctx.Err() == nil {
		applied, err := f.log.Applied().Wait(ctx, f.cursor+1)
		if err != nil {
			return
		}
		for f.cursor < applied && ctx.Err() == nil {
			if err := f.step(f.cursor + 1); err != nil {
				f.a.log.Error("cannot follow the raft log: this node stops applying", "group", f.id, "error", err)
				f.a.cancel(fmt.Errorf("follow group %d: %w", f.id, err))
			}
		}
	}
}

func (f *feeder) stopLanes() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.lanes {
		l.stop(ErrClosed)
	}
}

// step deals out the entry at index. cursor is only written here.
func (f *feeder) step(index uint64) error {
	failpoint.Hit(failpoint.DealBefore)
	data, err := f.log.Entry(index)
	if err != nil {
		return fmt.Errorf("read entry %d: %w", index, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if data != nil {
		f.shed()
		results, err := f.tail.Apply(index, data)
		if err != nil {
			return err
		}
		for i := range results {
			f.deal(index, len(data), &results[i])
		}
	}
	f.cursor = index
	failpoint.Hit(failpoint.DealAfter)
	return nil
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
	case r.Kind == fsm.KindOpen && r.Verdict == fsm.Done:
		f.a.topics.declare(r.Open)
		for _, tp := range r.Opened {
			l := newLane(f, tp, r.Open, index)
			f.lanes[tp] = l
			f.a.startLane(l)
		}
	case r.Kind == fsm.KindClose && r.Verdict == fsm.Done:
		for _, tp := range r.Closed {
			delete(f.over, f.lanes[tp])
			delete(f.lanes, tp)
			f.a.dropLane(tp)
		}
		f.a.topics.remove(r.Close)
	}
}

// errSuperseded ends a catch-up whose lane has started another one.
var errSuperseded = errors.New("superseded")

// catchUp reads the log again for one lane, from the state in from, and puts
// the lane back on the feed where it meets it. It runs in a goroutine of its
// own and ends when the lane or the context does.
func (f *feeder) catchUp(ctx context.Context, l *lane, from *fsm.Group, gen uint64) error {
	for index := from.Index + 1; ; index++ {
		rejoined, err := f.rejoin(l, index, gen)
		if rejoined || err != nil {
			return err
		}
		data, err := f.log.Entry(index)
		if err != nil {
			return fmt.Errorf("read entry %d again: %w", index, err)
		}
		if data == nil {
			continue
		}
		results, err := from.Apply(index, data)
		if err != nil {
			return err
		}
		for i := range results {
			r := &results[i]
			if r.TP != l.tp || r.Verdict != fsm.Appended {
				continue
			}
			it := newItem(index, r)
			it.own(len(data))
			if err := l.pushAgain(ctx, it, gen); err != nil {
				return err
			}
		}
	}
}

// rejoin puts the lane back on the feed if next is the entry that the feeder
// deals out next.
func (f *feeder) rejoin(l *lane, next, gen uint64) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if next <= f.cursor {
		return false, nil
	}
	return l.rejoin(gen)
}

func (f *feeder) status() GroupStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := GroupStatus{BrokerApplied: f.cursor, Partitions: len(f.lanes), QueuedBytes: f.bytes.Load()}
	for _, l := range f.lanes {
		oldest, trouble := l.status()
		if oldest > 0 && oldest-1 < s.BrokerApplied {
			s.BrokerApplied = oldest - 1
		}
		if trouble != nil {
			s.Troubled = append(s.Troubled, *trouble)
		}
	}
	return s
}
