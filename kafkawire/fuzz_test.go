package kafkawire

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// FuzzReadFrame: no panic; what is returned is what was sent and within the
// limit.
func FuzzReadFrame(f *testing.F) {
	f.Add(sized(8, make([]byte, 8)...))
	f.Add(sized(MaxFrameSize, 1, 2, 3))
	f.Add(sized(-1))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add([]byte{0x16, 3, 1, 2, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		const limit = 1 << 16
		r := bytes.NewReader(in)
		body, err := ReadFrame(r, limit)
		if err != nil {
			if body != nil {
				t.Error("a body beside an error")
			}
			return
		}
		if sent := append(AppendFrameSize(nil, len(body)), body...); len(body) > limit || !bytes.HasPrefix(in, sent) {
			t.Errorf("%d bytes of %d", len(body), len(in))
		}
		if rest, _ := io.ReadAll(r); len(rest) != len(in)-4-len(body) {
			t.Errorf("%d bytes were read too many", len(in)-4-len(body)-len(rest))
		}
	})
}

// FuzzRequestHeader: no panic; a header that was read and is written again
// reads the same, and body and header together are the frame.
func FuzzRequestHeader(f *testing.F) {
	f.Add(headerBytes(0, 3, 1, 0, 1, 'c'))
	f.Add(headerBytes(3, 9, 1, 0xff, 0xff, 1, 0, 1, 'x', 'b'))
	f.Add(headerBytes(18, 99, 1))
	f.Add(headerBytes(-1, -1, -1))
	f.Fuzz(func(t *testing.T, frame []byte) {
		h, body, err := ParseRequestHeader(frame)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnknownAPI) && !errors.Is(err, ErrUnsupportedVersion) {
				t.Errorf("stray error %v", err)
			}
			return
		}
		if !bytes.HasSuffix(frame, body) {
			t.Error("the body is not the frame's end")
		}
		again, rest, err := ParseRequestHeader(append(AppendRequestHeader(nil, h), body...))
		if err != nil || !bytes.Equal(rest, body) || again.Key != h.Key || again.Version != h.Version ||
			again.CorrelationID != h.CorrelationID || (again.ClientID == nil) != (h.ClientID == nil) {
			t.Errorf("got %+v, was %+v, %v", again, h, err)
		}
	})
}

// FuzzParseRequest: no panic; bounded memory; what is accepted is what kmsg
// accepts and encodes to something that is accepted again.
func FuzzParseRequest(f *testing.F) {
	rng := rand.New(rand.NewPCG(13, 14))
	for _, api := range Served() {
		for v := api.Min; v <= api.Max; v++ {
			f.Add(api.Key, v, randomRequest(rng, api.Key, v).AppendTo(nil))
		}
	}
	f.Fuzz(func(t *testing.T, key, version int16, body []byte) {
		h := RequestHeader{Key: key, Version: version}
		var req kmsg.Request
		var err error
		// A struct of kmsg is at most some 150 bytes for each of 2 sent.
		if got, most := allocated(func() { req, err = ParseRequest(h, body) }), uint64(256*len(body)+64<<10); got > most {
			t.Errorf("allocated %d bytes for %d", got, len(body))
		}
		if err != nil {
			return
		}
		out := req.AppendTo(nil)
		again, err := ParseRequest(h, out)
		if err != nil {
			t.Fatalf("key %d version %d: written again: %v", key, version, err)
		}
		if !bytes.Equal(again.AppendTo(nil), out) {
			t.Errorf("key %d version %d: does not settle", key, version)
		}
	})
}

