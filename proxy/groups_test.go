package proxy

import (
	"fmt"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// groupRequests makes a request of each API about one group, and how to read
// the error from its answer.
func groupRequests(group string) map[kmsg.Key]struct {
	req  kmsg.Request
	code func(kmsg.Response) int16
} {
	type row = struct {
		req  kmsg.Request
		code func(kmsg.Response) int16
	}
	rows := map[kmsg.Key]row{}

	commit := kmsg.NewPtrOffsetCommitRequest()
	commit.Group, commit.Generation = group, -1
	ct := kmsg.NewOffsetCommitRequestTopic()
	ct.Topic = "orders"
	cp := kmsg.NewOffsetCommitRequestTopicPartition()
	cp.Offset, cp.LeaderEpoch = 1, 7
	ct.Partitions = append(ct.Partitions, cp)
	commit.Topics = append(commit.Topics, ct)
	rows[kmsg.OffsetCommit] = row{commit, func(r kmsg.Response) int16 { return r.(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode }}

	fetch := kmsg.NewPtrOffsetFetchRequest()
	fetch.Group = group
	ft := kmsg.NewOffsetFetchRequestTopic()
	ft.Topic, ft.Partitions = "orders", []int32{0}
	fetch.Topics = append(fetch.Topics, ft)
	fg := kmsg.NewOffsetFetchRequestGroup()
	fg.Group = group
	fgt := kmsg.NewOffsetFetchRequestGroupTopic()
	fgt.Topic, fgt.Partitions = "orders", []int32{0}
	fg.Topics = append(fg.Topics, fgt)
	fetch.Groups = append(fetch.Groups, fg)
	rows[kmsg.OffsetFetch] = row{fetch, func(r kmsg.Response) int16 {
		resp := r.(*kmsg.OffsetFetchResponse)
		switch {
		case resp.Version >= 8:
			return resp.Groups[0].ErrorCode
		case resp.Version < 2 && len(resp.Topics) > 0: // else the broker's own short answer
			return resp.Topics[0].Partitions[0].ErrorCode
		}
		return resp.ErrorCode
	}}

	join := kmsg.NewPtrJoinGroupRequest()
	join.Group, join.SessionTimeoutMillis, join.RebalanceTimeoutMillis, join.ProtocolType = group, 10_000, 10_000, "consumer"
	jp := kmsg.NewJoinGroupRequestProtocol()
	jp.Name = "range"
	join.Protocols = append(join.Protocols, jp)
	rows[kmsg.JoinGroup] = row{join, func(r kmsg.Response) int16 { return r.(*kmsg.JoinGroupResponse).ErrorCode }}

	heartbeat := kmsg.NewPtrHeartbeatRequest()
	heartbeat.Group = group
	rows[kmsg.Heartbeat] = row{heartbeat, func(r kmsg.Response) int16 { return r.(*kmsg.HeartbeatResponse).ErrorCode }}
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group, leave.MemberID = group, "m"
	lm := kmsg.NewLeaveGroupRequestMember()
	lm.MemberID = "m"
	leave.Members = append(leave.Members, lm)
	rows[kmsg.LeaveGroup] = row{leave, func(r kmsg.Response) int16 { return r.(*kmsg.LeaveGroupResponse).ErrorCode }}
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Group = group
	rows[kmsg.SyncGroup] = row{sync, func(r kmsg.Response) int16 { return r.(*kmsg.SyncGroupResponse).ErrorCode }}
	describe := kmsg.NewPtrDescribeGroupsRequest()
	describe.Groups = []string{group}
	rows[kmsg.DescribeGroups] = row{describe, func(r kmsg.Response) int16 { return r.(*kmsg.DescribeGroupsResponse).Groups[0].ErrorCode }}
	del := kmsg.NewPtrDeleteGroupsRequest()
	del.Groups = []string{group}
	rows[kmsg.DeleteGroups] = row{del, func(r kmsg.Response) int16 { return r.(*kmsg.DeleteGroupsResponse).Groups[0].ErrorCode }}
	offsets := kmsg.NewPtrOffsetDeleteRequest()
	offsets.Group = group
	rows[kmsg.OffsetDelete] = row{offsets, func(r kmsg.Response) int16 { return r.(*kmsg.OffsetDeleteResponse).ErrorCode }}
	return rows
}

// TestGroupsOfOthers: every group API in every version says NOT_COORDINATOR
// for a group of another node, and COORDINATOR_NOT_AVAILABLE for one of none.
func TestGroupsOfOthers(t *testing.T) {
	f := newFixture(t, nil)
	for _, tc := range []struct {
		coordinators []int32
		code         int16
	}{{[]int32{2}, kerr.NotCoordinator.Code}, {[]int32{-1}, kerr.CoordinatorNotAvailable.Code}, {nil, kerr.CoordinatorNotAvailable.Code}} {
		f.cluster.update(func(v *View) { v.Coordinators = tc.coordinators })
		c := f.dial()
		for key, row := range groupRequests("g") {
			api := apiOf(t, key)
			for version := api.Min; version <= api.Max; version++ {
				resp := do[kmsg.Response](c, version, row.req)
				want := tc.code
				if key == kmsg.OffsetFetch { // the one code after which every client looks again
					want = kerr.NotCoordinator.Code
				}
				if got := row.code(resp); got != want {
					t.Errorf("%s v%d, coordinators %v: code %d, want %d", api.Name, version, tc.coordinators, got, want)
				}
			}
		}
	}
}

// TestGroupsOfOurs reach the broker, in every version.
func TestGroupsOfOurs(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	for key, row := range groupRequests("g") {
		seen := 0
		f.broker.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			f.broker.KeepControl()
			seen++
			if commit, ok := req.(*kmsg.OffsetCommitRequest); ok && commit.Topics[0].Partitions[0].LeaderEpoch != -1 {
				t.Errorf("the broker sees leader epoch %d", commit.Topics[0].Partitions[0].LeaderEpoch)
			}
			return nil, nil, false
		})
		api := apiOf(t, key)
		offered := false
		for version := api.Min; version <= api.Max; version++ {
			c := f.dial()
			if key == kmsg.SyncGroup || key == kmsg.JoinGroup && version < 4 {
				// Without a member id these wait for others or add a member;
				// the clients' tests cover them.
				continue
			}
			offered = true
			code := row.code(do[kmsg.Response](c, version, row.req))
			if code == kerr.NotCoordinator.Code || code == kerr.CoordinatorNotAvailable.Code {
				t.Errorf("%s v%d: code %d", api.Name, version, code)
			}
		}
		if offered && seen == 0 {
			t.Errorf("%s never reached the broker", api.Name)
		}
	}
}

