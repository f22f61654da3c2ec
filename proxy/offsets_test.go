package proxy

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func listOffsetsOf(topic string, partition int32, timestamp int64) *kmsg.ListOffsetsRequest {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	lt := kmsg.NewListOffsetsRequestTopic()
	lt.Topic = topic
	lp := kmsg.NewListOffsetsRequestTopicPartition()
	lp.Partition, lp.Timestamp, lp.CurrentLeaderEpoch = partition, timestamp, 7
	lt.Partitions = append(lt.Partitions, lp)
	req.Topics = append(req.Topics, lt)
	return req
}

// TestListOffsetsMerges asks for led and foreign partitions, with an epoch that
// the broker does not know.
func TestListOffsetsMerges(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 2, nil)
	f.fill("orders", 0, "a", "b")
	f.cluster.setLeader("orders", 1, 3)
	c := f.dial()
	for version := int16(1); version <= 9; version++ {
		req := listOffsetsOf("orders", 0, -1)
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, listOffsetsOf("orders", 1, -1).Topics[0].Partitions[0])
		req.Topics = append(req.Topics, listOffsetsOf("nowhere", 0, -2).Topics...)
		resp := do[*kmsg.ListOffsetsResponse](c, version, req)
		got := map[partitionKey]kmsg.ListOffsetsResponseTopicPartition{}
		for _, lt := range resp.Topics {
			for _, p := range lt.Partitions {
				got[partitionKey{lt.Topic, p.Partition}] = p
			}
		}
		if p := got[partitionKey{"orders", 0}]; p.ErrorCode != 0 || p.Offset != 2 || p.LeaderEpoch != -1 {
			t.Errorf("v%d led: %+v", version, p)
		}
		if p := got[partitionKey{"orders", 1}]; p.ErrorCode != kerr.NotLeaderForPartition.Code || p.Offset != -1 {
			t.Errorf("v%d foreign: %+v", version, p)
		}
		if p := got[partitionKey{"nowhere", 0}]; p.ErrorCode != kerr.UnknownTopicOrPartition.Code {
			t.Errorf("v%d unknown: %+v", version, p)
		}
	}
	asReplica := listOffsetsOf("orders", 0, -1)
	asReplica.ReplicaID = 2
	if code := do[*kmsg.ListOffsetsResponse](c, 7, asReplica).Topics[0].Partitions[0].ErrorCode; code != kerr.InvalidRequest.Code {
		t.Errorf("as a replica: code %d", code)
	}
}

// TestOffsetForLeaderEpoch: no epoch ever ended before the end of the log.
func TestOffsetForLeaderEpoch(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 2, nil)
	f.fill("orders", 0, "a", "b")
	f.cluster.setLeader("orders", 1, 3)
	c := f.dial()
	for version := int16(2); version <= 4; version++ {
		req := kmsg.NewPtrOffsetForLeaderEpochRequest()
		req.ReplicaID = -1
		ot := kmsg.NewOffsetForLeaderEpochRequestTopic()
		ot.Topic = "orders"
		for i := range int32(2) {
			p := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
			p.Partition, p.CurrentLeaderEpoch, p.LeaderEpoch = i, 9, 4
			ot.Partitions = append(ot.Partitions, p)
		}
		req.Topics = append(req.Topics, ot)
		got := do[*kmsg.OffsetForLeaderEpochResponse](c, version, req).Topics[0].Partitions
		if got[0].ErrorCode != 0 || got[0].EndOffset != 2 || got[0].LeaderEpoch != 4 {
			t.Errorf("v%d led: %+v", version, got[0])
		}
		if got[1].ErrorCode != kerr.NotLeaderForPartition.Code || got[1].EndOffset != -1 {
			t.Errorf("v%d foreign: %+v", version, got[1])
		}
	}
}
