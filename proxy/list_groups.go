package proxy

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ListGroups 0 to 5. As in Kafka each node lists the groups that it
// coordinates, and clients ask every node. Groups with members are known to
// this node's broker. It may also remember groups that are coordinated
// elsewhere by now, or that another coordinator has deleted since: those are
// left out. Groups without members are known to the catalog.

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
	// Who may describe the cluster sees all groups, and else one by one
	// (KafkaApis.handleListGroupsRequest).
	rights, err := r.clusterAccess(r.c.ctx)
	if err != nil {
		r.noteUpstream(err)
		fail(kerr.CoordinatorNotAvailable.Code)
		return nil
	}
	seesAll := rights&opDescribe != 0
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
			if err := r.listCommitted(ctx, req, resp, seesAll); err != nil {
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
func (r *request) listCommitted(ctx context.Context, req *kmsg.ListGroupsRequest, resp *kmsg.ListGroupsResponse, seesAll bool) error {
	names, err := r.c.srv.cluster.CommittedGroups(ctx)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	ours := func(group string) bool { return v.Coordinator(group) == v.Self }
	resp.Groups = slices.DeleteFunc(resp.Groups, func(g kmsg.ListGroupsResponseGroup) bool { return !ours(g.Group) })
	committed := make(map[string]bool, len(names))
	for _, name := range names {
		committed[name] = true
	}
	unsure := make(map[string]bool) // whether the broker lists it
	for _, g := range resp.Groups {
		if !committed[g.Group] {
			unsure[g.Group] = true
		}
		delete(committed, g.Group)
	}
	if wanted(req.StatesFilter, groupEmpty) && wanted(req.TypesFilter, groupClassic) {
		for name := range committed {
			if ours(name) {
				unsure[name] = false
			}
		}
	}
	return r.settleGroups(resp, unsure, seesAll)
}

// settleGroups finds out which of the groups that either only the broker or only
// the catalog knows are there. One that only the broker knows must have members.
// One that only the catalog knows is empty, and shown to clients that may see it.
func (r *request) settleGroups(resp *kmsg.ListGroupsResponse, unsure map[string]bool, seesAll bool) error {
	if len(unsure) == 0 {
		return nil
	}
	describe := kmsg.NewPtrDescribeGroupsRequest()
	describe.Groups = slices.Sorted(maps.Keys(unsure))
	got, held, err := askAndWait[*kmsg.DescribeGroupsResponse](r, describe)
	if err != nil {
		return err
	}
	defer held.release()
	gone := make(map[string]bool)
	for _, d := range got.Groups {
		listed := unsure[d.Group]
		vacant := d.ErrorCode == 0 && (d.State == groupDead || d.State == groupEmpty)
		if !listed && seesAll && d.ErrorCode == kerr.GroupAuthorizationFailed.Code {
			vacant = true // with members the broker would have listed it
		}
		switch {
		case listed:
			gone[d.Group] = vacant
		case vacant:
			g := kmsg.NewListGroupsResponseGroup()
			g.Group, g.ProtocolType, g.GroupState, g.GroupType = d.Group, consumerProtocol, groupEmpty, groupClassic
			resp.Groups = append(resp.Groups, g)
		}
	}
	resp.Groups = slices.DeleteFunc(resp.Groups, func(g kmsg.ListGroupsResponseGroup) bool { return gone[g.Group] })
	return nil
}

// wanted says whether a filter, if there is one, names a value.
func wanted(filter []string, value string) bool {
	return len(filter) == 0 || slices.ContainsFunc(filter, func(s string) bool { return strings.EqualFold(s, value) })
}
