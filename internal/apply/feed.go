package apply

import (
	"context"
	"errors"
	"slices"

	"lockstep/fsm"
	"lockstep/kafkawire"
)

// feed is where a lane's items come from: from the feeder while it is live,
// else from a catch-up of its own, which begins at resume.
type feed struct {
	queue  []item             // pushed and not yet taken by the pipe
	load                      // of the queue and of what the pipe holds
	live   bool               // the feeder's items are wanted
	resume *resume            // where the next catch-up begins, nil if none is due
	gen    uint64             // number of the catch-up that may push
	end    context.CancelFunc // ends the catch-up under way; nil if there never was one
	again  bool               // the lane must begin anew, at the newest base
	cuts   []cut              // what was taken out of the log again
	trim   *int64             // the pipe must drop what it holds from there on
}

// load is how much of a group's log is held in memory on its way to the broker.
type load struct{ bytes, batches int64 }

// resume is where a catch-up begins: with a copy of what lies between pos and
// the state's log end, if there is anything, then with the entry after the
// state's.
type resume struct {
	from  *fsm.Group
	birth *fsm.Partition // the partition's state where from is from before it was opened; nil: it begins empty
	left  *fsm.Partition // what cuts after from leave of that state; nil: all of it
	pos   int64
	last  kafkawire.Batch // ends at pos on the broker and was not compared; nil: nothing to compare
}

// state is what must have been copied before the log after from is of use; nil
// if the partition begins empty. It is not to be changed.
func (r *resume) state(tp fsm.TP) *fsm.Partition {
	if r.left != nil {
		return r.left
	}
	if p := r.from.Partitions[tp]; p != nil {
		return p
	}
	return r.birth
}

// shorten takes out of the state what cuts after it took out of the log.
func (r *resume) shorten(tp fsm.TP, cuts []cut) {
	r.left = nil
	if p := r.state(tp); p != nil {
		if left := leftOf(p, r.from.Index, cuts); left != p {
			r.left = left
		}
	}
}

// end is where that ends.
func (r *resume) end(tp fsm.TP) int64 {
	if p := r.state(tp); p != nil {
		return p.NextOffset
	}
	return 0
}

// oldest is the first entry that is not on the broker: what must be copied may
// be of any up to the base.
func (r *resume) oldest() uint64 {
	for tp := range r.from.Partitions { // one, or none: what a birth lacks is of an entry after the base
		if r.pos < r.end(tp) {
			return max(r.from.Index, 1)
		}
	}
	return r.from.Index + 1
}

// cutOut says whether an item was taken out of the log by an entry after it.
// l.mu is held.
func (fd *feed) cutOut(it *item) bool {
	return slices.ContainsFunc(fd.cuts, func(c cut) bool { return it.index < c.Index && it.base >= c.Offset })
}

// push is called by the feeder for each of its items; it reports whether the
// lane now holds more than it may.
func (l *lane) push(it item, entryBytes int) (over bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.live || l.state == StateQuarantined || l.state == StateRebuilding || l.state == StateClosed {
		return false
	}
	if l.cutOut(&it) {
		return false
	}
	it.own(entryBytes)
	l.enqueue(it)
	return l.bytes > l.f.a.cfg.LaneBytes
}

func (l *lane) enqueue(it item) {
	l.queue = append(l.queue, it)
	l.reach = max(l.reach, it.end())
	l.bytes += it.size()
	l.batches++
	l.f.bytes.Add(it.size())
	l.f.batches.Add(1)
	if l.oldest == 0 {
		l.oldest = it.index
	}
	signal(l.wake)
}

