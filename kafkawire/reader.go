package kafkawire

import (
	"encoding/binary"
	"fmt"
)

// maxTags bounds the tagged fields of one message part. The protocol has at
// most a handful; a peer that sends more is not a client.
const maxTags = 64

// reader walks a message. Its error is sticky: after the first fault every
// call returns a zero value and the walk ends at the next look at err.
type reader struct {
	buf []byte
	pos int
	err error
}

func (r *reader) remaining() int { return len(r.buf) - r.pos }

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s at byte %d of %d", ErrMalformed, what, r.pos, len(r.buf))
	}
	r.pos = len(r.buf)
}

// span returns the next n bytes, aliasing the message.
func (r *reader) span(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n < 0 || n > r.remaining() {
		r.fail("length out of bounds")
		return nil
	}
	b := r.buf[r.pos : r.pos+n : r.pos+n]
	r.pos += n
	return b
}

func (r *reader) int8() int8 {
	if b := r.span(1); b != nil {
		return int8(b[0])
	}
	return 0
}

func (r *reader) int16() int16 {
	if b := r.span(2); b != nil {
		return int16(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (r *reader) int32() int32 {
	if b := r.span(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (r *reader) int64() int64 {
	if b := r.span(8); b != nil {
		return int64(binary.BigEndian.Uint64(b))
	}
	return 0
}

// uvarint reads an unsigned varint of at most 5 bytes and 32 bits.
func (r *reader) uvarint() uint32 {
	if r.err != nil {
		return 0
	}
	var v uint64
	for i := 0; i < 5; i++ {
		if r.pos+i >= len(r.buf) {
			r.fail("varint is cut off")
			return 0
		}
		c := r.buf[r.pos+i]
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if v > 1<<32-1 {
				break
			}
			r.pos += i + 1
			return uint32(v)
		}
	}
	r.fail("varint is too long")
	return 0
}

// compactLen reads a compact length: stored plus one, so that 0 is null (-1).
func (r *reader) compactLen() int {
	return int(r.uvarint()) - 1
}

// arrayLen reads an array's length; null is -1. least is the smallest encoding
// in bytes of one element: a length that cannot fit in what is left is refused
// before anyone takes memory for it.
func (r *reader) arrayLen(flexible bool, least int) int {
	n := 0
	if flexible {
		n = r.compactLen()
	} else {
		n = int(r.int32())
	}
	if r.err == nil && (n < -1 || n > r.remaining()/least) {
		r.fail("array length out of bounds")
	}
	if r.err != nil {
		return 0
	}
	return n
}

// array is arrayLen for an array that may not be null.
func (r *reader) array(flexible bool, least int) int {
	n := r.arrayLen(flexible, least)
	if n < 0 {
		r.fail("array is null")
		return 0
	}
	return n
}

// nullableString returns the bytes of a string, nil if it is null.
func (r *reader) nullableString(flexible bool) []byte {
	n := 0
	if flexible {
		n = r.compactLen()
	} else {
		n = int(r.int16())
	}
	if n == -1 && r.err == nil {
		return nil
	}
	return r.span(n)
}

func (r *reader) string(flexible bool) []byte {
	s := r.nullableString(flexible)
	if s == nil {
		r.fail("string is null")
	}
	return s
}

// nullableBytes returns a byte field, nil if it is null.
func (r *reader) nullableBytes(flexible bool) []byte {
	n := 0
	if flexible {
		n = r.compactLen()
	} else {
		n = int(r.int32())
	}
	if n == -1 && r.err == nil {
		return nil
	}
	return r.span(n)
}

// tags skips a section of tagged fields and returns how many there were.
func (r *reader) tags(flexible bool) int {
	if !flexible {
		return 0
	}
	n := r.uvarint()
	if n > maxTags {
		r.fail("too many tagged fields")
		return 0
	}
	for range n {
		r.uvarint() // tag
		r.span(int(r.uvarint()))
	}
	return int(n)
}

// end reports the first fault, or bytes left over after the message.
func (r *reader) end() error {
	if r.err == nil && r.remaining() > 0 {
		r.fail("bytes after the end")
	}
	return r.err
}
