package proxy

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// withRack is a Fetch of a client that names its rack.
func withRack(rack string, req *kmsg.FetchRequest) *kmsg.FetchRequest {
	req.Rack = rack
	return req
}

// newRacks is a proxy of rack r1, with node 2 of rack r2 alive, to which the
// topic orders, of three records, may be sent, and the topic other may not.
func newRacks(t *testing.T, configure func(*Config)) *fixture {
	t.Helper()
	f := newFixture(t, configure)
	f.createTopic("orders", 1, nil)
	f.createTopic("other", 1, nil)
	f.fill("orders", 0, "a", "b", "c")
	f.fill("other", 0, "a")
	f.cluster.update(func(v *View) { v.Nodes[1].Alive = true })
	orders := f.cluster.View().Topics["orders"].ID
	f.cluster.behave(func() {
		f.cluster.nearest = func(rack string, partitions []TopicPartition) []int32 {
			out := make([]int32, len(partitions))
			for i, p := range partitions {
				if rack == "r2" && p.Topic == orders {
					out[i] = 2
				}
			}
			return out
		}
	})
	return f
}

// TestPreferredReadReplica: a client that names another rack is sent there, with
// the end of the log and without records, from version 11 on; what that rack
// has not is served here, at once.
func TestPreferredReadReplica(t *testing.T) {
	f := newRacks(t, nil)
	for version := int16(4); version <= 12; version++ {
		resp := do[*kmsg.FetchResponse](f.dial(), version, withRack("r2", fetchOf(longPoll, fetchPart{name: "orders"}, fetchPart{name: "other", offset: 1})))
		got := fetched(resp)
		orders, other := got[partitionKey{"orders", 0}], got[partitionKey{"other", 0}]
		if n := countPartitions(resp); n != 2 {
			t.Errorf("v%d: %d partitions in the answer, want 2", version, n)
		}
		if version < 11 {
			if orders.ErrorCode != 0 || len(orders.RecordBatches) == 0 || orders.PreferredReadReplica > 0 {
				t.Errorf("v%d: code %d, replica %d, %d bytes; it has no rack", version, orders.ErrorCode, orders.PreferredReadReplica, len(orders.RecordBatches))
			}
			continue
		}
		if orders.ErrorCode != 0 || orders.PreferredReadReplica != 2 || len(orders.RecordBatches) != 0 || orders.HighWatermark != 3 || orders.AbortedTransactions == nil {
			t.Errorf("v%d: %+v, want node 2, high watermark 3 and no records", version, orders)
		}
		if other.ErrorCode != 0 || other.PreferredReadReplica != -1 || other.HighWatermark != 1 {
			t.Errorf("v%d: the other topic: %+v", version, other)
		}
	}
	alone := fetched(do[*kmsg.FetchResponse](f.dial(), 12, withRack("r2", fetchOf(longPoll, fetchPart{name: "orders", offset: 3}))))
	if p := alone[partitionKey{"orders", 0}]; p.PreferredReadReplica != 2 {
		t.Errorf("alone, at the end: %+v", p)
	}
}

func countPartitions(resp *kmsg.FetchResponse) (n int) {
	for _, t := range resp.Topics {
		n += len(t.Partitions)
	}
	return n
}

// TestWhoIsNotSentAway is served by the leader.
func TestWhoIsNotSentAway(t *testing.T) {
	for _, tc := range []struct {
		name      string
		rack      string
		offset    int64
		configure func(*Config)
		prepare   func(*fixture)
		code      int16
	}{
		{name: "no rack"},
		{name: "the leader's own rack", rack: "r1"},
		{name: "a rack that nobody is in", rack: "elsewhere"},
		{name: "a rack whose node lags", rack: "r3"},
		{name: "reads are linearizable", rack: "r2", configure: func(c *Config) { c.LinearizableReads = true }},
		{name: "the node is gone", rack: "r2", prepare: func(f *fixture) { f.cluster.update(func(v *View) { v.Nodes[1].Alive = false }) }},
		{name: "the node is not on this listener", rack: "r2", prepare: func(f *fixture) {
			f.cluster.update(func(v *View) { v.Nodes[1].Listeners = map[string]Endpoint{"OTHER": {}} })
		}},
		{name: "beyond the end", rack: "r2", offset: 4, code: kerr.OffsetOutOfRange.Code},
		{name: "not allowed", rack: "r2", prepare: func(f *fixture) {
			f.broker.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
				f.broker.KeepControl()
				resp := req.ResponseKind().(*kmsg.MetadataResponse)
				mt := kmsg.NewMetadataResponseTopic()
				mt.Topic, mt.AuthorizedOperations = kmsg.StringPtr("orders"), opWrite|opDescribe
				resp.Topics = append(resp.Topics, mt)
				return resp, nil, true
			})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newRacks(t, tc.configure)
			if tc.prepare != nil {
				tc.prepare(f)
			}
			p := fetched(do[*kmsg.FetchResponse](f.dial(), 12, withRack(tc.rack, fetchOf(0, fetchPart{name: "orders", offset: tc.offset}))))[partitionKey{"orders", 0}]
			if p.ErrorCode != tc.code || p.PreferredReadReplica != -1 || (len(p.RecordBatches) > 0) != (tc.code == 0) {
				t.Errorf("code %d, replica %d, %d bytes; want code %d from here", p.ErrorCode, p.PreferredReadReplica, len(p.RecordBatches), tc.code)
			}
		})
	}
}