// FuzzCheckProduce: no panic; bounded memory; a batch that is accepted holds
// what its header says by kmsg's reader too, and keeps doing so when stamped.
// The checksum is corrected first, or nothing would get past it.
func FuzzCheckProduce(f *testing.F) {
	for _, c := range codecCases(f, encodeRecords(testRecords(3))) {
		f.Add([]byte(buildBatch(c.id, 3, c.body)), int64(0), false)
	}
	for _, body := range malformedRecords {
		f.Add([]byte(buildBatch(codecNone, 1, body)), baseMs, true)
	}
	f.Fuzz(func(t *testing.T, in []byte, now int64, compacted bool) {
		if len(in) >= BatchHeaderLen {
			reseal(in)
			binary.BigEndian.PutUint32(in[offLength:], uint32(len(in)-batchPrefixLen))
		}
		lim := Limits{MaxDecompressedBytes: 1 << 20, NowMs: now, TimestampAfterMaxMs: 1000, Compacted: compacted}
		before := bytes.Clone(in)
		b, refusal := CheckProduce(in, lim)
		if !bytes.Equal(in, before) {
			t.Error("the batch was changed")
		}
		if refusal != nil {
			if b != nil || refusal.Code <= 0 || refusal.Reason == "" {
				t.Errorf("refusal %+v", refusal)
			}
			return
		}
		if !b.ChecksumOK() || int(b.Count()) != int(b.LastOffsetDelta())+1 {
			t.Error("a bad header was accepted")
		}
		if b.Codec() == codecNone {
			checkWithKmsg(t, b)
		}
		s, rest, err := ParseBatch(Stamp(nil, b, 1<<40, 2, 3))
		if err != nil || len(rest) != 0 || s.ProducerID() != 1<<40 || s.ProducerEpoch() != 2 || s.BaseSequence() != 3 || !s.ChecksumOK() {
			t.Errorf("stamped: %v", err)
		}
		if _, refusal := CheckProduce(s, lim); refusal != nil {
			t.Errorf("stamped: %v", refusal)
		}
	})
}

// checkWithKmsg reads the records of b a second time, with kmsg.
func checkWithKmsg(t *testing.T, b Batch) {
	body := b[BatchHeaderLen:]
	newest := int64(-1)
	for i := range b.Count() {
		length, n := binary.Varint(body)
		if n <= 0 || length < 0 || int64(len(body)-n) < length {
			t.Fatalf("record %d: length %d", i, length)
		}
		var r kmsg.Record
		if err := r.ReadFrom(body[:n+int(length)]); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
		if r.OffsetDelta != i {
			t.Errorf("record %d has offset delta %d", i, r.OffsetDelta)
		}
		newest = max(newest, b.BaseTimestamp()+r.TimestampDelta64)
		body = body[n+int(length):]
	}
	if len(body) != 0 || newest != b.MaxTimestamp() {
		t.Errorf("%d bytes left, max timestamp %d, header %d", len(body), newest, b.MaxTimestamp())
	}
}

// FuzzInflate: no panic; bounded memory; what is decompressed is what another
// decoder makes of the same bytes, and does not differ the second time, when
// decoders come from their pools.
func FuzzInflate(f *testing.F) {
	for _, c := range codecCases(f, encodeRecords(testRecords(3))) {
		f.Add(uint8(c.id), c.body)
	}
	for _, c := range codecCases(f, bytes.Repeat([]byte("abcdefg"), 30_000)) {
		if c.id != codecNone {
			f.Add(uint8(c.id), c.body)
		}
	}
	f.Fuzz(func(t *testing.T, codec uint8, body []byte) {
		var out []byte
		var err error
		// The window of zstd and a block of lz4 do not depend on what was sent.
		if got, most := allocated(func() { out, err = inflated(int8(codec), body) }), uint64(64*len(body)+maxZstdWindow+keepBlock+8*inflatedMost); got > most {
			t.Errorf("allocated %d bytes for %d", got, len(body))
		}
		again, err2 := inflated(int8(codec), body)
		if (err == nil) != (err2 == nil) || !bytes.Equal(out, again) {
			t.Fatalf("%d bytes and %v, then %d and %v", len(out), err, len(again), err2)
		}
		if err != nil {
			return
		}
		if other, ok := otherInflated(codec, body); ok && !bytes.Equal(other, out) {
			t.Errorf("codec %d: %d bytes, another decoder makes %d of it", codec, len(out), len(other))
		}
	})
}

// inflatedMost is how many bytes FuzzInflate reads at most.
const inflatedMost = 1 << 20

var errInflatedMost = errors.New("more than inflatedMost bytes")

