package proxy

import (
	"fmt"
	"maps"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// alterOf is an IncrementalAlterConfigs of the resources.
func alterOf(resources ...kmsg.IncrementalAlterConfigsRequestResource) *kmsg.IncrementalAlterConfigsRequest {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.Resources = resources
	return req
}

// alterOp is one operation on a topic's setting.
func alterOp(topic, name string, op kmsg.IncrementalAlterConfigOp, value *string) kmsg.IncrementalAlterConfigsRequestResource {
	res := kmsg.NewIncrementalAlterConfigsRequestResource()
	res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	c.Name, c.Op, c.Value = name, op, value
	res.Configs = append(res.Configs, c)
	return res
}

func setOp(topic, name, value string) kmsg.IncrementalAlterConfigsRequestResource {
	return alterOp(topic, name, kmsg.IncrementalAlterConfigOpSet, kmsg.StringPtr(value))
}

// TestIncrementalAlterConfigs changes the catalog, and only what the broker and
// we have nothing against.
func TestIncrementalAlterConfigs(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, map[string]string{"segment.ms": "9000"})
	c := f.dial()
	for version := int16(0); version <= 1; version++ {
		for _, tc := range []struct {
			name string
			res  kmsg.IncrementalAlterConfigsRequestResource
			code int16
			want string // settings afterwards, where they change
		}{
			{"set", setOp("orders", "retention.ms", "1000"), 0, "map[retention.ms:1000 segment.ms:9000]"},
			{"set a limit of ours", setOp("orders", "max.message.bytes", "2000"), 0, "map[max.message.bytes:2000 retention.ms:1000 segment.ms:9000]"},
			{"delete", alterOp("orders", "max.message.bytes", kmsg.IncrementalAlterConfigOpDelete, nil), 0, "map[retention.ms:1000 segment.ms:9000]"},
			{"delete what is not there", alterOp("orders", "max.message.bytes", kmsg.IncrementalAlterConfigOpDelete, nil), 0, "map[retention.ms:1000 segment.ms:9000]"},
			{"append what is the default", alterOp("orders", "cleanup.policy", kmsg.IncrementalAlterConfigOpAppend, kmsg.StringPtr("delete")), 0, "map[cleanup.policy:delete retention.ms:1000 segment.ms:9000]"},
			{"becomes compacted", alterOp("orders", "cleanup.policy", kmsg.IncrementalAlterConfigOpAppend, kmsg.StringPtr("compact")), kerr.InvalidConfig.Code, ""},
			{"becomes nothing", alterOp("orders", "cleanup.policy", kmsg.IncrementalAlterConfigOpSubtract, kmsg.StringPtr("delete")), kerr.InvalidConfig.Code, ""},
			{"back to the default", alterOp("orders", "cleanup.policy", kmsg.IncrementalAlterConfigOpDelete, nil), 0, "map[retention.ms:1000 segment.ms:9000]"},
			{"stamped by brokers", setOp("orders", "message.timestamp.type", "LogAppendTime"), kerr.InvalidConfig.Code, ""},
			{"conflict", setOp("orders", "max.compaction.lag.ms", "0"), kerr.InvalidConfig.Code, ""},
			{"no such topic", setOp("nowhere", "retention.ms", "1"), kerr.UnknownTopicOrPartition.Code, ""},
			{"no value", alterOp("orders", "retention.ms", kmsg.IncrementalAlterConfigOpSet, nil), kerr.InvalidRequest.Code, ""},
			{"no such operation", alterOp("orders", "cleanup.policy", 7, kmsg.StringPtr("x")), kerr.InvalidRequest.Code, ""},
		} {
			before := f.cluster.View().Topics["orders"].Config
			dry := alterOf(tc.res)
			dry.ValidateOnly = true
			for _, req := range []*kmsg.IncrementalAlterConfigsRequest{dry, alterOf(tc.res)} {
				res := do[*kmsg.IncrementalAlterConfigsResponse](c, version, req).Resources
				if len(res) != 1 || res[0].ErrorCode != tc.code || res[0].ResourceName != tc.res.ResourceName {
					t.Errorf("v%d %s: %+v, want code %d", version, tc.name, res, tc.code)
				}
				now := f.cluster.View().Topics["orders"].Config
				switch {
				case req.ValidateOnly || tc.code != 0:
					if !maps.Equal(before, now) {
						t.Errorf("v%d %s: settings changed to %v", version, tc.name, now)
					}
				case fmt.Sprint(now) != tc.want:
					t.Errorf("v%d %s: settings %v, want %s", version, tc.name, now, tc.want)
				}
			}
		}
	}
	twice := do[*kmsg.IncrementalAlterConfigsResponse](c, 1, alterOf(setOp("orders", "retention.ms", "7"), setOp("orders", "retention.ms", "8")))
	for _, res := range twice.Resources {
		if res.ErrorCode != kerr.InvalidRequest.Code {
			t.Errorf("one topic twice: %+v", res)
		}
	}
	if got := f.cluster.View().Topics["orders"].Config["retention.ms"]; got != "1000" {
		t.Errorf("retention.ms=%s after a request that names its topic twice", got)
	}
}

