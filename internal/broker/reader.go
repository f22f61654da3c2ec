package broker

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Versions: Fetch v4 is the first with v2 batches, v13 the first with topic
// ids. ListOffsets v2 is the first with an isolation level.
const (
	minFetchVersion       = 4
	maxFetchVersion       = 12
	minListOffsetsVersion = 2
	maxListOffsetsVersion = 7
)

// Fetch sizes: the first try for one batch, and what a stream asks for.
const (
	smallFetch  = 64 << 10
	streamFetch = 1 << 20
)

// Timestamps with a meaning in ListOffsets.
const (
	latestTimestamp   = -1
	earliestTimestamp = -2
)

// Reader reads the local broker's log over one connection of its own, one
// request at a time. Safe for use by many goroutines, also while a stream of
// Batches is under way.
type Reader struct {
	cfg    Config
	caller *caller
}

// NewReader makes a Reader without connecting; the first call does.
func NewReader(cfg Config) *Reader {
	r := &Reader{cfg: cfg.withDefaults()}
	r.caller = newCaller(&r.cfg)
	return r
}

// Close aborts what is under way and ends the connection. Idempotent.
func (r *Reader) Close() error {
	r.caller.close()
	return nil
}

// LogEnd returns the log start offset and the log end offset of a partition:
// ListOffsets with isolation 0, which with one replica answers the log end
// (isolation 1 would answer the last stable offset). A partition the broker
// does not have is ErrNoTopic; a broker that is still starting answers a
// retriable *CodeError.
func (r *Reader) LogEnd(ctx context.Context, topic string, partition int32) (start, end int64, err error) {
	// Start first: both only grow, so start <= end holds without a snapshot.
	// Asking both in one request is refused as a duplicate partition.
	if start, err = r.listOffset(ctx, topic, partition, earliestTimestamp); err == nil {
		end, err = r.listOffset(ctx, topic, partition, latestTimestamp)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read log end of %s/%d: %w", topic, partition, err)
	}
	return start, end, nil
}

// LogEnds is LogEnd of a topic's first partitions at once.
func (r *Reader) LogEnds(ctx context.Context, topic string, partitions int32) (starts, ends map[int32]int64, err error) {
	all := allPartitions(partitions)
	if starts, err = listOffsets(ctx, r.caller, topic, all, earliestTimestamp); err == nil {
		ends, err = listOffsets(ctx, r.caller, topic, all, latestTimestamp)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read log ends of %s: %w", topic, err)
	}
	return starts, ends, nil
}

func (r *Reader) listOffset(ctx context.Context, topic string, partition int32, timestamp int64) (int64, error) {
	offsets, err := listOffsets(ctx, r.caller, topic, []int32{partition}, timestamp)
	if err != nil {
		return 0, err
	}
	return offsets[partition], nil
}

// listOffsets asks for one timestamp in several partitions of a topic. The
// first partition with an error fails the call.
func listOffsets(ctx context.Context, c *caller, topic string, partitions []int32, timestamp int64) (map[int32]int64, error) {
	resp, err := c.call(ctx, true, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.ListOffsets, minListOffsetsVersion, maxListOffsetsVersion)
		req := kmsg.NewPtrListOffsetsRequest()
		req.Version = version
		req.ReplicaID = -1
		t := kmsg.NewListOffsetsRequestTopic()
		t.Topic = topic
		for _, partition := range partitions {
			p := kmsg.NewListOffsetsRequestTopicPartition()
			p.Partition = partition
			p.CurrentLeaderEpoch = -1
			p.Timestamp = timestamp
			t.Partitions = append(t.Partitions, p)
		}
		req.Topics = append(req.Topics, t)
		return req, err
	})
	if err != nil {
		return nil, err
	}
	offsets := make(map[int32]int64, len(partitions))
	for _, t := range resp.(*kmsg.ListOffsetsResponse).Topics {
		if t.Topic != topic {
			continue
		}
		for _, p := range t.Partitions {
			if err := codeError(p.ErrorCode, nil); err != nil {
				return nil, err
			}
			if p.Offset < 0 {
				return nil, fmt.Errorf("%w: ListOffsets gave offset %d", ErrMalformed, p.Offset)
			}
			offsets[p.Partition] = p.Offset
		}
	}
	for _, partition := range partitions {
		if _, ok := offsets[partition]; !ok {
			return nil, fmt.Errorf("%w: ListOffsets without partition %d", ErrMalformed, partition)
		}
	}
	return offsets, nil
}

// LastBatch returns the batch that holds offset end-1, where end is the log
// end offset read before. It returns ErrNoBatch when end-1 lies below the log
// start or beyond the end, or nothing is there. The slice is the caller's.
func (r *Reader) LastBatch(ctx context.Context, topic string, partition int32, end int64) ([]byte, error) {
	if end <= 0 {
		return nil, fmt.Errorf("read last batch of %s/%d: %w", topic, partition, ErrNoBatch)
	}
	var found []byte
	err := r.scan(ctx, scanRange{topic, partition, end - 1, end, smallFetch}, func(batch []byte, _ span) error {
		// The answer may be 64 KiB of other batches; do not keep them alive.
		found = append([]byte(nil), batch...)
		return nil
	})
	if err == nil && found == nil {
		err = ErrNoBatch
	}
	if err != nil {
		return nil, fmt.Errorf("read last batch of %s/%d before offset %d: %w", topic, partition, end, err)
	}
	return found, nil
}

