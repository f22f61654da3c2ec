package admin

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"

	"lockstep/kafkawire"
)

// survivorsPerLine keeps a line of a digest below maxLine.
const survivorsPerLine = 200

// survivorBytes bounds what one batch is decompressed to for its digest.
const survivorBytes = 1 << 30

// errRecords is returned for a digest whose records cannot be read.
var errRecords = errors.New("unreadable list of records")

// Survivors opens the digest of a partition of a compacted topic: each batch
// with its records, since brokers compact at their own time, and copies of a
// compacted log have other batches. Offsets that are filled hold no record. It
// must be closed.
func (c *Client) Survivors(ctx context.Context, addr, topic string, partition int32) (*Digest, error) {
	return c.openDigest(ctx, addr, topic, partition, true)
}

// EachRecord calls fn for each record that the digest of a batch names: its
// offset, and a hash over its timestamp, key, value and headers.
func (b *BatchDigest) EachRecord(fn func(offset int64, hash uint64)) error {
	raw, err := base64.StdEncoding.DecodeString(b.Records)
	if err != nil {
		return fmt.Errorf("%w: %w", errRecords, err)
	}
	for len(raw) > 0 {
		delta, n := binary.Uvarint(raw)
		if n <= 0 || len(raw) < n+8 || delta > uint64(b.Last-b.Base) {
			return errRecords
		}
		fn(b.Base+int64(delta), binary.BigEndian.Uint64(raw[n:]))
		raw = raw[n+8:]
	}
	return nil
}

// survivors puts the records of a batch into lines, which are emitted: all but
// the last say that more follow.
func survivors(b kafkawire.Batch, d BatchDigest, emit func(BatchDigest) error) error {
	if b.IsFiller() {
		return emit(d)
	}
	var line []byte
	held, failed := 0, error(nil)
	err := kafkawire.VisitRecords(b, survivorBytes, func(r kafkawire.Record) bool {
		if held == survivorsPerLine {
			part := d
			part.More, part.Records = true, base64.StdEncoding.EncodeToString(line)
			if failed = emit(part); failed != nil {
				return false
			}
			line, held = line[:0], 0
		}
		h := fnv.New64a()
		var at [8]byte
		binary.BigEndian.PutUint64(at[:], uint64(r.TimestampMs))
		h.Write(at[:])
		h.Write(r.Payload)
		line = binary.AppendUvarint(line, uint64(r.OffsetDelta))
		line = binary.BigEndian.AppendUint64(line, h.Sum64())
		held++
		return true
	})
	if err = errors.Join(failed, err); err != nil {
		return err
	}
	d.Records = base64.StdEncoding.EncodeToString(line)
	return emit(d)
}
