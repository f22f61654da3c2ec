package proxy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// metadataOf asks for topics by name; none means none, not all.
func metadataOf(create bool, names ...string) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = create
	req.Topics = []kmsg.MetadataRequestTopic{}
	for _, name := range names {
		mt := kmsg.NewMetadataRequestTopic()
		mt.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, mt)
	}
	return req
}

// TestMetadataShowsTheView in every version, and nothing of the broker.
func TestMetadataShowsTheView(t *testing.T) {
	f := newFixture(t, noAuthorizer)
	f.createTopic("orders", 3, nil)
	f.cluster.update(func(v *View) {
		v.Nodes[1] = Node{ID: 2, Rack: "b", Alive: true, Listeners: map[string]Endpoint{testListener: {"two.example", 9093}, "OTHER": {"internal", 1}}}
		v.Nodes[2] = Node{ID: 3, Alive: false, Listeners: map[string]Endpoint{testListener: {"three.example", 9094}}}
		v.Controller = 2
	})
	f.cluster.setLeader("orders", 1, 2)
	f.cluster.setLeader("orders", 2, 3) // which is dead
	c := f.dial()
	for version := int16(0); version <= 9; version++ {
		req := metadataOf(false, "orders")
		req.IncludeClusterAuthorizedOperations = version >= 8
		req.IncludeTopicAuthorizedOperations = version >= 8
		resp := do[*kmsg.MetadataResponse](c, version, req)
		var brokers []string
		for _, b := range resp.Brokers {
			brokers = append(brokers, fmt.Sprint(b.NodeID, b.Host))
		}
		if want := fmt.Sprint([]string{"1127.0.0.1", "2two.example"}); fmt.Sprint(brokers) != want {
			t.Errorf("v%d: brokers %v, want %s", version, brokers, want)
		}
		if version >= 1 && resp.ControllerID != 2 {
			t.Errorf("v%d: controller %d", version, resp.ControllerID)
		}
		if version >= 2 && (resp.ClusterID == nil || *resp.ClusterID != "test-cluster") {
			t.Errorf("v%d: cluster id %v", version, resp.ClusterID)
		}
		if version >= 8 && (resp.AuthorizedOperations != 8096 || resp.Topics[0].AuthorizedOperations != 3576) {
			t.Errorf("v%d: operations %d and %d", version, resp.AuthorizedOperations, resp.Topics[0].AuthorizedOperations)
		}
		parts := resp.Topics[0].Partitions
		want := []struct {
			leader int32
			code   int16
		}{{1, 0}, {2, 0}, {-1, kerr.LeaderNotAvailable.Code}}
		for i, p := range parts {
			if p.Leader != want[i].leader || p.ErrorCode != want[i].code || !slices.Equal(p.Replicas, []int32{1, 2, 3}) || !slices.Equal(p.ISR, []int32{1, 2, 3}) {
				t.Errorf("v%d partition %d: %+v", version, i, p)
			}
			if version >= 7 && p.LeaderEpoch != -1 {
				t.Errorf("v%d partition %d: epoch %d", version, i, p.LeaderEpoch)
			}
			if version >= 5 && !slices.Equal(p.OfflineReplicas, []int32{3}) {
				t.Errorf("v%d partition %d: offline %v", version, i, p.OfflineReplicas)
			}
		}
	}
	f.cluster.update(func(v *View) { v.Controller = 3 })
	if got := do[*kmsg.MetadataResponse](c, 9, metadataOf(false)); got.ControllerID != -1 || len(got.Topics) != 0 || got.AuthorizedOperations != noOperations {
		t.Errorf("dead controller %d, %d topics, operations %d", got.ControllerID, len(got.Topics), got.AuthorizedOperations)
	}
}