// TestCommittedEpochsAreHidden: an epoch committed past us comes back as -1.
func TestCommittedEpochsAreHidden(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	commit := groupRequests("g")[kmsg.OffsetCommit].req.(*kmsg.OffsetCommitRequest)
	commit.SetVersion(8)
	if _, err := roundTrip[*kmsg.OffsetCommitResponse](f.upstream, commit); err != nil {
		t.Fatal(err)
	}
	f.cluster.fakeGroups.edit(func(s *fakeGroupsState) {
		s.committed["g"] = map[TopicPartition]CommittedOffset{{1, 0}: {"orders", 0, 1, ""}}
	})
	req := groupRequests("g")[kmsg.OffsetFetch].req.(*kmsg.OffsetFetchRequest)
	req.SetVersion(7)
	if direct, err := roundTrip[*kmsg.OffsetFetchResponse](f.upstream, req); err != nil || direct.Topics[0].Partitions[0].LeaderEpoch != 7 {
		t.Fatalf("the broker does not hold the epoch: %v, %+v", err, direct)
	}
	c := f.dial()
	for version := int16(5); version <= 9; version++ {
		resp := do[*kmsg.OffsetFetchResponse](c, version, req)
		if version >= 8 {
			if p := resp.Groups[0].Topics[0].Partitions[0]; p.Offset != 1 || p.LeaderEpoch != -1 {
				t.Errorf("v%d: %+v", version, p)
			}
		} else if p := resp.Topics[0].Partitions[0]; p.Offset != 1 || p.LeaderEpoch != -1 {
			t.Errorf("v%d: %+v", version, p)
		}
	}
}

// TestGroupsAreMerged: one request about groups of this node and of another.
func TestGroupsAreMerged(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	f.cluster.update(func(v *View) { v.Coordinators = []int32{1, 2} })
	byNode := map[int32]string{}
	for i := 0; len(byNode) < 2; i++ {
		g := fmt.Sprint("group-", i)
		byNode[f.cluster.View().Coordinator(g)] = g
	}
	ours, theirs := byNode[1], byNode[2]
	commit := groupRequests(ours)[kmsg.OffsetCommit].req.(*kmsg.OffsetCommitRequest)
	c := f.dial()
	if code := do[*kmsg.OffsetCommitResponse](c, 8, commit).Topics[0].Partitions[0].ErrorCode; code != 0 {
		t.Fatalf("commit: code %d", code)
	}
	fetch := groupRequests(ours)[kmsg.OffsetFetch].req.(*kmsg.OffsetFetchRequest)
	fetch.Groups = append(fetch.Groups, groupRequests(theirs)[kmsg.OffsetFetch].req.(*kmsg.OffsetFetchRequest).Groups...)
	codes := map[string]int16{}
	for _, g := range do[*kmsg.OffsetFetchResponse](c, 8, fetch).Groups {
		codes[g.Group] = g.ErrorCode
	}
	want := fmt.Sprint(map[string]int16{ours: 0, theirs: kerr.NotCoordinator.Code})
	if fmt.Sprint(codes) != want {
		t.Errorf("fetch: %v, want %s", codes, want)
	}
	describe := kmsg.NewPtrDescribeGroupsRequest()
	describe.Groups = []string{theirs, ours}
	codes = map[string]int16{}
	for _, g := range do[*kmsg.DescribeGroupsResponse](c, 5, describe).Groups {
		codes[g.Group] = g.ErrorCode
	}
	if fmt.Sprint(codes) != want {
		t.Errorf("describe: %v, want %s", codes, want)
	}
	del := kmsg.NewPtrDeleteGroupsRequest()
	del.Groups = []string{theirs, ours}
	codes = map[string]int16{}
	for _, g := range do[*kmsg.DeleteGroupsResponse](c, 2, del).Groups {
		codes[g.Group] = g.ErrorCode
	}
	if fmt.Sprint(codes) != want {
		t.Errorf("delete: %v, want %s", codes, want)
	}
}

