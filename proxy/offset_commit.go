package proxy

import (
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// OffsetCommit 2 to 9 (10 carries topic ids). The coordinator's broker judges:
// who the client is, whether the topics exist, and whether the commit fits the
// group's members and generation. What it accepts is proposed to the catalog
// under the epoch that the coordinator had before, and answered when it is
// committed there. A member of a group that the broker has never met is told
// UNKNOWN_MEMBER_ID, so that it joins: Kafka's GROUP_ID_NOT_FOUND (from version
// 9 on) is for groups that were deleted, and ends its client; here the group
// comes from another coordinator. The committed leader epoch becomes -1: it is of one broker
// only, and a consumer that gets it back from another stalls until Metadata
// reaches it.

type topicPartition struct {
	topic     string
	partition int32
}

func handleOffsetCommit(r *request) error {
	req, err := parse[*kmsg.OffsetCommitRequest](r)
	if err != nil {
		return err
	}
	for i := range req.Topics {
		for j := range req.Topics[i].Partitions {
			req.Topics[i].Partitions[j].LeaderEpoch = -1
		}
	}
	v := r.c.srv.cluster.View()
	if code := coordinatorCode(v, req.Group); code != 0 {
		r.reply(offsetCommitError(req, code))
		return nil
	}
	ask(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(resp *kmsg.OffsetCommitResponse, held *lease, err error) {
		if err != nil {
			r.reply(offsetCommitError(req, r.coordinatorFailed(req.Group, err)))
			return
		}
		r.commitAccepted(v, req, resp, held)
	})
	return nil
}

// offsetCommitError is the answer with one code for every partition.
func offsetCommitError(req *kmsg.OffsetCommitRequest, code int16) *kmsg.OffsetCommitResponse {
	resp := kmsg.NewPtrOffsetCommitResponse()
	for _, t := range req.Topics {
		rt := kmsg.NewOffsetCommitResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetCommitResponseTopicPartition()
			rp.Partition, rp.ErrorCode = p.Partition, code
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

// commitAccepted proposes the partitions that the broker has accepted, v being
// the view from before it was asked, and answers when they are committed.
func (r *request) commitAccepted(v *View, req *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, held *lease) {
	codes := make(map[topicPartition]int16)
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode == kerr.GroupIDNotFound.Code {
				p.ErrorCode = kerr.UnknownMemberID.Code
			}
			codes[topicPartition{t.Topic, p.Partition}] = p.ErrorCode
		}
	}
	commit := OffsetCommit{Group: req.Group, Epoch: v.CoordinatorEpoch(req.Group),
		Member: req.Generation >= 0 || req.MemberID != "", RetentionMs: -1}
	if r.h.Version <= 4 && req.RetentionTimeMillis >= 0 {
		commit.RetentionMs = req.RetentionTimeMillis
	}
	var keys []topicPartition
	for _, t := range req.Topics {
		topic := v.Topics[t.Topic]
		for _, p := range t.Partitions {
			key := topicPartition{t.Topic, p.Partition}
			switch code, answered := codes[key]; {
			case !answered || code != 0:
			case topic == nil || p.Partition < 0 || int(p.Partition) >= len(topic.Partitions):
				codes[key] = kerr.UnknownTopicOrPartition.Code
			default:
				o := OffsetToCommit{Topic: topic.ID, Partition: p.Partition, Offset: p.Offset}
				if p.Metadata != nil {
					o.Metadata = *p.Metadata
				}
				keys, commit.Offsets = append(keys, key), append(commit.Offsets, o)
			}
		}
	}
	answer := func(verdicts []int16) {
		for i, key := range keys {
			codes[key] = verdicts[i]
		}
		for i := range resp.Topics {
			t := &resp.Topics[i]
			for j := range t.Partitions {
				t.Partitions[j].ErrorCode = codes[topicPartition{t.Topic, t.Partitions[j].Partition}]
			}
		}
		r.replyHolding(resp, held)
	}
	if len(keys) == 0 {
		answer(nil)
		return
	}
	r.c.srv.cluster.CommitOffsets(commit, answer)
}
