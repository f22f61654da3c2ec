package kafkawire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestCheckProduceAccepts takes batches of every codec and of sizes on both
// sides of every block and window.
func TestCheckProduceAccepts(t *testing.T) {
	for _, n := range []int{1, 2, 10, 1000, 4000} {
		for _, c := range codecCases(t, encodeRecords(testRecords(n))) {
			t.Run(fmt.Sprintf("%s/%d", c.name, n), func(t *testing.T) {
				in := buildBatch(c.id, n, c.body)
				before := bytes.Clone(in)
				b, refusal := CheckProduce(in, Limits{NowMs: baseMs, TimestampBeforeMaxMs: 1000, TimestampAfterMaxMs: int64(n), Compacted: true, ProduceVersion: 11})
				if refusal != nil {
					t.Fatal(refusal)
				}
				if !bytes.Equal(b, before) || !bytes.Equal(in, before) {
					t.Error("the batch was changed")
				}
			})
		}
	}
}

// randomRecords returns three records that hold size random bytes together.
func randomRecords(size int) []byte {
	rng := rand.NewChaCha8([32]byte{1})
	records := testRecords(3)
	for i := range records {
		records[i].Value = make([]byte, size/3)
		rng.Read(records[i].Value) // never fails
	}
	return encodeRecords(records)
}

// TestCheckProduceAcceptsLarge takes batches above the largest blocks and, for
// zstd, windows, of bytes that do not compress, so that stored blocks occur.
func TestCheckProduceAcceptsLarge(t *testing.T) {
	cases := codecCases(t, randomRecords(lz4Largest+1<<10))
	over := randomRecords(maxZstdWindow + 1<<20)
	cases = append(cases, codecCase{"zstd above the window", codecZstd, kgoCompress(t, kgo.ZstdCompression(), over)})
	for _, c := range cases {
		if _, refusal := CheckProduce(buildBatch(c.id, 3, c.body), Limits{}); refusal != nil {
			t.Errorf("%s: %v", c.name, refusal)
		}
	}
}

func put(off int, v any) func(Batch) Batch {
	return func(b Batch) Batch {
		switch v := v.(type) {
		case int8:
			b[off] = byte(v)
		case int16:
			binary.BigEndian.PutUint16(b[off:], uint16(v))
		case int32:
			binary.BigEndian.PutUint32(b[off:], uint32(v))
		case int64:
			binary.BigEndian.PutUint64(b[off:], uint64(v))
		}
		if off >= offAttributes {
			reseal(b)
		}
		return b
	}
}