// TestJoinEndsWhenTheGroupMoves, and does not hold other connections up.
func TestJoinEndsWhenTheGroupMoves(t *testing.T) {
	f := newFixture(t, nil)
	release := make(chan struct{})
	defer close(release)
	f.broker.ControlKey(int16(kmsg.JoinGroup), func(kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.SleepControl(func() { <-release })
		return nil, nil, false
	})
	req := groupRequests("g")[kmsg.JoinGroup].req
	req.SetVersion(7)
	c, other := f.dial(), f.dial()
	corr := c.send(req)
	f.waitUpstream(1)
	other.alive()
	f.cluster.update(func(v *View) { v.Coordinators = []int32{3} })
	if code := receive[*kmsg.JoinGroupResponse](c, corr, req).ErrorCode; code != kerr.NotCoordinator.Code {
		t.Errorf("code %d", code)
	}
	c.alive()
}

// TestFindCoordinator in every version, for groups and for what is refused.
func TestFindCoordinator(t *testing.T) {
	f := newFixture(t, nil)
	f.cluster.update(func(v *View) {
		v.Nodes[1] = Node{ID: 2, Alive: true, Listeners: map[string]Endpoint{testListener: {"two.example", 9093}}}
		v.Coordinators = []int32{2}
	})
	c := f.dial()
	find := func(version int16, kind int8, key string) kmsg.FindCoordinatorResponseCoordinator {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorKey, req.CoordinatorType, req.CoordinatorKeys = key, kind, []string{key}
		resp := do[*kmsg.FindCoordinatorResponse](c, version, req)
		if version >= 4 {
			return resp.Coordinators[0]
		}
		return kmsg.FindCoordinatorResponseCoordinator{Key: key, NodeID: resp.NodeID, Host: resp.Host, Port: resp.Port, ErrorCode: resp.ErrorCode, ErrorMessage: resp.ErrorMessage}
	}
	for version := int16(0); version <= 5; version++ {
		if got := find(version, 0, "g"); got.ErrorCode != 0 || got.NodeID != 2 || got.Host != "two.example" || got.Port != 9093 || got.Key != "g" {
			t.Errorf("v%d: %+v", version, got)
		}
		if version == 0 {
			continue
		}
		if got := find(version, 1, "tx"); got.ErrorCode != kerr.TransactionalIDAuthorizationFailed.Code || got.ErrorMessage == nil {
			t.Errorf("v%d transactional: %+v", version, got)
		}
		if got := find(version, 9, "x"); got.ErrorCode != kerr.InvalidRequest.Code {
			t.Errorf("v%d unknown type: %+v", version, got)
		}
	}
	for _, coordinators := range [][]int32{{-1}, {3}, nil} { // none, dead, not assigned
		f.cluster.update(func(v *View) { v.Coordinators = coordinators })
		if got := find(4, 0, "g"); got.ErrorCode != kerr.CoordinatorNotAvailable.Code || got.NodeID != -1 {
			t.Errorf("coordinators %v: %+v", coordinators, got)
		}
	}
}

// TestGroupSlot pins the mapping to Java's String.hashCode.
func TestGroupSlot(t *testing.T) {
	for group, want := range map[string]int{
		"":              0,
		"g":             103 % 50,
		"console-group": int(uint32(javaHash("console-group"))&0x7fffffff) % 50,
		"grüße-😀":       int(uint32(javaHash("grüße-😀"))&0x7fffffff) % 50,
	} {
		if got := GroupSlot(group, 50); got != want {
			t.Errorf("%q: %d, want %d", group, got, want)
		}
	}
	// "polygenelubricants" is the known string whose hash is Integer.MIN_VALUE.
	if got := GroupSlot("polygenelubricants", 50); got != 0 {
		t.Errorf("smallest hash: %d", got)
	}
}

func javaHash(s string) int32 {
	var h int32
	for _, unit := range utf16Of(s) {
		h = h*31 + int32(unit)
	}
	return h
}

func apiOf(t *testing.T, key kmsg.Key) (api apiRow) {
	t.Helper()
	i := slices.IndexFunc(servedRows(), func(a apiRow) bool { return a.Key == int16(key) })
	if i < 0 {
		t.Fatalf("%s is not served", kmsg.NameForKey(int16(key)))
	}
	return servedRows()[i]
}
