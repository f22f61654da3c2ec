package fsm

import (
	"container/list"
	"math"
	"slices"

	"lockstep/kafkawire"
)

// MaxProducers caps the idempotent producers that a partition remembers. The
// one unused longest leaves first, which is the same one on every node.
const MaxProducers = 10_000

// ProducerExpiryMs is how long a partition remembers a producer that writes
// nothing, on the state machine's clock (Kafka: producer.id.expiration.ms).
const ProducerExpiryMs = 24 * 60 * 60 * 1000

// keptBatches is how many batches of a producer are remembered for answering
// duplicates (Kafka: ProducerStateEntry.NUM_BATCHES_TO_RETAIN).
const keptBatches = 5

// ApplierProducerBase is the first of the producer ids that appliers write
// with: base + topic id, so that two incarnations of a topic never share one.
// Clients' ids start at ClientProducerBase and never reach it.
const (
	ApplierProducerBase = int64(1) << 61
	ClientProducerBase  = int64(1) << 40
)

// Kafka error codes that verdicts carry.
const (
	codeUnknownTopic         = 3  // UNKNOWN_TOPIC_OR_PARTITION
	codeInvalidRecord        = 87 // INVALID_RECORD
	codeOutOfOrderSequence   = 45 // OUT_OF_ORDER_SEQUENCE_NUMBER
	codeInvalidProducerEpoch = 47 // INVALID_PRODUCER_EPOCH
)

// Partition is the state of one partition: a pure function of the commands
// applied to it. It belongs to its Group.
type Partition struct {
	TP         TP
	Name       string // of the topic
	NextOffset int64  // the log end offset
	Sequence   int32  // applier sequence of the next batch, mod 2^31
	Hash       uint64 // chain over everything appended, see ChainHash
	LogStart   int64  // the log start offset: nothing below it is served

	Epoch      int16 // recovery number, the applier's epoch of the next batch
	EpochStart int64 // where Epoch began: the first offset that may carry it

	LastBatch   Placed       // ends at NextOffset; zero Count: not known
	Checkpoints []Checkpoint // ascending, at most MaxCheckpoints
	marks       marks        // when the next checkpoint is due

	lastCut uint64 // raft index of the last cut: what refers to entries before it is void

	producers map[int64]*list.Element // of *producer
	recent    *list.List              // front = used last
	forgot    bool                    // some producer was expired or pushed out
}

type producer struct {
	id      int64
	epoch   int16
	lastSeq int32
	usedMs  int64
	gone    int64       // no batch of this epoch above this offset was dropped from kept; -1: none was at all
	kept    []keptBatch // oldest first, at most keptBatches, each going on where the one before ends
}

type keptBatch struct {
	first, last int32
	offset      int64
	count       int32
}

func newPartition(tp TP, name string, epoch int16) *Partition {
	return &Partition{TP: tp, Name: name, Epoch: epoch, producers: make(map[int64]*list.Element), recent: list.New()}
}

// clone returns a deep copy that shares nothing with p.
func (p *Partition) clone() *Partition {
	c := *p
	c.Checkpoints = slices.Clone(p.Checkpoints)
	c.producers = make(map[int64]*list.Element, len(p.producers))
	c.recent = list.New()
	for e := p.recent.Front(); e != nil; e = e.Next() {
		cp := *e.Value.(*producer)
		cp.kept = append([]keptBatch(nil), cp.kept...)
		c.producers[cp.id] = c.recent.PushBack(&cp)
	}
	return &c
}

// ChainHash extends the rolling hash of a partition's log by one batch: its
// base offset, its length in bytes (all of it, header included) and its CRC as
// it stands on a broker, that is with the applier's identity. The same chain
// is computed from a broker's log by whoever compares.
func ChainHash(h uint64, base int64, length int, crc uint32) uint64 {
	for _, v := range [3]uint64{uint64(base), uint64(length), uint64(crc)} {
		h ^= v
		h ^= h >> 33
		h *= 0xff51afd7ed558ccd
		h ^= h >> 29
		h *= 0xc4ceb9fe1a85ec53
		h ^= h >> 32
		h += 0x9e3779b97f4a7c15
	}
	return h
}

