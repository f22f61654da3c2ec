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
	results chan broker.Result // answers, in the order in which the items were sent
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
	start, end, err := b.LogEnd(ctx, l.name, l.tp.Partition)
	if err != nil {
		return nil, fmt.Errorf("read the log end offset: %w", err)
	}
	at := &attachment{end: end, since: time.Now(), fresh: l.f.fresh.Get().n, results: make(chan broker.Result, maxInFlight)}
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
	if at.last, _, err = kafkawire.ParseBatch(raw); err != nil {
		return nil, distrustf("the broker's last batch before offset %d is unreadable: %v", end, err)
	}
	if diff := foreign(l.tp.Topic, at.last); diff != "" {
		return nil, distrustf("the broker's last batch, at offset %d, %s", at.last.BaseOffset(), diff)
	}
	return at, nil
}

// begin compares the broker's end with what this process already knew of it.
func (p *pipe) begin(at *attachment) error {
	l := p.l
	acked := l.acked // only this goroutine writes it
	if mutant.On(mutant.SkipEndOffsetCheck) {
		at.agreed = true
		return nil
	}
	switch {
	case at.end < acked:
		l.f.a.log.Warn("the broker's log is shorter than it was: filling it again from the raft log",
			"topic", l.name, "partition", l.tp.Partition, "log-end-offset", at.end, "was", acked)
		p.pending, p.last = nil, nil
		l.rewind()
		at.agreed = at.end == 0
	case at.end > acked || acked == 0:
		at.agreed = at.end == 0
	case p.last != nil && at.last != nil:
		if diff := p.last.compare(l.tp.Topic, at.last, l.compacted); diff != "" {
			return distrustf("the broker's last batch %s", diff)
		}
		at.agreed = true
	default:
		at.agreed = true // its tail was deleted by retention: nothing to compare
	}
	return nil
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
					return distrustf("the broker's last batch %s", diff)
				}
			}
			p.last = it.trace()
			p.drop(at.end)
			at.agreed = true
			return nil
		case it.base < at.end:
			return distrustf("the broker's log ends at offset %d, inside the committed batch %d+%d", at.end, it.base, it.count)
		default:
			// Items begin above the broker's end: they were taken up
			// when the broker had more. Read again.
			p.pending = nil
			p.l.rewind()
			return nil
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
	if l.f.cursor < max(m.index, l.f.log.Applied().Get()) || !l.live || len(l.queue) > 0 {
		return nil
	}
	part := l.f.tail.Partitions[l.tp]
	if part == nil || at.end <= part.NextOffset {
		return nil
	}
	return distrustf("the broker's log ends at offset %d, but only %d offsets were ever committed: something else writes to it", at.end, part.NextOffset)
}
