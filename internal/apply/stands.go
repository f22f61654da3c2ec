package apply

import (
	"errors"
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
)

// pledgeHolds is how long a lane keeps a refused batch back after it said that
// its broker refuses it, and was asked to stay with that: longer than the cut
// that follows takes to be committed.
const pledgeHolds = 2 * time.Minute

// errPledged keeps a lane from trying a refused batch again.
var errPledged = errors.New("the batch is about to be cut out of the log")

// Batch names a committed batch. An offset alone does not: after a cut another
// batch has it. Index is that of its Raft entry, 0 from a node that does not say.
type Batch struct {
	TP     fsm.TP `json:"tp"`
	Offset int64  `json:"offset"`
	Index  uint64 `json:"index,omitempty"`
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
	case l.doom != "" || l.state == StateQuarantined || l.state == StateRebuilding || l.state == StateClosed:
		return StandsUnknown
	case slices.ContainsFunc(l.cuts, b.cutBy):
		return StandsUnknown // who asks has not read of the cut yet
	case l.refused != nil && b.is(l.refused):
		if pledge != 0 {
			if l.serving != nil {
				return StandsUnknown
			}
			if l.pledges == nil {
				l.pledges = make(map[int32]time.Time)
			}
			l.pledges[pledge] = time.Now().Add(pledgeHolds)
		}
		return StandsRefused
	case l.acked > b.Offset:
		return StandsHeld
	}
	return StandsUnknown
}

// Unpledge gives back what a node was pledged: it will cut nothing now. When
// nobody has a pledge any more, the lane may try its refused batch again.
func (a *Applier) Unpledge(tp fsm.TP, to int32) {
	if l := a.lane(tp); l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.pledges, to)
	}
}

// pledged says whether the lane keeps its refused batch back. l.mu is held.
func (l *lane) pledged() bool {
	if l.refused == nil {
		return false
	}
	now := time.Now()
	for _, until := range l.pledges {
		if now.Before(until) {
			return true
		}
	}
	return false
}
