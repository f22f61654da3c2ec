package proxy

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// outOfRange is a partition whose offset the local broker does not have, and
// the verdict on it. To a consumer OFFSET_OUT_OF_RANGE from the leader is an
// order to reset its position, so it must be true of the cluster and not only
// of one broker.
type outOfRange struct {
	part  *fetchPart
	code  int16
	start int64 // of this broker's log, for who asked a follower; else -1
}

// judge sets the code of each: below the broker's log start the records are
// gone, so the error stands; up to the cluster's end the broker lags, and
// OFFSET_NOT_AVAILABLE makes the client ask again; beyond the end only a
// majority can confirm that the end is the end. A follower does not judge the
// end: it lags, or the leader is to be asked.
func (f *fetching) judge(unsure []outOfRange) {
	for i := range unsure {
		u := &unsure[i]
		u.start = -1
		if u.part == nil {
			u.code = kerr.NotLeaderForPartition.Code
			continue
		}
		u.code = f.verdict(u)
	}
}

func (f *fetching) verdict(u *outOfRange) int16 {
	p := u.part
	ctx, cancel := context.WithTimeout(f.r.c.ctx, endOffsetTimeout)
	defer cancel()
	start, err := f.logStart(ctx, p)
	if err != nil {
		return kerr.NotLeaderForPartition.Code
	}
	switch {
	case p.offset < start && p.followed:
		// Clients go back to the leader, whose log may start earlier, if
		// they see that their offset is below the start and above the high
		// watermark, which is unknown (FetchCollector, rdkafka_fetcher.c).
		u.start = start
		return kerr.OffsetOutOfRange.Code
	case p.offset < start:
		return kerr.OffsetOutOfRange.Code
	case p.followed:
		return kerr.OffsetNotAvailable.Code
	}
	end, err := f.r.c.srv.cluster.EndOffset(ctx, p.topic, p.partition, false)
	if err == nil && p.offset > end {
		end, err = f.r.c.srv.cluster.EndOffset(ctx, p.topic, p.partition, true)
	}
	switch {
	case err != nil:
		return kerr.NotLeaderForPartition.Code
	case p.offset > end:
		return kerr.OffsetOutOfRange.Code
	}
	return kerr.OffsetNotAvailable.Code
}

// logStart asks the broker for a partition's first offset. A Fetch that is out
// of range does not say it (UnifiedLog.read throws before it is known).
func (f *fetching) logStart(ctx context.Context, p *fetchPart) (int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.SetVersion(1)
	req.ReplicaID = -1
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic = p.name
	rp := kmsg.NewListOffsetsRequestTopicPartition()
	rp.Partition, rp.Timestamp, rp.CurrentLeaderEpoch = p.partition, earliestTimestamp, -1
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)

	resp, err := query[*kmsg.ListOffsetsResponse](ctx, f.r, req)
	if err != nil {
		return 0, err
	}
	for _, t := range resp.Topics {
		for _, part := range t.Partitions {
			if t.Topic == p.name && part.Partition == p.partition {
				return part.Offset, kerr.ErrorForCode(part.ErrorCode)
			}
		}
	}
	return 0, fmt.Errorf("list offsets of %s/%d: %w", p.name, p.partition, errUpstreamGarbage)
}

// earliestTimestamp asks ListOffsets for the log start (ListOffsetsRequest.EARLIEST_TIMESTAMP).
const earliestTimestamp = -2

// query asks the broker something of our own on the client's connection and
// waits for the answer. It must not be called from the link's reader.
func query[T kmsg.Response](ctx context.Context, r *request, req kmsg.Request) (T, error) {
	type outcome struct {
		resp T
		err  error
	}
	doneCh := make(chan outcome, 1)
	frame := kafkawire.AppendRequest(nil, kafkawire.RequestHeader{ClientID: r.h.ClientID}, req)[4:]
	r.c.up.send(ctx, &call{frame: frame, timeout: r.c.srv.cfg.Limits.UpstreamTimeout, question: true, done: func(raw []byte, held *lease, err error) {
		var o outcome
		if o.err = err; err == nil {
			o.resp, o.err = decodeAnswer[T](req, raw)
		}
		held.release()
		doneCh <- o
	}})
	select {
	case o := <-doneCh:
		return o.resp, o.err
	case <-ctx.Done():
		var none T
		err := context.Cause(ctx)
		if errors.Is(err, context.DeadlineExceeded) && r.c.ctx.Err() == nil {
			err = fmt.Errorf("%w: no answer in time", errUpstreamLost)
		}
		return none, err
	}
}
