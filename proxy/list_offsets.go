package proxy

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ListOffsets 1 to 9.
//
// The partitions that this node leads are asked of the local broker; the others
// are answered NOT_LEADER_OR_FOLLOWER by us, and the answers merged. Leader
// epochs are -1 both ways. Deviation from Kafka: a request that claims to come
// from a replica or the debugger (replica id other than -1) is refused with
// INVALID_REQUEST, for followers see more than clients. With linearizable reads
// a majority confirms first that this node leads, but for the earliest offsets.

func handleListOffsets(r *request) error {
	req, err := parse[*kmsg.ListOffsetsRequest](r)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	resp := kmsg.NewPtrListOffsetsResponse()
	topics := req.Topics[:0:0]
	refused := r.refusedOffsets(v, req)
	for _, t := range req.Topics {
		parts := t.Partitions[:0:0]
		for _, p := range t.Partitions {
			if code := refused[partitionKey{t.Topic, p.Partition}]; code != 0 {
				addListedOffset(resp, t.Topic, listedOffset(p.Partition, code))
				continue
			}
			p.CurrentLeaderEpoch = -1
			parts = append(parts, p)
		}
		if t.Partitions = parts; len(parts) > 0 {
			topics = append(topics, t)
		}
	}
	if req.Topics = topics; len(topics) == 0 {
		r.reply(resp)
		return nil
	}
	ask(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(got *kmsg.ListOffsetsResponse, held *lease, err error) {
		if err != nil {
			r.noteUpstream(err)
			for _, t := range req.Topics {
				for _, p := range t.Partitions {
					addListedOffset(resp, t.Topic, listedOffset(p.Partition, kerr.NotLeaderForPartition.Code))
				}
			}
			r.reply(resp)
			return
		}
		for _, t := range got.Topics {
			for _, p := range t.Partitions {
				p.LeaderEpoch, p.ErrorCode = -1, brokerCode(p.ErrorCode)
				p.UnknownTags = kmsg.Tags{}
				addListedOffset(resp, t.Topic, p)
			}
		}
		r.replyHolding(resp, held)
	})
	return nil
}

// refusedOffsets returns what to say of the partitions that the broker is not to be
// asked for. Who may not describe a topic is told so, and nothing else.
func (r *request) refusedOffsets(v *View, req *kmsg.ListOffsetsRequest) map[partitionKey]int16 {
	unconfirmed := r.unconfirmed(v, req)
	refused := make(map[partitionKey]int16)
	var names []string
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			topic, code := partitionCode(v, t.Topic, p.Partition)
			switch {
			case req.ReplicaID != -1:
				code = kerr.InvalidRequest.Code
			case code == 0 && unconfirmed[TopicPartition{topic.ID, p.Partition}]:
				code = kerr.NotLeaderForPartition.Code
			}
			if code != 0 {
				refused[partitionKey{t.Topic, p.Partition}] = code
				names = append(names, t.Topic)
			}
		}
	}
	denied := r.mayTopics(r.c.ctx, opDescribe, names, kerr.NotLeaderForPartition.Code)
	for key := range refused {
		if code := denied[key.topic]; code != 0 {
			refused[key] = code
		}
	}
	return refused
}

// unconfirmed returns the partitions that this node would answer for and that a
// majority does not confirm it to lead, where reads are linearizable.
func (r *request) unconfirmed(v *View, req *kmsg.ListOffsetsRequest) map[TopicPartition]bool {
	if !r.c.srv.cfg.LinearizableReads {
		return nil
	}
	var ask []TopicPartition
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			if topic, code := partitionCode(v, t.Topic, p.Partition); code == 0 && p.Timestamp != earliestTimestamp && p.Timestamp != earliestLocalTimestamp {
				ask = append(ask, TopicPartition{topic.ID, p.Partition})
			}
		}
	}
	ctx, cancel := context.WithTimeout(r.c.ctx, endOffsetTimeout)
	defer cancel()
	out := make(map[TopicPartition]bool)
	for i, confirmed := range r.confirmed(ctx, ask) {
		if !confirmed {
			out[ask[i]] = true
		}
	}
	return out
}

// earliestLocalTimestamp is EARLIEST_LOCAL_TIMESTAMP (KIP-405).
const earliestLocalTimestamp = -4

func listedOffset(partition int32, code int16) kmsg.ListOffsetsResponseTopicPartition {
	p := kmsg.NewListOffsetsResponseTopicPartition()
	p.Partition, p.ErrorCode = partition, code
	p.Timestamp, p.Offset, p.LeaderEpoch = -1, -1, -1
	return p
}

func addListedOffset(resp *kmsg.ListOffsetsResponse, topic string, p kmsg.ListOffsetsResponseTopicPartition) {
	for i := range resp.Topics {
		if resp.Topics[i].Topic == topic {
			resp.Topics[i].Partitions = append(resp.Topics[i].Partitions, p)
			return
		}
	}
	t := kmsg.NewListOffsetsResponseTopic()
	t.Topic = topic
	t.Partitions = append(t.Partitions, p)
	resp.Topics = append(resp.Topics, t)
}
