package proxy

import (
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DeleteRecords 0 to 2.
//
// The partition's log start is raised in its group's log; the answer comes when
// this node's broker has deleted what lies below. -1 stands for the high
// watermark. A topic whose cleanup.policy does not name delete is answered
// POLICY_VIOLATION, as Kafka does.

// invalidLowWatermark stands in answers that are errors
// (DeleteRecordsResponse.INVALID_LOW_WATERMARK).
const invalidLowWatermark = -1

func handleDeleteRecords(r *request) error {
	req, err := parse[*kmsg.DeleteRecordsRequest](r)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	ctx, cancel := r.adminContext(req.TimeoutMillis)
	defer cancel()
	names := make([]string, 0, len(req.Topics))
	for _, t := range req.Topics {
		names = append(names, t.Topic)
	}
	allowed := r.mayTopics(ctx, opDelete, names, kerr.NotLeaderForPartition.Code)
	resp := kmsg.NewPtrDeleteRecordsResponse()
	var todo []place
	for i, t := range req.Topics {
		rt := kmsg.NewDeleteRecordsResponseTopic()
		rt.Topic = t.Topic
		for j, p := range t.Partitions {
			rp := kmsg.NewDeleteRecordsResponseTopicPartition()
			rp.Partition, rp.LowWatermark = p.Partition, invalidLowWatermark
			rp.ErrorCode = deniedOr(allowed[t.Topic], deleteRecordsCode(v, t.Topic, p.Partition, p.Offset))
			if rp.ErrorCode == 0 {
				todo = append(todo, place{i, j})
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	r.eachTopic(len(todo), func(n int) {
		at := todo[n]
		t, p := &req.Topics[at.topic], req.Topics[at.topic].Partitions[at.partition]
		rp := &resp.Topics[at.topic].Partitions[at.partition]
		low, err := r.c.srv.cluster.DeleteRecords(ctx, v.Topics[t.Topic], p.Partition, p.Offset)
		if err != nil {
			rp.ErrorCode, _ = errorCode(err)
			return
		}
		rp.LowWatermark = low
	})
	r.reply(resp)
	return nil
}

// deleteRecordsCode says what is wrong with deleting up to an offset, 0 if
// nothing is known to be (ReplicaManager.deleteRecordsOnLocalLog).
func deleteRecordsCode(v *View, topic string, partition int32, offset int64) int16 {
	t, code := partitionCode(v, topic, partition)
	switch {
	case code != 0:
		return code
	case offset < -1:
		return kerr.OffsetOutOfRange.Code
	case t.Config["cleanup.policy"] != "" && !strings.Contains(t.Config["cleanup.policy"], "delete"):
		return kerr.PolicyViolation.Code
	}
	return 0
}
