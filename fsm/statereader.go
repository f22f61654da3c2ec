package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
)

// stateReader reads an encoded state. The first error sticks, and what is read
// after it is zero.
type stateReader struct {
	rest []byte
	err  error
}

func (r *stateReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrCorruptState)
	}
}

// number reads a number that is at most limit.
func (r *stateReader) number(what string, limit uint64) uint64 {
	if r.err != nil {
		return 0
	}
	v, n := uvarint(r.rest)
	if n <= 0 {
		r.fail("%s is cut off", what)
		return 0
	}
	if v > limit {
		r.fail("%s is %d, more than %d", what, v, limit)
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// int62 reads a number that can still grow for ever.
func (r *stateReader) int62(what string) int64 { return int64(r.number(what, 1<<62)) }

func (r *stateReader) int63(what string) int64 { return int64(r.number(what, math.MaxInt64)) }
func (r *stateReader) int31(what string) int32 { return int32(r.number(what, math.MaxInt32)) }
func (r *stateReader) int15(what string) int16 { return int16(r.number(what, math.MaxInt16)) }

// count reads how many elements follow, each of at least size bytes: a number
// that cannot be true takes no memory.
func (r *stateReader) count(what string, size int) int {
	return int(r.number("number of "+what, uint64(len(r.rest)/size)))
}

// bytes reads n bytes; they alias the input.
func (r *stateReader) bytes(what string, n int) []byte {
	if r.err == nil && n > len(r.rest) {
		r.fail("%s is cut off", what)
	}
	if r.err != nil {
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *stateReader) string(what string) string {
	return string(r.bytes(what, r.count("bytes of "+what, 1)))
}

func (r *stateReader) uint64(what string) uint64 {
	if b := r.bytes(what, 8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *stateReader) uint32(what string) uint32 {
	if b := r.bytes(what, 4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// document reads JSON that must be as this build writes it.
func (r *stateReader) document(what string, into any) {
	b := r.bytes(what, r.count("bytes of "+what, 1))
	if r.err != nil {
		return
	}
	if err := decodeControl(b, into); err != nil {
		r.fail("%s: %v", what, err)
	} else if !bytes.Equal(mustJSON(into), b) {
		r.fail("%s is not as it was written", what)
	}
}
