package proxy

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// groupFixture is a proxy that coordinates every group, and a topic.
func groupFixture(t *testing.T) (*fixture, *rawClient) {
	f := newFixture(t, nil)
	f.createTopic("orders", 2, nil)
	return f, f.dial()
}

func commitOf(group string, generation int32, topic string, offsets ...int64) *kmsg.OffsetCommitRequest {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.Generation = group, generation
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic = topic
	for n, offset := range offsets {
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset, p.Metadata = int32(n), offset, kmsg.StringPtr("note")
		t.Partitions = append(t.Partitions, p)
	}
	req.Topics = append(req.Topics, t)
	return req
}

func commitCodes(resp *kmsg.OffsetCommitResponse) (codes []int16) {
	for _, p := range resp.Topics[0].Partitions {
		codes = append(codes, p.ErrorCode)
	}
	return codes
}

// fetchAll reads everything that a group has committed, as text.
func fetchAll(c *rawClient, version int16, group string) string {
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Group, req.Topics = group, nil
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group, g.Topics = group, nil
	req.Groups = append(req.Groups, g)
	resp := do[*kmsg.OffsetFetchResponse](c, version, req)
	topics, code := resp.Topics, resp.ErrorCode
	if version >= 8 {
		topics, code = plainTopics(resp.Groups[0].Topics), resp.Groups[0].ErrorCode
	}
	if code != 0 {
		return kerr.ErrorForCode(code).Error()
	}
	var out []string
	for _, t := range topics {
		for _, p := range t.Partitions {
			out = append(out, fmt.Sprintf("%s/%d=%d %s %d", t.Topic, p.Partition, p.Offset, *p.Metadata, p.ErrorCode))
		}
	}
	return fmt.Sprint(out)
}

func (f *fixture) committedBy(group string) (offsets []CommittedOffset) {
	f.cluster.fakeGroups.edit(func(s *fakeGroupsState) {
		for _, o := range s.committed[group] {
			offsets = append(offsets, o)
		}
	})
	return offsets
}

// TestCommitIsJudgedByTheBroker: what it refuses is not proposed, and what it
// accepts for a topic that the cluster does not have neither.
func TestCommitIsJudgedByTheBroker(t *testing.T) {
	f, c := groupFixture(t)
	refused := do[*kmsg.OffsetCommitResponse](c, 8, commitOf("g", 3, "orders", 5, 6))
	if code := commitCodes(refused)[0]; code == 0 || len(f.committedBy("g")) != 0 {
		t.Errorf("a commit of generation 3: code %d, committed %v", code, f.committedBy("g"))
	}
	for version := int16(2); version <= 9; version++ {
		group := fmt.Sprint("g", version)
		accepted := do[*kmsg.OffsetCommitResponse](c, version, commitOf(group, -1, "orders", 5, 6))
		if codes := commitCodes(accepted); !slices.Equal(codes, []int16{0, 0}) || len(f.committedBy(group)) != 2 {
			t.Errorf("v%d: codes %v, committed %v", version, codes, f.committedBy(group))
		}
		want := "[orders/0=5 note 0 orders/1=6 note 0]"
		if got := fetchAll(c, max(2, version), group); got != want {
			t.Errorf("v%d: read %s, want %s", version, got, want)
		}
	}
	f.cluster.fakeGroups.edit(func(s *fakeGroupsState) {
		if last := s.commits[len(s.commits)-1]; last.Epoch != 1 || last.Member || last.RetentionMs != -1 {
			t.Errorf("proposed %+v", last)
		}
	})
	f.cluster.update(func(v *View) { delete(v.Topics, "orders") }) // the broker still has it
	if codes := commitCodes(do[*kmsg.OffsetCommitResponse](c, 8, commitOf("g", -1, "orders", 5))); codes[0] != kerr.UnknownTopicOrPartition.Code {
		t.Errorf("codes %v", codes)
	}
}

// TestCommitOfAReplacedCoordinator: the broker has accepted it, the group moves
// before it is proposed, and the client is told so.
func TestCommitOfAReplacedCoordinator(t *testing.T) {
	f, c := groupFixture(t)
	held := make(chan func(), 1)
	f.cluster.fakeGroups.edit(func(s *fakeGroupsState) { s.hold = func(release func()) { held <- release } })
	req := commitOf("g", -1, "orders", 11)
	req.SetVersion(8)
	corr := c.send(req)
	release := <-held
	f.cluster.fakeGroups.edit(func(s *fakeGroupsState) { s.epoch, s.hold = 2, nil })
	f.cluster.update(func(*View) {}) // away and back, under another epoch
	if codes := commitCodes(do[*kmsg.OffsetCommitResponse](f.dial(), 8, commitOf("g", -1, "orders", 20))); codes[0] != 0 {
		t.Fatalf("the commit of the new epoch: %v", codes)
	}
	release()
	if codes := commitCodes(receive[*kmsg.OffsetCommitResponse](c, corr, req)); codes[0] != kerr.NotCoordinator.Code {
		t.Errorf("codes %v", codes)
	}
	if got := fetchAll(c, 7, "g"); got != "[orders/0=20 note 0]" {
		t.Errorf("read %s", got)
	}
}

