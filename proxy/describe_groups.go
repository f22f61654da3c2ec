package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// DescribeGroups 0 to 5. The groups that this node coordinates are asked of its
// broker; the others are answered NOT_COORDINATOR.

func handleDescribeGroups(r *request) error {
	req, err := parse[*kmsg.DescribeGroupsRequest](r)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	resp := kmsg.NewPtrDescribeGroupsResponse()
	refuse := func(group string, code int16) {
		g := kmsg.NewDescribeGroupsResponseGroup()
		g.Group, g.ErrorCode, g.AuthorizedOperations = group, code, noOperations
		resp.Groups = append(resp.Groups, g)
	}
	var ours []string
	for _, group := range req.Groups {
		if code := coordinatorCode(v, group); code != 0 {
			refuse(group, code)
			continue
		}
		ours = append(ours, group)
	}
	if req.Groups = ours; len(ours) == 0 {
		r.reply(resp)
		return nil
	}
	ask(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(got *kmsg.DescribeGroupsResponse, held *lease, err error) {
		if err != nil {
			for _, group := range ours {
				refuse(group, r.coordinatorFailed(group, err))
			}
			r.reply(resp)
			return
		}
		resp.Groups = append(resp.Groups, got.Groups...)
		r.replyHolding(resp, held)
	})
	return nil
}
