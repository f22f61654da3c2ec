package kafkawire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/twmb/franz-go/pkg/kerr"
)

const (
	// DefaultMaxDecompressedBytes is the bound on a batch's decompressed
	// records when Limits names none.
	DefaultMaxDecompressedBytes = 64 << 20
	// Decompressed records beyond inflateFree bytes must not exceed
	// inflateRatio times the compressed ones. Real batches are far below the
	// first bound, so that well compressing ones pass; bombs meet the second.
	inflateFree  = 8 << 20
	inflateRatio = 256
)

// Limits are what a topic and this node allow of a batch. A zero is no limit,
// except where a field says otherwise.
type Limits struct {
	// MaxBatchBytes is the topic's max.message.bytes, of the batch as sent.
	MaxBatchBytes int
	// MaxDecompressedBytes bounds the decompressed records; zero is
	// DefaultMaxDecompressedBytes.
	MaxDecompressedBytes int64
	// Compacted is set when the topic's cleanup.policy names compact: every
	// record then needs a key.
	Compacted bool
	// NowMs is the wall clock in Unix milliseconds, for the two below.
	NowMs int64
	// TimestampBeforeMaxMs and TimestampAfterMaxMs are the topic's
	// message.timestamp.before.max.ms and .after.max.ms.
	TimestampBeforeMaxMs, TimestampAfterMaxMs int64
	// ProduceVersion is the version of the request the batch came in; from 3
	// to 6 zstd is refused, as Kafka does. Zero means not asked.
	ProduceVersion int16
	// RepairMaxTimestamp makes CheckProduce correct a wrong max timestamp in
	// the batch's header, and the checksum, in place, as the broker would do
	// for a client that gets it wrong. Without it such a batch is refused.
	RepairMaxTimestamp bool
}

// NoRecord is the RecordIndex of a Refusal that concerns the batch as a whole.
const NoRecord = -1

// Refusal says why a batch is not accepted, in the broker's terms.
type Refusal struct {
	Code        int16  // Kafka error code
	Reason      string // for the response's error message and the log; holds no payload
	RecordIndex int32  // the record at fault, or NoRecord
}

// Error names the Kafka error and the reason.
func (r *Refusal) Error() string {
	if r.RecordIndex == NoRecord {
		return fmt.Sprintf("%s: %s", kerr.ErrorForCode(r.Code), r.Reason)
	}
	return fmt.Sprintf("%s: record %d: %s", kerr.ErrorForCode(r.Code), r.RecordIndex, r.Reason)
}

// Unwrap returns the kerr error of the code, for errors.Is.
func (r *Refusal) Unwrap() error { return kerr.ErrorForCode(r.Code) }

func refuse(err *kerr.Error, format string, args ...any) *Refusal {
	return &Refusal{Code: err.Code, Reason: fmt.Sprintf(format, args...), RecordIndex: NoRecord}
}

// CheckProduce checks the records field of one partition of a Produce request
// for everything that a broker might refuse or rewrite, so that what passes is
// appended by every broker as it is. It returns the one batch, aliasing
// records, or why it is refused. The order of the checks is the broker's
// (ProduceRequest.validateRecords, UnifiedLog.analyzeAndValidateRecords,
// LogValidator). It does not write to records unless RepairMaxTimestamp is set.
//
// Compressed records are decompressed once as a stream, within the limits, and
// thrown away. In some points it is stricter than Kafka, where no client known
// does otherwise: unused attribute bits, bytes after a compressed stream,
// offset deltas with gaps, timestamps below -1.
func CheckProduce(records []byte, lim Limits) (Batch, *Refusal) {
	b, refusal := checkFrame(records)
	if refusal != nil {
		return nil, refusal
	}
	if refusal := checkBatchHeader(b, lim); refusal != nil {
		return nil, refusal
	}
	newest, refusal := checkRecords(b, lim)
	if refusal != nil {
		return nil, refusal
	}
	if stored := b.MaxTimestamp(); stored != newest {
		if !lim.RepairMaxTimestamp {
			return nil, refuse(kerr.InvalidRecord, "max timestamp is %d, of the records it is %d", stored, newest)
		}
		binary.BigEndian.PutUint64(b[offMaxTimestamp:], uint64(newest))
		binary.BigEndian.PutUint32(b[offCRC:], crc32.Checksum(b[offAttributes:], castagnoli))
	}
	return b, nil
}