// TestMetadataWhichTopics: all, none, some, and how each version says it.
func TestMetadataWhichTopics(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("b", 1, nil)
	f.createTopic("a", 1, nil)
	c := f.dial()
	all := kmsg.NewPtrMetadataRequest()
	for _, tc := range []struct {
		name    string
		version int16
		req     *kmsg.MetadataRequest
		want    string
	}{
		{"all", 9, all, "a:0 b:0"},
		{"all in v1", 1, all, "a:0 b:0"},
		{"all in v0", 0, metadataOf(false), "a:0 b:0"},
		{"none", 4, metadataOf(false), ""},
		{"one twice", 9, metadataOf(false, "b", "b"), "b:0"},
		{"unknown", 9, metadataOf(false, "c"), "c:3"},
		{"illegal", 9, metadataOf(true, "a b", "..", "", strings.Repeat("x", 250)), "a b:17 ..:17 :17 " + strings.Repeat("x", 250) + ":17"},
		{"internal", 9, metadataOf(true, "__consumer_offsets"), "__consumer_offsets:3"},
	} {
		var got []string
		for _, mt := range do[*kmsg.MetadataResponse](c, tc.version, tc.req).Topics {
			got = append(got, fmt.Sprintf("%s:%d", *mt.Topic, mt.ErrorCode))
		}
		if s := strings.Join(got, " "); s != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, s, tc.want)
		}
	}
	if len(f.cluster.View().Topics) != 2 {
		t.Error("a topic was created")
	}
	f.cluster.update(func(v *View) { v.CatalogReady = false })
	if got := do[*kmsg.MetadataResponse](c, 9, metadataOf(true, "c")).Topics[0].ErrorCode; got != kerr.LeaderNotAvailable.Code {
		t.Errorf("before the catalog is known: code %d", got)
	}
}

// TestAutoCreate: wanted, forbidden by the request, forbidden by us, failing.
func TestAutoCreate(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial()
	got := do[*kmsg.MetadataResponse](c, 9, metadataOf(true, "orders")).Topics[0]
	if got.ErrorCode != 0 || len(got.Partitions) != 2 || got.Partitions[1].Leader != 1 {
		t.Errorf("created: %+v", got)
	}
	if got := do[*kmsg.MetadataResponse](c, 3, metadataOf(false, "old")).Topics[0]; got.ErrorCode != 0 {
		t.Errorf("version 3 cannot say no: %+v", got)
	}
	f.cluster.behave(func() {
		f.cluster.create = func(TopicSpec) error { return &KafkaError{Code: kerr.PolicyViolation.Code} }
	})
	if got := do[*kmsg.MetadataResponse](c, 9, metadataOf(true, "refused")).Topics[0]; got.ErrorCode != kerr.PolicyViolation.Code {
		t.Errorf("refused: code %d", got.ErrorCode)
	}
	f.cluster.behave(func() { f.cluster.create = func(TopicSpec) error { return context.DeadlineExceeded } })
	if got := do[*kmsg.MetadataResponse](c, 9, metadataOf(true, "slow")).Topics[0]; got.ErrorCode != kerr.LeaderNotAvailable.Code {
		t.Errorf("failing: code %d", got.ErrorCode)
	}
	off := newFixture(t, func(c *Config) { c.Topics.AutoCreate = false })
	if got := do[*kmsg.MetadataResponse](off.dial(), 9, metadataOf(true, "orders")).Topics[0]; got.ErrorCode != kerr.UnknownTopicOrPartition.Code {
		t.Errorf("switched off: code %d", got.ErrorCode)
	}
}

