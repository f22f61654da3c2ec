package proxy

import (
	"slices"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// answer makes the fixture's broker answer an API; fn returns nil for what the
// broker shall answer by itself.
func (f *fixture) answer(key kmsg.Key, fn func(kmsg.Request) kmsg.Response) {
	f.broker.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		resp := fn(req)
		return resp, nil, resp != nil
	})
}

// ofCluster makes the broker give the client these rights on the cluster.
func (f *fixture) ofCluster(ops int32) {
	f.answer(kmsg.Metadata, func(req kmsg.Request) kmsg.Response {
		if !req.(*kmsg.MetadataRequest).IncludeClusterAuthorizedOperations {
			return nil
		}
		resp := req.ResponseKind().(*kmsg.MetadataResponse)
		resp.AuthorizedOperations = ops
		return resp
	})
}

// TestFindCoordinatorNeedsDescribe: who may not describe a group is not told where
// it is, in any version, and the others are.
func TestFindCoordinatorNeedsDescribe(t *testing.T) {
	f := newFixture(t, nil)
	words := "no such right"
	code := func(group string) (int16, *string) {
		if group == "hidden" {
			return kerr.GroupAuthorizationFailed.Code, &words
		}
		return kerr.CoordinatorNotAvailable.Code, nil // the broker's own are of no account
	}
	f.answer(kmsg.FindCoordinator, func(kreq kmsg.Request) kmsg.Response {
		req := kreq.(*kmsg.FindCoordinatorRequest)
		resp := req.ResponseKind().(*kmsg.FindCoordinatorResponse)
		if req.Version < 4 {
			resp.ErrorCode, resp.ErrorMessage = code(req.CoordinatorKey)
			return resp
		}
		for _, key := range req.CoordinatorKeys {
			c := kmsg.NewFindCoordinatorResponseCoordinator()
			c.Key = key
			c.ErrorCode, c.ErrorMessage = code(key)
			resp.Coordinators = append(resp.Coordinators, c)
		}
		return resp
	})
	c := f.dial()
	find := func(c *rawClient, version int16, keys ...string) []kmsg.FindCoordinatorResponseCoordinator {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorKey, req.CoordinatorKeys = keys[0], keys
		resp := do[*kmsg.FindCoordinatorResponse](c, version, req)
		if version < 4 {
			return []kmsg.FindCoordinatorResponseCoordinator{{NodeID: resp.NodeID, Host: resp.Host, ErrorCode: resp.ErrorCode, ErrorMessage: resp.ErrorMessage}}
		}
		return resp.Coordinators
	}
	for version := int16(0); version <= 5; version++ {
		if got := find(c, version, "hidden")[0]; got.ErrorCode != kerr.GroupAuthorizationFailed.Code || got.NodeID != -1 || got.Host != "" ||
			version > 0 && (got.ErrorMessage == nil || *got.ErrorMessage != words) {
			t.Errorf("v%d: %+v", version, got)
		}
		if got := find(c, version, "seen")[0]; got.ErrorCode != 0 || got.NodeID != 1 {
			t.Errorf("v%d: %+v", version, got)
		}
	}
	if got := find(c, 5, "seen", "hidden"); got[0].ErrorCode != 0 || got[1].ErrorCode != kerr.GroupAuthorizationFailed.Code {
		t.Errorf("two groups: %+v", got)
	}
	f.broker.Close()
	for _, version := range []int16{3, 5} {
		c := f.dial()
		if got := find(c, version, "seen")[0]; got.ErrorCode != kerr.CoordinatorNotAvailable.Code || got.NodeID != -1 {
			t.Errorf("v%d, with the broker down: %+v", version, got)
		}
		c.closed() // the client asks another node
	}
}

