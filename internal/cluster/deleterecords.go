package cluster

import (
	"context"
	"errors"

	"lockstep/fsm"
	"lockstep/proxy"
)

// DeleteRecords implements proxy.Cluster.
func (c *Cluster) DeleteRecords(ctx context.Context, topic *proxy.Topic, partition int32, offset int64) (int64, error) {
	g := c.groupOf(topic.ID, partition)
	if g == nil {
		return 0, &proxy.KafkaError{Code: codeUnknownTopic}
	}
	if offset == -1 { // everything there is, as the leader knows it
		var err error
		if offset, err = c.EndOffset(ctx, topic, partition, true); err != nil {
			return 0, err
		}
	}
	tp := fsm.TP{Topic: topic.ID, Partition: partition}
	r, err := c.submit(ctx, g.ID, fsm.KindLogStart, fsm.LogStart{TP: tp, Offset: offset})
	var ke *proxy.KafkaError
	switch {
	case errors.As(err, &ke) && ke.Code == codeNotController:
		return 0, &proxy.KafkaError{Code: codeNotLeader, Message: "the partition has no leader that can be reached"}
	case err != nil:
		return 0, err
	}
	started := make(chan error, 1)
	c.applier.WhenVisible(tp, r.BaseOffset, func(err error) { // the applier has the partition, then
		if err != nil {
			started <- err
			return
		}
		c.applier.WhenStarted(tp, r.BaseOffset, func(err error) { started <- err })
	})
	select {
	case err := <-started:
		if err != nil {
			return 0, &proxy.KafkaError{Code: codeNotLeader, Message: err.Error()}
		}
		return r.BaseOffset, nil
	case <-ctx.Done():
		return 0, &proxy.KafkaError{Code: codeTimedOut, Message: "the records are deleted, but not on this node's broker in time"}
	case <-c.ctx.Done():
		return 0, errClosing
	}
}
