package proxy

import (
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/internal/failpoint"
	"lockstep/internal/mutant"
	"lockstep/internal/poison"
	"lockstep/kafkawire"
)

// Produce 3 to 11 (12 is the second transaction protocol, 13 carries topic
// ids).
//
// Every batch is checked for all that a broker might refuse, then handed to the
// Producer in the order of the connection, so that pipelined requests commit
// together; the answer follows when every partition has its outcome or at
// timeout_ms. Deviations from Kafka: acks 1 waits for the commit as acks -1
// does; transactional ids are refused; a partition named twice is refused with
// INVALID_REQUEST; no current-leader hint is sent.

// maxProduceWait bounds timeout_ms, which a client may set to 24 days.
const maxProduceWait = 5 * time.Minute

// ackless is how long a batch sent with acks 0 may take: the client's timeout
// is about an answer that it does not want.
const acklessWait = 30 * time.Second

func handleProduce(r *request) error {
	req, err := parse[*kmsg.ProduceRequest](r)
	if err != nil {
		return err
	}
	failpoint.Hit(failpoint.ProduceReceived)
	p := &producing{r: r, acks: req.Acks, resp: kmsg.NewPtrProduceResponse()}
	p.start(req)
	return nil
}

// producing is one Produce request on its way.
type producing struct {
	r    *request
	acks int16

	mu       sync.Mutex
	resp     *kmsg.ProduceResponse // entries are written until answered
	pending  int                   // partitions without an outcome, plus one while starting
	answered bool
	timer    *time.Timer
}

// place is an entry of the response.
type place struct{ topic, partition int }

// layOut makes the response's entries, in the request's order, each saying
// that there is no outcome.
func (p *producing) layOut(req *kmsg.ProduceRequest) {
	for _, t := range req.Topics {
		rt := kmsg.NewProduceResponseTopic()
		rt.Topic = t.Topic
		rt.Partitions = make([]kmsg.ProduceResponseTopicPartition, len(t.Partitions))
		for j, part := range t.Partitions {
			rp := kmsg.NewProduceResponseTopicPartition()
			rp.Partition, rp.BaseOffset, rp.LogAppendTime, rp.LogStartOffset = part.Partition, -1, -1, -1
			rp.ErrorCode = kerr.RequestTimedOut.Code
			if mutant.On(mutant.TimeoutIsFailure) {
				rp.ErrorCode = kerr.InvalidRecord.Code
			}
			rt.Partitions[j] = rp
		}
		p.resp.Topics = append(p.resp.Topics, rt)
	}
}

func (p *producing) refuse(at place, code int16, msg string) {
	rp := &p.resp.Topics[at.topic].Partitions[at.partition]
	rp.ErrorCode = code
	rp.ErrorMessage = nil
	if msg != "" {
		rp.ErrorMessage = kmsg.StringPtr(msg)
	}
}

// checkedBatch is a batch that passed, and where its outcome goes.
type checkedBatch struct {
	at        place
	topic     *Topic
	partition int32
	batch     []byte
}

// start checks all partitions, then appends those that passed.
func (p *producing) start(req *kmsg.ProduceRequest) {
	p.layOut(req)
	now := time.Now()
	batches := p.check(req, now)
	wait := min(time.Duration(max(req.TimeoutMillis, 0))*time.Millisecond, maxProduceWait)
	if p.acks == 0 {
		wait = acklessWait
	}
	p.pending = len(batches)
	if p.pending == 0 {
		p.answer()
		return
	}
	failpoint.Hit(failpoint.ProduceChecked)
	for range batches {
		p.r.slot.request.retain() // the Producer holds the bytes until done
	}
	p.mu.Lock()
	p.timer = time.AfterFunc(wait, func() { p.r.c.guard(p.r.api.Name, p.expire) })
	p.mu.Unlock()
	for _, b := range batches {
		p.r.c.srv.producer.Append(b.topic, b.partition, b.batch, now.Add(wait), func(res AppendResult) {
			defer p.r.slot.request.release()
			p.r.c.guard(p.r.api.Name, func() { p.done(b.at, res) })
		})
	}
}

