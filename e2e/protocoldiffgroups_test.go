//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// joinVersion and syncVersion are those by which groups are prepared.
const joinVersion, syncVersion = 3, 2

// of is a name that only this API and version use.
func (r *recorder) of(name string) string {
	return fmt.Sprintf("%s-%s-%d", strings.ToLower(kmsg.NameForKey(r.key)), name, r.version)
}

func joinRequest(group, member string) *kmsg.JoinGroupRequest {
	req := kmsg.NewPtrJoinGroupRequest()
	req.Group, req.MemberID, req.ProtocolType = group, member, "consumer"
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 300_000, 300_000
	subscription := kmsg.NewConsumerMemberMetadata()
	subscription.Topics = []string{"read"}
	p := kmsg.NewJoinGroupRequestProtocol()
	p.Name, p.Metadata = "range", subscription.AppendTo(nil)
	req.Protocols = append(req.Protocols, p)
	return req
}

func syncRequest(group, member string, generation int32) *kmsg.SyncGroupRequest {
	req := kmsg.NewPtrSyncGroupRequest()
	req.Group, req.MemberID, req.Generation = group, member, generation
	req.ProtocolType, req.Protocol = kmsg.StringPtr("consumer"), kmsg.StringPtr("range")
	assignment := kmsg.NewConsumerMemberAssignment()
	a := kmsg.NewSyncGroupRequestGroupAssignment()
	a.MemberID, a.MemberAssignment = member, assignment.AppendTo(nil)
	req.GroupAssignment = append(req.GroupAssignment, a)
	return req
}

// remember keeps the member id that a coordinator has given.
func remember(group string) func(context.Context, *side, kmsg.Response) error {
	return func(_ context.Context, s *side, resp kmsg.Response) error {
		if j, ok := resp.(*kmsg.JoinGroupResponse); ok {
			s.members[group] = j.MemberID
		}
		return nil
	}
}

// joined prepares a group of one member, which has its assignment if synced.
func (r *recorder) joined(group string, synced bool) {
	r.prepare(joinVersion, func(*side) kmsg.Request { return joinRequest(group, "") }).after = remember(group)
	if synced {
		r.prepare(syncVersion, func(s *side) kmsg.Request { return syncRequest(group, s.members[group], 1) })
	}
}

// left prepares that the member of a group is gone.
func (r *recorder) left(group string) {
	r.prepare(2, func(s *side) kmsg.Request {
		req := kmsg.NewPtrLeaveGroupRequest()
		req.Group, req.MemberID = group, s.members[group]
		return req
	})
}

func joinGroupScript(r *recorder) {
	group := r.of("good")
	r.add("a new member", joinRequest(group, "")).after = remember(group)
	if r.version >= 4 {
		r.addFor("a new member, with its id", func(s *side) kmsg.Request { return joinRequest(group, s.members[group]) })
	}
	r.addFor("a member, again", func(s *side) kmsg.Request { return joinRequest(group, s.members[group]) })
	join := func(name, group, member string, change func(*kmsg.JoinGroupRequest)) {
		req := joinRequest(group, member)
		if change != nil {
			change(req)
		}
		r.add(name, req)
	}
	join("an unknown member", group, "nobody", nil)
	join("an unknown member of an unknown group", r.of("unknown"), "nobody", nil)
	join("no group", "", "", nil)
	join("a short session", r.of("short"), "", func(q *kmsg.JoinGroupRequest) { q.SessionTimeoutMillis = 1 })
	join("another kind of group", group, "", func(q *kmsg.JoinGroupRequest) { q.ProtocolType = "connect" })
	join("no common protocol", group, "", func(q *kmsg.JoinGroupRequest) { q.Protocols[0].Name = "other" })
	join("no protocol", r.of("none"), "", func(q *kmsg.JoinGroupRequest) { q.Protocols = nil })
	if r.version >= 5 {
		join("a static member", r.of("static"), "", func(q *kmsg.JoinGroupRequest) { q.InstanceID = kmsg.StringPtr("one") })
		join("an unknown static member", r.of("static"), "nobody", func(q *kmsg.JoinGroupRequest) { q.InstanceID = kmsg.StringPtr("two") })
		join("a static member without a name", r.of("nameless"), "", func(q *kmsg.JoinGroupRequest) { q.InstanceID = kmsg.StringPtr("") })
	}
}

func syncGroupScript(r *recorder) {
	group := r.of("good")
	r.joined(group, false)
	r.addFor("a member", func(s *side) kmsg.Request { return syncRequest(group, s.members[group], 1) })
	r.addFor("another generation", func(s *side) kmsg.Request { return syncRequest(group, s.members[group], 7) })
	r.add("an unknown member", syncRequest(group, "nobody", 1))
	r.add("unknown group", syncRequest(r.of("unknown"), "nobody", 1))
	r.add("no group", syncRequest("", "nobody", 1))
	if r.version >= 5 {
		r.addFor("another protocol", func(s *side) kmsg.Request {
			req := syncRequest(group, s.members[group], 1)
			req.Protocol = kmsg.StringPtr("other")
			return req
		})
	}
}

