package apply

import (
	"errors"
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

// Stands says what the local broker has at an offset of a partition.
//
// A cut must not take what a client was told is written. A lane tries a refused
// batch again now and then, for somebody may have changed the broker's settings;
// if that worked after this node has said "refused", a client might be answered
// and the batch be cut all the same. So whoever wants to cut asks with pledge:
// a lane that answers "refused" then keeps the batch back, and one that is just
// trying says "unknown". Pledges live in memory. A restart forgets them with
// all clients that waited; this node then answers new ones for that batch only
// as a leader of a later term, and such a leader has either applied the cut
// before, or the cut is in no log that counts.
func (a *Applier) Stands(tp fsm.TP, offset int64, pledge bool) string {
	l := a.lane(tp)
	if l == nil {
		return StandsUnknown
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.doom != "" || l.state == StateQuarantined || l.state == StateRebuilding || l.state == StateClosed:
		return StandsUnknown
	case l.refused != nil && l.refused.Offset == offset:
		if pledge {
			if l.serving != nil {
				return StandsUnknown
			}
			l.pledge = time.Now().Add(pledgeHolds)
		}
		return StandsRefused
	case l.acked > offset:
		return StandsHeld
	}
	return StandsUnknown
}

// Unpledge lets a lane try its refused batch again: nothing will be cut now.
func (a *Applier) Unpledge(tp fsm.TP) {
	if l := a.lane(tp); l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.pledge = time.Time{}
	}
}

// pledged says whether the lane keeps its refused batch back. l.mu is held.
func (l *lane) pledged() bool { return l.refused != nil && time.Now().Before(l.pledge) }
