//go:build e2e

package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// rawCall sends one request over a connection of its own, straight to addr, at
// the version set in req, and decodes the answer. There is no client between
// that could retry, cache or go to another address.
func rawCall[R kmsg.Response](ctx context.Context, addr string, req kmsg.Request) (R, error) {
	var none R
	resp, err := rawRoundTrip(ctx, addr, req)
	if err != nil {
		return none, fmt.Errorf("%s at %s: %w", kmsg.NameForKey(req.Key()), addr, err)
	}
	return resp.(R), nil
}

func rawRoundTrip(ctx context.Context, addr string, req kmsg.Request) (kmsg.Response, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(10 * time.Second)
	}
	conn, err := (&net.Dialer{Deadline: deadline}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	return roundTripOn(conn, req)
}

// roundTripOn asks on a connection on which nothing else is under way.
func roundTripOn(conn net.Conn, req kmsg.Request) (kmsg.Response, error) {
	const correlation = 7
	f := kmsg.NewRequestFormatter(kmsg.FormatterClientID("e2e"))
	if _, err := conn.Write(f.AppendRequest(nil, req, correlation)); err != nil {
		return nil, err
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n < 4 || n > 64<<20 {
		return nil, fmt.Errorf("answer claims %d bytes", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, err
	}
	if got := binary.BigEndian.Uint32(body); got != correlation {
		return nil, fmt.Errorf("correlation id %d, want %d", got, correlation)
	}
	body = body[4:]
	resp := req.ResponseKind()
	if resp.IsFlexible() && req.Key() != int16(kmsg.ApiVersions) {
		r := kbin.Reader{Src: body}
		kmsg.SkipTags(&r)
		if err := r.Complete(); err != nil {
			return nil, err
		}
		body = r.Src
	}
	return resp, resp.ReadFrom(body)
}

// batch is what a producer would send for one partition.
type batch struct {
	producerID int64 // -1: not idempotent
	epoch      int16
	sequence   int32
	values     []string
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode returns the record batch, uncompressed, magic 2.
func (b batch) encode() []byte {
	var records []byte
	for i, v := range b.values {
		r := kmsg.NewRecord()
		r.OffsetDelta = int32(i)
		r.Value = []byte(v)
		// The length field counts what follows it; measured with a length of
		// one byte (varint 0) in front.
		r.Length = int32(len(r.AppendTo(nil)) - 1)
		records = r.AppendTo(records)
	}
	rb := kmsg.NewRecordBatch()
	rb.Magic = 2
	rb.PartitionLeaderEpoch = -1
	rb.LastOffsetDelta = int32(len(b.values) - 1)
	rb.FirstTimestamp = time.Now().UnixMilli()
	rb.MaxTimestamp = rb.FirstTimestamp
	rb.ProducerID, rb.ProducerEpoch, rb.FirstSequence = b.producerID, b.epoch, b.sequence
	rb.NumRecords = int32(len(b.values))
	rb.Records = records
	raw := rb.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], castagnoli))
	return raw
}

// rawProduce sends one batch with acks=all and returns the base offset and the
// Kafka error code of the answer.
func rawProduce(ctx context.Context, addr, topic string, partition int32, b batch) (base int64, code int16, err error) {
	base, code, _, err = rawProduceBytes(ctx, addr, topic, partition, b.encode(), 5*time.Second)
	return base, code, err
}

// rawProduceBytes is rawProduce of bytes as they are; it returns the answer's
// message too.
func rawProduceBytes(ctx context.Context, addr, topic string, partition int32, records []byte, timeout time.Duration) (base int64, code int16, message string, err error) {
	resp, err := rawCall[*kmsg.ProduceResponse](ctx, addr, rawProduceRequest(topic, partition, records, timeout))
	if err != nil {
		return 0, 0, "", err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return 0, 0, "", errors.New("produce answer does not name the one partition asked for")
	}
	got := resp.Topics[0].Partitions[0]
	if got.ErrorMessage != nil {
		message = *got.ErrorMessage
	}
	return got.BaseOffset, got.ErrorCode, message, nil
}