// TestCommitOfAMemberFromElsewhere: the broker of the next coordinator has never
// met the group; its members are told to join and not that it is gone.
func TestCommitOfAMemberFromElsewhere(t *testing.T) {
	f, c := groupFixture(t)
	f.broker.ControlKey(int16(kmsg.OffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		resp := req.ResponseKind().(*kmsg.OffsetCommitResponse)
		resp.Topics = offsetCommitError(req.(*kmsg.OffsetCommitRequest), kerr.GroupIDNotFound.Code).Topics
		return resp, nil, true
	})
	for version := int16(2); version <= 9; version++ {
		codes := commitCodes(do[*kmsg.OffsetCommitResponse](c, version, commitOf("g", 3, "orders", 5, 6)))
		if !slices.Equal(codes, []int16{kerr.UnknownMemberID.Code, kerr.UnknownMemberID.Code}) {
			t.Errorf("v%d: codes %v", version, codes)
		}
	}
}

// TestOffsetsAreReadFromTheCatalog, whatever the broker remembers of the group.
func TestOffsetsAreReadFromTheCatalog(t *testing.T) {
	f, c := groupFixture(t)
	stale := commitOf("g", -1, "orders", 1, 1)
	stale.SetVersion(8)
	if _, err := roundTrip[*kmsg.OffsetCommitResponse](f.upstream, stale); err != nil {
		t.Fatal(err)
	}
	for version := int16(2); version <= 9; version++ {
		if got := fetchAll(c, version, "g"); got != "[]" {
			t.Errorf("v%d: only the broker has offsets: %s", version, got)
		}
	}
	f.cluster.fakeGroups.edit(func(s *fakeGroupsState) {
		for _, group := range []string{"g", "of-another-node"} {
			s.committed[group] = map[TopicPartition]CommittedOffset{{1, 1}: {"orders", 1, 77, "m"}}
		}
	})
	for version := int16(2); version <= 9; version++ {
		for _, group := range []string{"g", "of-another-node"} {
			if got := fetchAll(c, version, group); got != "[orders/1=77 m 0]" {
				t.Errorf("v%d, %s: %s", version, group, got)
			}
		}
	}
	f.cluster.fakeGroups.edit(func(s *fakeGroupsState) { s.err = errors.New("no leader") })
	for version := int16(2); version <= 9; version++ {
		if got := fetchAll(c, version, "g"); got != kerr.NotCoordinator.Error() {
			t.Errorf("v%d, without a catalog: %s", version, got)
		}
	}
}

// TestGroupsOfTheCatalog are listed, described, emptied and deleted though the
// broker has never heard of them.
func TestGroupsOfTheCatalog(t *testing.T) {
	f, c := groupFixture(t)
	f.cluster.update(func(v *View) { v.Coordinators = []int32{1, 2} })
	names := map[int32][]string{}
	for i := 0; len(names[1]) < 3 || len(names[2]) < 2; i++ {
		g := fmt.Sprint("group-", i)
		id := f.cluster.View().Coordinator(g)
		names[id] = append(names[id], g)
	}
	ours, both, theirs, old := names[1][0], names[1][1], names[2][0], names[2][1]
	ghost := names[1][2] // deleted by a coordinator in between
	f.cluster.fakeGroups.edit(func(s *fakeGroupsState) {
		for _, g := range []string{ours, both, theirs} {
			s.committed[g] = map[TopicPartition]CommittedOffset{{1, 0}: {"orders", 0, 7, ""}, {1, 1}: {"orders", 1, 8, ""}}
		}
	})
	for _, g := range []string{both, old, ghost} { // the broker coordinated the second once
		stale := commitOf(g, -1, "orders", 1)
		stale.SetVersion(8)
		if _, err := roundTrip[*kmsg.OffsetCommitResponse](f.upstream, stale); err != nil {
			t.Fatal(err)
		}
	}
	list := func(version int16, states ...string) string {
		req := kmsg.NewPtrListGroupsRequest()
		req.StatesFilter = states
		var listed []string
		for _, g := range do[*kmsg.ListGroupsResponse](c, version, req).Groups {
			listed = append(listed, g.Group)
		}
		slices.Sort(listed)
		return fmt.Sprint(listed)
	}
	want := []string{ours, both}
	slices.Sort(want)
	for version := int16(0); version <= 5; version++ {
		if got := list(version); got != fmt.Sprint(want) {
			t.Errorf("v%d lists %s, want %v", version, got, want)
		}
	}
	if got := list(4, "Stable"); got != "[]" {
		t.Errorf("stable groups: %s", got)
	}
	describe := kmsg.NewPtrDescribeGroupsRequest()
	describe.Groups = []string{ours, both, ghost}
	for version := int16(0); version <= 5; version++ {
		for _, g := range do[*kmsg.DescribeGroupsResponse](c, version, describe).Groups {
			if want := map[string]string{ours: "Empty", both: "Empty", ghost: "Dead"}[g.Group]; g.State != want {
				t.Errorf("v%d: %s is %s, want %s", version, g.Group, g.State, want)
			}
		}
	}
	del := kmsg.NewPtrOffsetDeleteRequest()
	del.Group = ours
	dt := kmsg.NewOffsetDeleteRequestTopic()
	dt.Topic, dt.Partitions = "orders", []kmsg.OffsetDeleteRequestTopicPartition{{Partition: 1}}
	del.Topics = append(del.Topics, dt)
	if resp := do[*kmsg.OffsetDeleteResponse](c, 0, del); resp.ErrorCode != 0 || resp.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Errorf("offset delete: %+v", resp)
	}
	if got := fetchAll(c, 8, ours); got != "[orders/0=7  0]" {
		t.Errorf("after the offset delete: %s", got)
	}
	groups := kmsg.NewPtrDeleteGroupsRequest()
	groups.Groups = []string{ours, both}
	for _, g := range do[*kmsg.DeleteGroupsResponse](c, 1, groups).Groups {
		if g.ErrorCode != 0 {
			t.Errorf("delete %s: code %d", g.Group, g.ErrorCode)
		}
	}
	if got := list(3); got != "[]" {
		t.Errorf("after the delete: %s", got)
	}
	groups.Groups = []string{ours}
	if code := do[*kmsg.DeleteGroupsResponse](c, 1, groups).Groups[0].ErrorCode; code != kerr.GroupIDNotFound.Code {
		t.Errorf("deleted twice: code %d", code)
	}
}