// pushAgain is called by catch-up number gen; it waits for room.
func (l *lane) pushAgain(ctx context.Context, it item, gen uint64) error {
	for {
		l.mu.Lock()
		switch {
		case l.gen != gen:
			l.mu.Unlock()
			signal(l.room) // the one that took over may be waiting for it
			return errSuperseded
		case l.cutOut(&it):
			l.mu.Unlock()
			return nil
		case l.keepsBack(&it):
			l.mu.Unlock()
			return errPledged
		case l.roomy():
			l.enqueue(it)
			l.mu.Unlock()
			return nil
		}
		l.mu.Unlock()
		select {
		case <-l.room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// roomy says whether a catch-up may push: what it reads again must not fill the
// memory that the group has, all lanes together. l.mu is held.
func (l *lane) roomy() bool {
	if l.f.bytes.Load() > l.f.a.cfg.GroupBytes {
		return l.bytes == 0
	}
	return l.bytes <= l.f.a.cfg.LaneBytes/2
}

// fallBehind takes the lane off the feed; it reads again from the state that
// tail has now. Called by the feeder between two entries.
func (l *lane) fallBehind(tail *fsm.Group) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.live || l.state == StateQuarantined || l.state == StateRebuilding || l.state == StateClosed {
		return
	}
	l.live = false
	from := tail.Only(l.tp)
	l.resume = &resume{from: from, pos: nextOffset(from, l.tp)}
	signal(l.wake)
}

// nextOffset is a partition's log end in a state, 0 if it does not have it.
func nextOffset(g *fsm.Group, tp fsm.TP) int64 {
	if p := g.Partitions[tp]; p != nil {
		return p.NextOffset
	}
	return 0
}

// empty forgets everything that waits, and whoever brings more. What the pipe
// holds stays counted. l.mu is held.
func (l *lane) empty() {
	l.dropQueue(0)
	l.resume, l.live = nil, false
	l.gen++
	if l.end != nil {
		l.end()
	}
}

// dropQueue forgets what waits from an offset on. l.mu is held.
func (l *lane) dropQueue(from int64) {
	n := len(l.queue)
	for n > 0 && l.queue[n-1].base >= from {
		n--
		l.release(l.queue[n].load())
	}
	clear(l.queue[n:])
	l.queue = l.queue[:n]
}

// cutFrom says that c took everything from its offset on out of the log again.
// Called by the feeder; it returns who waited for that, and what
// to tell them.
func (l *lane) cutFrom(c cut) (waiters []waiter, why *CutError) {
	offset := c.Offset
	l.mu.Lock()
	defer l.mu.Unlock()
	why = &CutError{Offset: offset}
	l.cuts, _ = withCut(l.cuts, c)
	l.unpledge(func(p *pledge) bool { return p.Index < c.Index })
	l.lower(offset)
	if l.state == StateQuarantined || l.state == StateRebuilding || l.state == StateClosed {
		return nil, why
	}
	if l.acked > offset && l.doom == "" {
		l.doom = CauseDivergent.because("the broker holds the batch at offset %d, which was cut out of the log because no broker took it", offset)
		l.f.a.bump()
	}
	l.dropQueue(offset)
	if l.need > offset { // nobody's broker has the rest
		l.again = true
	}
	if l.trim == nil || *l.trim > offset {
		l.trim = &offset
	}
	if l.refused != nil && l.refused.Offset >= offset {
		if l.refused.Offset == offset {
			why.Code, why.Message = l.refused.Code, l.refused.Message
		}
		l.refused, l.again = nil, true // what came after the refused batch was not kept
	}
	l.order(errAgain)
	return l.takeWaiters(func(w waiter) bool { return w.cutBy(c) }), why
}

// lower forgets what the broker once had, or was given, from an offset on: that was
// cut out of the log. l.mu is held.
func (l *lane) lower(offset int64) {
	l.high, l.had, l.reach = min(l.high, offset), min(l.had, offset), min(l.reach, offset)
}

// rebased says what state takes the place of entries that are not read here. A
// batch that was refused before is cut by now if anything was cut.
func (l *lane) rebased(now *fsm.Partition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lower(now.NextOffset) // what ends beyond was cut
	l.unpledge(func(p *pledge) bool { return now.CutAfter(p.Index) })
	if l.refused != nil && now.CutAfter(l.refused.Index) {
		l.refused = nil
	}
}

// interrupt makes the lane begin anew at the newest base. Called by the feeder.
func (l *lane) interrupt(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.empty()
	l.again = true
	l.order(why)
}

// rejoin puts the lane back on the feed if gen is still the catch-up in charge.
// Called with the feeder's lock held.
func (l *lane) rejoin(gen uint64) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gen != gen {
		return false, errSuperseded
	}
	l.live = true
	if len(l.queue) == 0 && l.bytes == 0 {
		l.oldest = 0
		l.unblock()
	}
	return true, nil
}

// startCatchUp begins to read again if that is due and there is room.
func (l *lane) startCatchUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.resume == nil || l.bytes > l.f.a.cfg.LaneBytes/2 {
		return
	}
	from := l.resume
	l.resume = nil
	l.gen++
	gen := l.gen
	ctx, cancel := context.WithCancel(l.ctx)
	l.end = cancel
	l.f.a.wg.Add(1)
	go func() {
		defer l.f.a.wg.Done()
		defer cancel()
		err := l.f.catchUp(ctx, l, from, gen)
		var d *distrust
		switch {
		case err == nil || errors.Is(err, errSuperseded) || ctx.Err() != nil:
		case errors.As(err, &d):
			l.quarantine(d.reason)
		default:
			l.f.a.cancel(err)
		}
	}()
}

// take hands the queue to the pipe. The bytes stay counted until release.
func (l *lane) take() []item {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.again || l.trim != nil {
		return nil
	}
	q := l.queue
	l.queue = nil
	return q
}

// release gives memory back. l.mu is held.
func (l *lane) release(n load) {
	l.bytes -= n.bytes
	l.batches -= n.batches
	l.f.bytes.Add(-n.bytes)
	l.f.batches.Add(-n.batches)
	signal(l.room)
}