// TestWhoComesBackIsServed: a client that got nowhere at the follower reads on
// here, and is sent there again later.
func TestWhoComesBackIsServed(t *testing.T) {
	f := newRacks(t, nil)
	c := f.dial()
	for i, tc := range []struct {
		offset  int64
		replica int32
	}{{0, 2}, {0, -1}, {1, 2}, {2, 2}, {2, -1}, {2, 2}} {
		p := fetched(do[*kmsg.FetchResponse](c, 12, withRack("r2", fetchOf(0, fetchPart{name: "orders", offset: tc.offset}))))[partitionKey{"orders", 0}]
		if p.ErrorCode != 0 || p.PreferredReadReplica != tc.replica || (len(p.RecordBatches) > 0) != (tc.replica < 0) {
			t.Errorf("fetch %d at %d: code %d, replica %d, %d bytes, want replica %d", i, tc.offset, p.ErrorCode, p.PreferredReadReplica, len(p.RecordBatches), tc.replica)
		}
	}
}

// followed makes node 2 the leader of orders, which this node has too.
func (f *fixture) followed() TopicPartition {
	f.t.Helper()
	f.cluster.setLeader("orders", 0, 2)
	p := TopicPartition{f.cluster.View().Topics["orders"].ID, 0}
	f.cluster.behave(func() { f.cluster.follows = map[TopicPartition]bool{p: true} })
	return p
}

// TestFollowerServes clients of its rack what its broker has, and tells the
// others who they should ask.
func TestFollowerServes(t *testing.T) {
	notLeader := kerr.NotLeaderForPartition.Code
	for _, tc := range []struct {
		name      string
		rack      string
		version   int16
		offset    int64
		configure func(*Config)
		prepare   func(*fixture, TopicPartition)
		code      int16
	}{
		{name: "records", rack: "r1", version: 12, offset: 2},
		{name: "records", rack: "r1", version: 11, offset: 2},
		{name: "below the start of its log", rack: "r1", version: 12, offset: 1, code: kerr.OffsetOutOfRange.Code},
		{name: "further than it is", rack: "r1", version: 12, offset: 4, code: kerr.OffsetNotAvailable.Code},
		{name: "further than it knows", rack: "r1", version: 12, offset: 1000, code: kerr.OffsetNotAvailable.Code},
		{name: "no rack", version: 12, offset: 2, code: notLeader},
		{name: "another rack", rack: "r2", version: 12, offset: 2, code: notLeader},
		{name: "an old version", rack: "r1", version: 10, offset: 2, code: notLeader},
		{name: "reads are linearizable", rack: "r1", version: 12, offset: 2, code: notLeader,
			configure: func(c *Config) { c.LinearizableReads = true }},
		{name: "its copy is not sound", rack: "r1", version: 12, offset: 2, code: notLeader,
			prepare: func(f *fixture, _ TopicPartition) { f.cluster.behave(func() { f.cluster.follows = nil }) }},
		{name: "it knows of no leader", rack: "r1", version: 12, offset: 2, code: notLeader,
			prepare: func(f *fixture, _ TopicPartition) { f.cluster.setLeader("orders", 0, -1) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newRacks(t, tc.configure)
			f.deleteRecords("orders", 0, 2)
			p := f.followed()
			if tc.prepare != nil {
				tc.prepare(f, p)
			}
			f.cluster.behave(func() {
				f.cluster.verify = func(partitionKey) (int64, error) { t.Error("a follower asked for a verdict on the end"); return 0, nil }
			})
			for _, parts := range [][]fetchPart{
				{{name: "orders", offset: tc.offset}},
				{{name: "orders", offset: tc.offset}, {name: "other"}},   // led here
				{{name: "orders", offset: tc.offset}, {name: "nowhere"}}, // the slow path
			} {
				req := withRack(tc.rack, fetchOf(0, parts...))
				got := fetched(do[*kmsg.FetchResponse](f.dial(), tc.version, req))
				orders := got[partitionKey{"orders", 0}]
				if orders.ErrorCode != tc.code || orders.PreferredReadReplica > 0 || (len(orders.RecordBatches) > 0) != (tc.code == 0) {
					t.Errorf("%d partitions: code %d, replica %d, %d bytes, want code %d", len(parts), orders.ErrorCode, orders.PreferredReadReplica, len(orders.RecordBatches), tc.code)
				}
				if tc.code == 0 && orders.HighWatermark != 3 {
					t.Errorf("%d partitions: high watermark %d", len(parts), orders.HighWatermark)
				}
				if len(parts) > 1 && parts[1].name == "other" && (got[partitionKey{"other", 0}].ErrorCode != 0 || len(got[partitionKey{"other", 0}].RecordBatches) == 0) {
					t.Errorf("the partition that is led here: %+v", got[partitionKey{"other", 0}])
				}
			}
			// Where the log ends, a follower never says.
			list := listOffsetsOf("orders", 0, -1)
			if code := do[*kmsg.ListOffsetsResponse](f.dial(), 7, list).Topics[0].Partitions[0].ErrorCode; code != notLeader {
				t.Errorf("list offsets: code %d", code)
			}
		})
	}
}

