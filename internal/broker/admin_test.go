package broker

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// checkTopics creates, extends, deletes and creates again.
func checkTopics(t *testing.T, addr string) {
	ctx := testContext(t)
	a := newAdmin(t, addr)
	const name = "life"
	if _, err := a.Topic(ctx, name); !errors.Is(err, ErrNoTopic) {
		t.Fatalf("topic that was never created: %v", err)
	}
	first, err := a.CreateTopic(ctx, name, 2, map[string]string{"retention.ms": "1000000", "max.message.bytes": "5", "segment.bytes": "1048576"})
	if err != nil || first.Name != name || first.Partitions != 2 || first.UUID == [16]byte{} || !first.Ready {
		t.Fatalf("create: %+v, %v", first, err)
	}
	if _, err := a.CreateTopic(ctx, name, 2, nil); !errors.Is(err, ErrTopicExists) {
		t.Fatalf("create again: %v", err)
	}
	checkTopicConfig(t, a, name)
	if err := a.ExtendTopic(ctx, name, 5); err != nil {
		t.Fatal(err)
	}
	if err := a.ExtendTopic(ctx, name, 5); err != nil {
		t.Fatalf("extend to what it has: %v", err)
	}
	if info, err := a.Topic(ctx, name); err != nil || info.Partitions != 5 || info.UUID != first.UUID {
		t.Fatalf("extended: %+v, %v", info, err)
	}
	var code *CodeError
	if err := a.ExtendTopic(ctx, name, 3); !errors.As(err, &code) || code.Code != kerr.InvalidPartitions.Code {
		t.Fatalf("shrink: %v", err)
	}
	if err := a.ExtendTopic(ctx, "nowhere", 3); !errors.Is(err, ErrNoTopic) {
		t.Fatalf("extend no topic: %v", err)
	}
	if empty, err := a.Empty(ctx, name); err != nil || !empty {
		t.Fatalf("empty: %v, %v", empty, err)
	}
	s := mustSession(t, newAppender(t, Config{BootstrapServer: addr}))
	c := newCollector()
	s.Append(appendOf(name, 4, makeBatch(0, 1, 10)), c.done(0))
	if got := c.next(t); got.Err != nil || got.Code != 0 {
		t.Fatalf("append right after extending: %+v", got)
	}
	if empty, err := a.Empty(ctx, name); err != nil || empty {
		t.Fatalf("empty with a record: %v, %v", empty, err)
	}
	for range 2 {
		if err := a.DeleteTopic(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Empty(ctx, name); !errors.Is(err, ErrNoTopic) {
		t.Fatalf("empty of a deleted topic: %v", err)
	}
	again, err := a.CreateTopic(ctx, name, 2, nil)
	if err != nil || again.UUID == first.UUID {
		t.Fatalf("created again: %+v, %v, had %x", again, err, first.UUID)
	}
	s.Append(appendOf(name, 1, makeBatch(0, 1, 10)), c.done(0))
	if got := c.next(t); got.Err != nil || got.Code != 0 || got.BaseOffset != 0 {
		t.Fatalf("append right after creating: %+v", got)
	}
	topics, err := a.Topics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, info := range topics {
		found = found || info == again
	}
	if !found {
		t.Fatalf("%+v not among %+v", again, topics)
	}
}

// checkTopicConfig wants the permissive settings, the client's retention, and
// not the client's limits; then the same after ConfigureTopic.
func checkTopicConfig(t *testing.T, a *Admin, name string) {
	t.Helper()
	ctx := testContext(t)
	want := map[string]string{
		"compression.type":                "producer",
		"max.message.bytes":               "2147483647",
		"message.timestamp.type":          "CreateTime",
		"message.timestamp.before.max.ms": forever,
		"message.timestamp.after.max.ms":  forever,
		"segment.jitter.ms":               "0",
		"retention.ms":                    "1000000",
		"segment.bytes":                   "33554432",
	}
	check := func() {
		t.Helper()
		got, err := a.TopicConfig(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range want {
			if have, ok := got[k]; ok && have != v {
				t.Errorf("%s=%s, want %s", k, have, v)
			}
		}
		if got["max.message.bytes"] == "" || got["retention.ms"] == "" {
			t.Errorf("settings missing in %v", got)
		}
	}
	check()
	if err := a.ConfigureTopic(ctx, name, map[string]string{"retention.ms": "2000000", "unclean.leader.election.enable": "true"}); err != nil {
		t.Fatal(err)
	}
	want["retention.ms"] = "2000000"
	want["unclean.leader.election.enable"] = "false"
	delete(want, "segment.bytes")
	check()
	if got, err := a.TopicConfig(ctx, name); err != nil || got["segment.bytes"] == "33554432" {
		t.Errorf("segment.bytes=%s, %v, want the default back", got["segment.bytes"], err)
	}
}

func TestAdminTopics(t *testing.T) {
	_, addr := newBroker(t)
	checkTopics(t, addr)
}

// refuseSettings makes the broker answer INVALID_CONFIG to a CreateTopics with
// any setting ok denies.
func refuseSettings(c *kfake.Cluster, ok func(name, value string) bool) {
	c.ControlKey(int16(kmsg.CreateTopics), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		req := kreq.(*kmsg.CreateTopicsRequest)
		resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
		for _, rt := range req.Topics {
			for _, rc := range rt.Configs {
				if !ok(rc.Name, *rc.Value) {
					st := kmsg.NewCreateTopicsResponseTopic()
					st.Topic = rt.Topic
					st.ErrorCode = kerr.InvalidConfig.Code
					st.ErrorMessage = kmsg.StringPtr("Unknown topic config name: " + rc.Name)
					resp.Topics = append(resp.Topics, st)
					return resp, nil, true
				}
			}
		}
		return nil, nil, false
	})
}

// On a broker that knows fewer settings, the topic is created with those it
// takes, at the best value it takes.
func TestCreateTopicFallsBack(t *testing.T) {
	cluster, addr := newBroker(t)
	refuseSettings(cluster, func(name, value string) bool {
		switch name {
		case "message.timestamp.before.max.ms", "message.timestamp.after.max.ms":
			return false
		case "max.message.bytes":
			return value == "104857600"
		}
		return true
	})
	ctx := testContext(t)
	a := newAdmin(t, addr)
	if _, err := a.CreateTopic(ctx, "old", 1, map[string]string{"retention.bytes": "77"}); err != nil {
		t.Fatal(err)
	}
	got, err := a.TopicConfig(ctx, "old")
	if err != nil {
		t.Fatal(err)
	}
	if got["max.message.bytes"] != "104857600" || got["retention.bytes"] != "77" || got["compression.type"] != "producer" {
		t.Fatalf("settings %v", got)
	}
}

func TestAdminTopicDoesNotCreate(t *testing.T) {
	_, addr := newBroker(t, kfake.AllowAutoTopicCreation())
	a := newAdmin(t, addr)
	for range 2 {
		if _, err := a.Topic(testContext(t), "ghost"); !errors.Is(err, ErrNoTopic) {
			t.Fatalf("describing a topic created it: %v", err)
		}
	}
}

func TestSetBrokerDefaults(t *testing.T) {
	cluster, addr := newBroker(t)
	ctx := testContext(t)
	a := newAdmin(t, addr)
	if _, err := a.SetBrokerDefaults(ctx); err != nil {
		t.Fatal(err)
	}
	cluster.ControlKey(int16(kmsg.IncrementalAlterConfigs), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		req := kreq.(*kmsg.IncrementalAlterConfigsRequest)
		resp := req.ResponseKind().(*kmsg.IncrementalAlterConfigsResponse)
		r := kmsg.NewIncrementalAlterConfigsResponseResource()
		r.ResourceType, r.ResourceName = req.Resources[0].ResourceType, req.Resources[0].ResourceName
		r.ErrorCode = kerr.ClusterAuthorizationFailed.Code
		resp.Resources = append(resp.Resources, r)
		return resp, nil, true
	})
	warnings, err := a.SetBrokerDefaults(ctx)
	if err != nil || len(warnings) == 0 {
		t.Fatalf("refused setting: warnings %v, %v", warnings, err)
	}
}

func TestApiVersions(t *testing.T) {
	_, addr := newBroker(t)
	a := newAdmin(t, addr)
	keys, err := a.ApiVersions(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	produce := int16(-1)
	for _, k := range keys {
		if k.ApiKey == int16(kmsg.Produce) {
			produce = k.MaxVersion
		}
	}
	if produce != 12 {
		t.Fatalf("Produce up to v%d offered, want v12 of Kafka 4.0", produce)
	}
	kind, err := a.Describe(testContext(t))
	if err != nil || kind == "" {
		t.Fatalf("describe: %q, %v", kind, err)
	}
	t.Logf("in-process broker: %s", kind)
}

// Versions both sides know are used, and none is a clean error.
func TestPickVersion(t *testing.T) {
	v := versions{0: {ApiKey: 0, MinVersion: 3, MaxVersion: 9}, 1: {ApiKey: 1, MinVersion: 13, MaxVersion: 17}, 3: {ApiKey: 3, MaxVersion: 2}}
	if got, err := v.pick(kmsg.Produce, 3, 11); err != nil || got != 9 {
		t.Fatalf("Produce v%d, %v, want v9", got, err)
	}
	for _, key := range []kmsg.Key{kmsg.Fetch, kmsg.Metadata, kmsg.ListOffsets} {
		if _, err := v.pick(key, 4, 12); !errors.Is(err, ErrUnsupported) {
			t.Fatalf("%s: %v", key.Name(), err)
		}
	}
}

// Metadata shows leaders before Kafka can append; CreateTopic returns after.
func TestCreateTopicWaitsUntilLed(t *testing.T) {
	cluster, addr := newBroker(t)
	const notYet = 3
	asked := make(chan int, 100)
	cluster.ControlKey(int16(kmsg.ListOffsets), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		asked <- len(kreq.(*kmsg.ListOffsetsRequest).Topics[0].Partitions)
		if len(asked) > notYet {
			return nil, nil, false
		}
		resp := kreq.ResponseKind().(*kmsg.ListOffsetsResponse)
		rt := kmsg.NewListOffsetsResponseTopic()
		rt.Topic = "fresh"
		for p := range int32(3) {
			rp := kmsg.NewListOffsetsResponseTopicPartition()
			rp.Partition, rp.ErrorCode = p, kerr.NotLeaderForPartition.Code
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
		return resp, nil, true
	})
	if _, err := newAdmin(t, addr).CreateTopic(testContext(t), "fresh", 3, nil); err != nil {
		t.Fatal(err)
	}
	if n := len(asked); n != notYet+1 || <-asked != 3 {
		t.Fatalf("asked %d times, want %d, about 3 partitions", n, notYet+1)
	}
}