func TestCheckProduceRefusesHeader(t *testing.T) {
	lim := Limits{MaxBatchBytes: 4096}
	for _, c := range []struct {
		name string
		edit func(Batch) Batch
		code int16
	}{
		{"nil", func(Batch) Batch { return nil }, kerr.InvalidRecord.Code},
		{"empty", func(Batch) Batch { return Batch{} }, kerr.InvalidRecord.Code},
		{"16 bytes", func(b Batch) Batch { return b[:16] }, kerr.InvalidRecord.Code},
		{"cut in the header", func(b Batch) Batch { return b[:60] }, kerr.InvalidRecord.Code},
		{"cut in the records", func(b Batch) Batch { return b[:len(b)-1] }, kerr.InvalidRecord.Code},
		{"two batches", func(b Batch) Batch { return append(b, b...) }, kerr.InvalidRecord.Code},
		{"a byte more", func(b Batch) Batch { return append(b, 0) }, kerr.InvalidRecord.Code},
		{"magic 0", put(offMagic, int8(0)), kerr.InvalidRecord.Code},
		{"magic 1", put(offMagic, int8(1)), kerr.InvalidRecord.Code},
		{"magic 3", put(offMagic, int8(3)), kerr.InvalidRecord.Code},
		{"magic -1", put(offMagic, int8(-1)), kerr.InvalidRecord.Code},
		{"length 0", put(offLength, int32(0)), kerr.CorruptMessage.Code},
		{"length 48", put(offLength, int32(48)), kerr.CorruptMessage.Code},
		{"length negative", put(offLength, int32(math.MinInt32)), kerr.CorruptMessage.Code},
		{"length highest", put(offLength, int32(math.MaxInt32)), kerr.InvalidRecord.Code},
		{"base offset 1", put(offBaseOffset, int64(1)), kerr.InvalidRecord.Code},
		{"base offset -1", put(offBaseOffset, int64(-1)), kerr.InvalidRecord.Code},
		{"too large", func(Batch) Batch { return plainBatch(200) }, kerr.MessageTooLarge.Code},
		{"checksum", put(offCRC, int32(1)), kerr.CorruptMessage.Code},
		{"a flipped bit", func(b Batch) Batch { b[len(b)-1] ^= 1; return b }, kerr.CorruptMessage.Code},
		{"delta against count", put(offLastOffsetDelta, int32(1)), kerr.InvalidRecord.Code},
		{"count against delta", put(offCount, int32(4)), kerr.InvalidRecord.Code},
		{"count 0", func(b Batch) Batch { return put(offCount, int32(0))(put(offLastOffsetDelta, int32(-1))(b)) }, kerr.InvalidRecord.Code},
		{"count negative", put(offCount, int32(-3)), kerr.InvalidRecord.Code},
		{"count highest", func(b Batch) Batch {
			return put(offCount, int32(math.MaxInt32))(put(offLastOffsetDelta, int32(math.MaxInt32-1))(b))
		}, kerr.InvalidRecord.Code},
		{"delta wraps", func(b Batch) Batch {
			return put(offCount, int32(math.MinInt32))(put(offLastOffsetDelta, int32(math.MaxInt32))(b))
		}, kerr.InvalidRecord.Code},
		{"control", put(offAttributes, int16(0x20)), kerr.InvalidRecord.Code},
		{"log append time", put(offAttributes, int16(0x08)), kerr.InvalidTimestamp.Code},
		{"transactional", put(offAttributes, int16(0x10)), kerr.TransactionalIDAuthorizationFailed.Code},
		{"delete horizon", put(offAttributes, int16(0x40)), kerr.InvalidRecord.Code},
		{"high attribute", put(offAttributes, int16(math.MinInt16)), kerr.InvalidRecord.Code},
		{"codec 5", put(offAttributes, int16(5)), kerr.UnsupportedCompressionType.Code},
		{"codec 7", put(offAttributes, int16(7)), kerr.UnsupportedCompressionType.Code},
		{"producer without epoch", put(offProducerID, int64(9)), kerr.InvalidRecord.Code},
		{"producer without sequence", func(b Batch) Batch { return put(offProducerEpoch, int16(0))(put(offProducerID, int64(9))(b)) }, kerr.InvalidRecord.Code},
		{"producer without epoch only", func(b Batch) Batch { return put(offBaseSequence, int32(0))(put(offProducerID, int64(9))(b)) }, kerr.InvalidRecord.Code},
		{"producer id -2", put(offProducerID, int64(-2)), kerr.InvalidRecord.Code},
		{"max timestamp low", put(offMaxTimestamp, baseMs), kerr.InvalidRecord.Code},
		{"max timestamp high", put(offMaxTimestamp, baseMs+10), kerr.InvalidRecord.Code},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, refusal := CheckProduce(c.edit(plainBatch(3)), lim)
			if refusal == nil {
				t.Fatal("accepted")
			}
			if refusal.Code != c.code || b != nil {
				t.Errorf("got %d (%v), want %d", refusal.Code, refusal, c.code)
			}
			if !errors.Is(refusal, kerr.ErrorForCode(c.code)) {
				t.Errorf("%v is not %v", refusal, kerr.ErrorForCode(c.code))
			}
		})
	}
}

func TestCheckProduceAcceptsProducer(t *testing.T) {
	b := Stamp(nil, plainBatch(3), 1<<40, 0, math.MaxInt32)
	if _, refusal := CheckProduce(b, Limits{}); refusal != nil {
		t.Error(refusal)
	}
}

func TestCheckProduceVersionOfZstd(t *testing.T) {
	body := kgoCompress(t, kgo.ZstdCompression(), encodeRecords(testRecords(1)))
	for version, want := range map[int16]int16{0: 0, 3: 76, 6: 76, 7: 0, 11: 0} {
		_, refusal := CheckProduce(buildBatch(codecZstd, 1, body), Limits{ProduceVersion: version})
		var got int16
		if refusal != nil {
			got = refusal.Code
		}
		if got != want {
			t.Errorf("version %d: got %d, want %d", version, got, want)
		}
	}
}

// raw is a record written by hand: fields in order, the length in front.
func raw(fields ...any) []byte {
	var body []byte
	for _, f := range fields {
		switch f := f.(type) {
		case int:
			body = binary.AppendVarint(body, int64(f))
		case byte:
			body = append(body, f)
		case string:
			body = append(body, f...)
		}
	}
	return append(binary.AppendVarint(nil, int64(len(body))), body...)
}

