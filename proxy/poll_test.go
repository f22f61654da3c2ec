package proxy

import (
	"context"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestPollEndsWithLeadership: a poll over two partitions ends when one moves;
// the other comes back empty and well, with its end as the high watermark.
func TestPollEndsWithLeadership(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 2, nil)
	f.fill("orders", 1, "a", "b")
	c, other := f.dial(), f.dial()
	req := fetchOf(longPoll, fetchPart{name: "orders"}, fetchPart{name: "orders", partition: 1, offset: 2})
	corr := c.send(req)
	otherReq := fetchOf(longPoll, fetchPart{name: "orders", partition: 1, offset: 2})
	other.send(otherReq)
	f.waitUpstream(2)
	f.cluster.setLeader("orders", 0, 2)
	got := fetched(receive[*kmsg.FetchResponse](c, corr, req))
	if p := got[partitionKey{"orders", 0}]; p.ErrorCode != kerr.NotLeaderForPartition.Code {
		t.Errorf("lost partition: code %d", p.ErrorCode)
	}
	if p := got[partitionKey{"orders", 1}]; p.ErrorCode != 0 || p.HighWatermark != 2 || len(p.RecordBatches) != 0 {
		t.Errorf("kept partition: code %d, high watermark %d, %d bytes", p.ErrorCode, p.HighWatermark, len(p.RecordBatches))
	}
	f.waitUpstream(1) // the poll of the kept partition alone goes on
	c.alive()
	f.fill("orders", 1, "c") // and is answered by data
	receive[*kmsg.FetchResponse](other, other.corr, otherReq)
	// The connection dials the broker again for the next poll.
	resp := do[*kmsg.FetchResponse](c, 12, fetchOf(longPoll, fetchPart{name: "orders", partition: 1, offset: 2}))
	if p := fetched(resp)[partitionKey{"orders", 1}]; p.ErrorCode != 0 || len(p.RecordBatches) == 0 {
		t.Errorf("next poll: code %d, %d bytes", p.ErrorCode, len(p.RecordBatches))
	}
}

// TestPollSeesAViewThatChangedBeforeIt: the change came after the handler looked
// and was announced before the poll waited.
func TestPollSeesAViewThatChangedBeforeIt(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	f.cluster.behave(func() {
		lost := *f.cluster.view
		topic := *lost.Topics["orders"]
		topic.Partitions = []Partition{{Leader: 2}}
		lost.Topics = map[string]*Topic{"orders": &topic}
		f.cluster.next = &lost
	})
	got := fetched(do[*kmsg.FetchResponse](f.dial(), 12, fetchOf(longPoll, fetchPart{name: "orders"})))
	if code := got[partitionKey{"orders", 0}].ErrorCode; code != kerr.NotLeaderForPartition.Code {
		t.Errorf("code %d", code)
	}
}

// TestAnswerAfterADoubtIsNotGivenOn: the broker answers when this node is not
// sure any more that it leads, which no view announces after a suspension.
func TestAnswerAfterADoubtIsNotGivenOn(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	c := f.dial()
	req := fetchOf(longPoll, fetchPart{name: "orders"})
	corr := c.send(req)
	f.waitUpstream(1)
	f.cluster.behave(func() {
		doubtful := *f.cluster.view
		topic := *doubtful.Topics["orders"]
		topic.Partitions = []Partition{{Leader: -1}}
		doubtful.Topics = map[string]*Topic{"orders": &topic}
		f.cluster.view = &doubtful
	})
	if res := f.producer.append(appendCall{topic: "orders", batch: batchOf("a")}); res.Code != 0 { // ends the poll
		t.Fatalf("append: code %d", res.Code)
	}
	got := fetched(receive[*kmsg.FetchResponse](c, corr, req))
	if p := got[partitionKey{"orders", 0}]; p.ErrorCode != kerr.NotLeaderForPartition.Code || len(p.RecordBatches) != 0 {
		t.Errorf("code %d, %d bytes", p.ErrorCode, len(p.RecordBatches))
	}
}

// TestPollEndsWithItsConnection: who breaks the protocol behind a poll gets the
// poll's answer at once, then the end.
func TestPollEndsWithItsConnection(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	c := f.dial()
	req := fetchOf(longPoll, fetchPart{name: "orders"})
	corr := c.send(req)
	f.waitUpstream(1)
	c.write(headerOnly(999, 0))
	got := fetched(receive[*kmsg.FetchResponse](c, corr, req))
	if code := got[partitionKey{"orders", 0}].ErrorCode; code != kerr.NotLeaderForPartition.Code {
		t.Errorf("code %d", code)
	}
	c.closed()
}

