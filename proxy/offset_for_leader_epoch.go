package proxy

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// OffsetForLeaderEpoch 2 to 4.
//
// Answered by us. A client asks where the log of an epoch ended, to see whether
// its position was truncated away. Committed data never rolls back here, so the
// answer is the epoch it asked for and the end of the log. Deviation from
// Kafka: current leader epochs are not checked; replica ids are refused. Whether
// the client may ask is the broker's to say.

func handleOffsetForLeaderEpoch(r *request) error {
	req, err := parse[*kmsg.OffsetForLeaderEpochRequest](r)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	ctx, cancel := context.WithTimeout(r.c.ctx, endOffsetTimeout)
	defer cancel()
	denied := r.mayAskEpochs(ctx, req)
	resp := kmsg.NewPtrOffsetForLeaderEpochResponse()
	for _, t := range req.Topics {
		rt := kmsg.NewOffsetForLeaderEpochResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
			rp.Partition, rp.LeaderEpoch, rp.EndOffset = p.Partition, -1, -1
			topic, code := partitionCode(v, t.Topic, p.Partition)
			if r.h.Version >= 3 && req.ReplicaID >= 0 {
				code = kerr.InvalidRequest.Code
			}
			if no, ok := denied(t.Topic); ok {
				code = no
			}
			if code == 0 {
				end, err := r.c.srv.cluster.EndOffset(ctx, topic, p.Partition, r.c.srv.cfg.LinearizableReads)
				if err != nil {
					code = kerr.NotLeaderForPartition.Code
				} else {
					rp.LeaderEpoch, rp.EndOffset = p.LeaderEpoch, end
				}
			}
			rp.ErrorCode = code
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	r.reply(resp)
	return nil
}

// mayAskEpochs returns what is to be said of the topics that the client may not
// ask about. The broker is sent the request itself, for besides DESCRIBE on the
// topics there is CLUSTER_ACTION on the cluster, which asks about all.
func (r *request) mayAskEpochs(ctx context.Context, req *kmsg.OffsetForLeaderEpochRequest) func(topic string) (code int16, denied bool) {
	if !r.judged || len(req.Topics) == 0 {
		return func(string) (int16, bool) { return 0, false }
	}
	ask := *req
	ask.SetVersion(3) // which every broker has
	ask.ReplicaID = -1
	got, err := askRights[*kmsg.OffsetForLeaderEpochResponse](ctx, r, &ask)
	if err != nil {
		r.noteUpstream(err)
		return func(string) (int16, bool) { return kerr.NotLeaderForPartition.Code, true }
	}
	allowed := make(map[string]bool, len(got.Topics))
	for _, t := range got.Topics {
		for _, p := range t.Partitions {
			allowed[t.Topic] = p.ErrorCode != kerr.TopicAuthorizationFailed.Code
		}
	}
	return func(topic string) (int16, bool) { return kerr.TopicAuthorizationFailed.Code, !allowed[topic] }
}
