package apply

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lockstep/fsm"
)

// keeper remembers which partitions are quarantined, through a restart. Its
// methods may be called from any goroutine.
type keeper interface {
	// quarantined says why a partition is, and from which entry on.
	quarantined(tp fsm.TP) (reason string, from uint64, ok bool)
	// quarantine is called before a partition's lane says that it is. The broker
	// gets nothing of the entries after from.
	quarantine(tp fsm.TP, reason string, from uint64)
}

// quarantine takes the partition out of service: somebody found that the
// broker's copy is not what was committed. Any goroutine may call it; the first
// reason counts. It returns at once: the lane is not ready from then on, its
// own goroutine does the rest.
func (l *lane) quarantine(reason string) {
	l.mu.Lock()
	if l.doom == "" && l.state != StateQuarantined && l.state != StateRebuilding && l.state != StateClosed {
		l.doom = reason
	}
	if l.doom != "" {
		l.order(&distrust{l.doom})
	}
	l.mu.Unlock()
	l.f.a.bump()
}

// readmit ends a quarantine: the lane attaches again and compares, from the
// newest base on. Any goroutine may call it; it does nothing for a lane that is
// not quarantined.
func (l *lane) readmit() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == StateQuarantined || l.state == StateRebuilding {
		signal(l.back)
	}
}

// attempt runs serve once, in a context that others may end. A verdict that
// came from outside takes precedence over what serve says.
func (l *lane) attempt(p *pipe) error {
	ctx, cancel := context.WithCancelCause(l.ctx)
	defer cancel(nil)
	may, err := l.beginService(cancel)
	if may {
		err = p.serve(ctx)
	}
	return l.endService(err)
}

// beginService says whether the lane may serve, and what hinders it if that is
// no verdict.
func (l *lane) beginService(cancel context.CancelCauseFunc) (may bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pledged() {
		l.serving = nil
		return false, errPledged
	}
	l.serving = cancel
	return l.doom == "", nil
}

func (l *lane) endService(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serving = nil
	l.settled = false
	if errors.Is(err, errLost) {
		l.f.doubts.Add(1)
	}
	if l.doom != "" {
		err = &distrust{l.doom}
	}
	return err
}

// rest is a quarantine. It reports false when the lane is stopped, true when it
// is readmitted.
func (p *pipe) rest(reason string) bool {
	l := p.l
	kept, from := false, l.f.dealtOut()
	if k := l.f.a.keeper; k != nil {
		var since uint64
		if _, since, kept = k.quarantined(l.tp); kept {
			from = since
		} else {
			k.quarantine(l.tp, reason, from)
		}
	}
	if !kept {
		l.f.a.count(PathQuarantine)
	}
	l.f.a.log.Error("partition quarantined on this node: not served until it is rebuilt",
		"topic", l.name, "partition", l.tp.Partition, "group", l.f.id, "reason", reason)
	p.pending, p.last = nil, nil
	select {
	case <-l.back: // meant for an earlier one
	default:
	}
	l.mu.Lock()
	l.restsFrom = from // before anybody is told that it rests
	l.mu.Unlock()
	l.give(StateQuarantined, reason, ErrQuarantined)
	l.mu.Lock()
	l.doom = ""
	l.mu.Unlock()
	select {
	case <-l.back:
	case <-l.ctx.Done():
		return false
	}
	l.mu.Lock()
	l.restsFrom = 0
	l.mu.Unlock()
	p.startOver()
	l.setState(StateOpening, "")
	return true
}

// due says whether the lane's goroutine has orders to obey.
func (l *lane) due() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.again || l.trim != nil
}

// obey does what others ordered; it reports whether there was anything.
func (p *pipe) obey() bool {
	l := p.l
	l.mu.Lock()
	again, some := l.again, l.again || l.trim != nil
	if l.trim != nil {
		n := len(p.pending)
		for n > 0 && p.pending[n-1].base >= *l.trim {
			n--
			l.release(p.pending[n].load())
		}
		p.pending = p.pending[:n]
		l.trim = nil
		signal(l.wake)
	}
	l.mu.Unlock()
	if again {
		p.startOver()
	}
	return some
}

