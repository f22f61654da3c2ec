package proxy

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// roundTrip asks a broker one thing over a connection of its own.
func roundTrip[T kmsg.Response](addr string, req kmsg.Request) (T, error) {
	var none T
	nc, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return none, err
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	if _, err := nc.Write(kafkawire.AppendRequest(nil, kafkawire.RequestHeader{}, req)); err != nil {
		return none, err
	}
	frame, err := kafkawire.ReadResponseFrame(nc, 64<<20)
	if err != nil {
		return none, err
	}
	return decodeAny[T](req, frame)
}

// decodeAny decodes an answer as a client does, of any API.
func decodeAny[T kmsg.Response](req kmsg.Request, frame []byte) (T, error) {
	var none T
	_, body, err := kafkawire.ParseResponseHeader(req.Key(), req.GetVersion(), frame)
	if err != nil {
		return none, err
	}
	resp := req.ResponseKind()
	if err := resp.ReadFrom(body); err != nil {
		return none, err
	}
	return resp.(T), nil
}

func listOffset(addr, topic string, partition int32, timestamp int64) (int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.SetVersion(1)
	req.ReplicaID = -1
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic = topic
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Partition, p.Timestamp = partition, timestamp
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	resp, err := roundTrip[*kmsg.ListOffsetsResponse](addr, req)
	if err != nil {
		return 0, err
	}
	got := resp.Topics[0].Partitions[0]
	return got.Offset, kerr.ErrorForCode(got.ErrorCode)
}

// rawClient speaks the protocol by hand.
type rawClient struct {
	t    *testing.T
	nc   net.Conn
	corr int32
}

func (f *fixture) dial() *rawClient {
	f.t.Helper()
	nc, err := net.DialTimeout("tcp", f.addr, patience)
	if err != nil {
		f.t.Fatalf("dial proxy: %v", err)
	}
	f.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	return &rawClient{t: f.t, nc: nc}
}

// send writes a request and returns its correlation id.
func (c *rawClient) send(req kmsg.Request) int32 {
	c.t.Helper()
	c.corr++
	id := "raw"
	c.write(kafkawire.AppendRequest(nil, kafkawire.RequestHeader{CorrelationID: c.corr, ClientID: &id}, req))
	return c.corr
}

func (c *rawClient) write(b []byte) {
	c.t.Helper()
	if _, err := c.nc.Write(b); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// receive reads the next response and decodes it as the answer to req.
func receive[T kmsg.Response](c *rawClient, corr int32, req kmsg.Request) T {
	c.t.Helper()
	frame, err := kafkawire.ReadResponseFrame(c.nc, 64<<20)
	if err != nil {
		c.t.Fatalf("read response to %s: %v", kmsg.NameForKey(req.Key()), err)
	}
	if got := int32(binary.BigEndian.Uint32(frame)); got != corr {
		c.t.Fatalf("correlation id %d, want %d", got, corr)
	}
	resp, err := decodeAny[T](req, frame)
	if err != nil {
		c.t.Fatalf("decode response to %s: %v", kmsg.NameForKey(req.Key()), err)
	}
	return resp
}

// do is send and receive.
func do[T kmsg.Response](c *rawClient, version int16, req kmsg.Request) T {
	c.t.Helper()
	req.SetVersion(version)
	return receive[T](c, c.send(req), req)
}

// closed asserts that the proxy closes the connection without another byte.
func (c *rawClient) closed() {
	c.t.Helper()
	b, err := io.ReadAll(c.nc)
	if len(b) > 0 {
		c.t.Fatalf("got %d bytes, want a closed connection", len(b))
	}
	if isTimeout(err) {
		c.t.Fatalf("connection is still open")
	}
}

// alive asserts that the connection answers.
func (c *rawClient) alive() {
	c.t.Helper()
	resp := do[*kmsg.ApiVersionsResponse](c, 0, kmsg.NewPtrApiVersionsRequest())
	if resp.ErrorCode != 0 || len(resp.ApiKeys) == 0 {
		c.t.Fatalf("ApiVersions: code %d, %d keys", resp.ErrorCode, len(resp.ApiKeys))
	}
}

// batchOf encodes one uncompressed batch of the values.
func batchOf(values ...string) []byte {
	var records []byte
	now := time.Now().UnixMilli()
	for i, v := range values {
		rec := kmsg.NewRecord()
		rec.OffsetDelta, rec.Value = int32(i), []byte(v)
		body := rec.AppendTo(nil)
		// The length is a varint of what follows it; a zero length takes one byte.
		rec.Length = int32(len(body) - 1)
		records = rec.AppendTo(records)
	}
	b := kmsg.NewRecordBatch()
	b.PartitionLeaderEpoch, b.Magic = -1, 2
	b.LastOffsetDelta, b.NumRecords = int32(len(values)-1), int32(len(values))
	b.FirstTimestamp, b.MaxTimestamp = now, now
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = -1, -1, -1
	b.Records = records
	b.Length = int32(49 + len(records))
	return sealBatch(b.AppendTo(nil))
}

// sealBatch makes a batch's checksum right.
func sealBatch(b []byte) []byte {
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// produceTo builds a Produce request for one partition.
func produceTo(topic string, partition int32, batch []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(9)
	req.Acks, req.TimeoutMillis = -1, 10_000
	t := kmsg.NewProduceRequestTopic()
	t.Topic = topic
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, batch
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return req
}

// fetchOf builds a Fetch request.
func fetchOf(maxWait time.Duration, parts ...fetchPart) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(12)
	req.ReplicaID, req.MaxWaitMillis, req.MinBytes, req.MaxBytes = -1, int32(maxWait.Milliseconds()), 1, 10<<20
	for _, p := range parts {
		t := kmsg.NewFetchRequestTopic()
		t.Topic = p.name
		fp := kmsg.NewFetchRequestTopicPartition()
		fp.Partition, fp.FetchOffset, fp.PartitionMaxBytes, fp.CurrentLeaderEpoch = p.partition, p.offset, 1<<20, 3
		t.Partitions = append(t.Partitions, fp)
		req.Topics = append(req.Topics, t)
	}
	return req
}
