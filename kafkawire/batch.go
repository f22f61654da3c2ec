package kafkawire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// The layout of a record batch of magic 2 (org.apache.kafka.common.record.
// DefaultRecordBatch). The checksum covers everything from the attributes on;
// what stands before them is the broker's to rewrite.
//
//	 0 base offset      8      27 base timestamp   8
//	 8 length           4      35 max timestamp    8
//	12 leader epoch     4      43 producer id      8
//	16 magic            1      51 producer epoch   2
//	17 crc              4      53 base sequence    4
//	21 attributes       2      57 record count     4
//	23 last offset delta 4     61 records
const (
	offBaseOffset      = 0
	offLength          = 8
	offLeaderEpoch     = 12
	offMagic           = 16
	offCRC             = 17
	offAttributes      = 21
	offLastOffsetDelta = 23
	offBaseTimestamp   = 27
	offMaxTimestamp    = 35
	offProducerID      = 43
	offProducerEpoch   = 51
	offBaseSequence    = 53
	offCount           = 57

	// BatchHeaderLen is the length in bytes of a batch header.
	BatchHeaderLen = 61
	// batchPrefixLen is what stands before the part that the length counts.
	batchPrefixLen = offLength + 4
)

// The bits of a batch's attributes.
const (
	attrCodecMask     = 0x07
	attrLogAppendTime = 0x08
	attrTransactional = 0x10
	attrControl       = 0x20
	attrUnused        = ^uint16(0x3f) // delete horizon is written by brokers only
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Batch is a view over the bytes of one record batch of magic 2, header
// included. Its accessors read the header without checks, so a Batch comes
// from ParseBatch or CheckProduce only.
type Batch []byte

// ParseBatch returns the batch at the start of b, aliasing it, and what
// follows. It checks that the batch is whole and of magic 2, not its checksum
// or records. It returns ErrMalformed; a Fetch response may end in a batch
// that is cut off, and then says so in this way too.
func ParseBatch(b []byte) (batch Batch, rest []byte, err error) {
	if len(b) < BatchHeaderLen {
		return nil, b, fmt.Errorf("parse record batch: %w: %d bytes, a header has %d", ErrMalformed, len(b), BatchHeaderLen)
	}
	length := int64(int32(binary.BigEndian.Uint32(b[offLength:])))
	if size := batchPrefixLen + length; size < BatchHeaderLen || size > int64(len(b)) {
		return nil, b, fmt.Errorf("parse record batch: %w: length %d of %d bytes", ErrMalformed, length, len(b))
	}
	size := int(batchPrefixLen + length)
	batch = Batch(b[:size:size])
	if batch.Magic() != 2 {
		return nil, b, fmt.Errorf("parse record batch: %w: magic %d", ErrMalformed, batch.Magic())
	}
	return batch, b[size:], nil
}

func (b Batch) int16(off int) int16 { return int16(binary.BigEndian.Uint16(b[off:])) }
func (b Batch) int32(off int) int32 { return int32(binary.BigEndian.Uint32(b[off:])) }
func (b Batch) int64(off int) int64 { return int64(binary.BigEndian.Uint64(b[off:])) }

// BaseOffset is the offset of the first record; 0 from a producer.
func (b Batch) BaseOffset() int64 { return b.int64(offBaseOffset) }

// Length is the length field: the batch's bytes less 12.
func (b Batch) Length() int32 { return b.int32(offLength) }

// PartitionLeaderEpoch is the epoch of the leader that appended the batch.
func (b Batch) PartitionLeaderEpoch() int32 { return b.int32(offLeaderEpoch) }

// Magic is the format version, always 2.
func (b Batch) Magic() int8 { return int8(b[offMagic]) }

// CRC is the stored CRC-32C; ChecksumOK says whether it is right.
func (b Batch) CRC() uint32 { return binary.BigEndian.Uint32(b[offCRC:]) }

// Attributes are the attribute bits as stored.
func (b Batch) Attributes() int16 { return b.int16(offAttributes) }

// Codec is the compression codec: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd.
func (b Batch) Codec() int8 { return int8(b.Attributes() & attrCodecMask) }

// TimestampTypeAppend reports whether the broker's clock stamped the batch.
func (b Batch) TimestampTypeAppend() bool { return b.Attributes()&attrLogAppendTime != 0 }

// IsTransactional reports whether the batch belongs to a transaction.
func (b Batch) IsTransactional() bool { return b.Attributes()&attrTransactional != 0 }

// IsControl reports whether the batch holds a marker instead of data.
func (b Batch) IsControl() bool { return b.Attributes()&attrControl != 0 }

// LastOffsetDelta is the last record's offset less the base offset.
func (b Batch) LastOffsetDelta() int32 { return b.int32(offLastOffsetDelta) }

// BaseTimestamp is the first record's timestamp in milliseconds.
func (b Batch) BaseTimestamp() int64 { return b.int64(offBaseTimestamp) }

// MaxTimestamp is the highest timestamp in milliseconds, -1 if there is none.
func (b Batch) MaxTimestamp() int64 { return b.int64(offMaxTimestamp) }

// ProducerID is the idempotent producer's id, -1 if there is none.
func (b Batch) ProducerID() int64 { return b.int64(offProducerID) }

// ProducerEpoch is the producer's epoch, -1 without a producer id.
func (b Batch) ProducerEpoch() int16 { return b.int16(offProducerEpoch) }

// BaseSequence is the first record's sequence, -1 without a producer id.
func (b Batch) BaseSequence() int32 { return b.int32(offBaseSequence) }

// Count is the number of records by the header.
func (b Batch) Count() int32 { return b.int32(offCount) }

// ChecksumOK reports whether the stored CRC is that of the bytes it covers.
func (b Batch) ChecksumOK() bool {
	return b.CRC() == crc32.Checksum(b[offAttributes:], castagnoli)
}

// identityLen is the length of a producer's identity in a header: id, epoch and
// sequence, one after the other.
const identityLen = offCount - offProducerID

func identity(producerID int64, epoch int16, baseSequence int32) (id [identityLen]byte) {
	binary.BigEndian.PutUint64(id[:], uint64(producerID))
	binary.BigEndian.PutUint16(id[offProducerEpoch-offProducerID:], uint16(epoch))
	binary.BigEndian.PutUint32(id[offBaseSequence-offProducerID:], uint32(baseSequence))
	return id
}

// correctFrom is the size from which a checksum is corrected: below, reading the
// whole batch costs no more.
const correctFrom = 2 << 10

// StampedCRC is the checksum that Stamp would store, without a copy of b.
//
// That of a larger batch is not computed from its bytes but corrected from the
// stored one by what the identity changes. It is right only if the stored one
// is: CheckProduce has made sure of that before the batch was proposed, and
// entries are sealed with a checksum of their own from there on. Should the bytes
// have changed all the same, the result does not match them, and the broker
// refuses the batch; a checksum computed anew would have hidden that.
func StampedCRC(b Batch, producerID int64, epoch int16, baseSequence int32) uint32 {
	id := identity(producerID, epoch, baseSequence)
	if len(b) < correctFrom {
		crc := crc32.Checksum(b[offAttributes:offProducerID], castagnoli)
		crc = crc32.Update(crc, castagnoli, id[:])
		return crc32.Update(crc, castagnoli, b[offCount:])
	}
	for i := range id {
		id[i] ^= b[offProducerID+i]
	}
	return b.CRC() ^ crcShift(bareCRC(id[:]), len(b)-offCount)
}

// Stamp appends a copy of b to dst as the given producer would have sent it:
// base offset 0, partition leader epoch -1 (as Java's producer), the identity
// replaced and the checksum of StampedCRC, which presupposes that b's is right.
// b is not written to. A transactional batch must keep its identity: never stamp
// one.
func Stamp(dst []byte, b Batch, producerID int64, epoch int16, baseSequence int32) []byte {
	return StampWith(dst, b, producerID, epoch, baseSequence, StampedCRC(b, producerID, epoch, baseSequence))
}

// StampInPlace writes another producer's identity and the checksum that goes
// with it into b, whose own must be right (StampedCRC). Everything else, the base
// offset too, stays. A transactional batch must keep its identity: never stamp
// one.
func StampInPlace(b Batch, producerID int64, epoch int16, baseSequence int32) {
	crc, id := StampedCRC(b, producerID, epoch, baseSequence), identity(producerID, epoch, baseSequence)
	copy(b[offProducerID:], id[:])
	binary.BigEndian.PutUint32(b[offCRC:], crc)
}

// StampWith is Stamp for who knows the checksum, StampedCRC, already.
func StampWith(dst []byte, b Batch, producerID int64, epoch int16, baseSequence int32, crc uint32) []byte {
	head := StampHead(b, producerID, epoch, baseSequence, crc)
	return append(append(dst, head[:]...), b[BatchHeaderLen:]...)
}

// StampHead is the header of what StampWith appends. What follows it is b's own
// from BatchHeaderLen on, so who writes to a connection needs no copy of b.
func StampHead(b Batch, producerID int64, epoch int16, baseSequence int32, crc uint32) (head [BatchHeaderLen]byte) {
	copy(head[:], b)
	id := identity(producerID, epoch, baseSequence)
	copy(head[offProducerID:], id[:])
	binary.BigEndian.PutUint64(head[offBaseOffset:], 0)
	binary.BigEndian.PutUint32(head[offLeaderEpoch:], ^uint32(0))
	binary.BigEndian.PutUint32(head[offCRC:], crc)
	return head
}