// TestInitProducerIDNeedsARight: who may not write is given no id.
func TestInitProducerIDNeedsARight(t *testing.T) {
	f := newFixture(t, nil)
	says := new(atomic.Int32)
	says.Store(int32(kerr.ClusterAuthorizationFailed.Code))
	f.answer(kmsg.InitProducerID, func(req kmsg.Request) kmsg.Response {
		resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
		resp.ErrorCode, resp.ProducerID = int16(says.Load()), 7
		return resp
	})
	ask := func(c *rawClient, version int16, change func(*kmsg.InitProducerIDRequest)) *kmsg.InitProducerIDResponse {
		req := kmsg.NewPtrInitProducerIDRequest()
		if change != nil {
			change(req)
		}
		return do[*kmsg.InitProducerIDResponse](c, version, req)
	}
	half := func(q *kmsg.InitProducerIDRequest) { q.ProducerID = 5 }
	before := f.cluster.nextPID
	c := f.dial()
	for version := int16(0); version <= 4; version++ {
		if got := ask(c, version, nil); got.ErrorCode != kerr.ClusterAuthorizationFailed.Code || got.ProducerID != -1 {
			t.Errorf("v%d: %+v", version, got)
		}
	}
	if got := ask(c, 4, half); got.ErrorCode != kerr.ClusterAuthorizationFailed.Code {
		t.Errorf("half an identity: %+v", got)
	}
	if f.cluster.nextPID != before {
		t.Error("an id was taken from the catalog for a client that may not have one")
	}
	for _, fine := range []int16{0, kerr.CoordinatorLoadInProgress.Code, kerr.RequestTimedOut.Code} {
		says.Store(int32(fine))
		if got := ask(c, 4, nil); got.ErrorCode != 0 || got.ProducerID <= 1<<40 {
			t.Errorf("the broker says %d: %+v", fine, got)
		}
	}
	if got := ask(c, 4, half); got.ErrorCode != kerr.InvalidRequest.Code {
		t.Errorf("half an identity of who may: %+v", got)
	}
	nameless := func(q *kmsg.InitProducerIDRequest) { q.TransactionalID = kmsg.StringPtr("") }
	says.Store(int32(kerr.TransactionalIDAuthorizationFailed.Code))
	if got := ask(c, 4, nameless); got.ErrorCode != kerr.TransactionalIDAuthorizationFailed.Code {
		t.Errorf("an empty name of who may not: %+v", got)
	}
	says.Store(int32(kerr.UnknownServerError.Code)) // its authorizer failed
	if got := ask(c, 4, nil); got.ErrorCode != kerr.CoordinatorLoadInProgress.Code || got.ProducerID != -1 {
		t.Errorf("the broker does not know: %+v", got)
	}
	c.closed()
	f.broker.Close()
	c = f.dial()
	if got := ask(c, 4, nil); got.ErrorCode != kerr.CoordinatorLoadInProgress.Code || got.ProducerID != -1 {
		t.Errorf("with the broker down: %+v", got)
	}
	c.closed()
}

// TestEpochsNeedDescribe: the end of a log is no public matter.
func TestEpochsNeedDescribe(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("seen", 1, nil)
	f.createTopic("hidden", 1, nil)
	f.answer(kmsg.OffsetForLeaderEpoch, func(kreq kmsg.Request) kmsg.Response {
		req := kreq.(*kmsg.OffsetForLeaderEpochRequest)
		resp := req.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
		for _, t := range req.Topics {
			rt := kmsg.NewOffsetForLeaderEpochResponseTopic()
			rt.Topic = t.Topic
			p := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
			if t.Topic != "seen" {
				p.ErrorCode = kerr.TopicAuthorizationFailed.Code
			}
			rt.Partitions = append(rt.Partitions, p)
			resp.Topics = append(resp.Topics, rt)
		}
		return resp
	})
	ask := func(c *rawClient, version int16, replica int32) map[string]kmsg.OffsetForLeaderEpochResponseTopicPartition {
		req := kmsg.NewPtrOffsetForLeaderEpochRequest()
		req.ReplicaID = replica
		for _, name := range []string{"seen", "hidden", "ghost"} {
			rt := kmsg.NewOffsetForLeaderEpochRequestTopic()
			rt.Topic, rt.Partitions = name, append(rt.Partitions, kmsg.NewOffsetForLeaderEpochRequestTopicPartition())
			req.Topics = append(req.Topics, rt)
		}
		out := map[string]kmsg.OffsetForLeaderEpochResponseTopicPartition{}
		for _, t := range do[*kmsg.OffsetForLeaderEpochResponse](c, version, req).Topics {
			out[t.Topic] = t.Partitions[0]
		}
		return out
	}
	c := f.dial()
	denied := kerr.TopicAuthorizationFailed.Code
	for version := int16(2); version <= 4; version++ {
		got := ask(c, version, -1)
		if got["seen"].ErrorCode != 0 || got["seen"].EndOffset != 0 {
			t.Errorf("v%d, seen: %+v", version, got["seen"])
		}
		if got["hidden"].ErrorCode != denied || got["hidden"].EndOffset != -1 || got["ghost"].ErrorCode != denied {
			t.Errorf("v%d, hidden: %+v, ghost: %+v", version, got["hidden"], got["ghost"])
		}
	}
	if got := ask(c, 4, 5); got["hidden"].ErrorCode != denied || got["seen"].ErrorCode != kerr.InvalidRequest.Code {
		t.Errorf("as a replica: %+v", got)
	}
	f.broker.Close()
	if got := ask(c, 4, -1)["seen"]; got.ErrorCode != kerr.NotLeaderForPartition.Code || got.EndOffset != -1 {
		t.Errorf("with the broker down: %+v", got)
	}
}

