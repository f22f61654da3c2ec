package kafkawire

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math"
	"sync"
)

// A filler takes up offsets that hold nothing: a broker gives offsets one
// after the other, so whoever copies a log that starts above zero, or has lost
// records to compaction, must put something there. Its records have one key,
// no value and one timestamp; for a compacted topic they are tombstones.
const (
	fillerKey         = "lockstep.filler"
	fillerTimestampMs = 1
	fillerMinProducer = int64(1) << 61 // where the appliers' producer ids begin

	// MaxFillerCount is the most records of one filler. Brokers read every
	// record once; beyond some 3·10^5 in a batch they get slower again.
	MaxFillerCount = 1 << 18
)

// AppendFiller appends a filler of count records (1 to MaxFillerCount, else
// nothing is appended) to dst, with base offset 0 as a producer sends it. Its
// records cost about 0.1 bytes each in large fillers.
func AppendFiller(dst []byte, count int32, producerID int64, epoch int16, baseSequence int32) []byte {
	if count < 1 || count > MaxFillerCount {
		return dst
	}
	codec, body := int8(codecNone), []byte(nil)
	if count < fillerPlain {
		body = appendFillerRecords(nil, int(count))
	} else {
		codec, body = codecZstd, fillerFrame(int(count))
	}
	start := len(dst)
	dst = append(dst, make([]byte, BatchHeaderLen)...)
	dst = append(dst, body...)
	sealBatch(dst[start:], header{codec: codec, count: count, base: fillerTimestampMs, newest: fillerTimestampMs,
		producerID: producerID, epoch: epoch, sequence: baseSequence})
	return dst
}

// fillerPlain is the count from which fillers are compressed.
const fillerPlain = 8

// appendFillerRecords appends the records of a filler, not compressed.
func appendFillerRecords(dst []byte, count int) []byte {
	var record []byte
	for i := range count {
		record = append(record[:0], 0, 0) // attributes, timestamp delta
		record = binary.AppendVarint(record, int64(i))
		record = binary.AppendVarint(record, int64(len(fillerKey)))
		record = append(record, fillerKey...)
		record = append(record, 1, 0) // a null value, no headers
		dst = binary.AppendVarint(dst, int64(len(record)))
		dst = append(dst, record...)
	}
	return dst
}

// mayBeFiller is what the header alone tells: one comparison for all but a
// client's batch with the timestamp 1.
func (b Batch) mayBeFiller() bool {
	return b.MaxTimestamp() == fillerTimestampMs && b.ProducerID() >= fillerMinProducer
}

// IsFiller reports whether a batch read from a broker is a filler, or what the
// broker's cleaner left of one. No client's batch is: CheckProduce refuses a
// record with that key and timestamp.
func (b Batch) IsFiller() bool {
	if !b.mayBeFiller() || b.Count() < 1 {
		return false
	}
	found := false
	err := VisitRecords(b, DefaultMaxDecompressedBytes, func(r Record) bool {
		found = string(r.Key) == fillerKey && r.Value == nil && r.TimestampMs == fillerTimestampMs
		return false
	})
	return err == nil && found
}

// fillerKey reports whether a client's record has a filler's key, looking ahead
// only. It is asked for records with a filler's timestamp.
func (c *recordCheck) fillerKey() bool {
	const length = 2 * len(fillerKey) // as a varint, in one byte
	c.in.fill(1 + len(fillerKey))     // fewer may do at the end
	view := c.in.buf[c.in.pos:]
	return len(view) > len(fillerKey) && int(view[0]) == length && string(view[1:1+len(fillerKey)]) == fillerKey
}

// HasFiller reports whether records, as in a Fetch response, hold a whole
// filler batch. It costs one comparison for each batch that is none.
func HasFiller(records []byte) bool {
	for len(records) > 0 {
		b, rest, err := ParseBatch(records)
		if err != nil {
			return false
		}
		if b.mayBeFiller() && b.IsFiller() {
			return true
		}
		records = rest
	}
	return false
}

// HideFillers returns records, as in a Fetch response, with an empty batch in
// the place of each filler: a header that spans the same offsets and counts no
// records, as Kafka's cleaner leaves it (MemoryRecords.filterTo,
// DefaultRecordBatch.writeEmptyHeader). Consumers pass over it. What cannot be
// parsed, such as a batch cut off at the end, stays as it is. records is not
// written to; it is returned itself if it holds no filler.
func HideFillers(records []byte) []byte {
	if !HasFiller(records) {
		return records
	}
	out := make([]byte, 0, len(records))
	for len(records) > 0 {
		b, rest, err := ParseBatch(records)
		if err != nil {
			break
		}
		if b.IsFiller() {
			out = appendEmptied(out, b)
		} else {
			out = append(out, b...)
		}
		records = rest
	}
	return append(out, records...)
}

// appendEmptied appends b without its records.
func appendEmptied(dst []byte, b Batch) []byte {
	start := len(dst)
	dst = append(dst, b[:BatchHeaderLen]...)
	e := dst[start:]
	binary.BigEndian.PutUint32(e[offLength:], BatchHeaderLen-batchPrefixLen)
	binary.BigEndian.PutUint16(e[offAttributes:], 0)
	binary.BigEndian.PutUint64(e[offBaseTimestamp:], math.MaxUint64)
	binary.BigEndian.PutUint64(e[offMaxTimestamp:], math.MaxUint64)
	binary.BigEndian.PutUint32(e[offCount:], 0)
	binary.BigEndian.PutUint32(e[offCRC:], crc32.Checksum(e[offAttributes:], castagnoli))
	return dst
}

