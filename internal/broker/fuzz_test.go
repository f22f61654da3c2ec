package broker

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Whatever arrives, a frame is within the limit and never longer than what
// arrived.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 4, 1, 2, 3, 4})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Add([]byte{0, 0, 0, 200, 1})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		body, err := readFrame(bytes.NewReader(in), 128)
		if err != nil {
			return
		}
		if len(body) < 4 || len(body) > 128 || !bytes.Equal(body, in[4:4+len(body)]) {
			t.Fatalf("frame of %d bytes from %d", len(body), len(in))
		}
	})
}

// A response of any bytes is decoded or refused.
func FuzzDecodeResponse(f *testing.F) {
	for _, resp := range []kmsg.Response{
		kmsg.NewPtrProduceResponse(), kmsg.NewPtrFetchResponse(), kmsg.NewPtrListOffsetsResponse(),
		kmsg.NewPtrMetadataResponse(), kmsg.NewPtrApiVersionsResponse(), kmsg.NewPtrCreateTopicsResponse(),
		kmsg.NewPtrDescribeConfigsResponse(),
	} {
		for _, version := range []int16{0, 4, 11} {
			resp.SetVersion(min(version, resp.MaxVersion()))
			head := []byte{0, 0, 0, 1}
			if resp.IsFlexible() && resp.Key() != 18 {
				head = append(head, 0)
			}
			f.Add(resp.Key(), resp.GetVersion(), resp.AppendTo(head))
		}
	}
	f.Add(int16(0), int16(9), []byte{0, 0, 0, 1, 1, 5, 200})
	f.Fuzz(func(t *testing.T, key, version int16, body []byte) {
		resp := kmsg.ResponseForKey(key)
		if resp == nil || version < 0 || version > resp.MaxVersion() || len(body) < 4 {
			return
		}
		// kmsg counts through as many tagged fields as a message claims: three
		// bytes of a number stand for two million, which takes no time. More
		// is between this node and the broker that belongs to it.
		for i := range body[:len(body)-2] {
			if body[i]&body[i+1]&body[i+2] >= 0x80 {
				return
			}
		}
		resp.SetVersion(version)
		if err := decodeResponse(body, resp); err != nil {
			return
		}
		// What was understood can be written again.
		if again := kmsg.ResponseForKey(key); again != nil {
			again.SetVersion(version)
			if err := again.ReadFrom(resp.AppendTo(nil)); err != nil {
				t.Fatalf("%s v%d does not survive a round trip: %v", kmsg.NameForKey(key), version, err)
			}
		}
	})
}

// Whatever a broker sends as records, batches passed on are whole, in order,
// of magic 2, and the walk moves forward.
func FuzzWalk(f *testing.F) {
	first, second := makeBatch(0, 2, 10), makeBatch(2, 1, 10)
	binary.BigEndian.PutUint64(second, 2)
	f.Add(append(bytes.Clone(first), second...), int64(1), int64(3))
	f.Add(first[:70], int64(0), int64(9))
	f.Add(bytes.Repeat([]byte{0xff}, 80), int64(0), int64(9))
	f.Fuzz(func(t *testing.T, records []byte, from, to int64) {
		if from < 0 || to <= from {
			return
		}
		at := from
		next, need, err := walk(records, scanRange{from: from, to: to, maxBytes: 64}, func(b []byte, s span) error {
			if s.last < at || s.base >= to || len(b) != s.size || b[16] != 2 {
				t.Fatalf("batch %+v at offset %d", s, at)
			}
			at = s.last + 1
			return nil
		})
		if next < from || need < 0 || (err == nil && next != at && next != to) {
			t.Fatalf("next %d, need %d, from %d, at %d, %v", next, need, from, at, err)
		}
	})
}