// TestRightsOnTheCluster are shown as the broker has them.
func TestRightsOnTheCluster(t *testing.T) {
	for _, ops := range []int32{0, opDescribe | 1<<12} {
		f := newFixture(t, nil)
		f.ofCluster(ops)
		c := f.dial()
		describe := kmsg.NewPtrDescribeClusterRequest()
		describe.IncludeClusterAuthorizedOperations = true
		if got := do[*kmsg.DescribeClusterResponse](c, 1, describe); got.ClusterAuthorizedOperations != ops || len(got.Brokers) != 1 {
			t.Errorf("DescribeCluster: %+v, want %d", got, ops)
		}
		md := metadataOf(false)
		md.IncludeClusterAuthorizedOperations = true
		if got := do[*kmsg.MetadataResponse](c, 9, md).AuthorizedOperations; got != ops {
			t.Errorf("Metadata: %d, want %d", got, ops)
		}
		f.broker.Close()
		other := f.dial()
		other.send(describe)
		other.closed()
	}
}

// TestMetadataWhileTheBrokerIsSilent shows no topic that the client was not known
// to see, and sends the client to the other nodes, which it names.
func TestMetadataWhileTheBrokerIsSilent(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	f.judge(map[string]int32{"orders": opDescribe})
	known := f.dial()
	if got := do[*kmsg.MetadataResponse](known, 9, metadataOf(false, "orders")).Topics[0]; got.ErrorCode != 0 {
		t.Fatalf("with the broker: %+v", got)
	}
	f.broker.Close()
	if got := do[*kmsg.MetadataResponse](known, 9, metadataOf(false, "orders")).Topics[0]; got.ErrorCode != 0 || len(got.Partitions) != 1 {
		t.Errorf("asked just before: %+v", got)
	}
	for _, version := range []int16{1, 9} {
		c := f.dial()
		got := do[*kmsg.MetadataResponse](c, version, metadataOf(true, "orders", "ghost"))
		if len(got.Brokers) != 1 {
			t.Errorf("v%d: %d nodes are named", version, len(got.Brokers))
		}
		for _, topic := range got.Topics {
			if topic.ErrorCode != kerr.LeaderNotAvailable.Code || len(topic.Partitions) != 0 {
				t.Errorf("v%d: %+v", version, topic)
			}
		}
		c.closed() // many clients would ask this node again
	}
	c := f.dial()
	all := kmsg.NewPtrMetadataRequest()
	all.SetVersion(9)
	c.send(all)
	c.closed()
	if f.cluster.View().Topics["ghost"] != nil {
		t.Error("a topic was created without asking")
	}
}

// TestSilentBrokerThatMayHaveNoAuthorizer: a node that has not heard yet whether its
// broker tells clients apart shows them the way, and writes nothing for them.
func TestSilentBrokerThatMayHaveNoAuthorizer(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.BrokerJudges = func() bool { return false } })
	f.createTopic("orders", 1, nil)
	f.broker.Close()
	c := f.dial()
	for _, req := range []*kmsg.MetadataRequest{metadataOf(false, "orders"), kmsg.NewPtrMetadataRequest()} {
		req.IncludeTopicAuthorizedOperations, req.IncludeClusterAuthorizedOperations = true, true
		got := do[*kmsg.MetadataResponse](c, 9, req)
		if len(got.Topics) != 1 || got.Topics[0].ErrorCode != 0 || len(got.Topics[0].Partitions) != 1 ||
			got.Topics[0].AuthorizedOperations != topicOperations || got.AuthorizedOperations != clusterOperations {
			t.Errorf("Metadata: %+v", got)
		}
	}
	find := kmsg.NewPtrFindCoordinatorRequest()
	find.CoordinatorKey = "g"
	if got := do[*kmsg.FindCoordinatorResponse](c, 3, find); got.ErrorCode != 0 || got.NodeID != 1 {
		t.Errorf("FindCoordinator: %+v", got)
	}
	if got := do[*kmsg.InitProducerIDResponse](c, 4, kmsg.NewPtrInitProducerIDRequest()); got.ErrorCode != 0 {
		t.Errorf("InitProducerId: %+v", got)
	}
	if got := do[*kmsg.ProduceResponse](c, 9, produceTo("orders", 0, batchOf("a"))).Topics[0].Partitions[0].ErrorCode; got != kerr.NotLeaderForPartition.Code {
		t.Errorf("Produce: code %d", got)
	}
	if got := do[*kmsg.CreateTopicsResponse](c, 5, newTopicOf("new", 1, 1)).Topics[0].ErrorCode; got != kerr.NotController.Code {
		t.Errorf("CreateTopics: code %d", got)
	}
}

