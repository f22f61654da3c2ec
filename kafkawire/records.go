package kafkawire

import (
	"errors"
	"io"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
)

// minRecordLen is the shortest record in bytes: one each for length,
// attributes, two deltas, key length, value length and header count.
const minRecordLen = 7

// checkRecords reads all records of b once, decompressing as it goes, and
// returns the highest timestamp, -1 if no record has one.
func checkRecords(b Batch, lim Limits) (newest int64, refusal *Refusal) {
	body := b[BatchHeaderLen:]
	if b.Codec() == codecNone {
		if int64(b.Count())*minRecordLen > int64(len(body)) {
			return 0, refuse(kerr.InvalidRecord, "%d records do not fit in %d bytes", b.Count(), len(body))
		}
		c := recordCheck{in: recordStream{buf: body}, lim: &lim, batch: b}
		return c.run()
	}
	bound := lim.MaxDecompressedBytes
	if bound <= 0 {
		bound = DefaultMaxDecompressedBytes
	}
	bound = min(bound, max(inflateFree, inflateRatio*int64(len(body))))

	inflated, release, err := openInflater(b.Codec(), body)
	if err != nil {
		return 0, refuse(kerr.InvalidRecord, "%s records: %s", codecName(b.Codec()), err)
	}
	defer release()
	window := windows.Get().(*[inflateWindow]byte)
	defer windows.Put(window)
	c := recordCheck{
		in:    recordStream{src: inflated, window: window, left: bound},
		lim:   &lim,
		batch: b,
	}
	return c.run()
}

// inflateWindow is how much of the decompressed records is in view at a time.
const inflateWindow = 32 << 10

var windows = sync.Pool{New: func() any { return new([inflateWindow]byte) }}

// errInflateBound is returned by a recordStream when decompression yields more
// than it may.
var errInflateBound = errors.New("decompressed records exceed the limit")

// recordStream yields the bytes of a batch's records: all at once when they
// are not compressed, else through a window.
type recordStream struct {
	buf    []byte // what is in view
	pos    int    // next byte of buf
	base   int64  // stream offset of buf[0]
	src    io.Reader
	window *[inflateWindow]byte
	left   int64 // bytes that src may still yield
	err    error // why src ended, io.EOF if it did well
}

func (s *recordStream) offset() int64 { return s.base + int64(s.pos) }

// fill brings at least n bytes into view if there are so many; n is far below
// the window. It reports whether there are.
func (s *recordStream) fill(n int) bool {
	if len(s.buf)-s.pos >= n {
		return true
	}
	if s.src == nil || s.err != nil {
		return false
	}
	have := copy(s.window[:], s.buf[s.pos:])
	s.base += int64(s.pos)
	s.pos = 0
	for have < n && s.err == nil {
		var got int
		got, s.err = s.src.Read(s.window[have:])
		have += got
		if s.left -= int64(got); s.left < 0 {
			s.err = errInflateBound
			have = 0 // nothing of it is looked at
		}
	}
	s.buf = s.window[:have]
	return have >= n
}

// skip passes over n bytes and reports whether there were so many.
func (s *recordStream) skip(n int64) bool {
	for n > 0 {
		if !s.fill(1) {
			return false
		}
		step := min(n, int64(len(s.buf)-s.pos))
		s.pos += int(step)
		n -= step
	}
	return true
}

// varint reads a zigzag varint of at most size bytes.
func (s *recordStream) varint(size int) (int64, bool) {
	s.fill(size) // fewer may do at the end
	var u uint64
	for i, c := range s.buf[s.pos:min(len(s.buf), s.pos+size)] {
		if i == 9 && c > 1 {
			return 0, false // more than 64 bits
		}
		u |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			s.pos += i + 1
			return int64(u>>1) ^ -int64(u&1), true
		}
	}
	return 0, false
}

// recordCheck reads the records of one batch.
type recordCheck struct {
	in    recordStream
	lim   *Limits
	batch Batch

	index  int32 // the record being read
	end    int64 // its end, as a stream offset
	newest int64
}

func (c *recordCheck) run() (int64, *Refusal) {
	c.newest = -1
	for c.index = 0; c.index < c.batch.Count(); c.index++ {
		if refusal := c.record(); refusal != nil {
			return 0, refusal
		}
	}
	// Reading on to the end makes the decompressor check its trailer.
	if c.in.fill(1) {
		c.index = NoRecord
		return 0, c.refuse(kerr.InvalidRecord, "bytes after the last record")
	}
	if c.in.err != nil && !errors.Is(c.in.err, io.EOF) {
		c.index = NoRecord
		return 0, c.fault("")
	}
	return c.newest, nil
}