// TestFollowerTellsItsLogStart, which a Kafka broker does not say with an offset
// out of range, so that clients go back to the leader and do not reset.
func TestFollowerTellsItsLogStart(t *testing.T) {
	f := newRacks(t, nil)
	f.deleteRecords("orders", 0, 2)
	f.followed()
	f.broker.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		return troubledAnswer(t, req.(*kmsg.FetchRequest), kerr.OffsetOutOfRange.Code, false), nil, true
	})
	p := fetched(do[*kmsg.FetchResponse](f.dial(), 12, withRack("r1", fetchOf(0, fetchPart{name: "orders", offset: 1}))))[partitionKey{"orders", 0}]
	if p.ErrorCode != kerr.OffsetOutOfRange.Code || p.LogStartOffset != 2 {
		t.Errorf("code %d, log start %d, want out of range and 2", p.ErrorCode, p.LogStartOffset)
	}
}

// TestPollAtAFollower ends with new data, with another leader goes on, and with
// the follower's copy ends.
func TestPollAtAFollower(t *testing.T) {
	f := newRacks(t, nil)
	p := f.followed()
	c := f.dial()
	req := withRack("r1", fetchOf(longPoll, fetchPart{name: "orders", offset: 3}))
	poll := func() (answer func() kmsg.FetchResponseTopicPartition) {
		corr := c.send(req)
		f.waitUpstream(1)
		return func() kmsg.FetchResponseTopicPartition {
			return fetched(receive[*kmsg.FetchResponse](c, corr, req))[partitionKey{"orders", 0}]
		}
	}

	answer := poll()
	f.cluster.setLeader("orders", 0, 3)
	f.cluster.setLeader("orders", 0, -1)
	f.waitUpstream(1)
	f.appendBehind("orders", batchOf("d"))
	if got := answer(); got.ErrorCode != 0 || len(got.RecordBatches) == 0 {
		t.Errorf("after an append: code %d, %d bytes", got.ErrorCode, len(got.RecordBatches))
	}

	req.Topics[0].Partitions[0].FetchOffset = 4
	f.cluster.setLeader("orders", 0, 2)
	answer = poll()
	f.cluster.behave(func() { delete(f.cluster.follows, p) }) // no view tells
	f.appendBehind("orders", batchOf("not what was committed"))
	if got := answer(); got.ErrorCode != kerr.NotLeaderForPartition.Code || len(got.RecordBatches) != 0 {
		t.Errorf("from a copy that is not sound: code %d, %d bytes", got.ErrorCode, len(got.RecordBatches))
	}

	req.Topics[0].Partitions[0].FetchOffset = 5
	f.cluster.behave(func() { f.cluster.follows[p] = true })
	answer = poll()
	f.cluster.behave(func() { delete(f.cluster.follows, p) })
	f.cluster.update(func(*View) {})
	if got := answer(); got.ErrorCode != kerr.NotLeaderForPartition.Code {
		t.Errorf("when the copy was found wrong: code %d", got.ErrorCode)
	}
}
