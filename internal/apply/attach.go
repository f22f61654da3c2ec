package apply

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lockstep/internal/broker"
	"lockstep/internal/mutant"
	"lockstep/kafkawire"
)

// attachment is what the broker held when the lane attached.
type attachment struct {
	sess    Session
	revoked <-chan struct{}
	results chan broker.Result // answers, in the order in which the items were sent; nil before the first
	end     int64
	last    kafkawire.Batch // nil if the log is empty or its tail was deleted
	agreed  bool            // the log below end is what was committed
	since   time.Time
	fresh   uint64 // number of the leader's last mark before
	success bool   // an append succeeded since
}

// look reads what the broker holds of the partition.
func (l *lane) look(ctx context.Context) (*attachment, error) {
	b := l.f.a.cfg.Broker
	l.lookAtStart()
	start, end, err := b.LogEnd(ctx, l.name, l.tp.Partition)
	if err != nil {
		return nil, fmt.Errorf("read the log end offset: %w", err)
	}
	if start, err = l.restoreStart(ctx, start, end); err != nil {
		return nil, err
	}
	at := &attachment{end: end, since: time.Now(), fresh: l.f.fresh.Get().n}
	if end == start {
		return at, nil
	}
	raw, err := b.LastBatch(ctx, l.name, l.tp.Partition, end)
	switch {
	case errors.Is(err, broker.ErrNoBatch) && l.compacted:
		return at, nil // the cleaner took it
	case err != nil:
		return nil, fmt.Errorf("read the last batch: %w", err)
	}
	if at.last, _, err = kafkawire.ParseBatch(l.asCommitted(raw)); err != nil {
		return nil, CauseCorrupt.distrust("the broker's last batch before offset %d is unreadable: %v", end, err)
	}
	if diff := foreign(l.tp.Topic, at.last); diff != "" {
		return nil, CauseForeign.distrust("the broker's last batch, at offset %d, %s", at.last.BaseOffset(), diff)
	}
	return at, nil
}

// begin compares the broker's end with what is known to have stood there, and
// where the lane's items begin with both. Where they cannot meet, the lane
// begins anew at the newest base.
func (p *pipe) begin(at *attachment) error {
	l := p.l
	if mutant.On(mutant.SkipEndOffsetCheck) || mutant.On(mutant.StartOverOnEmptyBroker) && at.end == 0 {
		at.agreed = true
		return nil
	}
	acked := l.acked // only this goroutine writes it
	known := max(acked, l.floor.end())
	switch {
	case p.adrift:
	case at.end < known:
		p.startOver()
	}
	if p.adrift {
		if err := p.source(at, acked); err != nil {
			return err
		}
		known = l.floor.end()
	}
	if at.end > known {
		return nil // the items say what must stand there
	}
	if p.last == nil && l.floor.count > 0 {
		p.last = l.floor.trace()
	}
	if p.last != nil && at.last != nil && p.last.end() == at.end {
		if diff := p.last.compare(l.tp.Topic, at.last, l.compacted); diff != "" {
			return CauseDivergent.distrust("the broker's last batch %s", diff)
		}
	} // else its tail was deleted by retention: nothing to compare
	p.agreed(at)
	l.advance(at.end, load{}, p.oldest())
	return nil
}

// agreed notes that the broker holds what was committed, up to its end.
func (p *pipe) agreed(at *attachment) {
	l := p.l
	at.agreed = true
	l.mu.Lock()
	copying := l.need > 0
	l.mu.Unlock()
	if old := l.based || at.end > 0; old && !p.attached && !copying {
		l.f.a.took(l, PathReplay, "log-end-offset", at.end)
	}
	p.attached = true
}

// oldest is the entry of the first item that the pipe holds, 0 if none.
func (p *pipe) oldest() uint64 {
	if len(p.pending) == 0 {
		return 0
	}
	return p.pending[0].index
}

// startOver forgets everything that waits: the next attach begins at the
// newest base.
func (p *pipe) startOver() {
	l := p.l
	p.pending, p.last, p.adrift = nil, nil, true
	l.f.doubts.Add(1) // what was applied may be no more
	l.mu.Lock()
	defer l.mu.Unlock()
	l.empty()
	l.release(l.load)
	l.again, l.trim, l.settled = false, nil, false
	l.acked, l.need, l.hitch = 0, 0, ""
	l.oldest = max(l.f.baseIndex.Load(), 1)
}

