package proxy

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// DescribeGroups 0 to 5. The groups that this node coordinates are asked of its
// broker; the others are answered NOT_COORDINATOR. Of a group without
// members the catalog says whether it is there: the broker may never have heard
// of it, or remember one that another coordinator has deleted.

// States of a group, in Kafka's words.
const (
	groupDead    = "Dead"
	groupEmpty   = "Empty"
	groupClassic = "classic"
)

// consumerProtocol is the protocol type of consumers. What other types of
// groups commit is not known of groups that are in the catalog alone.
const consumerProtocol = "consumer"

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
		r.apart(func(ctx context.Context) {
			r.reviveGroups(ctx, got.Groups)
			resp.Groups = append(resp.Groups, got.Groups...)
			r.replyHolding(resp, held)
		})
	})
	return nil
}

// reviveGroups makes the groups without members empty that the catalog knows,
// and the others dead.
func (r *request) reviveGroups(ctx context.Context, groups []kmsg.DescribeGroupsResponseGroup) {
	vacant := func(g *kmsg.DescribeGroupsResponseGroup) bool {
		return g.ErrorCode == 0 && (g.State == groupDead || g.State == groupEmpty)
	}
	var names []string
	for i := range groups {
		if vacant(&groups[i]) {
			names = append(names, groups[i].Group)
		}
	}
	if len(names) == 0 {
		return
	}
	committed, err := r.c.srv.cluster.Committed(ctx, names)
	for i := range groups {
		g := &groups[i]
		switch _, known := committed[g.Group]; {
		case !vacant(g):
		case err != nil:
			g.ErrorCode = catalogCode(err)
		case !known:
			g.State = groupDead
		case g.State == groupDead:
			g.State, g.ProtocolType = groupEmpty, consumerProtocol
		}
	}
}
