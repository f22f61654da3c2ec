package proxy

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// OffsetDelete 0. The coordinator's broker judges the client's rights, and
// whether the group still reads the topic; the offsets go from the catalog. A
// group that this broker has never heard of has no members, and its topics are
// judged by a Fetch, which asks for the same right (READ).

func handleOffsetDelete(r *request) error {
	req, err := parse[*kmsg.OffsetDeleteRequest](r)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	fail := func(code int16) {
		resp := kmsg.NewPtrOffsetDeleteResponse()
		resp.ErrorCode = code
		r.reply(resp)
	}
	if code := coordinatorCode(v, req.Group); code != 0 {
		fail(code)
		return nil
	}
	done := r.c.srv.cluster.NoteCommits(req.Group)
	ask(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(resp *kmsg.OffsetDeleteResponse, held *lease, err error) {
		switch {
		case err != nil:
			done()
			fail(r.coordinatorFailed(req.Group, err))
			return
		case resp.ErrorCode != 0 && resp.ErrorCode != kerr.GroupIDNotFound.Code:
			done()
			r.replyHolding(resp, held)
			return
		}
		r.apart(func(ctx context.Context) {
			err := func() error {
				defer done() // before the answer, and also in a panic
				return r.deleteOffsets(ctx, v, req, resp)
			}()
			if err != nil {
				held.release()
				fail(catalogCode(err))
				return
			}
			r.replyHolding(resp, held)
		})
	})
	return nil
}

// deleteOffsets deletes in the catalog what the broker has allowed, and what it
// has no say in, and completes its answer.
func (r *request) deleteOffsets(ctx context.Context, v *View, req *kmsg.OffsetDeleteRequest, resp *kmsg.OffsetDeleteResponse) error {
	known := resp.ErrorCode == 0
	if !known {
		topics, err := r.judgeTopics(req)
		if err != nil {
			return err
		}
		resp.ErrorCode, resp.Topics = 0, topics
	}
	var partitions []TopicPartition
	for _, t := range resp.Topics {
		topic := v.Topics[t.Topic]
		for i := range t.Partitions {
			p := &t.Partitions[i]
			switch {
			case p.ErrorCode != 0:
			case topic == nil || p.Partition < 0 || int(p.Partition) >= len(topic.Partitions):
				p.ErrorCode = kerr.UnknownTopicOrPartition.Code
			default:
				partitions = append(partitions, TopicPartition{topic.ID, p.Partition})
			}
		}
	}
	err := r.c.srv.cluster.DeleteOffsets(ctx, req.Group, v.CoordinatorEpoch(req.Group), partitions)
	if known && err != nil && catalogCode(err) == kerr.GroupIDNotFound.Code {
		return nil // it has members, and has not committed yet
	}
	return err
}

// beyondEverything is an offset that no log has: a Fetch from there is judged,
// and answered at once without a record.
const beyondEverything = 1<<63 - 1

// judgeTopics is the answer about every partition as far as the client's rights
// go, found out by a Fetch that the broker answers without a record.
func (r *request) judgeTopics(req *kmsg.OffsetDeleteRequest) ([]kmsg.OffsetDeleteResponseTopic, error) {
	fetch := kmsg.NewPtrFetchRequest()
	fetch.SetVersion(4)
	fetch.MaxBytes, fetch.MinBytes, fetch.MaxWaitMillis = 1, 0, 0
	for _, t := range req.Topics {
		ft := kmsg.NewFetchRequestTopic()
		ft.Topic = t.Topic
		for _, p := range t.Partitions {
			fp := kmsg.NewFetchRequestTopicPartition()
			fp.Partition, fp.FetchOffset, fp.PartitionMaxBytes = p.Partition, beyondEverything, 1
			ft.Partitions = append(ft.Partitions, fp)
		}
		fetch.Topics = append(fetch.Topics, ft)
	}
	got, held, err := askAndWait[*kmsg.FetchResponse](r, fetch)
	if err != nil {
		return nil, err
	}
	defer held.release()
	var out []kmsg.OffsetDeleteResponseTopic
	for _, t := range got.Topics {
		rt := kmsg.NewOffsetDeleteResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetDeleteResponseTopicPartition()
			rp.Partition = p.Partition
			if p.ErrorCode == kerr.TopicAuthorizationFailed.Code {
				rp.ErrorCode = p.ErrorCode
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		out = append(out, rt)
	}
	return out, nil
}
