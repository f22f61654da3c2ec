package proxy

import (
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// An answer that a broker may give before it has looked at the client's rights
// is no permission: nothing is created on the strength of it.
func TestUnclearAnswerIsNoPermission(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	code := new(atomic.Int32)
	f.broker.ControlKey(int16(kmsg.CreateTopics), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		req := kreq.(*kmsg.CreateTopicsRequest)
		if !req.ValidateOnly {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
		for _, t := range req.Topics {
			rt := kmsg.NewCreateTopicsResponseTopic()
			rt.Topic, rt.ErrorCode = t.Topic, int16(code.Load())
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, true
	})
	c := f.dial()
	for _, unclear := range []int16{kerr.NotController.Code, kerr.RequestTimedOut.Code, kerr.UnknownServerError.Code} {
		code.Store(int32(unclear))
		got := do[*kmsg.CreateTopicsResponse](c, 5, newTopicOf("unclear", 1, -1)).Topics[0].ErrorCode
		if got != kerr.NotController.Code {
			t.Errorf("the broker says %d: the client is told %d, want NOT_CONTROLLER", unclear, got)
		}
	}
	if f.cluster.View().Topics["unclear"] != nil {
		t.Error("the topic was created all the same")
	}
	code.Store(int32(kerr.TopicAlreadyExists.Code))
	if got := do[*kmsg.CreateTopicsResponse](c, 5, newTopicOf("clear", 1, -1)).Topics[0].ErrorCode; got != 0 {
		t.Errorf("a client that may create is told %d", got)
	}
}
