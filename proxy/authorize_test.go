package proxy

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// judge makes the fixture's broker give the client these rights, by topic; it
// counts how often it is asked.
func (f *fixture) judge(rights map[string]int32) *atomic.Int32 {
	asked := new(atomic.Int32)
	f.broker.ControlKey(int16(kmsg.Metadata), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		req := kreq.(*kmsg.MetadataRequest)
		if !req.IncludeTopicAuthorizedOperations {
			return nil, nil, false
		}
		asked.Add(1)
		resp := req.ResponseKind().(*kmsg.MetadataResponse)
		for _, t := range req.Topics {
			rt := kmsg.NewMetadataResponseTopic()
			rt.Topic = t.Topic
			ops, known := rights[*t.Topic]
			if rt.AuthorizedOperations = ops; !known {
				rt.ErrorCode = kerr.TopicAuthorizationFailed.Code
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, true
	})
	f.broker.ControlKey(int16(kmsg.CreateTopics), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		req := kreq.(*kmsg.CreateTopicsRequest)
		if !req.ValidateOnly {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
		for _, t := range req.Topics {
			rt := kmsg.NewCreateTopicsResponseTopic()
			rt.Topic = t.Topic
			if _, known := rights[t.Topic]; !known {
				rt.ErrorCode = kerr.TopicAuthorizationFailed.Code
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, true
	})
	return asked
}

// TestAuthorization: nothing is done for a client that the broker does not let
// do it.
func TestAuthorization(t *testing.T) {
	f := newFixture(t, nil)
	for _, name := range []string{"all", "read", "hidden"} {
		f.createTopic(name, 1, nil)
	}
	asked := f.judge(map[string]int32{"all": topicOperations, "read": 1<<3 | opDescribe, "new": 0})
	c := f.dial()
	denied := kerr.TopicAuthorizationFailed.Code
	codes := map[string]func(topic string) int16{
		"Produce": func(topic string) int16 {
			return do[*kmsg.ProduceResponse](c, 9, produceTo(topic, 0, batchOf("a"))).Topics[0].Partitions[0].ErrorCode
		},
		"DeleteRecords": func(topic string) int16 {
			return do[*kmsg.DeleteRecordsResponse](c, 2, deleteOf(topic, 0, 0)).Topics[0].Partitions[0].ErrorCode
		},
		"CreatePartitions": func(topic string) int16 {
			req := kmsg.NewPtrCreatePartitionsRequest()
			rt := kmsg.NewCreatePartitionsRequestTopic()
			rt.Topic, rt.Count = topic, 2
			req.Topics, req.ValidateOnly = append(req.Topics, rt), true
			return do[*kmsg.CreatePartitionsResponse](c, 3, req).Topics[0].ErrorCode
		},
		"DeleteTopics": func(topic string) int16 {
			if topic == "all" {
				return 0 // it is needed
			}
			req := kmsg.NewPtrDeleteTopicsRequest()
			req.TopicNames = []string{topic}
			return do[*kmsg.DeleteTopicsResponse](c, 5, req).Topics[0].ErrorCode
		},
		"CreateTopics": func(topic string) int16 {
			name := "other"
			if topic == "all" {
				name = "new"
			}
			req := newTopicOf(name, 1, 1)
			req.ValidateOnly = true
			return do[*kmsg.CreateTopicsResponse](c, 5, req).Topics[0].ErrorCode
		},
	}
	for api, code := range codes {
		for topic, want := range map[string]int16{"all": 0, "read": denied, "hidden": denied} {
			if got := code(topic); got != want {
				t.Errorf("%s of %s: code %d, want %d", api, topic, got, want)
			}
		}
	}
	if n := f.producer.appended(); n != 1 {
		t.Errorf("%d batches were appended, want 1", n)
	}
	if n := asked.Load(); n > 4 {
		t.Errorf("the broker was asked %d times about four topics", n)
	}
	shown := ""
	req := kmsg.NewPtrMetadataRequest()
	req.IncludeTopicAuthorizedOperations = true
	for _, mt := range do[*kmsg.MetadataResponse](c, 9, req).Topics {
		shown += fmt.Sprintf("%s:%d:%d ", *mt.Topic, mt.ErrorCode, mt.AuthorizedOperations)
	}
	if want := fmt.Sprintf("all:0:%d read:0:%d ", topicOperations, 1<<3|opDescribe); shown != want {
		t.Errorf("all topics: %q, want %q", shown, want)
	}
	if got := do[*kmsg.MetadataResponse](c, 9, metadataOf(true, "hidden", "other")).Topics; got[0].ErrorCode != denied || len(got[0].Partitions) != 0 || got[1].ErrorCode != denied {
		t.Errorf("hidden topics: %+v", got)
	}
	if f.cluster.View().Topics["other"] != nil {
		t.Error("a topic was created for a client that may not")
	}
	f.broker.Close()
	if got := codes["Produce"]("read"); got != denied {
		t.Errorf("with the broker down, but asked just before: code %d", got)
	}
	other := f.dial()
	if got := do[*kmsg.ProduceResponse](other, 9, produceTo("all", 0, batchOf("a"))).Topics[0].Partitions[0].ErrorCode; got != kerr.NotLeaderForPartition.Code {
		t.Errorf("with the broker down: code %d", got)
	}
	if n := f.producer.appended(); n != 1 {
		t.Errorf("%d batches were appended, want 1", n)
	}
}

// TestBrokerWithoutAuthorizer is not asked.
func TestBrokerWithoutAuthorizer(t *testing.T) {
	f := newFixture(t, noAuthorizer)
	f.createTopic("orders", 1, nil)
	asked := f.judge(nil)
	if got := do[*kmsg.ProduceResponse](f.dial(), 9, produceTo("orders", 0, batchOf("a"))).Topics[0].Partitions[0]; got.ErrorCode != 0 || asked.Load() != 0 {
		t.Errorf("%+v, asked %d times", got, asked.Load())
	}
}