// TestAutoCreateIsBounded: many names, few creations, each once, and a slow
// catalog does not hold the answer up.
func TestAutoCreateIsBounded(t *testing.T) {
	f := newFixture(t, nil)
	f.srv.auto.wait = 20 * time.Millisecond // before the first connection
	var creating atomic.Int32
	release := make(chan struct{})
	f.cluster.behave(func() {
		f.cluster.create = func(TopicSpec) error { creating.Add(1); <-release; return context.Canceled }
	})
	defer close(release)
	names := make([]string, 30)
	for i := range names {
		names[i] = fmt.Sprint("topic-", i)
	}
	c := f.dial()
	for range 2 {
		for _, mt := range do[*kmsg.MetadataResponse](c, 9, metadataOf(true, names...)).Topics {
			if mt.ErrorCode != kerr.LeaderNotAvailable.Code {
				t.Errorf("%s: code %d", *mt.Topic, mt.ErrorCode)
			}
		}
	}
	if got := creating.Load(); got != maxAutoCreating {
		t.Errorf("%d creations, want %d", got, maxAutoCreating)
	}
}

// newTopicOf builds a CreateTopics request for one topic.
func newTopicOf(name string, partitions int32, rf int16, change ...func(*kmsg.CreateTopicsRequestTopic)) *kmsg.CreateTopicsRequest {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = 10_000
	ct := kmsg.NewCreateTopicsRequestTopic()
	ct.Topic, ct.NumPartitions, ct.ReplicationFactor = name, partitions, rf
	for _, fn := range change {
		fn(&ct)
	}
	req.Topics = append(req.Topics, ct)
	return req
}

func setting(name, value string) func(*kmsg.CreateTopicsRequestTopic) {
	return func(ct *kmsg.CreateTopicsRequestTopic) {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = name, kmsg.StringPtr(value)
		ct.Configs = append(ct.Configs, c)
	}
}

func assignment(partition int32, replicas ...int32) func(*kmsg.CreateTopicsRequestTopic) {
	return func(ct *kmsg.CreateTopicsRequestTopic) {
		a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
		a.Partition, a.Replicas = partition, replicas
		ct.ReplicaAssignment = append(ct.ReplicaAssignment, a)
	}
}

func TestCreateTopicsChecks(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("has_one.topic", 1, nil)
	c := f.dial()
	for _, tc := range []struct {
		name string
		req  *kmsg.CreateTopicsRequest
		code int16
	}{
		{"good", newTopicOf("good", 2, 3), 0},
		{"defaults", newTopicOf("defaults", -1, -1), 0},
		{"assigned", newTopicOf("assigned", -1, -1, assignment(1, 2, 3), assignment(0, 1, 2)), 0},
		{"settings", newTopicOf("settings", 1, 1, setting("retention.ms", "1000"), setting("cleanup.policy", "compact,delete")), 0},
		{"exists", newTopicOf("has_one.topic", 1, 1), 36},
		{"collides", newTopicOf("has.one_topic", 1, 1), 17},
		{"illegal name", newTopicOf("a/b", 1, 1), 17},
		{"no name", newTopicOf("", 1, 1), 17},
		{"internal name", newTopicOf("__consumer_offsets", 1, 1), 17},
		{"no partitions", newTopicOf("x", 0, 1), 37},
		{"negative partitions", newTopicOf("x", -2, 1), 37},
		{"too many partitions", newTopicOf("x", maxNewPartitions+1, 1), 44},
		{"replication factor 0", newTopicOf("x", 1, 0), 38},
		{"replication factor 4", newTopicOf("x", 1, 4), 38},
		{"assignment and count", newTopicOf("x", 1, -1, assignment(0, 1)), 42},
		{"assignment with a gap", newTopicOf("x", -1, -1, assignment(0, 1), assignment(2, 1)), 39},
		{"assignment twice", newTopicOf("x", -1, -1, assignment(0, 1), assignment(0, 1)), 39},
		{"assignment to nobody", newTopicOf("x", -1, -1, assignment(0)), 39},
		{"assignment to a stranger", newTopicOf("x", -1, -1, assignment(0, 9)), 39},
		{"assignment to one node twice", newTopicOf("x", -1, -1, assignment(0, 1, 1)), 39},
		{"uneven assignment", newTopicOf("x", -1, -1, assignment(0, 1, 2), assignment(1, 1)), 39},
		{"unknown setting", newTopicOf("x", 1, 1, setting("retention.hours", "1")), 40},
		{"bad number", newTopicOf("x", 1, 1, setting("retention.ms", "soon")), 40},
		{"bad policy", newTopicOf("x", 1, 1, setting("cleanup.policy", "forget")), 40},
		{"setting that cannot be kept", newTopicOf("x", 1, 1, setting("message.timestamp.type", "LogAppendTime")), 40},
		{"setting twice", newTopicOf("x", 1, 1, setting("retention.ms", "1"), setting("retention.ms", "2")), 40},
	} {
		// What is only validated is answered the same and does not come to be.
		tc.req.ValidateOnly = true
		dry := do[*kmsg.CreateTopicsResponse](c, 6, tc.req).Topics[0]
		if dry.ErrorCode != tc.code || f.cluster.View().Topics[tc.name] != nil {
			t.Errorf("%s, validated: code %d, want %d", tc.name, dry.ErrorCode, tc.code)
		}
		tc.req.ValidateOnly = false
		got := do[*kmsg.CreateTopicsResponse](c, 6, tc.req).Topics[0]
		if got.ErrorCode != tc.code || (got.ErrorMessage == nil) != (tc.code == 0) {
			t.Errorf("%s: code %d, message %v, want %d", tc.name, got.ErrorCode, got.ErrorMessage, tc.code)
		}
		if topic := f.cluster.View().Topics[tc.name]; tc.code == 0 {
			if topic == nil || got.NumPartitions != int32(len(topic.Partitions)) || got.ReplicationFactor != 3 || len(got.Configs) != len(topic.Config) {
				t.Errorf("%s: topic %+v, answer %+v", tc.name, topic, got)
			}
		}
	}
	if n := len(f.cluster.View().Topics["assigned"].Partitions); n != 2 {
		t.Errorf("assigned: %d partitions", n)
	}
	if got := f.cluster.View().Topics["settings"].Config["retention.ms"]; got != "1000" {
		t.Errorf("settings: %q", got)
	}
}

