package kafkawire

import (
	"encoding/binary"
	"errors"
)

var errSnappy = errors.New("snappy block is malformed")

// snappyMaxRatio is above what one byte of a snappy block can expand to: a
// copy of three bytes yields at most 64.
const snappyMaxRatio = 22

// snappyBlock decompresses one raw snappy block (format_description.txt of
// google/snappy) and accepts nothing beyond that format. The claimed length is
// bounded by what the block can expand to before memory is taken.
func (r *blockReader) snappyBlock(src []byte) ([]byte, error) {
	size, n := binary.Uvarint(src)
	if n <= 0 || n > 5 || size > uint64(len(src))*snappyMaxRatio {
		return nil, errSnappy
	}
	dst := r.room(int(size))
	filled, ok := snappyExpand(dst, src[n:])
	if !ok || filled != len(dst) {
		return nil, errSnappy
	}
	return dst, nil
}

// snappyExpand writes the elements of src to dst and returns how far it came.
func snappyExpand(dst, src []byte) (d int, ok bool) {
	for s := 0; s < len(src); {
		length, offset, used := snappyElement(src[s:])
		if used == 0 || length > len(dst)-d {
			return d, false
		}
		s += used
		if offset == 0 { // a literal
			if length > len(src)-s {
				return d, false
			}
			copy(dst[d:], src[s:s+length])
			s, d = s+length, d+length
			continue
		}
		if offset < 0 || offset > d {
			return d, false
		}
		// Source and target may overlap: copy what is there, which doubles
		// at each turn.
		for from, end := d-offset, d+length; d < end; {
			d += copy(dst[d:end], dst[from:d])
		}
	}
	return d, true
}

// snappyElement decodes the element at the start of src. A literal has offset
// 0; a copy whose offset is 0 gets -1. used is 0 if src ends inside.
func snappyElement(src []byte) (length, offset, used int) {
	tag := src[0]
	switch tag & 3 {
	case 0:
		return snappyLiteral(src)
	case 1:
		if len(src) < 2 {
			return 0, 0, 0
		}
		length, offset, used = 4+int(tag>>2&7), int(tag&0xe0)<<3|int(src[1]), 2
	case 2:
		if len(src) < 3 {
			return 0, 0, 0
		}
		length, offset, used = 1+int(tag>>2), int(binary.LittleEndian.Uint16(src[1:])), 3
	default:
		if len(src) < 5 {
			return 0, 0, 0
		}
		length, offset, used = 1+int(tag>>2), int(binary.LittleEndian.Uint32(src[1:])), 5
	}
	if offset == 0 {
		offset = -1
	}
	return length, offset, used
}

func snappyLiteral(src []byte) (length, offset, used int) {
	n := int(src[0] >> 2)
	if n < 60 {
		return n + 1, 0, 1
	}
	extra := n - 59 // bytes of length that follow
	if len(src) < 1+extra {
		return 0, 0, 0
	}
	for i := extra; i > 0; i-- {
		length = length<<8 | int(src[i])
	}
	return length + 1, 0, 1 + extra
}
