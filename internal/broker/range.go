package broker

import (
	"context"
	"errors"
	"fmt"
)

// Range reads about maxBytes of whole batches of a partition with one request,
// exactly as the broker stores them: the first holds offset from or, where
// compaction took that, is the next one above it; none begins at to or above.
// A first batch above maxBytes comes alone. No batch at all means that nothing
// stands in [from, to). It returns the log start offset too, also with
// ErrNoBatch, which says that from lies below it or beyond the log end.
func (r *Reader) Range(ctx context.Context, topic string, partition int32, from, to int64, maxBytes int32) (batches []byte, start int64, err error) {
	want := scanRange{topic, partition, from, to, maxBytes}
	batches, start, err = r.readRange(ctx, want)
	if errors.Is(err, ErrNoBatch) {
		// An answer to an offset out of range does not name the log start.
		var listed error
		if start, listed = r.listOffset(ctx, topic, partition, earliestTimestamp); listed != nil {
			err = listed
		}
	}
	if err != nil {
		return nil, start, fmt.Errorf("read batches of %s/%d from %d to %d: %w", topic, partition, from, to, err)
	}
	return batches, start, nil
}

// errStop ends a scan that has what it wants.
var errStop = errors.New("enough")

func (r *Reader) readRange(ctx context.Context, want scanRange) (batches []byte, start int64, err error) {
	for {
		records, logStart, err := r.fetchFrom(ctx, want)
		if err != nil {
			return nil, 0, err
		}
		var out []byte
		_, need, err := walk(records, want, func(batch []byte, _ span) error {
			if len(out)+len(batch) > int(want.maxBytes) && len(out) > 0 {
				return errStop
			}
			out = append(out, batch...)
			return nil
		})
		switch {
		case err != nil && !errors.Is(err, errStop):
			return nil, 0, err
		case len(out) > 0 || need == 0:
			return out, logStart, nil
		case need > r.cfg.MaxResponseBytes-smallFetch:
			return nil, 0, fmt.Errorf("%w: batch of %d bytes at offset %d is above the response limit", ErrMalformed, need, want.from)
		case int64(need) <= int64(want.maxBytes):
			return nil, 0, fmt.Errorf("%w: %d bytes asked, the batch of %d bytes at offset %d came cut off", ErrMalformed, want.maxBytes, need, want.from)
		}
		want.maxBytes = int32(need)
	}
}