// TestCreateTopicsTogether: names within one request, in every version.
func TestCreateTopicsTogether(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial()
	for version := int16(2); version <= 6; version++ {
		name := fmt.Sprint("v", version)
		req := newTopicOf(name, 1, 1)
		for _, more := range []string{name + ".a", name + "_a", "twice", "twice", name + "b"} {
			req.Topics = append(req.Topics, newTopicOf(more, 1, 1).Topics...)
		}
		var codes []int16
		for _, rt := range do[*kmsg.CreateTopicsResponse](c, version, req).Topics {
			codes = append(codes, rt.ErrorCode)
		}
		if want := []int16{0, 0, 17, 42, 0}; !slices.Equal(codes, want) {
			t.Errorf("v%d: codes %v, want %v", version, codes, want)
		}
	}
}

// TestCreateTopicsOutcomes passes the cluster's verdict on; what is unknown is
// called timed out.
func TestCreateTopicsOutcomes(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial()
	for err, code := range map[error]int16{
		&KafkaError{Code: kerr.PolicyViolation.Code, Message: "full"}: kerr.PolicyViolation.Code,
		context.DeadlineExceeded: kerr.RequestTimedOut.Code,
		fmt.Errorf("stopping"):   kerr.RequestTimedOut.Code,
	} {
		f.cluster.behave(func() { f.cluster.create = func(TopicSpec) error { return err } })
		got := do[*kmsg.CreateTopicsResponse](c, 6, newTopicOf("x", 1, 1)).Topics[0]
		if got.ErrorCode != code || got.ErrorMessage == nil || *got.ErrorMessage == "" {
			t.Errorf("%v: code %d, message %v", err, got.ErrorCode, got.ErrorMessage)
		}
	}
}

