package proxy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

func (f *fetching) decode(body []byte) (*kmsg.FetchResponse, error) {
	resp := kmsg.NewPtrFetchResponse()
	resp.SetVersion(f.r.h.Version)
	if err := kafkawire.ReadResponse(resp, body); err != nil {
		return nil, fmt.Errorf("decode fetch response: %w", err)
	}
	return resp, nil
}

// maySeeFillers says whether the local broker's log of a partition may have
// batches that stand for offsets without a record: a copy of a compacted log
// has. Other logs have them below their log start alone.
func maySeeFillers(p *fetchPart) bool { return p != nil && p.topic != nil && compacted(p.topic) }

// hasFiller looks for such batches in an answer, where there may be any.
func (f *fetching) hasFiller(p *kafkawire.FetchResponsePartition) bool {
	if !f.compacted || len(p.Records) == 0 {
		return false
	}
	// Brokers answer in the order in which they were asked, mostly.
	for n := range f.parts {
		q := &f.parts[(f.next+n)%len(f.parts)]
		if q.partition == p.Partition && q.name == string(p.Topic) {
			f.next = (f.next + n + 1) % len(f.parts)
			return maySeeFillers(q) && kafkawire.HasFiller(p.Records)
		}
	}
	return false
}

// find returns the requested partition, nil if the broker answers what was not
// asked.
func (f *fetching) find(topic string, partition int32) *fetchPart {
	for i := range f.parts {
		if p := &f.parts[i]; p.partition == partition && p.name == topic {
			return p
		}
	}
	return nil
}

// finish sends a decoded answer, after the questions about its offsets out of
// range, if any.
func (f *fetching) finish(resp *kmsg.FetchResponse, held *lease, unsure []outOfRange) {
	if len(unsure) == 0 {
		f.send(resp, held)
		return
	}
	f.r.c.work.Go(func() {
		f.r.c.guard(f.r.api.Name, func() {
			// The answers to the questions need room in the same budget.
			held.release()
			f.judge(unsure)
			for i := range resp.Topics {
				for j := range resp.Topics[i].Partitions {
					p := &resp.Topics[i].Partitions[j]
					if p.ErrorCode != kerr.OffsetOutOfRange.Code {
						continue
					}
					for _, u := range unsure {
						if u.part != nil && u.part.name == resp.Topics[i].Topic && u.part.partition == p.Partition {
							p.ErrorCode = u.code
							if u.start >= 0 {
								p.LogStartOffset = u.start
							}
						}
					}
				}
			}
			f.send(resp, nil)
		})
	})
}

// send removes from a decoded answer what tells of the broker's own ids, adds
// the partitions that are not ours, and answers.
func (f *fetching) send(resp *kmsg.FetchResponse, held *lease) {
	if resp.ErrorCode != 0 {
		// Sessionless requests have no errors of the whole but those of the
		// broker's own trouble.
		held.release()
		f.r.reply(f.failed(errUpstreamGarbage))
		return
	}
	resp.SessionID = 0
	resp.Brokers, resp.UnknownTags = nil, kmsg.Tags{}
	for i := range resp.Topics {
		resp.Topics[i].UnknownTags = kmsg.Tags{}
		for j := range resp.Topics[i].Partitions {
			p := &resp.Topics[i].Partitions[j]
			p.ErrorCode = brokerCode(p.ErrorCode)
			p.PreferredReadReplica = -1
			if f.compacted && maySeeFillers(f.find(resp.Topics[i].Topic, p.Partition)) {
				p.RecordBatches = kafkawire.HideFillers(p.RecordBatches)
			}
			clean := kmsg.NewFetchResponseTopicPartition()
			p.DivergingEpoch, p.CurrentLeader, p.SnapshotID = clean.DivergingEpoch, clean.CurrentLeader, clean.SnapshotID
			p.UnknownTags = kmsg.Tags{}
		}
	}
	f.r.replyHolding(f.merge(resp), held)
}

// merge adds the partitions that are not ours to an answer.
func (f *fetching) merge(resp *kmsg.FetchResponse) *kmsg.FetchResponse {
	for i := range f.parts {
		switch p := &f.parts[i]; {
		case p.code != 0:
			f.add(resp, p, p.code, -1)
		case p.replica != 0:
			f.add(resp, p, 0, p.end)
		}
	}
	return resp
}

// add appends an empty partition to an answer.
func (f *fetching) add(resp *kmsg.FetchResponse, p *fetchPart, code int16, end int64) {
	fp := kmsg.NewFetchResponseTopicPartition()
	fp.Partition, fp.ErrorCode = p.partition, code
	fp.HighWatermark, fp.LastStableOffset, fp.LogStartOffset, fp.PreferredReadReplica = end, end, -1, -1
	if p.replica != 0 {
		fp.PreferredReadReplica = p.replica
	}
	// Empty as Kafka's: null is a shape that some clients do not expect.
	fp.RecordBatches = []byte{}
	fp.AbortedTransactions = []kmsg.FetchResponseTopicPartitionAbortedTransaction{}
	for i := range resp.Topics {
		if resp.Topics[i].Topic == p.name {
			resp.Topics[i].Partitions = append(resp.Topics[i].Partitions, fp)
			return
		}
	}
	ft := kmsg.NewFetchResponseTopic()
	ft.Topic = p.name
	ft.Partitions = append(ft.Partitions, fp)
	resp.Topics = append(resp.Topics, ft)
}

// failed is the answer when the broker gave none. A poll that was ended because
// some partitions are no longer ours leaves the others empty but well; any
// other cause sends the client to look for the leaders again.
func (f *fetching) failed(cause error) *kmsg.FetchResponse {
	resp := kmsg.NewPtrFetchResponse()
	v := f.r.c.srv.cluster.View()
	f.r.noteUpstream(cause)
	for i := range f.parts {
		p := &f.parts[i]
		code, end := p.code, int64(-1)
		if p.replica != 0 {
			end = p.end
		}
		if p.served() {
			code = kerr.NotLeaderForPartition.Code
			if errors.Is(cause, errLeadershipLost) && f.stillServes(v, p) {
				ctx, cancel := context.WithTimeout(f.r.c.ctx, endOffsetTimeout)
				// The end stands for the high watermark: without one,
				// librdkafka would take the partition for read to its end.
				if n, err := f.r.c.srv.cluster.EndOffset(ctx, p.topic, p.partition, false); err == nil {
					code, end = 0, n
				}
				cancel()
			}
		}
		f.add(resp, p, code, end)
	}
	return resp
}

// garbage answers when the broker's answer cannot be read.
func (f *fetching) garbage(held *lease, err error) {
	held.release()
	f.r.reply(f.failed(fmt.Errorf("%w: %w", errUpstreamGarbage, err)))
}

const endOffsetTimeout = 5 * time.Second
