package proxy

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// hangs makes the fixture's broker leave Metadata unanswered while it is true. It
// comes before judge.
func (f *fixture) hangs() *atomic.Bool {
	hung := new(atomic.Bool)
	f.broker.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		return nil, nil, hung.Load()
	})
	return hung
}

// TestQuestionBehindAPollThatLostItsLeader is asked again: the broker is well, it
// is we who ended the connection under it.
func TestQuestionBehindAPollThatLostItsLeader(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 2, nil)
	f.judge(map[string]int32{"orders": opDescribe})
	c := f.dial()
	poll := fetchOf(longPoll, fetchPart{name: "orders"})
	polled := c.send(poll)
	f.waitUpstream(1)
	md := metadataOf(false, "orders")
	md.SetVersion(9)
	asked := c.send(md)
	f.waitUpstream(2)
	f.cluster.setLeader("orders", 0, 2)
	receive[*kmsg.FetchResponse](c, polled, poll)
	got := receive[*kmsg.MetadataResponse](c, asked, md).Topics
	if len(got) != 1 || got[0].ErrorCode != 0 || len(got[0].Partitions) != 2 {
		t.Errorf("%+v", got)
	}
	c.alive()
}

// TestLinkIsBusyWhileItPassesOn: a question behind an answer that a client takes
// slowly waits for that client, and not for the broker.
func TestLinkIsBusyWhileItPassesOn(t *testing.T) {
	question, wanted := &call{question: true}, &call{}
	for _, tc := range []struct {
		name string
		link *link
		want bool
	}{
		{"none", nil, false},
		{"idle", &link{}, false},
		{"questions only", &link{pending: []*call{question, question}}, false},
		{"a call of the client's", &link{pending: []*call{question, wanted}}, true},
		{"an answer under way", &link{passing: true}, true},
	} {
		u := &upstream{current: tc.link}
		if got := u.busy(); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

// TestQuestionIsGivenUpThoughProducesWait: several Produces in flight wait for a
// majority, not for the broker, which shall say at once what the client may do.
func TestQuestionIsGivenUpThoughProducesWait(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Limits.RightsTimeout, c.Limits.UpstreamTimeout = 50*time.Millisecond, time.Hour })
	f.createTopic("orders", 1, nil)
	f.createTopic("payments", 1, nil)
	hung := f.hangs()
	f.judge(map[string]int32{"orders": topicOperations, "payments": topicOperations})
	held := make(chan func(), 4)
	f.producer.setHold(func(_ appendCall, complete func()) { held <- complete })
	c := f.dial()
	var sent []int32
	for range 3 {
		sent = append(sent, c.send(produceTo("orders", 0, batchOf("a"))))
	}
	eventually(t, "the appends", func() bool { return f.producer.appended() == 3 })
	hung.Store(true)
	last := produceTo("payments", 0, batchOf("a"))
	lastSent := c.send(last)
	eventually(t, "the question to be given up", func() bool {
		return len(f.log.lines("broker did not answer", "api=Produce", "no answer in time")) > 0
	})
	for _, corr := range sent {
		(<-held)()
		if code := receive[*kmsg.ProduceResponse](c, corr, last).Topics[0].Partitions[0].ErrorCode; code != 0 {
			t.Errorf("asked before: code %d", code)
		}
	}
	if code := receive[*kmsg.ProduceResponse](c, lastSent, last).Topics[0].Partitions[0].ErrorCode; code != kerr.NotLeaderForPartition.Code {
		t.Errorf("not judged: code %d", code)
	}
	if n := f.producer.appended(); n != 3 {
		t.Errorf("%d batches were appended, want 3", n)
	}
}

// TestMetadataOfWhoKnowsTopics is not answered while the broker does not say what
// may be seen: the client would forget the leaders that it knows.
func TestMetadataOfWhoKnowsTopics(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Limits.RightsTimeout = 50 * time.Millisecond })
	f.createTopic("orders", 1, nil)
	hung := f.hangs()
	f.judge(map[string]int32{"orders": opDescribe})
	known, fresh := f.dial(), f.dial()
	if got := do[*kmsg.MetadataResponse](known, 9, metadataOf(false, "orders")).Topics[0]; got.ErrorCode != 0 {
		t.Fatalf("with the broker: %+v", got)
	}
	hung.Store(true)
	other := metadataOf(false, "payments")
	other.SetVersion(9)
	known.send(other)
	known.closed()
	if got := do[*kmsg.MetadataResponse](fresh, 9, metadataOf(false, "orders")); len(got.Brokers) != 1 || got.Topics[0].ErrorCode != kerr.LeaderNotAvailable.Code {
		t.Errorf("told nothing before: %+v", got)
	}
	fresh.closed()
}

// TestMetadataOfWhoWasShownUnasked: a client that was shown topics while the broker
// was not known to judge knows them all the same.
func TestMetadataOfWhoWasShownUnasked(t *testing.T) {
	judges := new(atomic.Bool)
	f := newFixture(t, func(c *Config) { c.BrokerJudges = judges.Load })
	f.createTopic("orders", 1, nil)
	f.broker.Close()
	c := f.dial()
	md := metadataOf(false, "orders")
	if got := do[*kmsg.MetadataResponse](c, 9, md).Topics[0]; got.ErrorCode != 0 || len(got.Partitions) != 1 {
		t.Fatalf("%+v", got)
	}
	judges.Store(true)
	c.send(md)
	c.closed()
}

// TestMetadataIsNotAnsweredByAnEnd: what we ended ourselves says nothing of topics.
func TestMetadataIsNotAnsweredByAnEnd(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	f.hangs().Store(true)
	c := f.dial()
	md := metadataOf(false, "orders")
	md.SetVersion(9)
	c.send(md)
	f.waitUpstream(1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := f.srv.Shutdown(ctx); err != nil {
		t.Fatalf("shutdown: %v", err)
	}
	c.closed()
	if got := f.log.lines("[WARN]"); len(got) != 0 {
		t.Errorf("a planned stop warned: %q", got)
	}
}

// TestAllTopicsOrNoAnswer: a list without a topic of which the broker does not tell
// the rights would say that it is gone. Who names it is told to ask again.
func TestAllTopicsOrNoAnswer(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	f.answer(kmsg.Metadata, func(req kmsg.Request) kmsg.Response {
		resp := req.ResponseKind().(*kmsg.MetadataResponse)
		for _, topic := range req.(*kmsg.MetadataRequest).Topics {
			rt := kmsg.NewMetadataResponseTopic()
			rt.Topic, rt.ErrorCode = topic.Topic, kerr.UnknownServerError.Code
			resp.Topics = append(resp.Topics, rt)
		}
		return resp
	})
	if got := do[*kmsg.MetadataResponse](f.dial(), 9, metadataOf(false, "orders")).Topics; len(got) != 1 || got[0].ErrorCode != kerr.LeaderNotAvailable.Code {
		t.Errorf("named: %+v", got)
	}
	c := f.dial()
	all := kmsg.NewPtrMetadataRequest()
	all.SetVersion(9)
	c.send(all)
	c.closed()
}