func heartbeatScript(r *recorder) {
	group := r.of("good")
	r.joined(group, true)
	beat := func(name, group string, generation int32, member func(*side) string) {
		r.addFor(name, func(s *side) kmsg.Request {
			req := kmsg.NewPtrHeartbeatRequest()
			req.Group, req.Generation, req.MemberID = group, generation, member(s)
			return req
		})
	}
	known, unknown := func(s *side) string { return s.members[group] }, func(*side) string { return "nobody" }
	beat("a member", group, 1, known)
	beat("another generation", group, 7, known)
	beat("an unknown member", group, 1, unknown)
	beat("unknown group", r.of("unknown"), 1, unknown)
	beat("no group", "", 1, unknown)
}

func leaveGroupScript(r *recorder) {
	group := r.of("good")
	r.joined(group, true)
	leave := func(name, group string, members func(*side) []string) {
		r.addFor(name, func(s *side) kmsg.Request {
			req := kmsg.NewPtrLeaveGroupRequest()
			req.Group = group
			for _, id := range members(s) {
				req.MemberID = id
				m := kmsg.NewLeaveGroupRequestMember()
				m.MemberID = id
				req.Members = append(req.Members, m)
			}
			return req
		})
	}
	known := func(s *side) []string { return []string{s.members[group]} }
	unknown := func(*side) []string { return []string{"nobody"} }
	leave("an unknown member", group, unknown)
	leave("unknown group", r.of("unknown"), unknown)
	leave("no group", "", unknown)
	leave("a member", group, known)
	leave("a member that has left", group, known)
	if r.version >= 3 {
		leave("nobody", group, func(*side) []string { return nil })
	}
}

func commitOf(topic string, partition int32, offset int64) []kmsg.OffsetCommitRequestTopic {
	p := kmsg.NewOffsetCommitRequestTopicPartition()
	p.Partition, p.Offset, p.Metadata = partition, offset, kmsg.StringPtr("metadata")
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic, t.Partitions = topic, append(t.Partitions, p)
	return []kmsg.OffsetCommitRequestTopic{t}
}

// committed prepares what a group that has no members has committed.
func (r *recorder) committed(group string) {
	r.prepare(8, func(*side) kmsg.Request {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.Generation, req.Topics = group, -1, commitOf("read", 0, 5)
		req.Topics[0].Partitions[0].LeaderEpoch = 0
		return req
	})
}

func offsetCommitScript(r *recorder) {
	group := r.of("good")
	commit := func(name, group, topic string, partition int32, change func(*kmsg.OffsetCommitRequest, *side)) {
		r.addFor(name, func(s *side) kmsg.Request {
			req := kmsg.NewPtrOffsetCommitRequest()
			req.Group, req.Generation, req.RetentionTimeMillis = group, -1, -1
			req.Topics = commitOf(topic, partition, 5)
			if change != nil {
				change(req, s)
			}
			return req
		})
	}
	alone := r.of("alone")
	commit("without members", alone, "read", 0, nil)
	commit("backwards", alone, "read", 0, func(q *kmsg.OffsetCommitRequest, _ *side) { q.Topics[0].Partitions[0].Offset = 2 })
	commit("beyond the end", alone, "read", 1, func(q *kmsg.OffsetCommitRequest, _ *side) { q.Topics[0].Partitions[0].Offset = 1000 })
	commit("a negative offset", alone, "read", 1, func(q *kmsg.OffsetCommitRequest, _ *side) { q.Topics[0].Partitions[0].Offset = -5 })
	commit("unknown topic", alone, "unknown", 0, nil)
	commit("unknown partition", alone, "read", 99, nil)
	commit("a good and an unknown topic", alone, "read", 0, func(q *kmsg.OffsetCommitRequest, _ *side) {
		q.Topics = append(q.Topics, commitOf("unknown", 0, 1)...)
	})
	commit("no topic", alone, "read", 0, func(q *kmsg.OffsetCommitRequest, _ *side) { q.Topics = nil })
	commit("long metadata", alone, "read", 0, func(q *kmsg.OffsetCommitRequest, _ *side) {
		q.Topics[0].Partitions[0].Metadata = kmsg.StringPtr(strings.Repeat("x", 5000))
	})
	commit("no metadata", alone, "read", 0, func(q *kmsg.OffsetCommitRequest, _ *side) { q.Topics[0].Partitions[0].Metadata = nil })
	commit("no group", "", "read", 0, nil)
	commit("a generation of an unknown group", r.of("unknown"), "read", 0, func(q *kmsg.OffsetCommitRequest, _ *side) {
		q.Generation, q.MemberID = 3, "nobody"
	})
	r.joined(group, true)
	member := func(generation int32) func(*kmsg.OffsetCommitRequest, *side) {
		return func(q *kmsg.OffsetCommitRequest, s *side) { q.Generation, q.MemberID = generation, s.members[group] }
	}
	commit("a member", group, "read", 0, member(1))
	commit("another generation", group, "read", 0, member(7))
	commit("an unknown member", group, "read", 0, func(q *kmsg.OffsetCommitRequest, _ *side) { q.Generation, q.MemberID = 1, "nobody" })
	commit("from outside of the members", group, "read", 0, nil)
}