// TestPollEndsWhenTheTopicIsAnother: deleted and created again is not the same.
func TestPollEndsWhenTheTopicIsAnother(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	c := f.dial()
	req := fetchOf(longPoll, fetchPart{name: "orders"})
	corr := c.send(req)
	f.waitUpstream(1)
	f.cluster.update(func(v *View) {
		again := *v.Topics["orders"]
		again.ID += 100
		v.Topics["orders"] = &again
	})
	got := fetched(receive[*kmsg.FetchResponse](c, corr, req))
	if code := got[partitionKey{"orders", 0}].ErrorCode; code != kerr.NotLeaderForPartition.Code {
		t.Errorf("code %d", code)
	}
}

// TestPollEndsWithTheServer: a poll does not hold a shutdown up.
func TestPollEndsWithTheServer(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	c := f.dial()
	req := fetchOf(longPoll, fetchPart{name: "orders"})
	corr := c.send(req)
	f.waitUpstream(1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := f.srv.Shutdown(ctx); err != nil {
		t.Fatalf("shutdown: %v", err)
	}
	got := fetched(receive[*kmsg.FetchResponse](c, corr, req))
	if code := got[partitionKey{"orders", 0}].ErrorCode; code != kerr.NotLeaderForPartition.Code {
		t.Errorf("code %d", code)
	}
	c.closed()
	assertNoProxyGoroutines(t)
	if got := f.log.lines("[WARN]"); len(got) != 0 {
		t.Errorf("a planned stop warned: %q", got)
	}
}

// TestPollEndsWithTheBroker, and what needs no broker goes on.
func TestPollEndsWithTheBroker(t *testing.T) {
	f := newFixture(t, noAuthorizer)
	f.createTopic("orders", 1, nil)
	c, other := f.dial(), f.dial()
	req := fetchOf(longPoll, fetchPart{name: "orders"})
	corr := c.send(req)
	f.waitUpstream(1)
	f.broker.Close()
	notLeader := kerr.NotLeaderForPartition.Code
	if code := fetched(receive[*kmsg.FetchResponse](c, corr, req))[partitionKey{"orders", 0}].ErrorCode; code != notLeader {
		t.Errorf("poll: code %d", code)
	}
	// From here the broker cannot be dialled at all.
	resp := do[*kmsg.FetchResponse](c, 12, fetchOf(longPoll, fetchPart{name: "orders"}))
	if code := fetched(resp)[partitionKey{"orders", 0}].ErrorCode; code != notLeader {
		t.Errorf("fetch: code %d", code)
	}
	list := listOffsetsOf("orders", 0, -1)
	if code := do[*kmsg.ListOffsetsResponse](c, 7, list).Topics[0].Partitions[0].ErrorCode; code != notLeader {
		t.Errorf("list offsets: code %d", code)
	}
	heartbeat := kmsg.NewPtrHeartbeatRequest()
	heartbeat.Group = "g"
	if code := do[*kmsg.HeartbeatResponse](c, 4, heartbeat).ErrorCode; code != kerr.CoordinatorNotAvailable.Code {
		t.Errorf("heartbeat: code %d", code)
	}
	c.alive()
	md := kmsg.NewPtrMetadataRequest()
	if got := do[*kmsg.MetadataResponse](c, 9, md); len(got.Topics) != 1 || got.Topics[0].Partitions[0].Leader != 1 {
		t.Errorf("metadata: %+v", got.Topics)
	}
	if code := do[*kmsg.ListGroupsResponse](c, 4, kmsg.NewPtrListGroupsRequest()).ErrorCode; code != kerr.CoordinatorNotAvailable.Code {
		t.Errorf("list groups: code %d", code)
	}
	handshake := kmsg.NewPtrSASLHandshakeRequest() // the client would not know what it was told
	handshake.Mechanism = "PLAIN"
	c.send(handshake)
	c.closed()
	other.alive()
}

// TestClientThatLeavesEndsItsPoll: the broker connection goes with it.
func TestClientThatLeavesEndsItsPoll(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	c := f.dial()
	c.send(fetchOf(longPoll, fetchPart{name: "orders"}))
	f.waitUpstream(1)
	c.nc.Close()
	eventually(t, "the connection to end", func() bool { return len(f.srv.snapshot()) == 0 })
}
