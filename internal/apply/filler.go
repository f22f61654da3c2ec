package apply

import (
	"context"
	"errors"
	"fmt"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/kafkawire"
)

// gap fills the offsets up to an offset, where a batch at the given place
// follows. Fillers carry the identity that batches there would have: the
// broker takes no other.
func (s *stretch) gap(ctx context.Context, to int64, next identity) error {
	here, n := s.at.next, to-s.at.pos
	switch {
	case !here.known:
		here = next.after(-n)
	case here.epoch == next.epoch:
		if here.after(n) != next {
			return wrongf("at offset %d it has sequence %d, %d offsets behind sequence %d", to, next.seq, n, here.seq)
		}
	case here.epoch > next.epoch || int64(next.seq) > n:
		return wrongf("at offset %d it has epoch %d sequence %d, %d offsets behind epoch %d sequence %d",
			to, next.epoch, next.seq, n, here.epoch, here.seq)
	default: // the next epoch began in between, with sequence 0
		if err := s.fillers(ctx, to-int64(next.seq), here); err != nil {
			return err
		}
		here = identity{next.epoch, 0, true}
	}
	return s.fillers(ctx, to, here)
}

// fillers holds filler batches up to an offset, and pushes what becomes too
// much.
func (s *stretch) fillers(ctx context.Context, to int64, here identity) error {
	for s.at.pos < to {
		count := int32(min(to-s.at.pos, kafkawire.MaxFillerCount))
		raw := kafkawire.AppendFiller(nil, count, fsm.ApplierProducerID(s.r.l.tp.Topic), here.epoch, here.seq)
		b, _, err := kafkawire.ParseBatch(raw)
		if err != nil {
			return fmt.Errorf("make a filler of %d records: %w", count, err)
		}
		s.at.anchored = false
		s.hold(b)
		here = s.at.next
		// The broker reads every record: an offset is rated as a byte is.
		if err := s.r.c.bucket.take(ctx, int64(count)); err != nil {
			return err
		}
		if s.bytes > heldBytes {
			if err := s.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeSurvivors takes what compaction left of a batch: runs of records become
// batches of their own, what is between them is filled. Batches that end above
// the copy's end are taken up to there.
func (s *stretch) takeSurvivors(ctx context.Context, b kafkawire.Batch) error {
	end := s.r.want.NextOffset
	if whole(b) && b.BaseOffset() >= s.at.pos && lastOffset(b) < end {
		if err := s.gapBefore(ctx, b.BaseOffset(), identityOf(b)); err != nil {
			return err
		}
		if err := s.fits(identityOf(b)); err != nil {
			return err
		}
		s.hold(b)
		return s.spill()
	}
	if b.IsFiller() {
		return nil // a hole
	}
	run := survivors{s: s, b: b}
	err := kafkawire.VisitRecords(b, survivorBytes, func(rec kafkawire.Record) bool {
		offset := b.BaseOffset() + int64(rec.OffsetDelta)
		if offset >= s.at.pos+int64(len(run.records)) && offset < end {
			run.err = run.add(ctx, offset, rec)
		}
		return run.err == nil
	})
	if err != nil {
		return wrongf("the records at offset %d: %v", b.BaseOffset(), err)
	}
	if run.err == nil {
		run.err = run.close(ctx)
	}
	if run.err != nil {
		return run.err
	}
	return s.spill()
}

const (
	// survivorBytes bounds what one batch may decompress to. What was admitted
	// is below (kafkawire.DefaultMaxDecompressedBytes, as a default).
	survivorBytes = 1 << 30
	// runBytes is where a run of records is cut, so that a batch that
	// compressed well does not become one that is too large.
	runBytes = 1 << 20
)

// spill pushes what is held if it is much: nothing else will prove it.
func (s *stretch) spill() error {
	if s.bytes > heldBytes {
		return s.flush()
	}
	return nil
}

// gapBefore fills up to an offset if anything is missing.
func (s *stretch) gapBefore(ctx context.Context, to int64, next identity) error {
	if s.at.pos == to {
		return nil
	}
	return s.gap(ctx, to, next)
}

// survivors gathers records that follow each other.
type survivors struct {
	s       *stretch
	b       kafkawire.Batch
	base    int64 // offset of the first record
	records []kafkawire.Record
	bytes   int
	err     error
}

func (v *survivors) add(ctx context.Context, offset int64, rec kafkawire.Record) error {
	if n := int64(len(v.records)); n > 0 && (offset != v.base+n || v.bytes > runBytes) {
		if err := v.close(ctx); err != nil {
			return err
		}
	}
	if len(v.records) == 0 {
		v.base = offset
	}
	v.records = append(v.records, rec)
	v.bytes += len(rec.Payload)
	return nil
}

// close makes a batch of the records gathered, in their place.
func (v *survivors) close(ctx context.Context) error {
	if len(v.records) == 0 {
		return nil
	}
	here := identityOf(v.b).after(v.base - v.b.BaseOffset())
	if err := v.s.gapBefore(ctx, v.base, here); err != nil {
		return err
	}
	if err := v.s.fits(here); err != nil {
		return err
	}
	raw, err := kafkawire.AppendBatch(nil, v.b.Codec(), v.records, v.b.ProducerID(), here.epoch, here.seq)
	if err != nil {
		return wrongf("the records at offset %d: %v", v.base, err)
	}
	made, _, err := kafkawire.ParseBatch(raw)
	if err != nil {
		return fmt.Errorf("make a batch of %d records: %w", len(v.records), err)
	}
	v.s.hold(made)
	v.records, v.bytes = nil, 0
	return nil
}

// noteStart remembers where a partition's log began at the peer.
func (c *copier) noteStart(tp fsm.TP, start int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starts[tp] = max(c.starts[tp], start)
}

// startsAbove says whether this process copied the partition from a log that
// began above zero.
func (l *lane) startsAbove() bool {
	c, ok := l.f.a.copier.(*copier)
	if !ok {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.starts[l.tp] > 0
}

// restoreStart raises the broker's log start above the fillers that a copy
// began with, and to the log start that was committed. A broker forgets where
// its log began when it crashes within a minute of being told. start and end
// are the broker's; it returns the log start afterwards. It is called with the
// lane attached, before it serves, by the lane's goroutine.
func (l *lane) restoreStart(ctx context.Context, start, end int64) (int64, error) {
	c, ok := l.f.a.copier.(*copier)
	if !ok {
		return start, nil
	}
	c.mu.Lock()
	least := c.starts[l.tp]
	c.mu.Unlock()
	if base, err := l.f.base(); err == nil && base.Partitions[l.tp] != nil {
		least = max(least, base.Partitions[l.tp].LogStart)
	} else if l.birth != nil {
		least = max(least, l.birth.LogStart)
	}
	least = min(max(least, start), end)
	if !l.compacted { // there, fillers stand anywhere
		found, err := c.firstRecord(ctx, l, least, end)
		if err != nil {
			return start, err
		}
		least = found
	}
	if least <= start {
		return start, nil
	}
	now, err := c.cfg.Broker.DeleteRecords(ctx, l.name, l.tp.Partition, least)
	switch {
	case errors.Is(err, broker.ErrPolicy):
		return start, nil // a compacted topic keeps them, hidden
	case err != nil:
		return start, fmt.Errorf("raise the broker's log start: %w", err)
	}
	c.log.Info("raised the log start on the broker", "topic", l.name, "partition", l.tp.Partition, "from", start, "to", now)
	return now, nil
}

// firstRecord is the first offset from start on that no filler takes. Fillers
// stand at the beginning of a log alone, so a bisection finds it.
func (c *copier) firstRecord(ctx context.Context, l *lane, start, end int64) (int64, error) {
	lo, hi := start, end // everything below lo is filled, at hi is none
	for lo < hi {
		// The first look decides nearly always: no filler at all.
		mid := lo
		if lo > start {
			mid = lo + (hi-lo)/2
		}
		raw, _, err := c.cfg.Broker.Range(ctx, l.name, l.tp.Partition, mid, mid+1, 1)
		switch {
		case errors.Is(err, broker.ErrNoBatch):
			return start, nil // retention is at work
		case err != nil:
			return 0, fmt.Errorf("look for the first record: %w", err)
		}
		b, _, err := kafkawire.ParseBatch(raw)
		switch {
		case err == nil && b.IsFiller():
			lo = min(lastOffset(b)+1, end)
		case err == nil:
			hi = min(mid, b.BaseOffset())
		default:
			hi = mid
		}
	}
	return max(lo, start), nil
}
