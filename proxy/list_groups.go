package proxy

import (
	"context"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ListGroups 0 to 5. As in Kafka each node lists the groups that it
// coordinates, and clients ask every node. Groups with members are known to
// this node's broker, which may also remember groups that are coordinated
// elsewhere by now: those are left out. Groups that nobody has joined since
// this node coordinates them are known to the catalog.

func handleListGroups(r *request) error {
	req, err := parse[*kmsg.ListGroupsRequest](r)
	if err != nil {
		return err
	}
	fail := func(code int16) {
		resp := kmsg.NewPtrListGroupsResponse()
		resp.ErrorCode = code
		r.reply(resp)
	}
	ask(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(resp *kmsg.ListGroupsResponse, held *lease, err error) {
		if err != nil {
			r.noteUpstream(err)
			fail(kerr.CoordinatorNotAvailable.Code)
			return
		}
		if resp.ErrorCode != 0 {
			r.replyHolding(resp, held)
			return
		}
		r.apart(func(ctx context.Context) {
			if err := r.listCommitted(ctx, req, resp); err != nil {
				held.release()
				fail(catalogCode(err))
				return
			}
			r.replyHolding(resp, held)
		})
	})
	return nil
}

// listCommitted leaves the groups in the broker's answer that this node
// coordinates, and adds those that only the catalog knows.
func (r *request) listCommitted(ctx context.Context, req *kmsg.ListGroupsRequest, resp *kmsg.ListGroupsResponse) error {
	names, err := r.c.srv.cluster.CommittedGroups(ctx)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	ours := func(group string) bool { return v.Coordinator(group) == v.Self }
	resp.Groups = slices.DeleteFunc(resp.Groups, func(g kmsg.ListGroupsResponseGroup) bool { return !ours(g.Group) })
	if !wanted(req.StatesFilter, groupEmpty) || !wanted(req.TypesFilter, groupClassic) {
		return nil
	}
	listed := make(map[string]bool, len(resp.Groups))
	for _, g := range resp.Groups {
		listed[g.Group] = true
	}
	names = slices.DeleteFunc(names, func(group string) bool { return listed[group] || !ours(group) })
	if len(names) == 0 {
		return nil
	}
	// A group that the broker has in another state is not empty, and one that
	// the client may not see is not shown to it.
	describe := kmsg.NewPtrDescribeGroupsRequest()
	describe.Groups = names
	got, held, err := askAndWait[*kmsg.DescribeGroupsResponse](r, describe)
	if err != nil {
		return err
	}
	defer held.release()
	for _, d := range got.Groups {
		if d.ErrorCode != 0 || d.State != groupDead && d.State != groupEmpty {
			continue
		}
		g := kmsg.NewListGroupsResponseGroup()
		g.Group, g.ProtocolType, g.GroupState, g.GroupType = d.Group, consumerProtocol, groupEmpty, groupClassic
		resp.Groups = append(resp.Groups, g)
	}
	return nil
}

// wanted says whether a filter, if there is one, names a value.
func wanted(filter []string, value string) bool {
	return len(filter) == 0 || slices.ContainsFunc(filter, func(s string) bool { return strings.EqualFold(s, value) })
}