// TestCoordinatorToBe: until its broker has forgotten the members of before, a
// node is no coordinator; nor is one that hears nothing of the catalog.
func TestCoordinatorToBe(t *testing.T) {
	f, _ := groupFixture(t)
	for _, tc := range []struct {
		change func(*View)
		codes  map[kmsg.Key]int16
		rest   int16
	}{
		{func(*View) {}, map[kmsg.Key]int16{kmsg.Heartbeat: 15, kmsg.SyncGroup: 15, kmsg.LeaveGroup: 15}, 14},
		{func(v *View) { v.CatalogReady = false }, map[kmsg.Key]int16{kmsg.OffsetFetch: 16}, 15},
	} {
		f.cluster.fakeGroups.edit(func(s *fakeGroupsState) { s.epoch = 0 })
		f.cluster.update(tc.change)
		c := f.dial()
		for key, row := range groupRequests("g") {
			want, special := tc.codes[key]
			if !special {
				want = tc.rest
			}
			if got := row.code(do[kmsg.Response](c, apiOf(t, key).Max, row.req)); got != want {
				t.Errorf("%s: code %d, want %d", kmsg.NameForKey(int16(key)), got, want)
			}
		}
	}
}

// TestCommitBetweenTheBrokersYesAndADeletion: somebody joins and commits after
// the broker has agreed to forget. The client is sent to ask again, and what was
// committed is kept.
func TestCommitBetweenTheBrokersYesAndADeletion(t *testing.T) {
	f, c := groupFixture(t)
	meanwhile := func(key kmsg.Key) {
		once := false
		f.broker.ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
			if once {
				return nil, nil, false
			}
			once = true
			f.cluster.CommitOffsets(OffsetCommit{Group: "g", Epoch: 1, Offsets: []OffsetToCommit{{Topic: 1, Offset: 5}}}, func([]int16) {})
			return nil, nil, false
		})
	}
	groups := groupRequests("g")[kmsg.DeleteGroups].req
	offsets := groupRequests("g")[kmsg.OffsetDelete].req.(*kmsg.OffsetDeleteRequest)
	ot := kmsg.NewOffsetDeleteRequestTopic()
	ot.Topic = "orders"
	ot.Partitions = append(ot.Partitions, kmsg.NewOffsetDeleteRequestTopicPartition())
	offsets.Topics = append(offsets.Topics, ot)
	for key, ask := range map[kmsg.Key]func() int16{
		kmsg.DeleteGroups: func() int16 { return do[*kmsg.DeleteGroupsResponse](c, 2, groups).Groups[0].ErrorCode },
		kmsg.OffsetDelete: func() int16 { return do[*kmsg.OffsetDeleteResponse](c, 0, offsets).ErrorCode },
	} {
		if codes := commitCodes(do[*kmsg.OffsetCommitResponse](c, 8, commitOf("g", -1, "orders", 4))); codes[0] != 0 {
			t.Fatalf("commit: %v", codes)
		}
		meanwhile(key)
		if code := ask(); code != kerr.NotCoordinator.Code {
			t.Errorf("%s: code %d", key.Name(), code)
		}
		if got := f.committedBy("g"); len(got) != 1 || got[0].Offset != 5 {
			t.Errorf("%s: committed %v", key.Name(), got)
		}
		if code := ask(); code != 0 || len(f.committedBy("g")) != 0 {
			t.Errorf("%s, asked again: code %d, committed %v", key.Name(), code, f.committedBy("g"))
		}
	}
	f.cluster.fakeGroups.edit(func(s *fakeGroupsState) {
		if len(s.noting) != 0 {
			t.Errorf("still noted: %v", s.noting)
		}
	})
}