// Refusal is a batch that the local broker will not take, now or later. Hash
// and Sequence are the partition's before it: what a cut at Offset needs.
type Refusal struct {
	Group    uint32
	TP       fsm.TP
	Topic    string
	Index    uint64 // of the Raft entry
	Offset   int64
	Sequence int32
	Hash     uint64
	Code     int16 // Kafka error code
	Message  string
	Since    time.Time
}

// String says it for people.
func (r *Refusal) String() string {
	return fmt.Sprintf("the broker refuses the batch at offset %d with error %d %s", r.Offset, r.Code, r.Message)
}

// Batch is what is refused.
func (r *Refusal) Batch() Batch { return Batch{TP: r.TP, Offset: r.Offset, Index: r.Index} }

// Unexplained says that the broker gave no reason: it may be the broker's own
// trouble, and the batch is tried again and again.
func (r *Refusal) Unexplained() bool { return r.Code == codeUnknownServerError }

// park keeps the refused batch alone, to be tried again, and takes the lane off
// the feed: what follows may be cut out of the log with it.
func (p *pipe) park(ref *refusal) {
	l := p.l
	it := p.pending[0]
	l.mu.Lock()
	if l.cutOut(&it) { // while the answer was on its way: nobody waits for a verdict on it
		l.mu.Unlock()
		return
	}
	clear(p.pending[1:])
	p.pending = p.pending[:1]
	first, away := l.refused == nil, turned{Batch: Batch{TP: l.tp, Offset: it.base, Index: it.index},
		As: &turnedAs{Hash: it.below, Sequence: it.seq, Code: ref.code, Message: ref.message}}
	if first {
		l.refused = &Refusal{Group: l.f.id, TP: l.tp, Topic: l.name, Index: it.index, Offset: it.base, Sequence: it.seq,
			Hash: it.below, Code: ref.code, Message: ref.message, Since: time.Now()}
		l.turned, l.unsure = &away, false
	}
	l.empty()
	l.release(load{l.bytes - it.size(), l.batches - 1})
	l.reach = min(l.reach, it.base) // the broker has not got it, nor what followed
	l.mu.Unlock()
	if first {
		if err := l.f.a.turned.note(away); err != nil {
			l.f.a.log.Error("cannot write down that a batch is refused: look at the disk of data_dir", "error", err)
		}
		l.f.a.bump()
		l.f.a.log.Error("the broker refuses a committed batch for good: the partition is not served on this node until all brokers refused it and it is cut, or this one is rebuilt",
			"topic", l.name, "partition", l.tp.Partition, "group", l.f.id, "offset", it.base, "code", ref.code, "message", ref.message)
	}
}

// Refused says that the local broker refuses for good what was committed at an
// offset of a partition, with a Kafka error code.
func (a *Applier) Refused(tp fsm.TP) (offset int64, code int16, ok bool) {
	l := a.lane(tp)
	if l == nil {
		return 0, 0, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refused == nil {
		return 0, 0, false
	}
	return l.refused.Offset, l.refused.Code, true
}

// Refusals lists every batch that the local broker refuses for good, or is known to
// have refused and lacks.
func (a *Applier) Refusals() []Refusal {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var out []Refusal
	for _, l := range a.lanes {
		l.mu.Lock()
		r := l.refused
		if r == nil {
			r = l.remembers()
		}
		if r != nil {
			out = append(out, *r)
		}
		l.mu.Unlock()
	}
	return out
}

// QuarantineRefused quarantines a partition if its broker still refuses that
// batch, which this broker alone does. It reports whether it did.
func (a *Applier) QuarantineRefused(b Batch, reason string) bool {
	l := a.lane(b.TP)
	if l == nil {
		return false
	}
	l.mu.Lock()
	refused := l.refused != nil && b.is(l.refused)
	l.mu.Unlock()
	if refused {
		l.quarantine(CauseRefused.because("%s", reason))
	}
	return refused
}