// rawProduceRequest is a Produce of one partition with acks=all.
func rawProduceRequest(topic string, partition int32, records []byte, timeout time.Duration) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(9)
	req.Acks, req.TimeoutMillis = -1, int32(timeout.Milliseconds())
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, records
	tp := kmsg.NewProduceRequestTopic()
	tp.Topic, tp.Partitions = topic, append(tp.Partitions, p)
	req.Topics = append(req.Topics, tp)
	return req
}

// endOffset asks for the offset after the last record (ListOffsets, LATEST).
func endOffset(ctx context.Context, addr, topic string, partition int32) (int64, error) {
	return listOffset(ctx, addr, topic, partition, -1)
}

// listOffset asks for the offset that a timestamp stands for: -1 the end, -2
// the start of the log.
func listOffset(ctx context.Context, addr, topic string, partition int32, timestamp int64) (int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.SetVersion(6)
	req.ReplicaID = -1
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Partition, p.Timestamp, p.CurrentLeaderEpoch = partition, timestamp, -1
	tp := kmsg.NewListOffsetsRequestTopic()
	tp.Topic, tp.Partitions = topic, append(tp.Partitions, p)
	req.Topics = append(req.Topics, tp)
	resp, err := rawCall[*kmsg.ListOffsetsResponse](ctx, addr, req)
	if err != nil {
		return 0, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return 0, errors.New("list offsets answer does not name the one partition asked for")
	}
	got := resp.Topics[0].Partitions[0]
	if got.ErrorCode != 0 {
		return 0, fmt.Errorf("offset of %s/%d at %s: error code %d", topic, partition, addr, got.ErrorCode)
	}
	return got.Offset, nil
}

// createTopic asks addr for a topic; it is raw so that the answer of this very
// node is seen.
func createTopic(ctx context.Context, addr, topic string, partitions int32, replication int16) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.SetVersion(4)
	req.TimeoutMillis = 20_000
	tp := kmsg.NewCreateTopicsRequestTopic()
	tp.Topic, tp.NumPartitions, tp.ReplicationFactor = topic, partitions, replication
	req.Topics = append(req.Topics, tp)
	resp, err := rawCall[*kmsg.CreateTopicsResponse](ctx, addr, req)
	if err != nil {
		return err
	}
	if len(resp.Topics) != 1 || resp.Topics[0].ErrorCode != 0 {
		return fmt.Errorf("create topic %s at %s: refused: %s", topic, addr, topicError(resp.Topics))
	}
	return nil
}

func topicError(ts []kmsg.CreateTopicsResponseTopic) string {
	if len(ts) != 1 {
		return fmt.Sprintf("%d topics in the answer", len(ts))
	}
	msg := ""
	if ts[0].ErrorMessage != nil {
		msg = *ts[0].ErrorMessage
	}
	return fmt.Sprintf("error code %d %s", ts[0].ErrorCode, msg)
}

// createLocalTopic creates a topic on a bare broker and returns when its
// partitions are served, which is a moment after the creation was answered.
func createLocalTopic(ctx context.Context, addr, topic string, partitions int32) error {
	if err := createTopic(ctx, addr, topic, partitions, 1); err != nil {
		return err
	}
	return waitUntil(ctx, 20*time.Millisecond, func(ctx context.Context) error {
		for p := range partitions {
			if _, err := endOffset(ctx, addr, topic, p); err != nil {
				return err
			}
		}
		return nil
	})
}

// deleteTopic asks addr to delete a topic.
func deleteTopic(ctx context.Context, addr, topic string) error {
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.SetVersion(4)
	req.TimeoutMillis = 20_000
	req.TopicNames = []string{topic}
	resp, err := rawCall[*kmsg.DeleteTopicsResponse](ctx, addr, req)
	if err != nil {
		return err
	}
	if len(resp.Topics) != 1 || resp.Topics[0].ErrorCode != 0 {
		return fmt.Errorf("delete topic %s at %s: refused: %+v", topic, addr, resp.Topics)
	}
	return nil
}