// Batches calls fn with every batch that holds an offset in [from, to), in
// order, exactly as the broker stores them (control batches too). The first
// may start below from and the last may end beyond to. About 1 MiB is asked
// for at a time, more only when one batch is larger.
//
// Offsets that compaction removed are passed over. A log that starts above
// from or ends before to is ErrNoBatch; batches seen until then were passed to
// fn. An error of fn ends the stream and is returned wrapped. A batch shares
// memory with about 1 MiB of its neighbours: copy what is kept.
func (r *Reader) Batches(ctx context.Context, topic string, partition int32, from, to int64, fn func(batch []byte) error) error {
	err := r.scan(ctx, scanRange{topic, partition, from, to, streamFetch}, func(batch []byte, _ span) error {
		return fn(batch)
	})
	if err != nil {
		return fmt.Errorf("read batches of %s/%d from %d to %d: %w", topic, partition, from, to, err)
	}
	return nil
}

// scanRange is what scan reads: offsets [from, to), maxBytes at a time.
type scanRange struct {
	topic     string
	partition int32
	from, to  int64
	maxBytes  int32
}

func (r *Reader) scan(ctx context.Context, want scanRange, fn func([]byte, span) error) error {
	base := want.maxBytes
	for want.from < want.to {
		records, err := r.fetch(ctx, want)
		if err != nil {
			return err
		}
		next, need, err := walk(records, want, fn)
		if err != nil {
			return err
		}
		switch {
		case next > want.from:
			want.from, want.maxBytes = next, base
		case need == 0:
			return fmt.Errorf("%w: nothing at offset %d", ErrNoBatch, want.from)
		case need > r.cfg.MaxResponseBytes-smallFetch:
			return fmt.Errorf("%w: batch of %d bytes at offset %d is above the response limit", ErrMalformed, need, want.from)
		case int64(need) <= int64(want.maxBytes):
			return fmt.Errorf("%w: %d bytes asked, the batch of %d bytes at offset %d came cut off", ErrMalformed, want.maxBytes, need, want.from)
		default:
			want.maxBytes = int32(need)
		}
	}
	return nil
}

// walk passes the whole batches in records to fn. It returns the offset to go
// on from, and the size of a batch cut off at the end.
func walk(records []byte, want scanRange, fn func([]byte, span) error) (next int64, need int, err error) {
	next = want.from
	for len(records) > 0 {
		s, ok, err := nextBatch(records)
		if err != nil {
			return next, 0, err
		}
		if !ok {
			if s.size == 0 { // not even the length arrived
				return next, int(want.maxBytes) + batchHeader, nil
			}
			return next, s.size, nil
		}
		if s.base >= want.to {
			return want.to, 0, nil
		}
		if s.last >= next {
			if err := fn(records[:s.size:s.size], s); err != nil {
				return next, 0, err
			}
			next = s.last + 1
		}
		records = records[s.size:]
	}
	return next, 0, nil
}

func (r *Reader) fetch(ctx context.Context, want scanRange) ([]byte, error) {
	records, _, err := r.fetchFrom(ctx, want)
	return records, err
}

// fetchFrom asks for records from an offset on, sessionless and without
// waiting. The log start offset is -1 from brokers that do not say it.
func (r *Reader) fetchFrom(ctx context.Context, want scanRange) (records []byte, start int64, err error) {
	resp, err := r.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.Fetch, minFetchVersion, maxFetchVersion)
		return fetchRequest(version, want), err
	})
	if err != nil {
		return nil, 0, err
	}
	answer := resp.(*kmsg.FetchResponse)
	if err := codeError(answer.ErrorCode, nil); err != nil {
		return nil, 0, err
	}
	for _, t := range answer.Topics {
		for _, p := range t.Partitions {
			if t.Topic != want.topic || p.Partition != want.partition {
				continue
			}
			err := codeError(p.ErrorCode, nil)
			if p.ErrorCode == kerr.OffsetOutOfRange.Code {
				err = fmt.Errorf("%w: %w", ErrNoBatch, err)
			}
			return p.RecordBatches, p.LogStartOffset, err
		}
	}
	return nil, 0, fmt.Errorf("%w: Fetch without the partition", ErrMalformed)
}

func fetchRequest(version int16, want scanRange) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.Version = version
	req.ReplicaID = -1
	req.MaxWaitMillis = 0
	req.MinBytes = 1
	req.MaxBytes = want.maxBytes
	req.IsolationLevel = 0
	req.SessionID = 0
	req.SessionEpoch = -1 // no session (KIP-227)
	t := kmsg.NewFetchRequestTopic()
	t.Topic = want.topic
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition = want.partition
	p.CurrentLeaderEpoch = -1
	p.LastFetchedEpoch = -1
	p.LogStartOffset = -1
	p.FetchOffset = want.from
	p.PartitionMaxBytes = want.maxBytes
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return req
}