// TestNothingUnseenIsCreated: to create by Metadata takes DESCRIBE as well.
func TestNothingUnseenIsCreated(t *testing.T) {
	f := newFixture(t, nil)
	f.judge(map[string]int32{"blind": 1 << 5, "sighted": 1<<5 | opDescribe})
	got := do[*kmsg.MetadataResponse](f.dial(), 9, metadataOf(true, "blind", "sighted")).Topics
	if got[0].ErrorCode != kerr.TopicAuthorizationFailed.Code || f.cluster.View().Topics["blind"] != nil {
		t.Errorf("without DESCRIBE: %+v", got[0])
	}
	if got[1].ErrorCode != 0 || f.cluster.View().Topics["sighted"] == nil {
		t.Errorf("with it: %+v", got[1])
	}
}

// TestDeniedFirst: who may not use a topic is not told whether it is there, who
// leads it, or what else is wrong with the request.
func TestDeniedFirst(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("hidden", 2, nil)
	f.createTopic("moved", 1, nil)
	f.cluster.setLeader("moved", 0, 2)
	f.judge(nil)
	c := f.dial()
	denied := kerr.TopicAuthorizationFailed.Code
	produce := func(change func(*kmsg.ProduceRequest)) []int16 {
		req := produceTo("hidden", 0, batchOf("a"))
		change(req)
		var codes []int16
		for _, p := range do[*kmsg.ProduceResponse](c, 9, req).Topics[0].Partitions {
			codes = append(codes, p.ErrorCode)
		}
		return codes
	}
	for what, change := range map[string]func(*kmsg.ProduceRequest){
		"acks 2":               func(q *kmsg.ProduceRequest) { q.Acks = 2 },
		"a transaction's name": func(q *kmsg.ProduceRequest) { q.TransactionID = kmsg.StringPtr("x") },
		"a partition twice": func(q *kmsg.ProduceRequest) {
			q.Topics[0].Partitions = append(q.Topics[0].Partitions, q.Topics[0].Partitions[0])
		},
	} {
		if got := produce(change); slices.ContainsFunc(got, func(code int16) bool { return code != denied }) {
			t.Errorf("Produce, %s: %v", what, got)
		}
	}
	fetch := do[*kmsg.FetchResponse](c, 12, fetchOf(0, fetchPart{name: "moved"}, fetchPart{name: "ghost"}, fetchPart{name: "hidden", partition: 99}))
	for key, p := range fetched(fetch) {
		if p.ErrorCode != denied {
			t.Errorf("Fetch of %v: code %d", key, p.ErrorCode)
		}
	}
	for _, replica := range []int32{-1, 5} {
		for _, name := range []string{"moved", "ghost"} {
			list := listOffsetsOf(name, 0, -1)
			list.ReplicaID = replica
			if got := do[*kmsg.ListOffsetsResponse](c, 7, list).Topics[0].Partitions[0].ErrorCode; got != denied {
				t.Errorf("ListOffsets of %s as %d: code %d", name, replica, got)
			}
		}
	}
}

// TestDeleteTopicsTellsWhoMaySee that a topic is not there, whether or not they
// might delete it (ControllerApis.deleteTopics).
func TestDeleteTopicsTellsWhoMaySee(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("here", 1, nil)
	f.judge(map[string]int32{"here": opDescribe, "ghost": opDescribe})
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TopicNames = []string{"here", "ghost", "hidden"}
	var got []int16
	for _, topic := range do[*kmsg.DeleteTopicsResponse](f.dial(), 5, req).Topics {
		got = append(got, topic.ErrorCode)
	}
	denied := kerr.TopicAuthorizationFailed.Code
	if want := []int16{denied, kerr.UnknownTopicOrPartition.Code, denied}; !slices.Equal(got, want) {
		t.Errorf("codes %v, want %v", got, want)
	}
}