const attrs = byte(0)

// malformedRecords are bodies of one record that must be refused with 87,
// however they are compressed.
var malformedRecords = map[string][]byte{
	"no records":               {},
	"length only":              {0x0c},
	"length 0":                 {0},
	"length negative":          {1, 0, 0, 0, 1, 1, 0},
	"length overruns":          append([]byte{0x0e}, raw(attrs, 0, 0, -1, -1, 0)[1:]...),
	"length is short":          append([]byte{0x0c}, raw(attrs, 0, 0, -1, 1, "v", 0)[1:]...),
	"length highest":           append(binary.AppendVarint(nil, math.MaxInt32), raw(attrs, 0, 0, -1, -1, 0)[1:]...),
	"length beyond 32 bits":    append(binary.AppendVarint(nil, math.MaxInt32+1), raw(attrs, 0, 0, -1, -1, 0)[1:]...),
	"varint of 6 bytes":        {0x8c, 0x80, 0x80, 0x80, 0x80, 0x00, 0, 0, 0, 1, 1, 0},
	"timestamp of 11 bytes":    raw(attrs, "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", 0, -1, -1, 0),
	"timestamp over 64 bits":   raw(attrs, "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02", 0, -1, -1, 0),
	"offset delta 1":           raw(attrs, 0, 1, -1, -1, 0),
	"offset delta -1":          raw(attrs, 0, -1, -1, -1, 0),
	"key length -2":            raw(attrs, 0, 0, -2, -1, 0),
	"key overruns":             raw(attrs, 0, 0, 100, -1, 0),
	"key length highest":       raw(attrs, 0, 0, math.MaxInt32, -1, 0),
	"value length -2":          raw(attrs, 0, 0, -1, -2, 0),
	"value overruns":           raw(attrs, 0, 0, -1, 2, "v", 0),
	"header count -1":          raw(attrs, 0, 0, -1, -1, -1),
	"header count bomb":        raw(attrs, 0, 0, -1, -1, math.MaxInt32),
	"header count off by one":  raw(attrs, 0, 0, -1, -1, 2, 1, "k", -1),
	"header key null":          raw(attrs, 0, 0, -1, -1, 1, -1, -1),
	"header value overruns":    raw(attrs, 0, 0, -1, -1, 1, 1, "k", 5, "v"),
	"bytes inside the record":  raw(attrs, 0, 0, -1, -1, 0, "junk"),
	"bytes after the records":  append(raw(attrs, 0, 0, -1, -1, 0), 0),
	"one record too many":      append(raw(attrs, 0, 0, -1, -1, 0), raw(attrs, 0, 1, -1, -1, 0)...),
	"no header count":          raw(attrs, 0, 0, -1, -1),
	"record ends in the key":   raw(attrs, 0, 0, 4, "key"),
	"unterminated varint tail": {0xff, 0xff},
}

func TestCheckProduceRefusesRecords(t *testing.T) {
	for name, body := range malformedRecords {
		for _, c := range codecCases(t, body) {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				_, refusal := CheckProduce(buildBatch(c.id, 1, c.body), Limits{})
				if refusal == nil || refusal.Code != kerr.InvalidRecord.Code {
					t.Fatalf("got %v, want 87", refusal)
				}
			})
		}
	}
}

// TestCheckProduceRecordByHand keeps the table above honest: the record it
// varies is accepted.
func TestCheckProduceRecordByHand(t *testing.T) {
	for _, body := range [][]byte{
		raw(attrs, 0, 0, -1, -1, 0),
		raw(attrs, 0, 0, 0, 0, 0),
		raw(byte(0xff), 0, 0, 1, "k", 1, "v", 2, 1, "a", -1, 0, 1, "b"),
	} {
		if _, refusal := CheckProduce(buildBatch(codecNone, 1, body), Limits{}); refusal != nil {
			t.Errorf("%x: %v", body, refusal)
		}
	}
}

func TestCheckProduceCompacted(t *testing.T) {
	records := testRecords(3)
	records[1].Key = nil
	b := buildBatch(codecNone, 3, encodeRecords(records))
	if _, refusal := CheckProduce(b, Limits{}); refusal != nil {
		t.Errorf("not compacted: %v", refusal)
	}
	_, refusal := CheckProduce(b, Limits{Compacted: true})
	if refusal == nil || refusal.Code != kerr.InvalidRecord.Code || refusal.RecordIndex != 1 {
		t.Errorf("compacted: got %+v, want 87 at record 1", refusal)
	}
	records[1].Key = []byte{} // empty is not null
	if _, refusal := CheckProduce(buildBatch(codecNone, 3, encodeRecords(records)), Limits{Compacted: true}); refusal != nil {
		t.Errorf("empty key: %v", refusal)
	}
}