func inflated(codec int8, body []byte) ([]byte, error) {
	r, release, err := openInflater(codec, body)
	if err != nil {
		return nil, err
	}
	defer release()
	out, err := io.ReadAll(io.LimitReader(r, inflatedMost+1))
	if err == nil && len(out) > inflatedMost {
		err = errInflatedMost
	}
	return out, err
}

// otherInflated decompresses with a library that is not used here, where there
// is one that reads the same.
func otherInflated(codec uint8, body []byte) (out []byte, ok bool) {
	var err error
	switch codec {
	case codecGzip:
		var r *gzip.Reader
		if r, err = gzip.NewReader(bytes.NewReader(body)); err == nil {
			out, err = io.ReadAll(r)
		}
	case codecSnappy:
		if len(body) == 0 || bytes.HasPrefix(body, xerialMagic) {
			return nil, false
		}
		out, err = s2.Decode(nil, body)
	case codecLZ4:
		// Checks the content checksum too, which Kafka passes over.
		if out, err = io.ReadAll(lz4.NewReader(bytes.NewReader(body))); err != nil {
			return nil, false
		}
	default:
		return nil, false
	}
	return out, err == nil
}

// FuzzFetchRequest: no panic; a patched request has the same length, is
// sessionless by kmsg's reading and is not changed by patching again.
func FuzzFetchRequest(f *testing.F) {
	rng := rand.New(rand.NewPCG(15, 16))
	for v := int16(fetchMin); v <= fetchMax; v++ {
		f.Add(v, randomFetch(rng, v).AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, version int16, body []byte) {
		visited := 0
		size := len(body)
		info, err := PatchFetchRequest(version, body, func(FetchPartition) error { visited++; return nil })
		if err != nil {
			return
		}
		if len(body) != size {
			t.Error("the length changed")
		}
		parsed, err := ParseRequest(RequestHeader{Key: int16(kmsg.Fetch), Version: version}, body)
		if err != nil {
			if !info.Tagged { // kmsg reads into tagged fields, which the walk passes over
				t.Fatal(err)
			}
			return
		}
		req := parsed.(*kmsg.FetchRequest)
		if req.SessionID != 0 || req.SessionEpoch != -1 || req.ReplicaID != -1 {
			t.Errorf("session %d epoch %d replica %d", req.SessionID, req.SessionEpoch, req.ReplicaID)
		}
		for _, topic := range req.Topics {
			for _, p := range topic.Partitions {
				visited--
				if p.CurrentLeaderEpoch != -1 || p.LastFetchedEpoch != -1 {
					t.Errorf("epochs %d, %d", p.CurrentLeaderEpoch, p.LastFetchedEpoch)
				}
			}
		}
		if visited != 0 {
			t.Errorf("%d partitions more visited than there are", visited)
		}
		once := bytes.Clone(body)
		if _, err := PatchFetchRequest(version, body, nil); err != nil || !bytes.Equal(body, once) {
			t.Errorf("patching again: %v", err)
		}
	})
}

// FuzzFetchResponse: no panic; what is walked reads with kmsg, with the same
// partitions, before and after a patch.
func FuzzFetchResponse(f *testing.F) {
	rng := rand.New(rand.NewPCG(17, 18))
	for v := int16(fetchMin); v <= fetchMax; v++ {
		f.Add(v, randomFetchResponse(rng, v).AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, version int16, body []byte) {
		visited := 0
		info, err := WalkFetchResponse(version, body, func(p *FetchResponsePartition) error {
			visited++
			p.SetErrorCode(78)
			p.SetHighWatermark(5)
			p.SetPreferredReadReplica(-1)
			return nil
		})
		if err != nil {
			return
		}
		resp := kmsg.NewPtrFetchResponse()
		resp.Version = version
		if err := resp.ReadFrom(body); err != nil {
			if !info.Tagged { // kmsg reads into tagged fields, which the walk passes over
				t.Fatal(err)
			}
			return
		}
		for _, topic := range resp.Topics {
			for _, p := range topic.Partitions {
				visited--
				if p.ErrorCode != 78 || p.HighWatermark != 5 || p.PreferredReadReplica != -1 {
					t.Errorf("not patched: %+v", p)
				}
			}
		}
		if visited != 0 {
			t.Errorf("%d partitions more visited than there are", visited)
		}
	})
}