// source makes the lane's items begin at the newest base, or before it, with a
// copy, if the broker lacks what lies below.
func (p *pipe) source(at *attachment, acked int64) error {
	l := p.l
	base, err := l.f.base()
	if err != nil {
		return err
	}
	l.f.passOver(l, base.Index)
	r := &resume{from: base.Only(l.tp), birth: l.birth}
	l.mu.Lock()
	r.shorten(l.tp, l.cuts)
	l.mu.Unlock()
	r.pos = r.end(l.tp)
	var floor item
	if part := r.state(l.tp); part != nil {
		floor = floorOf(part)
	}
	var need int64
	if at.end < r.pos {
		need = r.pos
		floor, r.pos, r.last = at.floor(), at.end, at.last
	}
	p.adrift = false
	l.mu.Lock()
	l.floor, l.resume, l.need, l.begun = floor, r, need, base.Index
	l.oldest = r.oldest()
	l.mu.Unlock()
	switch {
	case need > 0 && at.end == 0 && l.birth != nil && need == l.birth.NextOffset:
		l.f.a.took(l, PathAdopt, "copied-up-to", need)
	case need > 0 && at.end == 0:
		l.f.a.took(l, PathWiped, "log-end-offset", at.end, "copied-up-to", need)
	case need > 0:
		l.f.a.took(l, PathCopy, "log-end-offset", at.end, "copied-up-to", need)
	case at.end < acked:
		l.f.a.took(l, PathShorter, "log-end-offset", at.end, "was", acked)
	}
	if need > 0 {
		l.f.lacks()
	}
	return nil
}

// floor is the broker's last batch as what stands before a lane's items.
func (at *attachment) floor() item {
	b := at.last
	if b == nil || b.BaseOffset()+int64(b.LastOffsetDelta())+1 != at.end {
		return item{base: at.end}
	}
	return item{base: b.BaseOffset(), count: b.LastOffsetDelta() + 1, seq: b.BaseSequence(), epoch: b.ProducerEpoch(), crc: b.CRC()}
}

// agree passes over items that the broker already has, up to the one that
// stands last in its log, and compares that one.
func (p *pipe) agree(at *attachment) error {
	if at.agreed {
		return nil
	}
	for {
		if len(p.pending) == 0 {
			p.pending = p.l.take()
			if len(p.pending) == 0 {
				return nil
			}
		}
		it := p.pending[0]
		switch {
		case it.end() < at.end:
			p.drop(0)
		case it.end() == at.end:
			if at.last != nil {
				if diff := it.compare(p.l.tp.Topic, at.last, p.l.compacted); diff != "" {
					return CauseDivergent.distrust("the broker's last batch %s", diff)
				}
			}
			p.last = it.trace()
			p.drop(at.end)
			p.agreed(at)
			return nil
		case it.base < at.end && p.l.compacted && it.continues(at):
			return p.goOnInside(at)
		case it.base < at.end:
			return CauseDivergent.distrust("the broker's log ends at offset %d, inside the committed batch %d+%d", at.end, it.base, it.count)
		default:
			// Items begin above the broker's end: they were taken up
			// when the broker had more. Read again.
			p.startOver()
			return errAgain
		}
	}
}

// tooLong decides whether a broker that holds more than this node has seen of
// the log holds more than was committed. That is so if a leader named its
// commit index twice since the attach, everything up to it has passed here, and
// time enough went by for the word of a leader that was deposed to be gone.
// Until then the partition is not served, which is all the hurry there is.
func (p *pipe) tooLong(at *attachment, m mark) error {
	l := p.l
	if len(p.pending) > 0 {
		return nil
	}
	l.trouble(fmt.Sprintf("the broker's log ends at offset %d; the committed log is not read that far yet", at.end))
	if m.n < at.fresh+2 || time.Since(at.since) < l.f.a.conclusionAfter {
		return nil
	}
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f.cursor < max(m.index, l.f.log.Applied().Get()) || !l.live || l.again || len(l.queue) > 0 {
		return nil
	}
	part := l.f.tail.Partitions[l.tp]
	if part == nil || at.end <= part.NextOffset {
		return nil
	}
	return CauseTooLong.distrust("the broker's log ends at offset %d, but only %d offsets were ever committed: something else writes to it", at.end, part.NextOffset)
}
