package proxy

import (
	"github.com/twmb/franz-go/pkg/kmsg"
)

// OffsetFetch 1 to 9 (10 carries topic ids), passed to the coordinator's
// broker; from version 8 on a request may name several groups, and those of
// other nodes are answered NOT_COORDINATOR by us. Committed leader epochs are
// -1 in every answer.

func handleOffsetFetch(r *request) error {
	req, err := parse[*kmsg.OffsetFetchRequest](r)
	if err != nil {
		return err
	}
	if r.h.Version >= 8 {
		return fetchOffsetsOfGroups(r, req)
	}
	if code := coordinatorCode(r.c.srv.cluster.View(), req.Group); code != 0 {
		r.reply(offsetFetchError(r.h.Version, req, code))
		return nil
	}
	ask(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(resp *kmsg.OffsetFetchResponse, held *lease, err error) {
		if err != nil {
			r.reply(offsetFetchError(r.h.Version, req, r.coordinatorFailed(req.Group, err)))
			return
		}
		for i := range resp.Topics {
			for j := range resp.Topics[i].Partitions {
				resp.Topics[i].Partitions[j].LeaderEpoch = -1
			}
		}
		r.replyHolding(resp, held)
	})
	return nil
}

// offsetFetchError is the answer up to version 7. Version 1 has no error of
// the whole, so every partition carries it.
func offsetFetchError(version int16, req *kmsg.OffsetFetchRequest, code int16) *kmsg.OffsetFetchResponse {
	resp := kmsg.NewPtrOffsetFetchResponse()
	resp.ErrorCode = code
	if version >= 2 {
		return resp
	}
	for _, t := range req.Topics {
		rt := kmsg.NewOffsetFetchResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetFetchResponseTopicPartition()
			rp.Partition, rp.Offset, rp.LeaderEpoch, rp.ErrorCode = p, -1, -1, code
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

func fetchOffsetsOfGroups(r *request, req *kmsg.OffsetFetchRequest) error {
	v := r.c.srv.cluster.View()
	resp := kmsg.NewPtrOffsetFetchResponse()
	refuse := func(group string, code int16) {
		g := kmsg.NewOffsetFetchResponseGroup()
		g.Group, g.ErrorCode = group, code
		resp.Groups = append(resp.Groups, g)
	}
	ours := req.Groups[:0:0]
	for _, g := range req.Groups {
		if code := coordinatorCode(v, g.Group); code != 0 {
			refuse(g.Group, code)
			continue
		}
		ours = append(ours, g)
	}
	if req.Groups = ours; len(ours) == 0 {
		r.reply(resp)
		return nil
	}
	ask(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(got *kmsg.OffsetFetchResponse, held *lease, err error) {
		if err != nil {
			for _, g := range ours {
				refuse(g.Group, r.coordinatorFailed(g.Group, err))
			}
			r.reply(resp)
			return
		}
		for _, g := range got.Groups {
			for i := range g.Topics {
				for j := range g.Topics[i].Partitions {
					g.Topics[i].Partitions[j].LeaderEpoch = -1
				}
			}
			resp.Groups = append(resp.Groups, g)
		}
		r.replyHolding(resp, held)
	})
	return nil
}
