package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Versions of OffsetFetch with one group.
const (
	minOffsetFetchVersion = 1
	maxOffsetFetchVersion = 7
)

// GroupOffset is what a consumer group has committed to the broker for one
// partition.
type GroupOffset struct {
	Group     string
	Partition int32
	Offset    int64
	Metadata  string
}

// TopicOffsets returns what the broker's consumer groups, with members or
// without, have committed for a topic's first partitions. Groups that the broker
// forgets meanwhile are left out.
func (a *Admin) TopicOffsets(ctx context.Context, topic string, partitions int32) ([]GroupOffset, error) {
	groups, err := a.listGroups(ctx)
	if err != nil {
		return nil, err
	}
	var out []GroupOffset
	for _, g := range groups {
		var offsets []GroupOffset
		err := a.await(ctx, func() (done bool, err error) { // the group may be being loaded
			offsets, err = a.groupOffsets(ctx, g.Group, topic, partitions)
			return err == nil, err
		})
		var code *CodeError
		if errors.As(err, &code) && code.Code == kerr.GroupIDNotFound.Code {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read what consumer group %s has committed: %w", g.Group, err)
		}
		out = append(out, offsets...)
	}
	return out, nil
}

func (a *Admin) groupOffsets(ctx context.Context, group, topic string, partitions int32) ([]GroupOffset, error) {
	resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.OffsetFetch, minOffsetFetchVersion, maxOffsetFetchVersion)
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Version, req.Group = version, group
		t := kmsg.NewOffsetFetchRequestTopic()
		t.Topic, t.Partitions = topic, allPartitions(partitions)
		req.Topics = append(req.Topics, t)
		return req, err
	})
	if err != nil {
		return nil, err
	}
	answer := resp.(*kmsg.OffsetFetchResponse)
	if err := codeError(answer.ErrorCode, nil); err != nil {
		return nil, err
	}
	var out []GroupOffset
	for _, t := range answer.Topics {
		for _, p := range t.Partitions {
			if err := codeError(p.ErrorCode, nil); err != nil {
				return nil, err
			}
			if p.Offset < 0 || t.Topic != topic {
				continue // it has committed nothing
			}
			o := GroupOffset{Group: group, Partition: p.Partition, Offset: p.Offset}
			if p.Metadata != nil {
				o.Metadata = *p.Metadata
			}
			out = append(out, o)
		}
	}
	return out, nil
}