// TestAlterConfigs replaces all that the topic has.
func TestAlterConfigs(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, map[string]string{"segment.ms": "9000", "retention.ms": "5"})
	c := f.dial()
	for version := int16(0); version <= 2; version++ {
		req := kmsg.NewPtrAlterConfigsRequest()
		res := kmsg.NewAlterConfigsRequestResource()
		res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, "orders"
		cfg := kmsg.NewAlterConfigsRequestResourceConfig()
		cfg.Name, cfg.Value = "retention.ms", kmsg.StringPtr(fmt.Sprint(1000+version))
		res.Configs = append(res.Configs, cfg)
		req.Resources = append(req.Resources, res)
		if got := do[*kmsg.AlterConfigsResponse](c, version, req).Resources; len(got) != 1 || got[0].ErrorCode != 0 {
			t.Fatalf("v%d: %+v", version, got)
		}
		if got, want := fmt.Sprint(f.cluster.View().Topics["orders"].Config), fmt.Sprintf("map[retention.ms:%d]", 1000+version); got != want {
			t.Errorf("v%d: settings %s, want %s", version, got, want)
		}
	}
}

// TestAlterBrokerConfigs go to this node's broker, under the broker's own id;
// other nodes' and the default of all are refused.
func TestAlterBrokerConfigs(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial()
	for name, want := range map[string]int16{"1": 0, "0": kerr.InvalidRequest.Code, "2": kerr.InvalidRequest.Code, "": kerr.InvalidRequest.Code} {
		res := setOp(name, "log.cleaner.threads", "2")
		res.ResourceType = kmsg.ConfigResourceTypeBroker
		got := do[*kmsg.IncrementalAlterConfigsResponse](c, 1, alterOf(res)).Resources
		if len(got) != 1 || got[0].ErrorCode != want || got[0].ResourceName != name {
			t.Errorf("broker %q: %+v, want code %d", name, got, want)
		}
	}
	req := kmsg.NewPtrDescribeConfigsRequest()
	res := kmsg.NewDescribeConfigsRequestResource()
	res.ResourceType, res.ResourceName, res.ConfigNames = kmsg.ConfigResourceTypeBroker, "1", []string{"log.cleaner.threads"}
	req.Resources = append(req.Resources, res)
	got := do[*kmsg.DescribeConfigsResponse](c, 4, req).Resources
	if len(got) != 1 || len(got[0].Configs) != 1 || *got[0].Configs[0].Value != "2" {
		t.Errorf("described: %+v", got)
	}
}

