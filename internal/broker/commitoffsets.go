package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Versions of OffsetCommit: 2 is the first with a retention, 8 adds nothing.
const (
	minOffsetCommitVersion = 2
	maxOffsetCommitVersion = 7
)

// ErrGroupOccupied is returned when a group has members, who alone may commit.
var ErrGroupOccupied = errors.New("the consumer group has members")

// TopicOffset is what a group is to have committed for one partition.
type TopicOffset struct {
	Topic     string
	Partition int32
	Offset    int64
	Metadata  string
}

// CommitOffsets commits for a group without members, as its coordinator sees
// fit. It returns how many partitions the broker does not have, which are left
// out.
func (a *Admin) CommitOffsets(ctx context.Context, group string, offsets []TopicOffset) (missing int, err error) {
	err = a.await(ctx, func() (done bool, err error) { // the group may be being loaded
		missing, err = a.commitOffsets(ctx, group, offsets)
		return err == nil, err
	})
	var code *CodeError
	if errors.As(err, &code) && (code.Code == kerr.UnknownMemberID.Code || code.Code == kerr.IllegalGeneration.Code || code.Code == kerr.RebalanceInProgress.Code) {
		err = ErrGroupOccupied
	}
	if err != nil {
		return 0, fmt.Errorf("commit offsets of consumer group %s: %w", group, err)
	}
	return missing, nil
}

func (a *Admin) commitOffsets(ctx context.Context, group string, offsets []TopicOffset) (missing int, err error) {
	resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.OffsetCommit, minOffsetCommitVersion, maxOffsetCommitVersion)
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Version, req.Group, req.Generation, req.RetentionTimeMillis = version, group, -1, -1
		at := make(map[string]int)
		for _, o := range offsets {
			i, known := at[o.Topic]
			if !known {
				t := kmsg.NewOffsetCommitRequestTopic()
				t.Topic, i = o.Topic, len(req.Topics)
				req.Topics, at[o.Topic] = append(req.Topics, t), i
			}
			p := kmsg.NewOffsetCommitRequestTopicPartition()
			p.Partition, p.Offset, p.Metadata = o.Partition, o.Offset, &o.Metadata
			req.Topics[i].Partitions = append(req.Topics[i].Partitions, p)
		}
		return req, err
	})
	if err != nil {
		return 0, err
	}
	for _, t := range resp.(*kmsg.OffsetCommitResponse).Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode == kerr.UnknownTopicOrPartition.Code {
				missing++
				continue
			}
			if err := codeError(p.ErrorCode, nil); err != nil {
				return 0, err
			}
		}
	}
	return missing, nil
}
