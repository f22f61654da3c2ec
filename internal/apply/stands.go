package apply

import (
	"errors"
	"maps"
	"slices"
	"time"

	"lockstep/fsm"
)

// What stands at an offset of a node's broker, as nodes ask each other when one
// of them is refused a batch there.
const (
	StandsUnknown = "unknown" // nothing can be said now: ask again
	StandsHeld    = "held"    // the batch is there, compared
	StandsRefused = "refused" // the broker refuses it for good, and has nothing from there on
	StandsLacks   = "lacks"   // the broker was never given it, and has nothing from there on
)

// pledgeHolds is how long a lane keeps a refused batch back after it said that
// its broker refuses it, and was asked to stay with that. The cut that follows may
// be committed any time later, where the leader has lost its quorum meanwhile: so
// longer than a client may wait that could still be answered (proxy.maxProduceWait).
const pledgeHolds = 6 * time.Minute

// errPledged keeps a lane from giving its broker what is about to be cut.
var errPledged = errors.New("the batch is about to be cut out of the log")

// Batch names a committed batch. An offset alone does not: after a cut another
// batch has it. Index is that of its Raft entry, 0 from a node that does not say.
type Batch struct {
	TP     fsm.TP `json:"tp"`
	Offset int64  `json:"offset"`
	Index  uint64 `json:"index,omitempty"`
}

// pledge is what a node was told: this lane gives its broker nothing of the batch
// and of what follows it.
type pledge struct {
	Batch
	until time.Time
	rests bool // the lane must not serve at all: else the batch could only come with a copy
}

// is says whether a refused batch is that one.
func (b Batch) is(r *Refusal) bool {
	return r.Offset == b.Offset && (b.Index == 0 || r.Index == b.Index)
}

// cutBy says whether a cut took the batch out of the log.
func (b Batch) cutBy(c cut) bool { return b.Index != 0 && b.Index < c.Index && b.Offset >= c.Offset }

// Stands says whether the local broker has a batch. pledge is who asks for one,
// 0 if nobody does.
//
// A cut must not take what a client was told is written. A lane tries a refused
// batch again now and then, for somebody may have changed the broker's settings;
// if that worked after this node has said "refused", a client might be answered
// and the batch be cut all the same. So whoever wants to cut asks with pledge:
// a lane that answers "refused" then keeps the batch back, and one that is just
// trying says "unknown". Each who asked has a pledge of its own, which nobody else
// gives back. Pledges live in memory. A restart forgets them with
// all clients that waited; this node then answers new ones for that batch only
// as a leader of a later term, and such a leader has either applied the cut
// before, or the cut is in no log that counts.
func (a *Applier) Stands(b Batch, pledge int32) string {
	l := a.lane(b.TP)
	if l == nil {
		return StandsUnknown
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.doom != "" || l.state == StateClosed:
		return StandsUnknown
	case slices.ContainsFunc(l.cuts, b.cutBy):
		return StandsUnknown // who asks has not read of the cut yet
	case l.state == StateQuarantined || l.state == StateRebuilding:
		if l.restsFrom == 0 || b.Index <= l.restsFrom || !l.promise(b, pledge, true) {
			return StandsUnknown
		}
		return StandsLacks
	case l.acked > b.Offset:
		return StandsHeld
	case l.had > b.Offset:
		return StandsUnknown // the broker has lost what a client may have been told of
	case l.refused != nil && b.is(l.refused) && l.promise(b, pledge, true):
		return StandsRefused
	case l.lacks(b) && l.promise(b, pledge, false):
		return StandsLacks
	}
	return StandsUnknown
}

// lacks says whether the broker was never given a batch, nor anything behind it,
// in the life of this process or before: the node never had the entry, whose place
// a leader's snapshot took, and has not got it with a copy since. What was never
// here was neither acknowledged nor read here. Nor was what the broker was given and
// refused, and has not taken since. The broker must have been looked at, and no copy
// have come so far. l.mu is held.
func (l *lane) lacks(b Batch) bool {
	return l.settled && l.need > b.Offset && l.reach <= b.Offset &&
		(b.Index > l.whole && l.f.log.Never(b.Index) || l.turned != nil && l.turned.Batch == b)
}

// promise makes a pledge if one is asked for; it reports false if the lane is
// just giving the broker something. l.mu is held.
func (l *lane) promise(b Batch, to int32, rests bool) bool {
	if to == 0 {
		return true
	}
	if rests && l.serving != nil {
		return false
	}
	if l.pledges == nil {
		l.pledges = make(map[int32]pledge)
	}
	l.pledges[to] = pledge{b, time.Now().Add(pledgeHolds), rests}
	return true
}

// Unpledge gives back what a node was pledged: it will cut nothing now. When
// nobody has a pledge any more, the lane may go on.
func (a *Applier) Unpledge(tp fsm.TP, to int32) {
	if l := a.lane(tp); l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.pledges, to)
	}
}

// unpledge forgets pledges that are of no use any more. l.mu is held.
func (l *lane) unpledge(over func(*pledge) bool) {
	maps.DeleteFunc(l.pledges, func(_ int32, p pledge) bool { return over(&p) })
}

// pledged says whether the lane must rest. l.mu is held.
func (l *lane) pledged() bool {
	l.unpledge(func(p *pledge) bool { return !time.Now().Before(p.until) })
	for _, p := range l.pledges {
		if p.rests {
			return true
		}
	}
	return false
}

// keepsBack says whether an item of a copy must not go to the broker. l.mu is held.
func (l *lane) keepsBack(it *item) bool {
	if len(l.pledges) == 0 {
		return false
	}
	l.unpledge(func(p *pledge) bool { return !time.Now().Before(p.until) })
	for _, p := range l.pledges {
		if it.end() > p.Offset {
			return true
		}
	}
	return false
}
