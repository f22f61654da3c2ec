package proxy

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// frameOf is a request as bytes, size included.
func frameOf(req kmsg.Request) []byte {
	return kafkawire.AppendRequest(nil, kafkawire.RequestHeader{CorrelationID: 7}, req)
}

// headerOnly is a frame with nothing but a request header.
func headerOnly(key, version int16) []byte {
	b := []byte{0, 0, 0, 11}
	b = binary.BigEndian.AppendUint16(b, uint16(key))
	b = binary.BigEndian.AppendUint16(b, uint16(version))
	return append(b, 0, 0, 0, 7, 0xff, 0xff, 0)
}

func resized(frame []byte, size int32) []byte {
	b := slices.Clone(frame)
	binary.BigEndian.PutUint32(b, uint32(size))
	return b
}

// TestBadFramesCloseTheConnection: each is closed without an answer, with one
// log line that names the cause; nothing is appended, another connection works.
func TestBadFramesCloseTheConnection(t *testing.T) {
	good := frameOf(produceTo("orders", 0, batchOf("a")))
	cases := []struct {
		name, log string
		bytes     []byte
	}{
		{"negative length", "request size is invalid", resized(good, -1)},
		{"smallest length", "request size is invalid", resized(good, -1<<31)},
		{"zero length", "request size is invalid", resized(good, 0)},
		{"length below a header", "request size is invalid", resized(good, 7)},
		{"huge length", "request exceeds the size limit", resized(good, 1<<31-1)},
		{"length one above the limit", "request exceeds the size limit", resized(good, defaultMaxFrameBytes+1)},
		{"length beyond the bytes", "request was not sent to its end in time", resized(good, int32(len(good)))},
		{"length short of the bytes", "request is malformed", resized(good, int32(len(good)-4-10))},
		{"bytes after the end", "request is malformed", append(resized(good, int32(len(good)-4+3)), 1, 2, 3)},
		{"truncated Produce", "request is malformed", resized(good[:len(good)-20], int32(len(good)-24))},
		{"Produce without a body", "request is malformed", headerOnly(0, 3)},
		{"client id beyond the frame", "request header is malformed", []byte{0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0x7f, 0xff}},
		{"unknown API key", "unknown API key", headerOnly(999, 0)},
		{"negative API key", "unknown API key", headerOnly(-1, 0)},
		{"API that is not served", "API is not served", headerOnly(int16(kmsg.WriteTxnMarkers), 1)},
		{"Produce version 2", "API version is not supported", headerOnly(0, 2)},
		{"Produce version 12", "API version is not supported", headerOnly(0, 12)},
		{"Fetch version 13", "API version is not supported", headerOnly(1, 13)},
		{"Metadata version -1", "API version is not supported", headerOnly(3, -1)},
		{"Metadata version 32767", "API version is not supported", headerOnly(3, 32767)},
		{"HTTP GET", "HTTP on a Kafka listener", []byte("GET / HTTP/1.1\r\nHost: kafka\r\n\r\n")},
		{"HTTP POST", "HTTP on a Kafka listener", []byte("POST /topics/a HTTP/1.1\r\n\r\n")},
		{"TLS ClientHello", "TLS on a plaintext listener", []byte{0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03}},
		{"fetch by a replica", "client pretends to be a replica", frameOf(func() kmsg.Request {
			req := fetchOf(0, fetchPart{name: "orders"})
			req.ReplicaID = 2
			return req
		}())},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, func(cfg *Config) { cfg.Limits.PartialRequestTimeout = 100 * time.Millisecond })
			f.createTopic("orders", 1, nil)
			other, bad := f.dial(), f.dial()
			other.alive()
			bad.write(c.bytes)
			bad.closed()
			other.alive()
			eventually(t, "the log line", func() bool { return len(f.log.lines("closed client connection", c.log, "127.0.0.1")) == 1 })
			if got := f.log.lines("[WARN]"); len(got) != 1 {
				t.Errorf("log has %d warnings, want 1: %q", len(got), got)
			}
			if n := f.producer.appended(); n != 0 {
				t.Errorf("%d batches were appended", n)
			}
			eventually(t, "the budget to be given back", func() bool { return f.srv.requests.inUse() == 0 })
		})
	}
}