// append gives the batch its verdict and, if it is appended, its offset.
func (p *Partition) append(b kafkawire.Batch, nowMs int64) Result {
	r := Result{Kind: KindAppend, TP: p.TP, Batch: b}
	if why := inadmissible(b); why != "" {
		r.Verdict, r.Code, r.Message = Rejected, codeInvalidRecord, why
		return r
	}
	if pid := b.ProducerID(); pid >= 0 {
		kept, code := p.checkProducer(b, nowMs)
		if code != 0 {
			r.Verdict, r.Code = Rejected, code
			return r
		}
		if kept != nil {
			r.Verdict, r.BaseOffset, r.Count = Duplicate, kept.offset, kept.count
			return r
		}
		p.remember(b, nowMs)
	}
	r.Verdict = Appended
	r.BaseOffset, r.Count = p.NextOffset, b.Count()
	r.Sequence, r.Epoch, r.Below = p.Sequence, p.Epoch, p.Hash
	r.CRC = kafkawire.StampedCRC(b, ApplierProducerID(p.TP.Topic), r.Epoch, r.Sequence)
	p.Hash = ChainHash(p.Hash, r.BaseOffset, len(b), r.CRC)
	p.NextOffset += int64(r.Count)
	p.Sequence = addSequence(p.Sequence, r.Count)
	p.LastBatch = Placed{Base: r.BaseOffset, Count: r.Count, CRC: r.CRC, Sequence: r.Sequence, Epoch: r.Epoch}
	p.mark(len(b))
	return r
}

// inadmissible says why a batch can have no place in a log, empty if it can.
// Batches are checked before they are proposed, in full; this is what the state
// machine's own arithmetic rests on, whoever proposed.
func inadmissible(b kafkawire.Batch) string {
	switch {
	case b.Count() < 1 || b.LastOffsetDelta() != b.Count()-1:
		return "the batch's record count and last offset delta do not agree"
	case b.IsTransactional() || b.IsControl():
		return "transactional and control batches are not appended"
	case b.ProducerID() >= 0 && (b.BaseSequence() < 0 || b.ProducerEpoch() < 0):
		return "the batch has a producer id, but no sequence"
	}
	return ""
}

// ApplierProducerID is the producer id that every node's applier stamps on the
// batches of a topic.
func ApplierProducerID(topic uint64) int64 { return ApplierProducerBase + int64(topic) }

// checkProducer decides what Kafka's ProducerAppendInfo.checkSequence and
// ProducerStateEntry.findDuplicateBatch decide.
func (p *Partition) checkProducer(b kafkawire.Batch, nowMs int64) (dup *keptBatch, code int16) {
	e, ok := p.producers[b.ProducerID()]
	if !ok {
		// A producer that is new here begins with sequence 0. If its first
		// batch was turned away by a node that did not lead yet, and the
		// next one, already on its way, were taken, the first could never
		// follow (KAFKA-15591). Only where producers have been forgotten may
		// it be one of those: then any sequence is taken, as Kafka does.
		if b.BaseSequence() != 0 && !p.forgot {
			return nil, codeOutOfOrderSequence
		}
		return nil, 0
	}
	pr := e.Value.(*producer)
	if nowMs-pr.usedMs > ProducerExpiryMs {
		p.forget(e)
		return nil, 0
	}
	epoch, first := b.ProducerEpoch(), b.BaseSequence()
	switch {
	case epoch < pr.epoch:
		return nil, codeInvalidProducerEpoch
	case epoch > pr.epoch:
		if first != 0 {
			return nil, codeOutOfOrderSequence
		}
		return nil, 0
	}
	last := addSequence(first, b.Count()-1)
	for i := range pr.kept {
		if k := &pr.kept[i]; k.first == first && k.last == last {
			return k, 0
		}
	}
	if first != addSequence(pr.lastSeq, 1) {
		return nil, codeOutOfOrderSequence
	}
	return nil, 0
}

// forget drops a producer's state.
func (p *Partition) forget(e *list.Element) {
	p.recent.Remove(e)
	delete(p.producers, e.Value.(*producer).id)
	p.forgot = true
}

// remember notes a batch that is about to be appended at NextOffset.
func (p *Partition) remember(b kafkawire.Batch, nowMs int64) {
	var pr *producer
	if e, ok := p.producers[b.ProducerID()]; ok {
		pr = e.Value.(*producer)
		p.recent.MoveToFront(e)
	} else {
		if p.recent.Len() >= MaxProducers {
			p.forget(p.recent.Back())
		}
		pr = &producer{id: b.ProducerID(), epoch: b.ProducerEpoch(), gone: -1}
		if b.BaseSequence() != 0 {
			// It wrote before it was forgotten, nobody knows where.
			pr.gone = p.NextOffset - 1
		}
		p.producers[pr.id] = p.recent.PushFront(pr)
	}
	if b.ProducerEpoch() != pr.epoch {
		pr.epoch, pr.kept, pr.gone = b.ProducerEpoch(), nil, -1
	}
	first := b.BaseSequence()
	last := addSequence(first, b.Count()-1)
	if len(pr.kept) == keptBatches {
		pr.gone = pr.kept[0].offset
		pr.kept = append(pr.kept[:0], pr.kept[1:]...)
	}
	pr.kept = append(pr.kept, keptBatch{first: first, last: last, offset: p.NextOffset, count: b.Count()})
	pr.lastSeq, pr.usedMs = last, nowMs
}

// addSequence adds n to a sequence number modulo 2^31
// (DefaultRecordBatch.incrementSequence).
func addSequence(seq, n int32) int32 {
	return int32((int64(seq) + int64(n)) & math.MaxInt32)
}
