package apply

import (
	"context"
	"fmt"

	"lockstep/fsm"
	"lockstep/kafkawire"
)

// stretch is what one peer brings in one turn: batches that are held until a
// checkpoint proves them.
type stretch struct {
	r    *copyRun
	node int32
	at   point // behind what is held
	ask  int64 // what is asked for next: at or above at.pos
	hole bool  // the peer's log begins at ask: nothing stands between at.pos and there

	held  []heldItem
	bytes int64
}

type heldItem struct {
	item
	behind point
}

// run takes batches from the peer until there are no more to take.
func (s *stretch) run(ctx context.Context) error {
	end := s.r.want.NextOffset
	for s.at.pos < end {
		if s.ask >= end {
			return s.finish(ctx)
		}
		answer, err := s.r.ask(ctx, s.node, s.ask, copyBytes)
		if err != nil {
			return err
		}
		if answer.status == copyBelowStart {
			s.r.c.noteStart(s.r.l.tp, min(answer.start, end))
			s.ask, s.hole = min(answer.start, end), true
			continue
		}
		if len(answer.batches) == 0 {
			if answer.end < end {
				return fmt.Errorf("its log ends at offset %d", answer.end)
			}
			if !s.r.l.compacted && !s.hole {
				return wrongf("there is nothing at offset %d", s.ask)
			}
			s.ask = end
			continue
		}
		if err := s.takeAll(ctx, answer.batches); err != nil {
			return err
		}
	}
	return s.finish(ctx)
}

// takeAll takes the batches of one answer.
func (s *stretch) takeAll(ctx context.Context, raw []byte) error {
	for len(raw) > 0 {
		b, rest, err := kafkawire.ParseBatch(raw)
		if err != nil {
			return wrongf("the bytes at offset %d are no batch: %v", s.ask, err)
		}
		if err := sound(s.r.l.tp.Topic, b); err != nil {
			return err
		}
		if b.BaseOffset() >= s.r.want.NextOffset {
			s.ask = s.r.want.NextOffset
			return nil
		}
		behind := lastOffset(b) + 1
		if behind <= s.ask {
			return wrongf("the batch at offset %d comes when offset %d was asked for", b.BaseOffset(), s.ask)
		}
		if s.r.l.compacted {
			err = s.takeSurvivors(ctx, b)
		} else {
			err = s.take(ctx, b)
		}
		if err != nil {
			return err
		}
		s.ask = behind
		raw = rest
	}
	return nil
}

// take takes one batch of a log without holes.
func (s *stretch) take(ctx context.Context, b kafkawire.Batch) error {
	switch base := b.BaseOffset(); {
	case !whole(b) || lastOffset(b) >= s.r.want.NextOffset:
		return wrongf("the batch at offset %d+%d is not whole, or passes over the end at offset %d", base, b.LastOffsetDelta(), s.r.want.NextOffset)
	case base < s.at.pos || base > s.at.pos && !s.hole:
		return wrongf("the batch at offset %d should stand at offset %d", base, s.at.pos)
	case base > s.at.pos:
		if err := s.gap(ctx, base, identityOf(b)); err != nil {
			return err
		}
	}
	s.hole = false
	if err := s.fits(identityOf(b)); err != nil {
		return err
	}
	s.hold(b)
	for _, cp := range s.r.want.Checkpoints {
		switch {
		case cp.Offset == s.at.pos:
			return s.meet(ctx, cp)
		case cp.Offset > b.BaseOffset() && cp.Offset < s.at.pos:
			return wrongf("the batch at offset %d+%d passes over offset %d, where one ends", b.BaseOffset(), b.LastOffsetDelta(), cp.Offset)
		}
	}
	if s.bytes > heldBytes && s.at.pos < s.r.want.NextOffset {
		s.r.proved = false
		return s.flush()
	}
	return nil
}

// fits checks that a batch goes on where the one before it ended, or begins
// the next epoch.
func (s *stretch) fits(p identity) error {
	was := s.at.next
	switch {
	case !was.known, p == was, p.epoch > was.epoch && p.seq == 0:
		return nil
	}
	return wrongf("at offset %d it has epoch %d sequence %d behind epoch %d sequence %d", s.at.pos, p.epoch, p.seq, was.epoch, was.seq)
}

// hold puts a whole batch behind what is held.
func (s *stretch) hold(b kafkawire.Batch) {
	s.at.next = identityOf(b).after(int64(b.Count()))
	if s.at.anchored {
		s.at.hash = fsm.ChainHash(s.at.hash, s.at.pos, len(b), b.CRC())
	}
	it := item{base: s.at.pos, count: b.Count(), seq: b.BaseSequence(), epoch: b.ProducerEpoch(), crc: b.CRC(),
		maxMs: b.MaxTimestamp(), raw: b}
	s.at.pos = it.end()
	s.held = append(s.held, heldItem{it, s.at})
	s.bytes += it.size()
}

// meet compares the chain with a checkpoint, or begins it there.
func (s *stretch) meet(ctx context.Context, cp fsm.Checkpoint) error {
	if s.at.anchored && s.at.hash != cp.Hash {
		return s.r.blame(ctx, s.node, cp)
	}
	s.at.hash, s.at.anchored = cp.Hash, true
	if err := s.flush(); err != nil {
		return err
	}
	s.r.at = s.at
	s.r.mark, s.r.proved = cp, true
	return nil
}

// flush pushes what is held.
func (s *stretch) flush() error {
	for i := range s.held {
		h := &s.held[i]
		if err := s.r.push(h.item); err != nil {
			return &pushError{err}
		}
		s.r.at = h.behind
		s.r.showAt(h.end())
	}
	clear(s.held)
	s.held, s.bytes = s.held[:0], 0
	return nil
}

// finish compares the end of the copy with what was committed, and pushes the
// rest.
func (s *stretch) finish(ctx context.Context) error {
	w := s.r.want
	if s.at.pos < w.NextOffset {
		if err := s.gap(ctx, w.NextOffset, identity{w.Epoch, w.Sequence, true}); err != nil {
			return err
		}
	}
	if s.r.l.compacted {
		return s.flush()
	}
	if s.at.anchored && s.at.hash != w.Hash {
		return s.r.blame(ctx, s.node, fsm.Checkpoint{Offset: w.NextOffset, Hash: w.Hash})
	}
	if n := len(s.held); n > 0 && w.LastBatch.Count > 0 && !s.held[n-1].raw.IsFiller() {
		it, lb := &s.held[n-1].item, &w.LastBatch
		if it.base != lb.Base || it.count != lb.Count || it.crc != lb.CRC || it.seq != lb.Sequence || it.epoch != lb.Epoch {
			return wrongf("its last batch, at offset %d+%d, is not the one committed at %d+%d", it.base, it.count, lb.Base, lb.Count)
		}
	}
	return s.flush()
}