func TestDeleteTopics(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial()
	for version := int16(1); version <= 5; version++ {
		f.createTopic("orders", 1, nil)
		f.createTopic("twice", 1, nil)
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.TimeoutMillis = 10_000
		req.TopicNames = []string{"orders", "nowhere", "twice", "twice"}
		var codes []int16
		for _, rt := range do[*kmsg.DeleteTopicsResponse](c, version, req).Topics {
			codes = append(codes, rt.ErrorCode)
		}
		if want := []int16{0, 3, 42}; !slices.Equal(codes, want) {
			t.Errorf("v%d: codes %v, want %v", version, codes, want)
		}
		req.TopicNames = []string{"twice"}
		do[*kmsg.DeleteTopicsResponse](c, version, req)
		if n := len(f.cluster.View().Topics); n != 0 {
			t.Errorf("v%d: %d topics are left", version, n)
		}
	}
	f.cluster.update(func(v *View) { v.CatalogReady = false })
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TopicNames = []string{"orders"}
	if got := do[*kmsg.DeleteTopicsResponse](c, 5, req).Topics[0].ErrorCode; got != kerr.NotController.Code {
		t.Errorf("before the catalog is known: code %d", got)
	}
}

func TestCreatePartitions(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 2, nil)
	c := f.dial()
	ask := func(version int16, name string, count int32, validate bool, replicas ...[]int32) int16 {
		req := kmsg.NewPtrCreatePartitionsRequest()
		req.TimeoutMillis, req.ValidateOnly = 10_000, validate
		ct := kmsg.NewCreatePartitionsRequestTopic()
		ct.Topic, ct.Count = name, count
		for _, r := range replicas {
			a := kmsg.NewCreatePartitionsRequestTopicAssignment()
			a.Replicas = r
			ct.Assignment = append(ct.Assignment, a)
		}
		req.Topics = append(req.Topics, ct)
		return do[*kmsg.CreatePartitionsResponse](c, version, req).Topics[0].ErrorCode
	}
	for _, tc := range []struct {
		name     string
		topic    string
		count    int32
		replicas [][]int32
		code     int16
	}{
		{"unknown", "nowhere", 3, nil, 3},
		{"same", "orders", 2, nil, 37},
		{"fewer", "orders", 1, nil, 37},
		{"none", "orders", 0, nil, 37},
		{"negative", "orders", -1, nil, 37},
		{"too many", "orders", maxNewPartitions + 3, nil, 44},
		{"assignment too short", "orders", 4, [][]int32{{1}}, 39},
		{"assignment to a stranger", "orders", 3, [][]int32{{7}}, 39},
	} {
		if got := ask(3, tc.topic, tc.count, false, tc.replicas...); got != tc.code {
			t.Errorf("%s: code %d, want %d", tc.name, got, tc.code)
		}
	}
	if got := ask(3, "orders", 3, true); got != 0 || len(f.cluster.View().Topics["orders"].Partitions) != 2 {
		t.Errorf("validate: code %d, %d partitions", got, len(f.cluster.View().Topics["orders"].Partitions))
	}
	for version := int16(0); version <= 3; version++ {
		total := 3 + int32(version)
		if got := ask(version, "orders", total, false, []int32{2, 1}); got != 0 || len(f.cluster.View().Topics["orders"].Partitions) != int(total) {
			t.Errorf("v%d: code %d, %d partitions", version, got, len(f.cluster.View().Topics["orders"].Partitions))
		}
	}
	twice := kmsg.NewPtrCreatePartitionsRequest()
	twice.TimeoutMillis = 10_000
	ct := kmsg.NewCreatePartitionsRequestTopic()
	ct.Topic, ct.Count = "orders", 20
	twice.Topics = append(twice.Topics, ct, ct)
	if got := do[*kmsg.CreatePartitionsResponse](c, 3, twice).Topics; len(got) != 1 || got[0].ErrorCode != kerr.InvalidRequest.Code {
		t.Errorf("one topic twice: %+v", got)
	}
}
