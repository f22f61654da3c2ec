package broker

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Record batch v2 header, as far as a log reader needs it (Kafka's
// DefaultRecordBatch): baseOffset 0, batchLength 8, magic 16, lastOffsetDelta
// 23; 61 bytes in all.
const (
	batchPrefix     = 12 // baseOffset and batchLength, not counted by batchLength
	batchHeader     = 61
	magicAt         = 16
	lastOffsetDelta = 23
)

// span is where a batch lies in the log.
type span struct {
	base, last int64 // first and last offset
	size       int   // bytes including the prefix
}

// nextBatch reads the header of the batch at the start of b. ok is false when
// b ends before the batch does, as the last batch of a Fetch answer may; size
// is then the bytes needed, or 0 if not even that is known.
func nextBatch(b []byte) (s span, ok bool, err error) {
	if len(b) < batchPrefix {
		return span{}, false, nil
	}
	s.base = int64(binary.BigEndian.Uint64(b))
	length := int64(int32(binary.BigEndian.Uint32(b[8:])))
	if s.base < 0 || length < batchHeader-batchPrefix {
		return span{}, false, fmt.Errorf("%w: batch length %d at offset %d", ErrMalformed, length, s.base)
	}
	s.size = int(length) + batchPrefix
	if len(b) < s.size {
		return s, false, nil
	}
	if b[magicAt] != 2 {
		return span{}, false, fmt.Errorf("%w: batch of magic %d at offset %d, only 2 is supported", ErrMalformed, b[magicAt], s.base)
	}
	delta := int32(binary.BigEndian.Uint32(b[lastOffsetDelta:]))
	s.last = s.base + int64(delta)
	if delta < 0 || s.last < s.base || s.last == math.MaxInt64 {
		return span{}, false, fmt.Errorf("%w: last offset delta %d at offset %d", ErrMalformed, delta, s.base)
	}
	return s, true, nil
}
