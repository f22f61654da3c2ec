package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// OffsetCommit 2 to 9 (10 carries topic ids), passed to the coordinator's
// broker. The committed leader epoch becomes -1: it is of one broker only, and
// a consumer that gets it back from another stalls until Metadata reaches it.

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
	refuse := func(code int16) {
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
		r.reply(resp)
	}
	if code := coordinatorCode(r.c.srv.cluster.View(), req.Group); code != 0 {
		refuse(code)
		return nil
	}
	ask(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(resp *kmsg.OffsetCommitResponse, held *lease, err error) {
		if err != nil {
			refuse(r.coordinatorFailed(req.Group, err))
			return
		}
		r.replyHolding(resp, held)
	})
	return nil
}
