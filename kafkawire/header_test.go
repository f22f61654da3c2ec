package kafkawire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func headerBytes(key, version int16, corr int32, rest ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(key))
	b = binary.BigEndian.AppendUint16(b, uint16(version))
	b = binary.BigEndian.AppendUint32(b, uint32(corr))
	return append(b, rest...)
}

func TestParseRequestHeaderRefuses(t *testing.T) {
	null := []byte{0xff, 0xff}
	for _, c := range []struct {
		name  string
		frame []byte
		want  error
		known bool // key, version and correlation id are filled in
	}{
		{"nothing", nil, ErrMalformed, false},
		{"seven bytes", make([]byte, 7), ErrMalformed, false},
		{"no client id", headerBytes(3, 1, 9), ErrMalformed, true},
		{"half a client id length", headerBytes(3, 1, 9, 0), ErrMalformed, true},
		{"client id -2", headerBytes(3, 1, 9, 0xff, 0xfe), ErrMalformed, true},
		{"client id over-long", headerBytes(3, 1, 9, 0x7f, 0xff, 'a'), ErrMalformed, true},
		{"no tags", headerBytes(3, 9, 9, null...), ErrMalformed, true},
		{"tag count bomb", headerBytes(3, 9, 9, append(null, 0xff, 0xff, 0xff, 0xff, 0x0f)...), ErrMalformed, true},
		{"65 tags", headerBytes(3, 9, 9, append(append(null, 65), make([]byte, 130)...)...), ErrMalformed, true},
		{"tag size bomb", headerBytes(3, 9, 9, append(null, 1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f)...), ErrMalformed, true},
		{"varint of 6 bytes", headerBytes(3, 9, 9, append(null, 0x80, 0x80, 0x80, 0x80, 0x80, 0)...), ErrMalformed, true},
		{"varint over 32 bits", headerBytes(3, 9, 9, append(null, 0x80, 0x80, 0x80, 0x80, 0x10)...), ErrMalformed, true},
		{"varint unterminated", headerBytes(3, 9, 9, append(null, 0x80)...), ErrMalformed, true},
		{"key -1", headerBytes(-1, 0, 9), ErrUnknownAPI, true},
		{"key 95", headerBytes(kmsg.MaxKey+1, 0, 9), ErrUnknownAPI, true},
		{"key highest", headerBytes(math.MaxInt16, 0, 9), ErrUnknownAPI, true},
		{"version -1", headerBytes(3, -1, 9, null...), ErrUnsupportedVersion, true},
		{"version highest", headerBytes(3, math.MaxInt16, 9, null...), ErrUnsupportedVersion, true},
		{"ApiVersions of the future", headerBytes(18, 9, 9), ErrUnsupportedVersion, true},
	} {
		h, body, err := ParseRequestHeader(c.frame)
		if !errors.Is(err, c.want) || body != nil {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
		if c.known && (h.Key != int16(binary.BigEndian.Uint16(c.frame)) || h.CorrelationID != 9 ||
			h.Version != int16(binary.BigEndian.Uint16(c.frame[2:]))) {
			t.Errorf("%s: header %+v", c.name, h)
		}
	}
}

// TestParseRequestHeaderForms reads what kmsg's own formatter writes, for all
// keys and versions there are.
func TestParseRequestHeaderForms(t *testing.T) {
	formatters := []*kmsg.RequestFormatter{
		kmsg.NewRequestFormatter(), // null
		kmsg.NewRequestFormatter(kmsg.FormatterClientID("")),
		kmsg.NewRequestFormatter(kmsg.FormatterClientID(strings.Repeat("x", 300))),
	}
	for key := int16(0); key <= kmsg.MaxKey; key++ {
		req := kmsg.RequestForKey(key)
		for v := int16(0); v <= req.MaxVersion(); v++ {
			if key == headerlessKey && v == 0 {
				continue // the formatter leaves the body out
			}
			req.SetVersion(v)
			for _, f := range formatters {
				frame := f.AppendRequest(nil, req, 42)[4:]
				h, body, err := ParseRequestHeader(frame)
				if err != nil || h.Key != key || h.Version != v || h.CorrelationID != 42 || h.Flexible != req.IsFlexible() {
					t.Fatalf("key %d version %d: %+v, %v", key, v, h, err)
				}
				if !bytes.Equal(body, req.AppendTo(nil)) {
					t.Errorf("key %d version %d: body differs", key, v)
				}
				if got := append(AppendRequestHeader(nil, h), body...); !bytes.Equal(got, frame) {
					t.Errorf("key %d version %d: written again %x, was %x", key, v, got, frame)
				}
			}
		}
	}
}

func TestParseRequestHeaderSkipsTags(t *testing.T) {
	// Two tagged fields, out of order and twice the same: of no concern.
	frame := headerBytes(3, 9, 1, 0, 1, 'c', 2, 7, 2, 'a', 'b', 7, 0, 'B')
	h, body, err := ParseRequestHeader(frame)
	if err != nil || *h.ClientID != "c" || string(body) != "B" {
		t.Errorf("got %+v, %q, %v", h, body, err)
	}
}

func TestAppendRequestHeaderLongClientID(t *testing.T) {
	id := strings.Repeat("x", 1<<16)
	b := AppendRequestHeader(nil, RequestHeader{Key: 3, Version: 1, ClientID: &id})
	if h, rest, err := ParseRequestHeader(b); err != nil || len(rest) != 0 || len(*h.ClientID) != 1<<15-1 {
		t.Errorf("%d left, %v", len(rest), err)
	}
}

func TestResponseRoundTrip(t *testing.T) {
	for _, api := range Served() {
		for v := api.Min; v <= api.Max; v++ {
			resp := kmsg.ResponseForKey(api.Key)
			wire := AppendResponse([]byte("before"), api.Key, v, -5, resp)[len("before"):]
			frame, err := ReadResponseFrame(bytes.NewReader(wire), 1<<20)
			if err != nil {
				t.Fatalf("%s %d: %v", api.Name, v, err)
			}
			if err := SetCorrelationID(frame, 77); err != nil {
				t.Fatal(err)
			}
			corr, body, err := ParseResponseHeader(api.Key, v, frame)
			if err != nil || corr != 77 {
				t.Fatalf("%s %d: %d, %v", api.Name, v, corr, err)
			}
			resp.SetVersion(v)
			if !bytes.Equal(body, resp.AppendTo(nil)) {
				t.Errorf("%s %d: body differs", api.Name, v)
			}
			want := 4
			if resp.IsFlexible() && api.Key != 18 {
				want = 5
			}
			if got := ResponseHeaderLen(api.Key, v); got != want || len(frame)-len(body) != want {
				t.Errorf("%s %d: header of %d and %d bytes, want %d", api.Name, v, got, len(frame)-len(body), want)
			}
		}
	}
}

func TestResponseHeaderRefuses(t *testing.T) {
	for _, frame := range [][]byte{nil, {0, 0, 0}, {0, 0, 0, 1}, {0, 0, 0, 1, 0x80}, {0, 0, 0, 1, 1, 0, 9}} {
		if _, _, err := ParseResponseHeader(3, 9, frame); !errors.Is(err, ErrMalformed) {
			t.Errorf("%x: %v", frame, err)
		}
	}
	if err := SetCorrelationID([]byte{1, 2, 3}, 0); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}