// TestComplaintsAreRateLimited repeats an offence and counts the lines.
func TestComplaintsAreRateLimited(t *testing.T) {
	f := newFixture(t, nil)
	now := time.Now()
	clock := &now
	f.srv.notices.mu.Lock()
	f.srv.notices.now = func() time.Time { return *clock } // called under the same lock
	f.srv.notices.mu.Unlock()
	offend := func() {
		c := f.dial()
		c.write([]byte("GET / HTTP/1.1\r\n\r\n"))
		c.closed()
	}
	for range 5 {
		offend()
	}
	eventually(t, "all connections to end", func() bool { return len(f.srv.snapshot()) == 0 })
	if got := f.log.lines("HTTP on a Kafka listener"); len(got) != 1 {
		t.Fatalf("%d lines, want 1", len(got))
	}
	f.srv.notices.mu.Lock()
	*clock = now.Add(noticeEvery)
	f.srv.notices.mu.Unlock()
	offend()
	eventually(t, "the summary", func() bool { return len(f.log.lines("HTTP on a Kafka listener", "suppressed=4")) == 1 })
}

// TestBadBatchesAreRefused: each gets Kafka's error for its partition, the
// good partition beside it is appended, the connection stays.
func TestBadBatchesAreRefused(t *testing.T) {
	good := batchOf("a", "b")
	edit := func(change func(b []byte)) []byte {
		b := slices.Clone(good)
		change(b)
		return b
	}
	cases := []struct {
		name  string
		batch []byte
		code  int16
	}{
		{"bad checksum", edit(func(b []byte) { b[len(b)-1] ^= 1 }), kerr.CorruptMessage.Code},
		{"magic 1", edit(func(b []byte) { b[16] = 1 }), kerr.InvalidRecord.Code},
		{"magic 3", edit(func(b []byte) { b[16] = 3 }), kerr.InvalidRecord.Code},
		{"two batches", append(slices.Clone(good), good...), kerr.InvalidRecord.Code},
		{"control batch", sealBatch(edit(func(b []byte) { b[22] |= 0x20 })), kerr.InvalidRecord.Code},
		{"no batch", []byte{}, kerr.InvalidRecord.Code},
		{"length beyond the field", edit(func(b []byte) { b[11]++ }), kerr.InvalidRecord.Code},
		{"base offset", edit(func(b []byte) { b[7] = 1 }), kerr.InvalidRecord.Code},
		{"count 0", sealBatch(edit(func(b []byte) { b[60] = 0 })), kerr.InvalidRecord.Code},
		{"count too high", sealBatch(edit(func(b []byte) { b[60], b[26] = 3, 2 })), kerr.InvalidRecord.Code},
		{"LogAppendTime", sealBatch(edit(func(b []byte) { b[22] |= 0x08 })), kerr.InvalidTimestamp.Code},
		{"transactional", sealBatch(edit(func(b []byte) { b[22] |= 0x10 })), kerr.TransactionalIDAuthorizationFailed.Code},
		{"unknown codec", sealBatch(edit(func(b []byte) { b[22] |= 0x07 })), kerr.UnsupportedCompressionType.Code},
	}
	for _, version := range []int16{3, 8, 11} {
		f := newFixture(t, nil)
		f.createTopic("orders", 2, nil)
		c := f.dial()
		for i, tc := range cases {
			req := produceTo("orders", 0, tc.batch)
			side := kmsg.NewProduceRequestTopicPartition()
			side.Partition, side.Records = 1, slices.Clone(good)
			req.Topics[0].Partitions = append(req.Topics[0].Partitions, side)
			resp := do[*kmsg.ProduceResponse](c, version, req)
			bad, ok := resp.Topics[0].Partitions[0], resp.Topics[0].Partitions[1]
			if bad.ErrorCode != tc.code || bad.BaseOffset != -1 {
				t.Errorf("v%d %s: code %d, base offset %d, want code %d", version, tc.name, bad.ErrorCode, bad.BaseOffset, tc.code)
			}
			if hasMessage := bad.ErrorMessage != nil && *bad.ErrorMessage != ""; hasMessage != (version >= 8) {
				t.Errorf("v%d %s: error message %v", version, tc.name, bad.ErrorMessage)
			}
			if ok.ErrorCode != 0 || ok.BaseOffset != int64(2*i) {
				t.Errorf("v%d %s: the good partition: code %d, base offset %d", version, tc.name, ok.ErrorCode, ok.BaseOffset)
			}
		}
		for _, call := range f.producer.taken() {
			if call.partition != 1 {
				t.Errorf("v%d: a refused batch was appended", version)
			}
		}
		codes := map[int16]bool{}
		for _, tc := range cases {
			codes[tc.code] = true
		}
		if got := f.log.lines("refused a record batch", "topic=orders", "reason="); len(got) != len(codes) {
			t.Errorf("v%d: %d log lines for %d codes: %q", version, len(got), len(codes), got)
		}
	}
}
