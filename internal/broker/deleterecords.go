package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const maxDeleteRecordsVersion = 2

// DeleteRecords raises a partition's log start offset to offset and returns
// what it is then; offset must be neither below it nor beyond the log end. A topic whose
// cleanup.policy does not name delete is ErrPolicy.
//
// The broker keeps the log start in a checkpoint that it writes every 60 s:
// after a crash it may be lower again.
func (a *Admin) DeleteRecords(ctx context.Context, topic string, partition int32, offset int64) (start int64, err error) {
	resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.DeleteRecords, 0, maxDeleteRecordsVersion)
		req := kmsg.NewPtrDeleteRecordsRequest()
		req.Version = version
		req.TimeoutMillis = int32(adminTimeout / time.Millisecond)
		t := kmsg.NewDeleteRecordsRequestTopic()
		t.Topic = topic
		p := kmsg.NewDeleteRecordsRequestTopicPartition()
		p.Partition, p.Offset = partition, offset
		t.Partitions = append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
		return req, err
	})
	if err == nil {
		start, err = deleted(resp.(*kmsg.DeleteRecordsResponse), topic, partition)
	}
	if err != nil {
		return 0, fmt.Errorf("delete records of %s/%d below offset %d: %w", topic, partition, offset, err)
	}
	return start, nil
}

func deleted(resp *kmsg.DeleteRecordsResponse, topic string, partition int32) (int64, error) {
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			switch {
			case t.Topic != topic || p.Partition != partition:
			case p.ErrorCode == kerr.PolicyViolation.Code:
				return 0, ErrPolicy
			default:
				return p.LowWatermark, codeError(p.ErrorCode, nil)
			}
		}
	}
	return 0, fmt.Errorf("%w: DeleteRecords without the partition", ErrMalformed)
}