func (c *recordCheck) refuse(err *kerr.Error, format string, args ...any) *Refusal {
	refusal := refuse(err, format, args...)
	refusal.RecordIndex = c.index
	return refusal
}

// fault tells why a record could not be read: the stream failed, or else what.
func (c *recordCheck) fault(what string) *Refusal {
	switch err := c.in.err; {
	case errors.Is(err, errInflateBound):
		// A producer answers this code by splitting the batch.
		c.index = NoRecord
		return c.refuse(kerr.MessageTooLarge, "decompressed records exceed the limit")
	case err != nil && !errors.Is(err, io.EOF):
		return c.refuse(kerr.InvalidRecord, "%s records: %s", codecName(c.batch.Codec()), err)
	}
	return c.refuse(kerr.InvalidRecord, "%s", what)
}

func (c *recordCheck) record() *Refusal {
	length, ok := c.varint32()
	if !ok || length < minRecordLen-1 {
		return c.fault("record length is missing or out of bounds")
	}
	if c.in.src == nil && length > int64(len(c.in.buf)-c.in.pos) {
		return c.fault("record is longer than the batch")
	}
	c.end = c.in.offset() + length
	if !c.in.skip(1) { // attributes, of which none is defined
		return c.fault("record is cut off")
	}
	timeDelta, ok := c.in.varint(10)
	if !ok {
		return c.fault("timestamp delta is malformed")
	}
	if refusal := c.timestamp(c.batch.BaseTimestamp() + timeDelta); refusal != nil {
		return refusal
	}
	offsetDelta, ok := c.varint32()
	if !ok {
		return c.fault("offset delta is malformed")
	}
	if offsetDelta != int64(c.index) {
		return c.refuse(kerr.InvalidRecord, "offset delta is %d, must be %d", offsetDelta, c.index)
	}
	if c.batch.BaseTimestamp()+timeDelta == fillerTimestampMs && c.fillerKey() {
		return c.refuse(kerr.InvalidRecord, "the key %s with timestamp %d stands for offsets without a record", fillerKey, fillerTimestampMs)
	}
	return c.payload()
}

func (c *recordCheck) payload() *Refusal {
	hasKey, ok := c.field(true)
	if !ok {
		return c.fault("key is malformed")
	}
	if !hasKey && c.lim.Compacted {
		return c.refuse(kerr.InvalidRecord, "compacted topics need a key in every record")
	}
	if _, ok := c.field(true); !ok {
		return c.fault("value is malformed")
	}
	headers, ok := c.varint32()
	if !ok || headers < 0 || headers > (c.end-c.in.offset())/2 { // a header has two lengths
		return c.fault("header count is out of bounds")
	}
	for range headers {
		if _, ok := c.field(false); !ok {
			return c.fault("header key is malformed")
		}
		if _, ok := c.field(true); !ok {
			return c.fault("header value is malformed")
		}
	}
	if c.in.offset() != c.end {
		return c.fault("record does not fill its length")
	}
	return nil
}

// varint32 reads a varint of at most 5 bytes that fits 32 bits.
func (c *recordCheck) varint32() (int64, bool) {
	v, ok := c.in.varint(5)
	return v, ok && v == int64(int32(v))
}

// field passes over bytes with a length before them, of which -1 is null.
func (c *recordCheck) field(nullable bool) (present, ok bool) {
	n, ok := c.varint32()
	if !ok || n < -1 || (n == -1 && !nullable) || n > c.end-c.in.offset() {
		return false, false
	}
	if n == -1 {
		return false, true
	}
	return true, c.in.skip(n)
}

// timestamp checks one record's timestamp in milliseconds against the topic's
// limits (LogValidator.validateTimestamp); -1 is no timestamp.
func (c *recordCheck) timestamp(ts int64) *Refusal {
	switch {
	case ts == -1:
		return nil
	case ts < -1:
		return c.refuse(kerr.InvalidTimestamp, "timestamp is %d", ts)
	case c.lim.TimestampBeforeMaxMs > 0 && c.lim.NowMs-ts > c.lim.TimestampBeforeMaxMs:
		return c.refuse(kerr.InvalidTimestamp, "timestamp %d is more than %d ms before now", ts, c.lim.TimestampBeforeMaxMs)
	case c.lim.TimestampAfterMaxMs > 0 && ts-c.lim.NowMs > c.lim.TimestampAfterMaxMs:
		return c.refuse(kerr.InvalidTimestamp, "timestamp %d is more than %d ms after now", ts, c.lim.TimestampAfterMaxMs)
	}
	c.newest = max(c.newest, ts)
	return nil
}