// stamped makes a batch of records with these timestamps.
func stamped(base int64, ts ...int64) Batch {
	records := make([]kmsg.Record, len(ts))
	newest := int64(-1)
	for i := range ts {
		records[i] = kmsg.Record{OffsetDelta: int32(i), TimestampDelta64: ts[i] - base}
		newest = max(newest, ts[i])
	}
	b := buildBatch(codecNone, len(ts), encodeRecords(records))
	return put(offMaxTimestamp, newest)(put(offBaseTimestamp, base)(b))
}

func TestCheckProduceTimestamps(t *testing.T) {
	lim := Limits{NowMs: baseMs, TimestampBeforeMaxMs: 1000, TimestampAfterMaxMs: 500}
	for _, c := range []struct {
		name  string
		batch Batch
		lim   Limits
		code  int16
		index int32
	}{
		{"now", stamped(baseMs, baseMs), lim, 0, 0},
		{"at both limits", stamped(baseMs, baseMs-1000, baseMs+500), lim, 0, 0},
		{"too old", stamped(baseMs, baseMs, baseMs-1001), lim, 32, 1},
		{"too new", stamped(baseMs, baseMs, baseMs, baseMs+501), lim, 32, 2},
		{"none", stamped(-1, -1, -1), lim, 0, 0},
		{"none beside one", stamped(-1, -1, baseMs), lim, 0, 0},
		{"below none", stamped(0, 0, -2), Limits{}, 32, 1},
		{"lowest", stamped(0, math.MinInt64), Limits{}, 32, 0},
		{"highest without limits", stamped(0, math.MaxInt64), Limits{}, 0, 0},
		{"highest with limits", stamped(0, math.MaxInt64), lim, 32, 0},
		{"delta overflows", put(offBaseTimestamp, int64(math.MaxInt64))(stamped(0, 1)), Limits{}, 32, 0},
		{"negative delta", stamped(baseMs, baseMs-1, baseMs-2), Limits{}, 0, 0},
	} {
		_, refusal := CheckProduce(c.batch, c.lim)
		if refusal == nil {
			refusal = &Refusal{}
		}
		if refusal.Code != c.code || refusal.RecordIndex != c.index {
			t.Errorf("%s: got %+v, want code %d at %d", c.name, refusal, c.code, c.index)
		}
	}
}

func TestCheckProduceRepairsMaxTimestamp(t *testing.T) {
	for _, wrong := range []int64{-1, 0, baseMs, baseMs + 1000, math.MinInt64} {
		in := put(offMaxTimestamp, wrong)(plainBatch(3))
		b, refusal := CheckProduce(in, Limits{RepairMaxTimestamp: true})
		if refusal != nil {
			t.Fatalf("%d: %v", wrong, refusal)
		}
		if !bytes.Equal(b, plainBatch(3)) {
			t.Errorf("%d: max timestamp %d, checksum ok %t", wrong, b.MaxTimestamp(), b.ChecksumOK())
		}
	}
}

func TestCheckProduceRefusesCorruptStreams(t *testing.T) {
	src := encodeRecords(testRecords(500))
	for _, c := range codecCases(t, src) {
		if c.id == codecNone {
			continue
		}
		step := max(1, len(c.body)/200)
		for cut := 0; cut < len(c.body); cut += step {
			if _, refusal := CheckProduce(buildBatch(c.id, 500, c.body[:cut]), Limits{}); refusal == nil {
				t.Errorf("%s: accepted cut at %d of %d", c.name, cut, len(c.body))
			}
		}
		if _, refusal := CheckProduce(buildBatch(c.id, 500, c.body[:len(c.body)-1]), Limits{}); refusal == nil {
			t.Errorf("%s: accepted without its last byte", c.name)
		}
		for _, more := range []string{"\x00", "junk of some length", string(c.body)} {
			if _, refusal := CheckProduce(buildBatch(c.id, 500, append(bytes.Clone(c.body), more...)), Limits{}); refusal == nil {
				t.Errorf("%s: accepted with %d bytes after its end", c.name, len(more))
			}
		}
	}
}

