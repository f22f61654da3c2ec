package broker

import (
	"context"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Versions of FindCoordinator with a single key.
const maxFindCoordinatorVersion = 3

// groupProbe is asked for as if it were a consumer group. Nothing ever joins it.
const groupProbe = "lockstep-probe"

// PrepareGroups makes the broker able to coordinate consumer groups, and
// returns when it is. Kafka creates __consumer_offsets when it is first asked
// for a coordinator (KafkaApis.handleFindCoordinatorRequest), and clients ask
// the proxy instead. Call it whenever the broker comes up. ctx bounds it.
func (a *Admin) PrepareGroups(ctx context.Context) error {
	err := a.await(ctx, func() (bool, error) {
		resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
			version, err := v.pick(kmsg.FindCoordinator, 0, maxFindCoordinatorVersion)
			req := kmsg.NewPtrFindCoordinatorRequest()
			req.Version = version
			req.CoordinatorKey = groupProbe
			return req, err
		})
		if err != nil {
			return false, err
		}
		found := resp.(*kmsg.FindCoordinatorResponse)
		return found.ErrorCode == 0, codeError(found.ErrorCode, found.ErrorMessage)
	})
	if err != nil {
		return fmt.Errorf("make the broker ready for consumer groups: %w", err)
	}
	return nil
}

// Versions of the requests about members. LeaveGroup v3 is the first that names
// several members, DescribeGroups v6 answers unknown groups with an error.
const (
	minListGroupsVersion     = 0
	maxListGroupsVersion     = 4
	maxDescribeGroupsVersion = 5
	minLeaveGroupVersion     = 3
	maxLeaveGroupVersion     = 5
)

// groupEmpty is the state of a group without members, in Kafka's words.
const groupEmpty = "Empty"

// OccupiedGroups returns the consumer groups that have members, or may have: a
// broker that does not tell the groups' states gives all of them.
func (a *Admin) OccupiedGroups(ctx context.Context) ([]string, error) {
	list, err := a.listGroups(ctx)
	if err != nil {
		return nil, err
	}
	var groups []string
	for _, g := range list {
		if g.GroupState != groupEmpty {
			groups = append(groups, g.Group)
		}
	}
	return groups, nil
}

func (a *Admin) listGroups(ctx context.Context) ([]kmsg.ListGroupsResponseGroup, error) {
	resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.ListGroups, minListGroupsVersion, maxListGroupsVersion)
		req := kmsg.NewPtrListGroupsRequest()
		req.Version = version
		return req, err
	})
	if err != nil {
		return nil, fmt.Errorf("list the broker's consumer groups: %w", err)
	}
	list := resp.(*kmsg.ListGroupsResponse)
	if err := codeError(list.ErrorCode, nil); err != nil {
		return nil, fmt.Errorf("list the broker's consumer groups: %w", err)
	}
	return list.Groups, nil
}

// describeAtOnce is how many groups one request asks about.
const describeAtOnce = 200

// EvictMembers removes every member of consumer groups, as
// Admin.removeMembersFromConsumerGroup does, and returns how many there were. A
// group that the broker does not know has none; one whose part of
// __consumer_offsets it has not read yet is an error. A member that is gone
// already is success.
func (a *Admin) EvictMembers(ctx context.Context, groups []string) (int, error) {
	evicted := 0
	for part := range slices.Chunk(groups, describeAtOnce) {
		described, err := a.describeGroups(ctx, part)
		if err != nil {
			return evicted, err
		}
		for _, g := range described {
			if len(g.Members) == 0 {
				continue
			}
			if err := a.removeMembers(ctx, &g); err != nil {
				return evicted, fmt.Errorf("remove the members of consumer group %s: %w", g.Group, err)
			}
			evicted += len(g.Members)
		}
	}
	return evicted, nil
}

func (a *Admin) describeGroups(ctx context.Context, groups []string) ([]kmsg.DescribeGroupsResponseGroup, error) {
	resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.DescribeGroups, 0, maxDescribeGroupsVersion)
		req := kmsg.NewPtrDescribeGroupsRequest()
		req.Version, req.Groups = version, groups
		return req, err
	})
	if err != nil {
		return nil, fmt.Errorf("describe %d consumer groups: %w", len(groups), err)
	}
	described := resp.(*kmsg.DescribeGroupsResponse).Groups
	for _, g := range described {
		if err := codeError(g.ErrorCode, nil); err != nil {
			return nil, fmt.Errorf("describe consumer group %s: %w", g.Group, err)
		}
	}
	return described, nil
}

func (a *Admin) removeMembers(ctx context.Context, g *kmsg.DescribeGroupsResponseGroup) error {
	resp, err := a.caller.call(ctx, false, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.LeaveGroup, minLeaveGroupVersion, maxLeaveGroupVersion)
		req := kmsg.NewPtrLeaveGroupRequest()
		req.Version, req.Group = version, g.Group
		for _, m := range g.Members {
			leaving := kmsg.NewLeaveGroupRequestMember()
			leaving.MemberID, leaving.InstanceID = m.MemberID, m.InstanceID
			req.Members = append(req.Members, leaving)
		}
		return req, err
	})
	if err != nil {
		return err
	}
	left := resp.(*kmsg.LeaveGroupResponse)
	codes := []int16{left.ErrorCode}
	for _, m := range left.Members {
		codes = append(codes, m.ErrorCode)
	}
	for _, code := range codes {
		if code == kerr.UnknownMemberID.Code {
			continue
		}
		if err := codeError(code, nil); err != nil {
			return err
		}
	}
	return nil
}
