package transport

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Layout of one frame on a call connection, numbers big-endian:
//
//	length 4 | id 8 | kind 1 | method 1 | part of a payload
//
// length counts what follows it. A payload above maxChunk travels as several
// frames with the same id, kind and method, all but the last with moreFollows
// set, and frames of other ids may stand between them: a small call does not
// wait for a large one. Only one payload at a time is in parts on each side of
// a connection, so that a receiver holds at most one that is unfinished.
const (
	frameHeader = 14
	frameFixed  = frameHeader - 4 // what the length counts besides the payload
	maxChunk    = 64 << 10

	moreFollows = 0x80
)

// The kinds of frames.
const (
	frameRequest  = 1 // dialler: a call
	frameAnswer   = 2 // acceptor: what the handler returned
	frameError    = 3 // acceptor: the text of the handler's error
	frameBusy     = 4 // acceptor: not executed, too much is running
	frameNoMethod = 5 // acceptor: not executed, there is no such handler
	frameCancel   = 6 // dialler: nobody waits for the answer any more
	frameAbort    = 7 // either: the rest of the payload in parts will not come
	framePing     = 8 // dialler: still here
	framePong     = 9 // acceptor: still here too
)

// message is one frame, or the frames of one payload put together.
type message struct {
	id      uint64
	kind    uint8
	method  uint8
	payload []byte
}

// putHeader encodes the header of a frame with n payload bytes.
func putHeader(b []byte, id uint64, kind, method uint8, n int) {
	binary.BigEndian.PutUint32(b, uint32(frameFixed+n))
	binary.BigEndian.PutUint64(b[4:], id)
	b[12], b[13] = kind, method
}

// frameReader puts messages together. One goroutine owns it.
type frameReader struct {
	r    io.Reader
	max  int      // bytes of the largest payload
	part *message // the payload in parts that is not complete, or nil
}

// next returns the next complete message. Its payload is newly allocated, and
// grows as bytes arrive: a length alone costs nothing.
func (f *frameReader) next() (message, error) {
	for {
		m, done, err := f.frame()
		if err != nil || done {
			return m, err
		}
	}
}

// frame reads one frame; it returns false when that completed no message.
func (f *frameReader) frame() (message, bool, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(f.r, head[:4]); err != nil {
		return message{}, false, err
	}
	length := binary.BigEndian.Uint32(head[:4])
	if length < frameFixed || length > frameFixed+maxChunk {
		return message{}, false, fmt.Errorf("%w: frame of %d bytes", errProtocol, length)
	}
	if _, err := io.ReadFull(f.r, head[4:]); err != nil {
		return message{}, false, noEOF(err)
	}
	m := message{id: binary.BigEndian.Uint64(head[4:]), kind: head[12] &^ moreFollows, method: head[13]}
	more := head[12]&moreFollows != 0
	n := int(length - frameFixed)
	if err := f.allowed(m, more, n); err != nil {
		return message{}, false, err
	}
	if m.kind == frameAbort {
		f.part = nil
		return message{}, false, nil
	}
	continues := f.continues(m)
	if continues {
		m = *f.part
	}
	if n > 0 {
		var err error
		if m.payload, err = readMore(f.r, m.payload, n); err != nil {
			return message{}, false, err
		}
	}
	switch {
	case more:
		f.part = &m
		return message{}, false, nil
	case continues:
		f.part = nil
	}
	return m, true, nil
}

// continues says whether a frame belongs to the payload in parts.
func (f *frameReader) continues(m message) bool {
	return f.part != nil && f.part.id == m.id && f.part.kind == m.kind && f.part.method == m.method
}

// allowed checks a frame's header against the state of the stream.
func (f *frameReader) allowed(m message, more bool, n int) error {
	have := 0
	if f.continues(m) {
		have = len(f.part.payload)
	}
	switch {
	case m.kind < frameRequest || m.kind > framePong:
		return fmt.Errorf("%w: frame of kind %d", errProtocol, m.kind)
	case m.kind > frameError && (more || n > 0):
		return fmt.Errorf("%w: payload in a frame of kind %d", errProtocol, m.kind)
	case m.kind == frameAbort && (f.part == nil || f.part.id != m.id):
		return fmt.Errorf("%w: abort of a payload that is not on its way", errProtocol)
	case more && n == 0:
		return fmt.Errorf("%w: empty part", errProtocol)
	case more && f.part != nil && !f.continues(m):
		return fmt.Errorf("%w: two payloads in parts at a time", errProtocol)
	case n > f.max-have:
		return fmt.Errorf("%w: payload above %d bytes", errProtocol, f.max)
	}
	return nil
}

// readMore appends n bytes, at most maxChunk, to b.
func readMore(r io.Reader, b []byte, n int) ([]byte, error) {
	at := len(b)
	if cap(b)-at < n {
		// Doubling keeps the copies of a large payload linear.
		grown := make([]byte, at, max(2*cap(b), at+n))
		copy(grown, b)
		b = grown
	}
	b = b[:at+n]
	if _, err := io.ReadFull(r, b[at:]); err != nil {
		return nil, noEOF(err)
	}
	return b, nil
}
