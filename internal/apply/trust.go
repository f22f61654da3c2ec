package apply

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// maxCandidates states are kept waiting; beyond that every second one goes, and
// they are made further apart: each is as large as the group's state.
const maxCandidates = 8

// candidateShare times the size of a state is dealt out at least between two of
// them: making them must not cost more than what they are made of.
const candidateShare = 4

// hungryShare of a log's limit lies at least between two candidates that are
// made because the log is over it.
const hungryShare = 16

// idleAfter is how long after something was dealt out a candidate is made even
// if that was little.
const idleAfter = 5 * time.Second

// declaredAgain lies at least between two warnings that entries were given up.
const declaredAgain = time.Minute

// candidate is a state of the feeder that may become the tail.
type candidate struct {
	index uint64
	state []byte // nil: the base itself, which is not known to be trusted

	// Set by the flusher.
	applied time.Time // since when the broker holds all of it; zero: not yet
	doubts  uint64    // the feeder's, then
	flushes uint64    // that had begun by then
}

// horizon is a group's way to the next base: candidates become applied, then
// trusted, in order.
type horizon struct {
	// blocker is the lane that keeps the first candidate that is not applied,
	// at blockedAt, from being so.
	blocker   atomic.Pointer[lane]
	blockedAt atomic.Uint64
	doubts    atomic.Uint64 // how often a lane lost touch with the broker, which may have lost what it had
	wanted    chan struct{} // the flusher wants a candidate; capacity 1

	cmu        sync.Mutex // guards what follows; taken after the feeder's mu
	candidates []*candidate
	spacing    int64  // bytes between two of them
	since      int64  // bytes dealt out after the newest
	size       int64  // of the newest
	trusted    uint64 // the broker holds everything up to it through a power cut; 0: unknown

	declared time.Time // when it was last warned that entries were given up; the flusher's

	removing map[uint64]uint64 // topics that are being deleted, by the entry that closed them; guarded by the feeder's mu
}

// counted notes that n bytes were dealt out, and says whether a candidate is due.
func (h *horizon) counted(n int) bool {
	h.cmu.Lock()
	defer h.cmu.Unlock()
	h.since += int64(n)
	return h.since >= max(h.spacing, candidateShare*h.size)
}

// hungry says whether a log that is over its limit, needs another
// candidate: there is none, or much was dealt out after the newest. More of them
// would only drive each other out; fewer would leave the log over its limit when
// the newest is trusted.
func (h *horizon) hungry(limit int64) bool {
	h.cmu.Lock()
	defer h.cmu.Unlock()
	last := len(h.candidates) - 1
	none := last < 0 || h.candidates[last].state == nil
	return h.since > 0 && (none || h.since >= max(limit/hungryShare, min(candidateShare*h.size, limit/2)))
}

// news says whether anything was dealt out after the newest candidate.
func (h *horizon) news() bool {
	h.cmu.Lock()
	defer h.cmu.Unlock()
	return h.since > 0
}

// restart forgets the candidates: there is a base at index, and nothing is
// known of what the broker holds of it.
func (h *horizon) restart(index uint64, spacing int64) {
	h.cmu.Lock()
	defer h.cmu.Unlock()
	h.candidates = []*candidate{{index: index}}
	h.spacing, h.since, h.trusted = spacing, 0, 0
}

// lacks notes that the broker lacks something of the base: it is not trusted
// before it has it.
func (f *feeder) lacks() {
	f.cmu.Lock()
	f.trusted = 0
	if len(f.candidates) == 0 || f.candidates[0].state != nil {
		f.candidates = slices.Insert(f.candidates, 0, &candidate{index: f.baseIndex.Load()})
	}
	f.cmu.Unlock()
	f.a.flusher.nudge()
}

// offer makes a candidate of the feeder's state. Only the feeder's goroutine
// calls it, and nobody else modifies the tail.
func (f *feeder) offer() {
	if !f.news() {
		return
	}
	c := &candidate{index: f.tail.Index, state: f.tail.Encode()}
	f.cmu.Lock()
	f.candidates = append(f.candidates, c)
	f.since, f.size = 0, int64(len(c.state))
	if len(f.candidates) > maxCandidates {
		f.thin()
		f.spacing *= 2
	}
	f.cmu.Unlock()
	f.a.flusher.nudge()
}

// thin removes every second candidate, but neither the newest nor the oldest.
// The oldest is the first that anything can be done with, and everything else is
// gone before that can be: others may be behind by any number of candidates.
// The base, which stands in front of all while it is not trusted, counts for
// none. cmu is held.
func (h *horizon) thin() {
	first := 0
	if h.candidates[0].state == nil {
		first = 1
	}
	kept := slices.Clone(h.candidates[:first+1])
	for i := first + 1; i < len(h.candidates); i++ {
		if (len(h.candidates)-i)%2 == 1 {
			kept = append(kept, h.candidates[i])
		}
	}
	h.candidates = kept
}

