package proxy

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func deleteOf(topic string, partition int32, offset int64) *kmsg.DeleteRecordsRequest {
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 10_000
	t := kmsg.NewDeleteRecordsRequestTopic()
	t.Topic = topic
	p := kmsg.NewDeleteRecordsRequestTopicPartition()
	p.Partition, p.Offset = partition, offset
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return req
}

func TestDeleteRecords(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 2, nil)
	f.createTopic("kept", 1, map[string]string{"cleanup.policy": "compact"})
	f.cluster.setLeader("orders", 1, 2)
	c := f.dial()
	if resp := do[*kmsg.ProduceResponse](c, 9, produceTo("orders", 0, batchOf("a", "b", "c", "d"))); resp.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Fatal(resp.Topics)
	}
	for _, tc := range []struct {
		name      string
		topic     string
		partition int32
		offset    int64
		low       int64
		code      int16
	}{
		{"some", "orders", 0, 2, 2, 0},
		{"again", "orders", 0, 2, 2, 0},
		{"up to the end", "orders", 0, -1, 4, 0},
		{"beyond the end", "orders", 0, 5, -1, kerr.OffsetOutOfRange.Code},
		{"no offset", "orders", 0, -2, -1, kerr.OffsetOutOfRange.Code},
		{"another leads", "orders", 1, 0, -1, kerr.NotLeaderForPartition.Code},
		{"no such partition", "orders", 2, 0, -1, kerr.UnknownTopicOrPartition.Code},
		{"no such topic", "nowhere", 0, 0, -1, kerr.UnknownTopicOrPartition.Code},
		{"compacted", "kept", 0, 0, -1, kerr.PolicyViolation.Code},
	} {
		for version := int16(0); version <= 2; version++ {
			got := do[*kmsg.DeleteRecordsResponse](c, version, deleteOf(tc.topic, tc.partition, tc.offset)).Topics[0].Partitions[0]
			if got.ErrorCode != tc.code || got.LowWatermark != tc.low || got.Partition != tc.partition {
				t.Errorf("v%d %s: %+v, want low watermark %d and code %d", version, tc.name, got, tc.low, tc.code)
			}
		}
	}
	f.broker.Close()
	if got := do[*kmsg.DeleteRecordsResponse](f.dial(), 2, deleteOf("orders", 0, 1)).Topics[0].Partitions[0]; got.ErrorCode != kerr.NotLeaderForPartition.Code {
		t.Errorf("with the broker down, which knows what the client may do: %+v", got)
	}
}