func offsetFetchScript(r *recorder) {
	group := r.of("good")
	r.committed(group)
	fetch := func(name string, topics []kmsg.OffsetFetchRequestTopic, groups ...string) {
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Group, req.Topics = groups[0], topics
		for _, name := range groups {
			g := kmsg.NewOffsetFetchRequestGroup()
			g.Group = name
			if topics != nil {
				g.Topics = []kmsg.OffsetFetchRequestGroupTopic{}
			}
			for _, t := range topics {
				gt := kmsg.NewOffsetFetchRequestGroupTopic()
				gt.Topic, gt.Partitions = t.Topic, t.Partitions
				g.Topics = append(g.Topics, gt)
			}
			req.Groups = append(req.Groups, g)
		}
		r.add(name, req)
		if r.version >= 7 {
			stable := *req
			stable.RequireStable = true
			r.add(name+", stable", &stable)
		}
	}
	of := func(topic string, partitions ...int32) []kmsg.OffsetFetchRequestTopic {
		t := kmsg.NewOffsetFetchRequestTopic()
		t.Topic, t.Partitions = topic, partitions
		return []kmsg.OffsetFetchRequestTopic{t}
	}
	fetch("committed", of("read", 0), group)
	fetch("committed and not", of("read", 0, 1), group)
	fetch("unknown topic", of("unknown", 0), group)
	fetch("unknown partition", of("read", 99), group)
	fetch("no topic", []kmsg.OffsetFetchRequestTopic{}, group)
	fetch("unknown group", of("read", 0), r.of("unknown"))
	fetch("the empty name", of("read", 0), "")
	if r.version >= 2 {
		fetch("all", nil, group)
		fetch("all of an unknown group", nil, r.of("unknown"))
	}
	if r.version >= 8 {
		fetch("two groups", of("read", 0), group, r.of("unknown"))
	}
}

func describeGroupsScript(r *recorder) {
	full, empty, alone := r.of("full"), r.of("empty"), r.of("alone")
	r.joined(full, true)
	r.joined(empty, true)
	r.left(empty)
	r.committed(alone)
	describe := func(name string, groups ...string) *exchange {
		req := kmsg.NewPtrDescribeGroupsRequest()
		req.Groups = groups
		if r.version >= 3 {
			with := *req
			with.IncludeAuthorizedOperations = true
			r.add(name+", with operations", &with)
		}
		return r.add(name, req)
	}
	describe("members", full)
	describe("no members, never committed", empty)
	describe("never any members", alone)
	describe("unknown", r.of("unknown"))
	describe("the empty name", "")
	describe("three", full, alone, r.of("unknown"))
	describe("none")
}

func listGroupsScript(r *recorder) {
	full, alone := r.of("full"), r.of("alone")
	r.joined(full, true)
	r.committed(alone)
	list := func(name string, states, types []string) {
		req := kmsg.NewPtrListGroupsRequest()
		req.StatesFilter, req.TypesFilter = states, types
		r.add(name, req)
	}
	list("all", nil, nil)
	if r.version >= 4 {
		list("stable", []string{"Stable"}, nil)
		list("empty", []string{"empty"}, nil)
		list("unknown state", []string{"NoSuch"}, nil)
	}
	if r.version >= 5 {
		list("classic", nil, []string{"classic"})
		list("consumer", nil, []string{"consumer"})
		list("unknown type", nil, []string{"NoSuch"})
	}
}

func deleteGroupsScript(r *recorder) {
	full, empty, alone := r.of("full"), r.of("empty"), r.of("alone")
	r.joined(full, true)
	r.joined(empty, true)
	r.left(empty)
	r.committed(alone)
	drop := func(name string, groups ...string) {
		req := kmsg.NewPtrDeleteGroupsRequest()
		req.Groups = groups
		r.add(name, req)
	}
	drop("members", full)
	drop("no members, never committed", empty)
	drop("never any members", alone)
	drop("deleted", alone)
	drop("unknown", r.of("unknown"))
	drop("the empty name", "")
	drop("none")
}

func offsetDeleteScript(r *recorder) {
	full, alone := r.of("full"), r.of("alone")
	r.joined(full, true)
	r.committed(alone)
	drop := func(name, group, topic string, partition int32) {
		req := kmsg.NewPtrOffsetDeleteRequest()
		req.Group = group
		p := kmsg.NewOffsetDeleteRequestTopicPartition()
		p.Partition = partition
		t := kmsg.NewOffsetDeleteRequestTopic()
		t.Topic, t.Partitions = topic, append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
		r.add(name, req)
	}
	drop("committed", alone, "read", 0)
	drop("not committed", alone, "read", 1)
	drop("unknown topic", alone, "unknown", 0)
	drop("unknown partition", alone, "read", 99)
	drop("a topic that is read", full, "read", 0)
	drop("a topic that is not read", full, "write", 0)
	drop("unknown group", r.of("unknown"), "read", 0)
	drop("the empty name", "", "read", 0)
}
