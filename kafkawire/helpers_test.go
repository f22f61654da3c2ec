package kafkawire

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// lz4Largest is the largest block of lz4 in bytes.
const lz4Largest = 4 << 20

const baseMs = int64(1_700_000_000_000)

// testRecords returns n plain records, one millisecond apart.
func testRecords(n int) []kmsg.Record {
	all := make([]kmsg.Record, n)
	for i := range all {
		all[i] = kmsg.Record{
			TimestampDelta64: int64(i),
			OffsetDelta:      int32(i),
			Key:              []byte("key"),
			Value:            []byte(strings.Repeat("some value ", 5)),
			Headers:          []kmsg.Header{{Key: "h", Value: []byte("v")}, {Key: "null"}},
		}
	}
	return all
}

// encodeRecords writes records with their lengths.
func encodeRecords(all []kmsg.Record) []byte {
	var out []byte
	for _, r := range all {
		r.Length = 0
		// The length's own encoding is one byte while it is 0.
		body := r.AppendTo(nil)[1:]
		out = binary.AppendVarint(out, int64(len(body)))
		out = append(out, body...)
	}
	return out
}

// buildBatch makes a batch of count records around body, which is compressed
// already if codec says so, with a right checksum.
func buildBatch(codec int16, count int, body []byte) Batch {
	b := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1,
		Magic:                2,
		Attributes:           codec,
		LastOffsetDelta:      int32(count - 1),
		FirstTimestamp:       baseMs,
		MaxTimestamp:         baseMs + int64(count-1),
		ProducerID:           -1,
		ProducerEpoch:        -1,
		FirstSequence:        -1,
		NumRecords:           int32(count),
		Records:              body,
	}
	b.Length = int32(BatchHeaderLen - batchPrefixLen + len(body))
	return reseal(b.AppendTo(nil))
}

// reseal corrects the checksum in place.
func reseal(b []byte) Batch {
	binary.BigEndian.PutUint32(b[offCRC:], crc32.Checksum(b[offAttributes:], castagnoli))
	return b
}

func plainBatch(n int) Batch { return buildBatch(codecNone, n, encodeRecords(testRecords(n))) }

// kgoCompress compresses as franz-go's producer does.
func kgoCompress(t testing.TB, codec kgo.CompressionCodec, src []byte) []byte {
	t.Helper()
	c, err := kgo.DefaultCompressor(codec)
	if err != nil {
		t.Fatal(err)
	}
	out, _ := c.Compress(new(bytes.Buffer), src)
	return bytes.Clone(out)
}

// xerial frames src as Java's snappy stream does, in blocks of 32 KiB.
func xerial(src []byte) []byte {
	out := append([]byte("\x82SNAPPY\x00"), 0, 0, 0, 1, 0, 0, 0, 1)
	for len(src) > 0 {
		n := min(len(src), 32<<10)
		block := s2.EncodeSnappy(nil, src[:n])
		out = binary.BigEndian.AppendUint32(out, uint32(len(block)))
		out = append(out, block...)
		src = src[n:]
	}
	return out
}

func lz4Compress(t testing.TB, src []byte, opts ...lz4.Option) []byte {
	t.Helper()
	var out bytes.Buffer
	w := lz4.NewWriter(&out)
	if err := w.Apply(opts...); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(src); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type codecCase struct {
	name string
	id   int16
	body []byte
}

// codecCases compresses src in every way a client is known to.
func codecCases(t testing.TB, src []byte) []codecCase {
	return []codecCase{
		{"none", codecNone, src},
		{"gzip", codecGzip, kgoCompress(t, kgo.GzipCompression(), src)},
		{"snappy raw", codecSnappy, kgoCompress(t, kgo.SnappyCompression(), src)},
		{"snappy xerial", codecSnappy, xerial(src)},
		{"lz4 kgo", codecLZ4, kgoCompress(t, kgo.Lz4Compression(), src)},
		{"lz4 64 KiB blocks", codecLZ4, lz4Compress(t, src, lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false))},
		{"lz4 all checksums", codecLZ4, lz4Compress(t, src, lz4.BlockChecksumOption(true), lz4.ChecksumOption(true), lz4.SizeOption(uint64(len(src))))},
		{"zstd", codecZstd, kgoCompress(t, kgo.ZstdCompression(), src)},
		{"zstd best", codecZstd, kgoCompress(t, kgo.ZstdCompression().WithLevel(19), src)},
	}
}