// checkFrame finds the one batch that records must be.
func checkFrame(records []byte) (Batch, *Refusal) {
	if len(records) == 0 {
		return nil, refuse(kerr.InvalidRecord, "no record batch")
	}
	// In every format the magic stands at the same place, and formats 0 and 1
	// have shorter headers.
	if len(records) <= offMagic {
		return nil, refuse(kerr.InvalidRecord, "%d bytes are not a record batch", len(records))
	}
	if magic := int8(records[offMagic]); magic != 2 {
		return nil, refuse(kerr.InvalidRecord, "record batch has magic %d, only 2 is accepted", magic)
	}
	length := int32(binary.BigEndian.Uint32(records[offLength:]))
	if length < BatchHeaderLen-batchPrefixLen {
		return nil, refuse(kerr.CorruptMessage, "record batch length %d is below that of a header", length)
	}
	b, rest, err := ParseBatch(records)
	if err != nil {
		return nil, refuse(kerr.InvalidRecord, "record batch of length %d is cut off after %d bytes", length, len(records))
	}
	if len(rest) > 0 {
		return nil, refuse(kerr.InvalidRecord, "more than one record batch for one partition")
	}
	return b, nil
}

func checkBatchHeader(b Batch, lim Limits) *Refusal {
	if b.Codec() == codecZstd && lim.ProduceVersion != 0 && lim.ProduceVersion < 7 {
		return refuse(kerr.UnsupportedCompressionType, "zstd needs Produce version 7, this is %d", lim.ProduceVersion)
	}
	if b.BaseOffset() != 0 {
		return refuse(kerr.InvalidRecord, "base offset is %d, must be 0", b.BaseOffset())
	}
	if lim.MaxBatchBytes > 0 && len(b) > lim.MaxBatchBytes {
		return refuse(kerr.MessageTooLarge, "record batch has %d bytes, limit %d", len(b), lim.MaxBatchBytes)
	}
	if !b.ChecksumOK() {
		return refuse(kerr.CorruptMessage, "checksum does not match")
	}
	if n := b.Count(); n <= 0 || int64(b.LastOffsetDelta())+1 != int64(n) {
		return refuse(kerr.InvalidRecord, "record count %d with last offset delta %d", n, b.LastOffsetDelta())
	}
	return checkAttributes(b)
}

func checkAttributes(b Batch) *Refusal {
	switch {
	case b.IsControl():
		return refuse(kerr.InvalidRecord, "clients cannot write control batches")
	case b.TimestampTypeAppend():
		return refuse(kerr.InvalidTimestamp, "clients cannot write batches of timestamp type LogAppendTime")
	case b.IsTransactional():
		// Kafka's word for a transactional batch in a request that names no
		// transaction (KafkaApis.handleProduceRequest). It is not retried.
		return refuse(kerr.TransactionalIDAuthorizationFailed, "transactions are not supported")
	case uint16(b.Attributes())&attrUnused != 0:
		return refuse(kerr.InvalidRecord, "unknown attribute bits %#x", uint16(b.Attributes()))
	case b.Codec() > codecZstd:
		return refuse(kerr.UnsupportedCompressionType, "unknown compression codec %d", b.Codec())
	case b.ProducerID() < -1:
		return refuse(kerr.InvalidRecord, "producer id is %d", b.ProducerID())
	case b.ProducerID() >= 0 && (b.ProducerEpoch() < 0 || b.BaseSequence() < 0):
		return refuse(kerr.InvalidRecord, "producer id with epoch %d and base sequence %d", b.ProducerEpoch(), b.BaseSequence())
	}
	return nil
}
