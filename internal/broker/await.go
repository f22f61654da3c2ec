package broker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// awaitLed returns when the broker lists at least total partitions and can
// append to each.
//
// Metadata alone does not show that: Kafka publishes it before its replica
// manager has opened the logs, and answers Produce with
// NOT_LEADER_OR_FOLLOWER in between (seen on 4.2 with 50 partitions).
// ListOffsets goes the same way as Produce and tells.
func (a *Admin) awaitLed(ctx context.Context, name string, total int32) (TopicInfo, error) {
	var info TopicInfo
	err := a.await(ctx, func() (bool, error) {
		var err error
		if info, err = a.Topic(ctx, name); err != nil || !info.Ready || info.Partitions < total {
			return false, err
		}
		_, err = listOffsets(ctx, a.caller, name, allPartitions(info.Partitions), latestTimestamp)
		return err == nil, err
	})
	return info, err
}

func allPartitions(n int32) []int32 {
	all := make([]int32, n)
	for i := range all {
		all[i] = int32(i)
	}
	return all
}

// awaitGone returns when the broker no longer lists the topic.
func (a *Admin) awaitGone(ctx context.Context, name string) error {
	return a.await(ctx, func() (bool, error) {
		_, err := a.Topic(ctx, name)
		return errors.Is(err, ErrNoTopic), err
	})
}

// Back-off of await.
const (
	minAwait = 2 * time.Millisecond
	maxAwait = 200 * time.Millisecond
)

// await asks until the answer is yes, an error that does not pass by itself,
// or ctx ends. The broker tells nobody when its metadata changed, so this has
// to ask again, with back-off.
func (a *Admin) await(ctx context.Context, ask func() (bool, error)) error {
	wait := minAwait
	for {
		yes, err := ask()
		if yes {
			return nil
		}
		if err != nil && !transient(err) {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("wait for the broker's metadata: %w", context.Cause(ctx))
		}
		wait = min(2*wait, maxAwait)
	}
}

func transient(err error) bool {
	var code *CodeError
	return errors.As(err, &code) && (code.Retriable() || errors.Is(err, ErrNoTopic))
}