// The zstd frame of a filler is laid out by hand (RFC 8878). A record differs
// from the one some power of two before it in one byte of its offset delta.
// So a block names three things once, for all of its records: literal length
// 1, the match length, and that each match repeats the last distance. Where the
// literal is the same too, 4096 records take 20 bytes; general compressors
// spend one byte on each.
const (
	frameRecords = 4096 // of a block
	nearRecords  = 64   // this far back only byte 4 of a record differs, up to record 16384
	farRecords   = 8192 // this far back only byte 5 differs, from record 16384 on
	rawBlock     = 64 << 10
)

// The compressed records of a full filler: most fillers of a long gap are.
var fullFiller = sync.OnceValue(func() []byte { return layFiller(MaxFillerCount) })

func fillerFrame(count int) []byte {
	if count == MaxFillerCount {
		return fullFiller()
	}
	return layFiller(count)
}

func layFiller(count int) []byte {
	f := fillerLayout{body: appendFillerRecords(nil, count), count: count}
	// Magic number; no content size, no checksum; a window of 256 KiB, which
	// holds farRecords records.
	f.out = []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 8 << 3}
	// Offset deltas take 1 byte below record 64, 2 below 8192, 3 above. A
	// match runs from behind one differing byte up to the next one.
	f.raw(f.at(2*nearRecords, 4))
	f.like(farRecords, 4, nearRecords)
	f.raw(f.at(farRecords+nearRecords, 4))
	f.like(2*farRecords, 4, nearRecords)
	f.raw(f.at(2*farRecords, 5))
	f.like(count, 5, farRecords)
	f.raw(len(f.body))
	f.block(0, 1, nil, 0) // an empty raw block, the last
	return f.out
}

// fillerLayout is a zstd frame in the making.
type fillerLayout struct {
	body  []byte
	count int
	out   []byte
	pos   int // of body, all before is in out
}

// at is where byte i of a record stands in body, or its end if there is no
// such record.
func (f *fillerLayout) at(record, i int) int {
	if record >= f.count {
		return len(f.body)
	}
	const short = len(fillerKey) + 7 // a record whose offset delta takes one byte
	at := short*record + i
	at += max(record-nearRecords, 0)
	at += max(record-farRecords, 0)
	return at
}

// block appends a block header and its content. size is the header's field.
func (f *fillerLayout) block(kind, last uint32, content []byte, size int) {
	h := last | kind<<1 | uint32(size)<<3
	f.out = append(f.out, byte(h), byte(h>>8), byte(h>>16))
	f.out = append(f.out, content...)
}

// raw appends body up to a position as it is.
func (f *fillerLayout) raw(to int) {
	for f.pos < to {
		end := min(to, f.pos+rawBlock)
		f.block(0, 0, f.body[f.pos:end], end-f.pos)
		f.pos = end
	}
}

// like appends whole records up to, not including, record until, each as one
// literal and a match at distance back (in records). It begins at byte i of a
// record and ends at byte i of one.
func (f *fillerLayout) like(until, i, back int) {
	// Byte i of the last record begins no match: the match would run into a
	// record that does not exist.
	n := min(until, f.count) - 1 - f.record(i)
	if n < 1 {
		return
	}
	size := f.at(f.record(i)+1, i) - f.pos
	f.sequences(1, size, back*size)
	for n--; n > 0; {
		// The first block is one short, so that the others begin where the
		// literal changes.
		k := min(n, frameRecords-f.record(i)%frameRecords)
		f.sequences(k, size, 0)
		n -= k
	}
}

// record is the record whose byte i stands at pos, or else count.
func (f *fillerLayout) record(i int) int {
	lo, hi := 0, f.count
	for lo < hi {
		if mid := (lo + hi) / 2; f.at(mid, i) < f.pos {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// sequences appends a block of n sequences of size bytes: a literal, and a
// match at distance, or at the last one's if that is 0.
func (f *fillerLayout) sequences(n, size, distance int) {
	literals := make([]byte, n)
	for i := range literals {
		literals[i] = f.body[f.pos+i*size]
	}
	kind := uint32(0) // raw literals
	if bytes.Count(literals, literals[:1]) == n {
		kind, literals = 1, literals[:1] // one literal, repeated
	}
	h := kind | 3<<2 | uint32(n)<<4
	b := append([]byte{byte(h), byte(h >> 8), byte(h >> 16)}, literals...)
	if n < 128 {
		b = append(b, byte(n))
	} else {
		b = append(b, byte(n>>8)+128, byte(n))
	}
	// An offset code c stands for 1<<c and c bits more; a distance is coded
	// as 3 more than it is, and 1 repeats the last.
	code, extra := 0, 0
	if distance > 0 {
		for code = 1; 2<<code <= distance+3; code++ {
		}
		extra = distance + 3 - 1<<code
	}
	const repeatModes = 0x54 // all three codes by RLE
	b = append(b, repeatModes, 1, byte(code), byte(size-1-3))
	for bits := extra | 1<<code; bits > 0; bits >>= 8 { // the top bit ends the stream
		b = append(b, byte(bits))
	}
	f.block(2, 0, b, len(b))
	f.pos += n * size
}
