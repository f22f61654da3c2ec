package kafkawire

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestCheckProduceRefusesForeignStreams takes streams that hold the right
// records in a form that not every reader of Kafka's understands.
func TestCheckProduceRefusesForeignStreams(t *testing.T) {
	src := encodeRecords(testRecords(4))
	half := len(src) / 2
	two := append(kgoCompress(t, kgo.GzipCompression(), src[:half]), kgoCompress(t, kgo.GzipCompression(), src[half:])...)
	newer := xerial(src)
	newer[15] = 2
	for _, c := range []codecCase{
		{"two gzip members", codecGzip, two},
		{"xerial framing of a newer reader", codecSnappy, newer},
		{"two xerial streams", codecSnappy, append(xerial(src[:half]), xerial(src[half:])...)},
	} {
		if _, refusal := CheckProduce(buildBatch(c.id, 4, c.body), Limits{}); refusal == nil || refusal.Code != kerr.InvalidRecord.Code {
			t.Errorf("%s: %v", c.name, refusal)
		}
	}
}

// TestLZ4StoredBlockAboveFrameLimit stores more in one block than the frame
// says a block holds.
func TestLZ4StoredBlockAboveFrameLimit(t *testing.T) {
	for _, extra := range []int{0, 1} {
		// One record of a size that makes the block 64 KiB and extra.
		record := raw(attrs, 0, 0, -1, 65525+extra, string(make([]byte, 65525+extra)), 0)
		if len(record) != 64<<10+extra {
			t.Fatalf("record of %d bytes", len(record))
		}
		frame := []byte{0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, byte(xxh32([]byte{0x60, 0x40}) >> 8)}
		frame = binary.LittleEndian.AppendUint32(frame, uint32(len(record))|lz4Stored)
		frame = append(append(frame, record...), 0, 0, 0, 0)
		_, refusal := CheckProduce(buildBatch(codecLZ4, 1, frame), Limits{})
		if (refusal != nil) != (extra > 0) {
			t.Errorf("%d bytes above the limit: %v", extra, refusal)
		}
	}
}

func TestSnappyBlockRefuses(t *testing.T) {
	for name, block := range map[string][]byte{
		"nothing":               {},
		"size unterminated":     {0x80},
		"size of 4 GiB":         {0xff, 0xff, 0xff, 0xff, 0x0f, 0x00, 'a'},
		"size of 6 bytes":       {0x81, 0x80, 0x80, 0x80, 0x80, 0x00, 0x00, 'a'},
		"less than the size":    {2, 0x00, 'a'},
		"more than the size":    {1, 0x04, 'a', 'b'},
		"literal cut off":       {2, 0x04, 'a'},
		"long literal cut off":  {2, 0xf4, 1},
		"literal of 4 GiB":      {2, 0xfc, 0xff, 0xff, 0xff, 0xff, 'a'},
		"copy before the start": {5, 0x00, 'a', 0x01, 0x02},
		"copy from nothing":     {4, 0x01, 0x01},
		"copy of offset 0":      {5, 0x00, 'a', 0x01, 0x00},
		"copy 1 cut off":        {5, 0x00, 'a', 0x01},
		"copy 2 cut off":        {5, 0x00, 'a', 0x0e, 0x01},
		"copy 4 cut off":        {5, 0x00, 'a', 0x0f, 0x01, 0x00, 0x00},
		"copy 4 far away":       {5, 0x00, 'a', 0x0f, 0xff, 0xff, 0xff, 0xff},
	} {
		var r blockReader
		if got := allocated(func() {
			if _, err := r.snappyBlock(block); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}); got > 4<<10 {
			t.Errorf("%s: allocated %d bytes", name, got)
		}
	}
	var r blockReader
	if got, err := r.snappyBlock([]byte{8, 0x04, 'a', 'b', 0x09, 0x02}); err != nil || string(got) != "abababab"[:8] {
		t.Errorf("overlapping copy: %q, %v", got, err)
	}
}

// TestXXH32 uses values of the reference implementation (xxhash_spec.md and
// its test vectors).
func TestXXH32(t *testing.T) {
	for in, want := range map[string]uint32{
		"":    0x02cc5d05,
		"a":   0x550d7456,
		"abc": 0x32d153ff,
		"Nobody inspects the spammish repetition": 0xe2293b2f,
	} {
		if got := xxh32([]byte(in)); got != want {
			t.Errorf("%q: got %#x, want %#x", in, got, want)
		}
	}
}

// TestCheckProduceEmptyBatch is a batch in which all agrees but that there is
// no record in it.
func TestCheckProduceEmptyBatch(t *testing.T) {
	b := put(offMaxTimestamp, int64(-1))(buildBatch(codecNone, 0, nil))
	if b.Count() != 0 || b.LastOffsetDelta() != -1 {
		t.Fatal("not the case that is meant")
	}
	if _, refusal := CheckProduce(b, Limits{}); refusal == nil || refusal.Code != kerr.InvalidRecord.Code {
		t.Errorf("got %v, want 87", refusal)
	}
}

// TestCheckProduceBelievesNoCount claims the most records and bytes there are
// in small batches of every codec.
func TestCheckProduceBelievesNoCount(t *testing.T) {
	for _, c := range codecCases(t, binary.AppendVarint(nil, math.MaxInt32)) {
		b := put(offCount, int32(math.MaxInt32))(put(offLastOffsetDelta, int32(math.MaxInt32-1))(buildBatch(c.id, 1, c.body)))
		_, _ = CheckProduce(b, Limits{}) // fills the pools
		if got := allocated(func() {
			if _, refusal := CheckProduce(b, Limits{}); refusal == nil {
				t.Errorf("%s: accepted", c.name)
			}
		}); got > maxZstdWindow+1<<20 { // a pool may have been emptied
			t.Errorf("%s: allocated %d bytes for %d", c.name, got, len(b))
		}
	}
}

func TestStampedCRCIsCastagnoli(t *testing.T) {
	b := plainBatch(1)
	out := Stamp(nil, b, 1, 2, 3)
	if want := crc32.Checksum(out[21:], crc32.MakeTable(crc32.Castagnoli)); StampedCRC(b, 1, 2, 3) != want || !bytes.Equal(out[61:], b[61:]) {
		t.Errorf("got %#x, want %#x", StampedCRC(b, 1, 2, 3), want)
	}
}
