package kafkawire

import "encoding/binary"

// PatchFetchHead looks at the start of the body of a Fetch response (versions 4
// to 12) of size bytes, of which head has come. It reports true if all that can
// need a look stands in there: the response is of one partition and without
// errors, sessions and aborted transactions, and what comes behind head is
// records to the end. The preferred read replica, if one is named, is removed
// then, in place. On false nothing was written; the whole response is to be
// walked when it has come.
//
// From version 12 on three sections of tagged fields follow the records. They
// have one byte each, or the lengths would not add up, and so are empty.
func PatchFetchHead(version int16, size int, head []byte) bool {
	if version < fetchMin || version > fetchMax || size < len(head) {
		return false
	}
	w := fetchResponseWalk{reader: reader{buf: head}, version: version, flexible: version >= 12}
	w.int32() // throttle time
	if version >= 7 && (w.int16() != 0 || w.int32() != 0) {
		return false
	}
	const one = 1
	if w.array(w.flexible, one) != 1 {
		return false
	}
	w.string(w.flexible)
	if w.array(w.flexible, one) != 1 {
		return false
	}
	fixed := respLogStartOffset
	if version >= 5 {
		fixed += 8
	}
	p := FetchResponsePartition{head: w.span(fixed)}
	if w.err != nil || p.ErrorCode() != 0 || w.arrayLen(w.flexible, one) > 0 {
		return false
	}
	if version >= 11 {
		p.preferred = w.span(4)
	}
	records, tags := 0, 0
	if w.flexible {
		records, tags = w.compactLen(), 3
	} else {
		records = int(w.int32())
	}
	if w.err != nil || records < 0 || w.pos+records+tags != size {
		return false
	}
	if p.preferred != nil {
		binary.BigEndian.PutUint32(p.preferred, ^uint32(0))
	}
	return true
}