// TestCreatedTopicIsNotDescribed to who may create it and not describe it.
func TestCreatedTopicIsNotDescribed(t *testing.T) {
	f := newFixture(t, nil)
	f.judge(map[string]int32{"blind": 1 << 5, "sighted": opDescribeConfigs})
	for name, want := range map[string]int16{"blind": kerr.TopicAuthorizationFailed.Code, "sighted": 0} {
		got := do[*kmsg.CreateTopicsResponse](f.dial(), 6, newTopicOf(name, 1, 1, setting("retention.ms", "86400000"))).Topics[0]
		if got.ErrorCode != 0 || got.ConfigErrorCode != want || (got.NumPartitions == 1) != (want == 0) || (len(got.Configs) == 1) != (want == 0) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestSettingsOfOthersAreJudged: who may not is told so, also of what is refused to
// everybody.
func TestSettingsOfOthersAreJudged(t *testing.T) {
	for _, may := range []bool{false, true} {
		f := newFixture(t, nil)
		say := func(code int16) int16 {
			if may {
				return 0
			}
			return code
		}
		f.answer(kmsg.DescribeConfigs, func(req kmsg.Request) kmsg.Response {
			resp := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
			for _, res := range req.(*kmsg.DescribeConfigsRequest).Resources {
				resp.Resources = append(resp.Resources, undescribed(res.ResourceType, res.ResourceName, &KafkaError{Code: say(kerr.ClusterAuthorizationFailed.Code)}))
			}
			return resp
		})
		f.answer(kmsg.IncrementalAlterConfigs, func(req kmsg.Request) kmsg.Response {
			if !req.(*kmsg.IncrementalAlterConfigsRequest).ValidateOnly {
				t.Error("the broker was asked in earnest")
			}
			resp := req.ResponseKind().(*kmsg.IncrementalAlterConfigsResponse)
			for _, res := range req.(*kmsg.IncrementalAlterConfigsRequest).Resources {
				out := kmsg.NewIncrementalAlterConfigsResponseResource()
				out.ResourceType, out.ResourceName, out.ErrorCode = res.ResourceType, res.ResourceName, say(kerr.GroupAuthorizationFailed.Code)
				resp.Resources = append(resp.Resources, out)
			}
			return resp
		})
		c := f.dial()
		describe := kmsg.NewPtrDescribeConfigsRequest()
		res := kmsg.NewDescribeConfigsRequestResource()
		res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeBroker, "5"
		describe.Resources = append(describe.Resources, res)
		want := kerr.InvalidRequest.Code
		if !may {
			want = kerr.ClusterAuthorizationFailed.Code
		}
		if got := do[*kmsg.DescribeConfigsResponse](c, 4, describe).Resources; len(got) != 1 || got[0].ErrorCode != want || got[0].ResourceName != "5" {
			t.Errorf("DescribeConfigs of another broker, may %t: %+v", may, got)
		}
		alter := kmsg.NewPtrIncrementalAlterConfigsRequest()
		group := kmsg.NewIncrementalAlterConfigsRequestResource()
		group.ResourceType, group.ResourceName = kmsg.ConfigResourceTypeGroupConfig, "g"
		alter.Resources = append(alter.Resources, group)
		if want = kerr.InvalidRequest.Code; !may {
			want = kerr.GroupAuthorizationFailed.Code
		}
		if got := do[*kmsg.IncrementalAlterConfigsResponse](c, 1, alter).Resources; len(got) != 1 || got[0].ErrorCode != want {
			t.Errorf("IncrementalAlterConfigs of a group, may %t: %+v", may, got)
		}
	}
}

// TestGroupsOfTheCatalogAreListed to who may describe the cluster, and else to who
// may describe the group, though the broker has never met them.
func TestGroupsOfTheCatalogAreListed(t *testing.T) {
	for ops, want := range map[int32][]string{0: {"seen"}, opDescribe: {"hidden", "seen"}} {
		f := newFixture(t, nil)
		f.ofCluster(ops)
		f.cluster.fakeGroups.edit(func(s *fakeGroupsState) {
			for _, group := range []string{"seen", "hidden"} {
				s.committed[group] = map[TopicPartition]CommittedOffset{{1, 0}: {Topic: "orders", Offset: 5}}
			}
		})
		f.answer(kmsg.DescribeGroups, func(req kmsg.Request) kmsg.Response {
			resp := req.ResponseKind().(*kmsg.DescribeGroupsResponse)
			for _, name := range req.(*kmsg.DescribeGroupsRequest).Groups {
				g := kmsg.NewDescribeGroupsResponseGroup()
				g.Group, g.State = name, groupDead
				if name == "hidden" {
					g.ErrorCode, g.State = kerr.GroupAuthorizationFailed.Code, ""
				}
				resp.Groups = append(resp.Groups, g)
			}
			return resp
		})
		var got []string
		for _, g := range do[*kmsg.ListGroupsResponse](f.dial(), 5, kmsg.NewPtrListGroupsRequest()).Groups {
			got = append(got, g.Group)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("with the rights %d on the cluster: %q, want %q", ops, got, want)
		}
	}
}