// check returns the batches that may be appended and refuses the others.
func (p *producing) check(req *kmsg.ProduceRequest, now time.Time) []checkedBatch {
	v := p.r.c.srv.cluster.View()
	twice := repeated(req)
	names := make([]string, 0, len(req.Topics))
	for _, t := range req.Topics {
		names = append(names, t.Topic)
	}
	denied := p.r.mayTopics(p.r.c.ctx, opWrite, names, kerr.NotLeaderForPartition.Code)
	var batches []checkedBatch
	for i, t := range req.Topics {
		for j, part := range t.Partitions {
			at := place{i, j}
			topic, code := partitionCode(v, t.Topic, part.Partition)
			switch code = deniedOr(denied[t.Topic], code); {
			case code == kerr.TopicAuthorizationFailed.Code:
				p.refuse(at, code, "")
				continue
			case req.TransactionID != nil:
				p.refuse(at, kerr.TransactionalIDAuthorizationFailed.Code, "transactions are not supported by this cluster")
				continue
			case p.acks < -1 || p.acks > 1:
				p.refuse(at, kerr.InvalidRequiredAcks.Code, "acks must be -1, 0 or 1")
				continue
			case twice[partitionKey{t.Topic, part.Partition}]:
				p.refuse(at, kerr.InvalidRequest.Code, "the request names this partition more than once")
				continue
			case code != 0:
				p.refuse(at, code, "")
				continue
			}
			batch, refusal := kafkawire.CheckProduce(part.Records, p.r.c.srv.produceLimits(topic, p.r.h.Version, now.UnixMilli()))
			if refusal != nil && poison.Accepts(part.Records) {
				batch, refusal = part.Records, nil
			}
			if refusal != nil {
				p.refuseBatch(at, refusal, t.Topic)
				continue
			}
			batches = append(batches, checkedBatch{at, topic, part.Partition, batch})
		}
	}
	return batches
}

type partitionKey struct {
	topic     string
	partition int32
}

// repeated returns the partitions that a request names more than once.
func repeated(req *kmsg.ProduceRequest) map[partitionKey]bool {
	var twice map[partitionKey]bool
	seen := make(map[partitionKey]bool)
	for _, t := range req.Topics {
		for _, part := range t.Partitions {
			k := partitionKey{t.Topic, part.Partition}
			if seen[k] {
				if twice == nil {
					twice = make(map[partitionKey]bool)
				}
				twice[k] = true
			}
			seen[k] = true
		}
	}
	return twice
}

func (p *producing) refuseBatch(at place, refusal *kafkawire.Refusal, topic string) {
	p.refuse(at, refusal.Code, refusal.Reason)
	rp := &p.resp.Topics[at.topic].Partitions[at.partition]
	if refusal.RecordIndex != kafkawire.NoRecord {
		er := kmsg.NewProduceResponseTopicPartitionErrorRecord()
		er.RelativeOffset = refusal.RecordIndex
		er.ErrorMessage = kmsg.StringPtr(refusal.Reason)
		rp.ErrorRecords = append(rp.ErrorRecords, er)
	}
	kind := "refused batch: " + kerr.TypedErrorForCode(refusal.Code).Message
	p.r.c.srv.notices.warn(p.r.c.host, kind, "refused a record batch", "remote", p.r.c.nc.RemoteAddr().String(),
		"topic", topic, "partition", rp.Partition, "code", refusal.Code, "reason", refusal.Reason)
}

// done takes one partition's outcome. Called by the Producer.
func (p *producing) done(at place, res AppendResult) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answered {
		return
	}
	rp := &p.resp.Topics[at.topic].Partitions[at.partition]
	rp.ErrorCode, rp.BaseOffset, rp.LogStartOffset = res.Code, res.BaseOffset, res.LogStartOffset
	if res.Code != 0 {
		p.refuse(at, res.Code, res.Message)
		rp.BaseOffset = -1
	}
	if p.pending--; p.pending == 0 {
		p.timer.Stop()
		p.answerLocked()
	}
}

// expire answers with what there is; the rest stays REQUEST_TIMED_OUT, which
// means unknown.
func (p *producing) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.answered {
		p.answerLocked()
	}
}

func (p *producing) answer() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answerLocked()
}

// answerLocked finishes the request. With acks 0 there is no answer, and the
// only way to tell of an error is to close the connection, as Kafka does
// (KafkaApis.handleProduceRequest). p.mu is held.
func (p *producing) answerLocked() {
	p.answered = true
	if p.acks != 0 {
		failpoint.Hit(failpoint.AnswerBefore)
		p.r.reply(p.resp)
		failpoint.Hit(failpoint.AnswerAfter)
		return
	}
	for _, t := range p.resp.Topics {
		for _, part := range t.Partitions {
			if part.ErrorCode != 0 {
				p.r.abandon(&violation{"a Produce with acks 0 failed", fmt.Errorf("topic %q partition %d: %w", t.Topic, part.Partition, kerr.ErrorForCode(part.ErrorCode))})
				return
			}
		}
	}
	p.r.slot.finish(nil, nil, nil)
}