// TestDescribeConfigsShowsTheCatalog, not the broker's permissive copy.
func TestDescribeConfigsShowsTheCatalog(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Topics.MaxMessageBytes = 5000 })
	f.createTopic("orders", 1, map[string]string{"retention.ms": "1000"})
	// The broker's copy, as internal/broker makes it.
	own := alterOf(setOp("orders", "max.message.bytes", "2147483647"))
	if resp, err := roundTrip[*kmsg.IncrementalAlterConfigsResponse](f.upstream, own); err != nil || resp.Resources[0].ErrorCode != 0 {
		t.Fatal(err, resp)
	}
	c := f.dial()
	req := kmsg.NewPtrDescribeConfigsRequest()
	res := kmsg.NewDescribeConfigsRequestResource()
	res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, "orders"
	req.Resources = append(req.Resources, res)
	for _, synonyms := range []bool{false, true} {
		req.IncludeSynonyms = synonyms
		for version := int16(1); version <= 4; version++ {
			got := make(map[string]kmsg.DescribeConfigsResponseResourceConfig)
			for _, cfg := range do[*kmsg.DescribeConfigsResponse](c, version, req).Resources[0].Configs {
				got[cfg.Name] = cfg
			}
			if own := got["retention.ms"]; *own.Value != "1000" || own.Source != kmsg.ConfigSourceDynamicTopicConfig {
				t.Errorf("v%d: retention.ms %s from %v", version, *own.Value, own.Source)
			}
			enforced := got["max.message.bytes"]
			if *enforced.Value != "5000" || enforced.Source != kmsg.ConfigSourceStaticBrokerConfig {
				t.Errorf("v%d: max.message.bytes %s from %v", version, *enforced.Value, enforced.Source)
			}
			if n := len(enforced.ConfigSynonyms); (n == 1) != synonyms || n > 1 {
				t.Errorf("v%d: %d synonyms of max.message.bytes", version, n)
			}
		}
	}
	f.cluster.update(func(v *View) { delete(v.Topics, "orders") })
	if got := do[*kmsg.DescribeConfigsResponse](c, 4, req).Resources; len(got) != 1 || got[0].ErrorCode != kerr.UnknownTopicOrPartition.Code || len(got[0].Configs) != 0 {
		t.Errorf("a topic that only the broker has: %+v", got)
	}
}

// TestTopicOnItsWayToTheBroker: a topic that Metadata shows is described, and
// its settings are changed, although this node's broker is only about to have it.
func TestTopicOnItsWayToTheBroker(t *testing.T) {
	f := newFixture(t, nil)
	made := make(map[string]bool)
	for i, name := range []string{"described", "altered"} {
		f.cluster.update(func(v *View) {
			v.Topics[name] = &Topic{ID: uint64(100 + i), Name: name, Partitions: []Partition{{Leader: 1}}}
		})
	}
	f.cluster.here = func(topic *Topic) {
		if made[topic.Name] {
			return
		}
		made[topic.Name] = true
		req := kmsg.NewPtrCreateTopicsRequest()
		req.SetVersion(5)
		rt := kmsg.NewCreateTopicsRequestTopic()
		rt.Topic, rt.NumPartitions, rt.ReplicationFactor = topic.Name, 1, 1
		req.Topics = append(req.Topics, rt)
		if resp, err := roundTrip[*kmsg.CreateTopicsResponse](f.upstream, req); err != nil || resp.Topics[0].ErrorCode != 0 {
			t.Errorf("create on the broker: %+v, %v", resp, err)
		}
	}
	c := f.dial()
	req := kmsg.NewPtrDescribeConfigsRequest()
	res := kmsg.NewDescribeConfigsRequestResource()
	res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, "described"
	req.Resources = append(req.Resources, res)
	if got := do[*kmsg.DescribeConfigsResponse](c, 4, req).Resources[0]; got.ErrorCode != 0 {
		t.Errorf("described: error %d, %v", got.ErrorCode, got.ErrorMessage)
	}
	if got := do[*kmsg.IncrementalAlterConfigsResponse](c, 1, alterOf(setOp("altered", "retention.ms", "1000"))).Resources[0]; got.ErrorCode != 0 {
		t.Errorf("altered: error %d, %v", got.ErrorCode, got.ErrorMessage)
	}
}