// TestCheckProduceRefusesForeignLZ4 takes frames that libraries read and
// Kafka's Lz4BlockInputStream does not.
func TestCheckProduceRefusesForeignLZ4(t *testing.T) {
	src := encodeRecords(testRecords(2))
	good := lz4Compress(t, src, lz4.ChecksumOption(false))
	fix := func(b []byte) []byte { // header checksum of a 7-byte header
		b[6] = byte(xxh32(b[4:6]) >> 8)
		return b
	}
	edit := func(at int, f func(byte) byte) []byte {
		b := bytes.Clone(good)
		b[at] = f(b[at])
		return fix(b)
	}
	if _, refusal := CheckProduce(buildBatch(codecLZ4, 2, fix(bytes.Clone(good))), Limits{}); refusal != nil {
		t.Fatalf("unchanged: %v", refusal)
	}
	for name, body := range map[string][]byte{
		"linked blocks": edit(4, func(b byte) byte { return b &^ lz4Independent }),
		"dictionary":    edit(4, func(b byte) byte { return b | 1 }),
		"version 2":     edit(4, func(b byte) byte { return b&^lz4VersionMask | 0x80 }),
		"block size 3":  edit(5, func(b byte) byte { return 0x30 }),
		"reserved bit":  edit(5, func(b byte) byte { return b | 1 }),
		"magic":         edit(0, func(b byte) byte { return b + 1 }),
		"checksum":      append(append(bytes.Clone(good[:6]), good[6]+1), good[7:]...),
		"huge block":    append(bytes.Clone(good[:7]), 0xff, 0xff, 0xff, 0x7f),
	} {
		if _, refusal := CheckProduce(buildBatch(codecLZ4, 2, body), Limits{}); refusal == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestCheckProduceRefusesS2 takes a block with S2's extension of snappy, which
// the libraries for both read and Java's does not.
func TestCheckProduceRefusesS2(t *testing.T) {
	src := encodeRecords(testRecords(50))
	block := s2.EncodeBest(nil, src)
	if _, ok := snappyExpand(make([]byte, len(src)), block[2:]); ok {
		t.Fatal("the encoder made no use of its extension: the test has no case")
	}
	if _, refusal := CheckProduce(buildBatch(codecSnappy, 50, block), Limits{}); refusal == nil {
		t.Error("accepted")
	}
}

// TestCheckProduceBombs compresses one record of many zeros until it exceeds
// the bound by ratio, then by size.
func TestCheckProduceBombs(t *testing.T) {
	const size = inflateFree + 1<<20
	one := encodeRecords([]kmsg.Record{{Value: make([]byte, size)}})
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	if _, err := w.Write(one); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]Batch{
		"gzip": buildBatch(codecGzip, 1, gz.Bytes()),
		"zstd": buildBatch(codecZstd, 1, enc.EncodeAll(one, nil)),
	} {
		if _, refusal := CheckProduce(b, Limits{}); refusal == nil || refusal.Code != kerr.MessageTooLarge.Code {
			t.Errorf("%s by ratio: got %v, want 10", name, refusal)
		}
	}
	for name, b := range map[string]Batch{
		"lz4":    buildBatch(codecLZ4, 1, lz4Compress(t, one)),
		"snappy": buildBatch(codecSnappy, 1, xerial(one)),
	} {
		if _, refusal := CheckProduce(b, Limits{}); refusal != nil {
			t.Errorf("%s within the ratio: %v", name, refusal)
		}
		if _, refusal := CheckProduce(b, Limits{MaxDecompressedBytes: size}); refusal == nil || refusal.Code != kerr.MessageTooLarge.Code {
			t.Errorf("%s by size: got %v, want 10", name, refusal)
		}
	}
}

// TestCheckProduceZstdWindow refuses a frame that asks for more memory than a
// decoder is given, at the claim.
func TestCheckProduceZstdWindow(t *testing.T) {
	frame := func(windowLog byte) []byte {
		return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, (windowLog - 10) << 3, 0x01, 0x00, 0x00} // one empty raw block
	}
	for _, log := range []byte{24, 27, 41} {
		_, refusal := CheckProduce(buildBatch(codecZstd, 1, frame(log)), Limits{})
		if refusal == nil || refusal.Reason != "zstd records: "+zstd.ErrWindowSizeExceeded.Error() {
			t.Errorf("window 2^%d: %v", log, refusal)
		}
	}
	// A single segment's window is its content size.
	single := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0xff, 0xff, 0xff, 0x7f, 0x01, 0x00, 0x00}
	if _, refusal := CheckProduce(buildBatch(codecZstd, 1, single), Limits{}); refusal == nil {
		t.Error("single segment of 2 GiB accepted")
	}
}
