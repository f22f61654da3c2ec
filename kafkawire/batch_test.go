package kafkawire

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestBatchAccessors(t *testing.T) {
	k := kmsg.RecordBatch{
		FirstOffset: 1, Length: 49, PartitionLeaderEpoch: 3, Magic: 2, CRC: -5, Attributes: 0x3b,
		LastOffsetDelta: 7, FirstTimestamp: 8, MaxTimestamp: 9, ProducerID: 1 << 40, ProducerEpoch: 11,
		FirstSequence: 12, NumRecords: 13,
	}
	b, rest, err := ParseBatch(append(k.AppendTo(nil), "rest"...))
	if err != nil || string(rest) != "rest" || len(b) != BatchHeaderLen {
		t.Fatal(len(b), rest, err)
	}
	got := []int64{
		b.BaseOffset(), int64(b.Length()), int64(b.PartitionLeaderEpoch()), int64(b.Magic()), int64(int32(b.CRC())), int64(b.Attributes()),
		int64(b.LastOffsetDelta()), b.BaseTimestamp(), b.MaxTimestamp(), b.ProducerID(), int64(b.ProducerEpoch()),
		int64(b.BaseSequence()), int64(b.Count()), int64(b.Codec()),
	}
	for i, want := range []int64{1, 49, 3, 2, -5, 0x3b, 7, 8, 9, 1 << 40, 11, 12, 13, 3} {
		if got[i] != want {
			t.Errorf("field %d: got %d, want %d", i, got[i], want)
		}
	}
	for bits, want := range map[int16][3]bool{0: {}, 0x08: {true}, 0x10: {false, true}, 0x20: {false, false, true}, 0x07: {}} {
		b := put(offAttributes, bits)(plainBatch(1))
		if got := [3]bool{b.TimestampTypeAppend(), b.IsTransactional(), b.IsControl()}; got != want {
			t.Errorf("attributes %#x: got %v", bits, got)
		}
	}
}

func TestParseBatchRefuses(t *testing.T) {
	good := plainBatch(2)
	for n := range good {
		if b, rest, err := ParseBatch(good[:n]); !errors.Is(err, ErrMalformed) || b != nil || len(rest) != n {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, length := range []int32{0, 48, -1, math.MinInt32, math.MaxInt32} {
		if _, _, err := ParseBatch(put(offLength, length)(plainBatch(2))); !errors.Is(err, ErrMalformed) {
			t.Errorf("length %d: %v", length, err)
		}
	}
	if _, _, err := ParseBatch(put(offMagic, int8(1))(plainBatch(2))); !errors.Is(err, ErrMalformed) {
		t.Errorf("magic 1: %v", err)
	}
}

func TestStamp(t *testing.T) {
	for _, c := range codecCases(t, encodeRecords(testRecords(100))) {
		in := buildBatch(c.id, 100, c.body)
		put(offBaseOffset, int64(77))(put(offLeaderEpoch, int32(5))(in))
		before := bytes.Clone(in)
		out := Stamp([]byte("head"), in, 1<<40+9, 3, math.MaxInt32)
		if !bytes.Equal(in, before) || string(out[:4]) != "head" {
			t.Fatalf("%s: the input was changed", c.name)
		}
		b, rest, err := ParseBatch(out[4:])
		if err != nil || len(rest) != 0 || !b.ChecksumOK() {
			t.Fatalf("%s: %v, checksum ok %t", c.name, err, b.ChecksumOK())
		}
		if b.ProducerID() != 1<<40+9 || b.ProducerEpoch() != 3 || b.BaseSequence() != math.MaxInt32 || b.BaseOffset() != 0 || b.PartitionLeaderEpoch() != -1 {
			t.Errorf("%s: %x", c.name, b[:BatchHeaderLen])
		}
		if crc := StampedCRC(in, 1<<40+9, 3, math.MaxInt32); crc != b.CRC() {
			t.Errorf("%s: StampedCRC %x, stamped %x", c.name, crc, b.CRC())
		}
		// What is not named stays.
		if !bytes.Equal(b[offMagic:offCRC], in[offMagic:offCRC]) || !bytes.Equal(b[offAttributes:offProducerID], in[offAttributes:offProducerID]) ||
			!bytes.Equal(b[offCount:], in[offCount:]) || b.Length() != in.Length() {
			t.Errorf("%s: more than the identity was changed", c.name)
		}
		if c.id == codecNone && StampedCRC(in, -1, -1, -1) != in.CRC() {
			t.Error("stamping what stands there changes the checksum")
		}
	}
}

func TestChecksumOK(t *testing.T) {
	b := plainBatch(2)
	for i := range b {
		b[i] ^= 0x40
		covered := i >= offCRC // what stands before is the broker's to write
		if b.ChecksumOK() == covered {
			t.Errorf("byte %d flipped: checksum ok is %t", i, !covered)
		}
		b[i] ^= 0x40
	}
}