// weigh finds out which candidates are applied, and reports whether any is.
func (f *feeder) weigh(now time.Time, flushes uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cmu.Lock()
	defer f.cmu.Unlock()
	doubts := f.doubts.Load() // before the lanes are asked: a later one counts
	some := false
	for _, c := range f.candidates {
		if c.applied.IsZero() || c.doubts != doubts {
			if f.blocked(c.index) {
				break
			}
			c.applied, c.doubts, c.flushes = now, doubts, flushes
		}
		some = true
	}
	return some
}

// blocked says whether the broker may lack something of an entry up to index.
// f.mu is held.
func (f *feeder) blocked(index uint64) bool {
	for _, at := range f.removing {
		if at <= index {
			return true
		}
	}
	for _, l := range f.lanes {
		l.mu.Lock()
		if l.blocks(index) {
			f.blockedAt.Store(index)
			f.blocker.Store(l) // under its lock: it tells when it blocks no more
			l.mu.Unlock()
			return true
		}
		l.mu.Unlock()
	}
	return false
}

// take makes the newest candidate that is applied, and that ok agrees to, the
// base. It returns the oldest applied one that is left. Only the flusher calls
// it.
func (f *feeder) take(ok func(*candidate) bool) (waits *candidate) {
	f.cmu.Lock()
	doubts := f.doubts.Load()
	n := 0
	for i, c := range f.candidates {
		if c.applied.IsZero() || c.doubts != doubts {
			break
		}
		if ok(c) {
			n = i + 1
		} else if waits == nil {
			waits = c
		}
	}
	taken := slices.Clone(f.candidates[:n])
	f.drop(n)
	if n > 0 {
		f.trusted = taken[n-1].index
	}
	f.cmu.Unlock()
	if n > 0 {
		f.trust(taken[n-1])
	}
	return waits
}

// drop removes the first n candidates. cmu is held.
func (f *feeder) drop(n int) {
	f.candidates = slices.Delete(f.candidates, 0, n)
	if len(f.candidates) == 0 {
		f.spacing = f.a.cfg.CandidateBytes
	}
}

// overLimit says whether more of the log cannot be deleted than may be.
func (f *feeder) overLimit() (over bool, limit int64) {
	held, limit := f.log.Bytes()
	return limit > 0 && held > limit, limit
}

// declare moves the base to a candidate that the broker does not hold, if that
// is what keeps the log from being cut, and the others' brokers have it for
// sure. The broker will be given a copy.
func (f *feeder) declare() {
	allowed := f.a.cfg.OthersTrusted
	if allowed == nil {
		return
	}
	up := f.a.brokerUp()
	var chosen *candidate
	for _, c := range f.stalledCandidates(up) {
		if allowed(f.id, c.index) { // nothing is locked: it may look at this applier
			chosen = c
			break
		}
	}
	if chosen == nil || !f.dropUpTo(chosen) {
		return
	}
	level := hclog.Debug // it goes on like this for as long as the broker is down
	if now := time.Now(); now.Sub(f.declared) >= declaredAgain {
		level, f.declared = hclog.Warn, now
	}
	f.a.log.Log(level, "raft log limit reached: this broker will need a copy of what it lacks, the others have it",
		"group", f.id, "up-to-index", chosen.index, "broker-up", up)
	f.a.count(PathDeclare)
	f.trust(chosen)
	f.lacks()
}

// stalledCandidates returns the candidates that could be declared, newest first.
func (f *feeder) stalledCandidates(up bool) []*candidate {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cmu.Lock()
	defer f.cmu.Unlock()
	var out []*candidate
	for i := len(f.candidates) - 1; i >= 0; i-- {
		if c := f.candidates[i]; c.state != nil && f.stalled(c.index, up) {
			out = append(out, c)
		}
	}
	return out
}

// dropUpTo removes a candidate and those before it; it reports whether it was
// still there.
func (f *feeder) dropUpTo(c *candidate) bool {
	f.cmu.Lock()
	defer f.cmu.Unlock()
	i := slices.Index(f.candidates, c)
	f.drop(i + 1)
	return i >= 0
}

// stalled says whether what keeps an index from being applied will not come
// right by itself soon: the broker is down, or it lacks what must be copied. A
// slow one is waited for. f.mu is held.
func (f *feeder) stalled(index uint64, up bool) bool {
	if !up {
		return true
	}
	stalled := false
	for _, l := range f.lanes {
		l.mu.Lock()
		blocks, copies := l.blocks(index), l.need > 0
		l.mu.Unlock()
		if blocks && !copies {
			return false
		}
		stalled = stalled || blocks
	}
	return stalled
}
