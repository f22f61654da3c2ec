package kafkawire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// AppendBatch appends one batch that holds records one after the other, as a
// producer sends it (base offset 0), compressed with codec (0 to 4), to dst.
// Offset deltas are given anew from 0; timestamps and payloads stay as they
// are. It is for runs of records that compaction left.
func AppendBatch(dst []byte, codec int8, records []Record, producerID int64, epoch int16, baseSequence int32) ([]byte, error) {
	if len(records) == 0 {
		return dst, fmt.Errorf("make a record batch: %w: no records", ErrMalformed)
	}
	base, newest := records[0].TimestampMs, int64(-1)
	var body, record []byte
	for i, r := range records {
		newest = max(newest, r.TimestampMs)
		record = append(record[:0], 0)
		record = binary.AppendVarint(record, r.TimestampMs-base)
		record = binary.AppendVarint(record, int64(i))
		record = append(record, r.Payload...)
		body = binary.AppendVarint(body, int64(len(record)))
		body = append(body, record...)
	}
	body, err := deflate(codec, body)
	if err != nil {
		return dst, fmt.Errorf("compress %d records: %w", len(records), err)
	}
	start := len(dst)
	dst = append(dst, make([]byte, BatchHeaderLen)...)
	dst = append(dst, body...)
	sealBatch(dst[start:], header{codec: codec, count: int32(len(records)), base: base, newest: newest,
		producerID: producerID, epoch: epoch, sequence: baseSequence})
	return dst, nil
}

// header is what a batch made here says of itself.
type header struct {
	codec        int8
	count        int32
	base, newest int64 // timestamps in milliseconds
	producerID   int64
	epoch        int16
	sequence     int32
}

// sealBatch writes the header of b, whose records are in place.
func sealBatch(b []byte, h header) {
	binary.BigEndian.PutUint64(b[offBaseOffset:], 0)
	binary.BigEndian.PutUint32(b[offLength:], uint32(len(b)-batchPrefixLen))
	binary.BigEndian.PutUint32(b[offLeaderEpoch:], math.MaxUint32)
	b[offMagic] = 2
	binary.BigEndian.PutUint16(b[offAttributes:], uint16(h.codec))
	binary.BigEndian.PutUint32(b[offLastOffsetDelta:], uint32(h.count-1))
	binary.BigEndian.PutUint64(b[offBaseTimestamp:], uint64(h.base))
	binary.BigEndian.PutUint64(b[offMaxTimestamp:], uint64(h.newest))
	binary.BigEndian.PutUint64(b[offProducerID:], uint64(h.producerID))
	binary.BigEndian.PutUint16(b[offProducerEpoch:], uint16(h.epoch))
	binary.BigEndian.PutUint32(b[offBaseSequence:], uint32(h.sequence))
	binary.BigEndian.PutUint32(b[offCount:], uint32(h.count))
	binary.BigEndian.PutUint32(b[offCRC:], crc32.Checksum(b[offAttributes:], castagnoli))
}

// zstdEncoder makes frames on the caller's goroutine.
var zstdEncoder = sync.OnceValues(func() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
})

// deflate compresses records in the forms that brokers and clients read.
func deflate(codec int8, body []byte) ([]byte, error) {
	var out bytes.Buffer
	switch codec {
	case codecNone:
		return body, nil
	case codecGzip:
		w := gzip.NewWriter(&out)
		if _, err := w.Write(body); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		return out.Bytes(), nil
	case codecSnappy:
		return s2.EncodeSnappy(nil, body), nil
	case codecLZ4:
		w := lz4.NewWriter(&out)
		if _, err := w.Write(body); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		return out.Bytes(), nil
	case codecZstd:
		enc, err := zstdEncoder()
		if err != nil {
			return nil, err
		}
		return enc.EncodeAll(body, nil), nil
	}
	return nil, fmt.Errorf("%w: codec %d", ErrMalformed, codec)
}
