package kafkawire

import (
	"errors"
	"fmt"
	"io"
)

// Record is one record of a batch read from a broker. Payload is what follows
// the offset delta as it is encoded, key, value and headers; Key and Value are
// within it, nil if null.
type Record struct {
	OffsetDelta int32
	TimestampMs int64
	Key, Value  []byte
	Payload     []byte
}

// VisitRecords calls visit for each record of a batch as a broker stores it,
// in order, until visit returns false. Offset deltas ascend, and may have gaps
// where compaction took records. A record's bytes may be kept. At most bound
// decompressed bytes are read: more is ErrMalformed, as is anything that
// cannot be parsed.
func VisitRecords(b Batch, bound int64, visit func(Record) bool) error {
	if b.Count() < 1 {
		return nil
	}
	v := recordVisit{batch: b, last: -1}
	if b.Codec() == codecNone {
		v.in = recordStream{buf: b[BatchHeaderLen:], left: bound}
	} else {
		inflated, release, err := openInflater(b.Codec(), b[BatchHeaderLen:])
		if err != nil {
			return fmt.Errorf("open %s records at offset %d: %w: %w", codecName(b.Codec()), b.BaseOffset(), ErrMalformed, err)
		}
		defer release()
		window := windows.Get().(*[inflateWindow]byte)
		defer windows.Put(window)
		v.in = recordStream{src: inflated, window: window, left: bound}
	}
	for i := range b.Count() {
		r, err := v.record()
		if err != nil {
			if v.in.err != nil && !errors.Is(v.in.err, io.EOF) {
				err = v.in.err
			}
			return fmt.Errorf("read record %d of the batch at offset %d: %w: %w", i, b.BaseOffset(), ErrMalformed, err)
		}
		if !visit(r) {
			return nil
		}
	}
	return nil
}

var (
	errRecordCut    = errors.New("record is cut off")
	errRecordLength = errors.New("lengths within the record do not fit it")
	errRecordOrder  = errors.New("offset deltas do not ascend within the batch")
)

type recordVisit struct {
	in    recordStream
	batch Batch
	last  int64 // offset delta of the record before
}

func (v *recordVisit) record() (Record, error) {
	length, ok := v.in.varint(5)
	if !ok || length < minRecordLen-1 {
		return Record{}, errRecordLength
	}
	raw, ok := v.in.take(length)
	if !ok {
		return Record{}, errRecordCut
	}
	in := recordStream{buf: raw, pos: 1} // attributes: none is defined
	timestamp, ok := in.varint(10)
	if !ok {
		return Record{}, errRecordLength
	}
	delta, ok := in.varint(5)
	if !ok {
		return Record{}, errRecordLength
	}
	if delta <= v.last || delta > int64(v.batch.LastOffsetDelta()) {
		return Record{}, errRecordOrder
	}
	v.last = delta
	r := Record{OffsetDelta: int32(delta), TimestampMs: v.batch.BaseTimestamp() + timestamp, Payload: raw[in.pos:]}
	if r.Key, ok = in.field(); ok {
		r.Value, ok = in.field()
	}
	if !ok {
		return Record{}, errRecordLength
	}
	return r, nil
}

// take returns the next n bytes in memory of their own, which grows only as
// bytes come.
func (s *recordStream) take(n int64) ([]byte, bool) {
	if s.src == nil && n > int64(len(s.buf)-s.pos) {
		return nil, false
	}
	out := make([]byte, 0, min(n, inflateWindow))
	for int64(len(out)) < n {
		if !s.fill(1) {
			return nil, false
		}
		step := int(min(n-int64(len(out)), int64(len(s.buf)-s.pos)))
		out = append(out, s.buf[s.pos:s.pos+step]...)
		s.pos += step
	}
	return out, true
}

// field returns bytes with a length before them, nil for length -1. Only for a
// stream that is in view as a whole.
func (s *recordStream) field() ([]byte, bool) {
	n, ok := s.varint(5)
	switch {
	case !ok || n < -1 || n > int64(len(s.buf)-s.pos):
		return nil, false
	case n == -1:
		return nil, true
	}
	s.pos += int(n)
	return s.buf[s.pos-int(n) : s.pos : s.pos], true
}
