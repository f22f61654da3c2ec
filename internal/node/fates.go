package node

import (
	"slices"
	"sync"

	"lockstep/fsm"
)

// recentResults bounds the results that are kept for entries whose proposer has
// not asked yet.
const recentResults = 1 << 14

// fate is what became of an entry.
type fate struct {
	results []fsm.Result
	err     error // ErrNotLeader: surely not written; ErrUnknownOutcome
}

// fates tells what became of entries whose leader lost its office before Raft
// told it. An entry is committed if and only if the one that is applied at its
// index has its term (Raft section 5.3, log matching); the state machine sees
// all of those in order. It owns its state; any goroutine may call its methods.
type fates struct {
	mu      sync.Mutex // guards what follows
	flying  int        // proposers that may still ask
	recent  []applied  // what was applied while something flew, in order
	held    int        // results in recent
	unknown uint64     // nothing is known of what stood up to here, unless it is in recent
	last    uint64     // newest entry with commands, or snapshot
	waiting []awaited
}

type applied struct {
	index, term uint64
	results     []fsm.Result
}

type awaited struct {
	index, term uint64
	answer      chan<- fate // capacity 1
}

// begin is called before an entry is given to Raft: its index will be above
// everything that was applied until now. end is called when nothing will be
// asked of it any more.
func (f *fates) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flying++
}

func (f *fates) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flying--; f.flying == 0 {
		f.recent, f.held = nil, 0
	}
}

// ask returns a channel that gets the fate of an entry between whose begin and
// end this is, and how to forget it.
func (f *fates) ask(index, term uint64) (<-chan fate, func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan fate, 1)
	for _, a := range f.recent {
		if a.index == index {
			ch <- a.seenBy(term)
			return ch, func() {}
		}
	}
	switch {
	case index <= f.unknown:
		ch <- fate{err: ErrUnknownOutcome}
	case index <= f.last:
		ch <- fate{err: ErrNotLeader} // one without commands stands there
	default:
		f.waiting = append(f.waiting, awaited{index, term, ch})
	}
	return ch, func() { f.forget(ch) }
}

// light is a without the batches, whose bytes would be held as long as anything
// flies, which under load is always.
func (a applied) light() applied {
	a.results = slices.Clone(a.results)
	for i := range a.results {
		a.results[i].Batch = nil
	}
	return a
}

func (a applied) seenBy(term uint64) fate {
	if a.term != term {
		return fate{err: ErrNotLeader}
	}
	return fate{results: a.results}
}

func (f *fates) forget(ch chan<- fate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, w := range f.waiting {
		if w.answer == ch {
			f.waiting = append(f.waiting[:i:i], f.waiting[i+1:]...)
			return
		}
	}
}

// applied is told of every entry with commands, by Raft's FSM goroutine.
func (f *fates) applied(a applied) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = a.index
	if f.flying > 0 {
		f.recent = append(f.recent, a.light())
		f.held += len(a.results) + 1
		for f.held > recentResults && len(f.recent) > 1 {
			f.unknown = f.recent[0].index
			f.held -= len(f.recent[0].results) + 1
			f.recent = f.recent[1:]
		}
	}
	f.settle(a.index, func(w awaited) fate {
		if w.index < a.index {
			return fate{err: ErrNotLeader} // Raft's own entry took its place
		}
		return a.seenBy(w.term)
	})
}

// restored is told of a leader's snapshot: it does not say what stood below.
func (f *fates) restored(index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last, f.unknown = max(f.last, index), max(f.unknown, index)
	f.settle(index, func(awaited) fate { return fate{err: ErrUnknownOutcome} })
}

// settle answers who waits for an entry up to index. f.mu is held.
func (f *fates) settle(index uint64, say func(awaited) fate) {
	var left []awaited
	for _, w := range f.waiting {
		if w.index > index {
			left = append(left, w)
			continue
		}
		w.answer <- say(w)
	}
	f.waiting = left
}
