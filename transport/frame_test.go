package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
)

func frameBytes(id uint64, kind, method uint8, payload string) string {
	b := make([]byte, frameHeader)
	putHeader(b, id, kind, method, len(payload))
	return string(b) + payload
}

// A small message does not wait for a large one that is on its way.
func TestWriterLetsSmallPassLarge(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	stop := make(chan struct{})
	w := newWriter(near, patience, nil, stop)
	ended := make(chan error, 1)
	go func() { ended <- w.run() }()

	w.large <- &outgoing{message: message{id: 1, kind: frameRequest, payload: make([]byte, 8<<20)}}
	w.small <- &outgoing{message: message{id: 2, kind: frameRequest, payload: []byte("small")}}
	before := 0
	for {
		id, kind := readFrame(t, far)
		if id == 2 {
			break
		}
		if before++; kind&moreFollows == 0 || before > 3 {
			t.Fatalf("the small message waits behind %d parts of the large one", before)
		}
	}
	parts := before
	for {
		_, kind := readFrame(t, far)
		if parts++; kind&moreFollows == 0 {
			break
		}
	}
	if parts != 8<<20/maxChunk {
		t.Fatalf("8 MiB travelled in %d parts", parts)
	}
	close(stop)
	if err := within(t, ended, "the writer to end"); err != nil {
		t.Fatal(err)
	}
}

func readFrame(t *testing.T, r io.Reader) (id uint64, kind uint8) {
	t.Helper()
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, r, int64(binary.BigEndian.Uint32(head[:]))-frameFixed); err != nil {
		t.Fatal(err)
	}
	return binary.BigEndian.Uint64(head[4:]), head[12]
}

// What the writer makes of a withdrawn message depends on how much has left.
func TestOutgoingWithdraw(t *testing.T) {
	buf := make([]byte, frameHeader+maxChunk)
	large := func() *outgoing {
		return &outgoing{message: message{id: 5, kind: frameRequest, payload: make([]byte, maxChunk+1)}}
	}
	o := large()
	if !o.withdraw() {
		t.Error("nothing has left, and yet it cannot be withdrawn")
	}
	if b, more := o.take(buf); len(b) != 0 || more {
		t.Errorf("withdrawn before its first part, %d bytes leave", len(b))
	}
	o = large()
	if _, more := o.take(buf); !more || !o.withdraw() {
		t.Error("one part of two has left, and it cannot be withdrawn")
	}
	if b, more := o.take(buf); more || string(b) != frameBytes(5, frameAbort, 0, "") {
		t.Errorf("withdrawn half way, % x leaves", b)
	}
	o = large()
	o.take(buf)
	if _, more := o.take(buf); more || o.withdraw() {
		t.Error("all has left, and yet it was withdrawn")
	}
}

func TestFrameReaderBoundsPayload(t *testing.T) {
	two := frameBytes(1, frameRequest|moreFollows, 0, string(make([]byte, 60))) + frameBytes(1, frameRequest, 0, string(make([]byte, 41)))
	if _, err := (&frameReader{r: bytes.NewReader([]byte(two)), max: 100}).next(); !errors.Is(err, errProtocol) {
		t.Errorf("101 bytes in two parts passed a limit of 100: %v", err)
	}
	if m, err := (&frameReader{r: bytes.NewReader([]byte(two)), max: 101}).next(); err != nil || len(m.payload) != 101 {
		t.Errorf("101 bytes in two parts: %d, %v", len(m.payload), err)
	}
	// A claimed length costs nothing before its bytes arrive.
	claim := []byte(frameBytes(1, frameRequest, 0, ""))
	binary.BigEndian.PutUint32(claim, frameFixed+maxChunk+1)
	if _, err := (&frameReader{r: bytes.NewReader(claim), max: DefaultMaxMessage}).next(); !errors.Is(err, errProtocol) {
		t.Errorf("a frame above the largest part passed: %v", err)
	}
}

func TestFrameReaderAbort(t *testing.T) {
	in := frameBytes(1, frameRequest|moreFollows, 0, "lost") + frameBytes(2, frameRequest, 0, "between") +
		frameBytes(1, frameAbort, 0, "") + frameBytes(3, frameRequest|moreFollows, 0, "wh") + frameBytes(3, frameRequest, 0, "ole")
	fr := &frameReader{r: bytes.NewReader([]byte(in)), max: 100}
	var got []string
	for {
		m, err := fr.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(m.payload))
	}
	if !slices.Equal(got, []string{"between", "whole"}) {
		t.Fatalf("got %q", got)
	}
}

// Whatever arrives: no panic, no payload above the limit, and what was read can
// be written by take and read again.
func FuzzFrameReader(f *testing.F) {
	f.Add([]byte(frameBytes(1, frameRequest, 2, "abc") + frameBytes(0, framePing, 0, "")))
	f.Add([]byte(frameBytes(1, frameRequest|moreFollows, 2, "abc") + frameBytes(9, frameCancel, 0, "") + frameBytes(1, frameRequest, 2, "def")))
	f.Add([]byte(frameBytes(1, frameAnswer|moreFollows, 2, "abc") + frameBytes(1, frameAbort, 0, "")))
	f.Add([]byte("\xff\xff\xff\xff\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1000
		fr := &frameReader{r: bytes.NewReader(b), max: limit}
		for {
			m, err := fr.next()
			if err != nil {
				return
			}
			if len(m.payload) > limit {
				t.Fatalf("payload of %d bytes", len(m.payload))
			}
			o := &outgoing{message: m}
			frame, more := o.take(make([]byte, frameHeader+maxChunk))
			again, err := (&frameReader{r: bytes.NewReader(frame), max: limit}).next()
			if more || err != nil || again.id != m.id || again.kind != m.kind || again.method != m.method || !bytes.Equal(again.payload, m.payload) {
				t.Fatalf("%+v became %+v, %v", m, again, err)
			}
		}
	})
}
