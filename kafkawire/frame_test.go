package kafkawire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"runtime"
	"testing"
	"testing/iotest"
)

func sized(size int32, body ...byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(size)), body...)
}

func TestReadFrameRefuses(t *testing.T) {
	const limit = 1 << 20
	for _, c := range []struct {
		name string
		in   []byte
		want error
	}{
		{"nothing", nil, io.EOF},
		{"one byte of the size", []byte{0}, io.ErrUnexpectedEOF},
		{"three bytes of the size", []byte{0, 0, 0}, io.ErrUnexpectedEOF},
		{"size -1", sized(-1), ErrFrameSize},
		{"size lowest", sized(math.MinInt32), ErrFrameSize},
		{"size 0", sized(0), ErrFrameSize},
		{"size 1", sized(1, 0), ErrFrameSize},
		{"size 3", sized(3, 0, 0, 0), ErrFrameSize},
		{"size 7", sized(7, make([]byte, 7)...), ErrFrameSize},
		{"size above the limit", sized(limit + 1), ErrFrameTooLarge},
		{"size highest", sized(math.MaxInt32), ErrFrameTooLarge},
		{"no body", sized(8), io.ErrUnexpectedEOF},
		{"half a body", sized(8, 1, 2, 3, 4), io.ErrUnexpectedEOF},
		{"TLS ClientHello", []byte{0x16, 0x03, 0x01, 0x02, 0x00, 0x01}, ErrTLSOnPlaintext},
		{"HTTP GET", []byte("GET / HTTP/1.1\r\n"), ErrHTTP},
		{"HTTP POST", []byte("POST /x HTTP/1.1\r\n"), ErrHTTP},
		{"HTTP PUT", []byte("PUT /x HTTP/1.1\r\n"), ErrHTTP},
		{"HTTP/2 preface", []byte("PRI * HTTP/2.0\r\n"), ErrHTTP},
	} {
		body, err := ReadFrame(bytes.NewReader(c.in), limit)
		if !errors.Is(err, c.want) || body != nil {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	if !errors.Is(ErrTLSOnPlaintext, ErrFrameTooLarge) || !errors.Is(ErrHTTP, ErrFrameTooLarge) {
		t.Error("a foreign protocol is not a frame too large")
	}
	if _, err := ReadFrame(bytes.NewReader([]byte("GET ")), math.MaxInt32); !errors.Is(err, ErrHTTP) {
		t.Errorf("without a limit: %v", err)
	}
}

// TestReadFrame reads two frames that arrive a byte at a time, up to the size
// limit, and then the end.
func TestReadFrame(t *testing.T) {
	for _, size := range []int{8, 9, frameStep - 1, frameStep, frameStep + 1, 3*frameStep + 5} {
		first, second := bytes.Repeat([]byte{1}, size), bytes.Repeat([]byte{2}, 8)
		var wire bytes.Buffer
		for _, body := range [][]byte{first, second} {
			if err := WriteFrame(&wire, body); err != nil {
				t.Fatal(err)
			}
		}
		r := iotest.OneByteReader(&wire)
		for i, want := range [][]byte{first, second} {
			got, err := ReadFrame(r, int32(max(size, 8)))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("size %d, frame %d: %d bytes, %v", size, i, len(got), err)
			}
		}
		if _, err := ReadFrame(r, 8); !errors.Is(err, io.EOF) {
			t.Errorf("size %d: at the end %v", size, err)
		}
	}
}

func TestReadFrameEndsAtEveryByte(t *testing.T) {
	wire := sized(12, []byte("twelve bytes")...)
	for n := 1; n < len(wire); n++ {
		if _, err := ReadFrame(bytes.NewReader(wire[:n]), 100); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

func TestReadResponseFrame(t *testing.T) {
	// A Heartbeat response of version 0 is shorter than any request.
	if body, err := ReadResponseFrame(bytes.NewReader(sized(6, 0, 0, 0, 1, 0, 0)), 100); err != nil || len(body) != 6 {
		t.Errorf("got %x, %v", body, err)
	}
	if _, err := ReadResponseFrame(bytes.NewReader(sized(3, 0, 0, 0)), 100); !errors.Is(err, ErrFrameSize) {
		t.Errorf("size 3: %v", err)
	}
}

func TestReadFrameBodyRefusesSize(t *testing.T) {
	for _, size := range []int32{-1, math.MinInt32, MaxFrameSize + 1, math.MaxInt32} {
		if _, err := ReadFrameBody(bytes.NewReader(nil), size); !errors.Is(err, ErrFrameSize) {
			t.Errorf("size %d: %v", size, err)
		}
	}
}

// allocated returns the bytes that f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestReadFrameBelievesNoLength sends 1 KiB of a frame that claims the most
// there may be.
func TestReadFrameBelievesNoLength(t *testing.T) {
	wire := sized(MaxFrameSize, make([]byte, 1024)...)
	got := allocated(func() {
		if _, err := ReadFrame(bytes.NewReader(wire), MaxFrameSize); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
	})
	if got > 2*frameStep {
		t.Errorf("allocated %d bytes for 1 KiB", got)
	}
}
