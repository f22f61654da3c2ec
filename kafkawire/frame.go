package kafkawire

import (
	"encoding/binary"
	"fmt"
	"io"
)

const (
	// MaxFrameSize is the largest frame in bytes ever read, whatever limit a
	// caller names: Kafka's own default of socket.request.max.bytes.
	MaxFrameSize = 100 << 20

	// frameSizeLen is the length in bytes of a frame's size field.
	frameSizeLen = 4
	// minRequestLen is the shortest request: key, version and correlation id.
	minRequestLen = 8
	// minResponseLen is the shortest response: a correlation id.
	minResponseLen = 4
	// frameStep is how much of a body is taken on trust. Beyond it, memory
	// grows only with bytes that have arrived.
	frameStep = 64 << 10
)

// ReadFrame reads one request frame from r and returns its body without the
// size field. limit is in bytes and capped at MaxFrameSize. It returns io.EOF
// when r ends before the frame, io.ErrUnexpectedEOF when it ends inside,
// ErrFrameSize, ErrFrameTooLarge, ErrTLSOnPlaintext or ErrHTTP. The slice is
// the caller's.
func ReadFrame(r io.Reader, limit int32) ([]byte, error) {
	size, err := ReadFrameSize(r, limit)
	if err != nil {
		return nil, err
	}
	return ReadFrameBody(r, size)
}

// ReadResponseFrame is ReadFrame for the other direction: a response may be as
// short as its correlation id.
func ReadResponseFrame(r io.Reader, limit int32) ([]byte, error) {
	size, err := readSize(r, limit, minResponseLen)
	if err != nil {
		return nil, err
	}
	return ReadFrameBody(r, size)
}

// ReadFrameSize reads the size field of a request frame and checks it against
// limit, with the errors of ReadFrame. A caller that keeps a budget of bytes
// in flight charges it between this and ReadFrameBody.
func ReadFrameSize(r io.Reader, limit int32) (int32, error) {
	return readSize(r, limit, minRequestLen)
}

func readSize(r io.Reader, limit, least int32) (int32, error) {
	var head [frameSizeLen]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err // io.EOF before the first byte, io.ErrUnexpectedEOF after
	}
	size := int32(binary.BigEndian.Uint32(head[:]))
	switch limit = min(limit, MaxFrameSize); {
	case size > limit:
		if err := foreignProtocol(head); err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("%w: %d bytes, limit %d", ErrFrameTooLarge, size, limit)
	case size < least:
		return 0, fmt.Errorf("%w: %d bytes", ErrFrameSize, size)
	}
	return size, nil
}

// foreignProtocol names the protocol that the first four bytes belong to if it
// is a usual stranger. All of them read as sizes far above MaxFrameSize.
func foreignProtocol(head [frameSizeLen]byte) error {
	if head[0] == 0x16 && head[1] == 0x03 { // handshake record, TLS 1.x
		return ErrTLSOnPlaintext
	}
	switch string(head[:]) {
	case "GET ", "POST", "HEAD", "PUT ", "OPTI", "DELE", "CONN", "PATC", "TRAC", "PRI ":
		return ErrHTTP
	}
	return nil
}

// ReadFrameBody reads the size bytes that follow a size field. Memory grows in
// doubling steps with what arrives, so that a claim of 100 MiB costs 64 KiB
// until it is made good. It returns io.ErrUnexpectedEOF when r ends early.
func ReadFrameBody(r io.Reader, size int32) ([]byte, error) {
	if size < 0 || size > MaxFrameSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrFrameSize, size)
	}
	total := int(size)
	body := make([]byte, min(total, frameStep))
	for have := 0; ; {
		n, err := io.ReadFull(r, body[have:])
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if have += n; have == total {
			return body, nil
		}
		grown := make([]byte, min(total, 2*have))
		copy(grown, body)
		body = grown
	}
}

// AppendFrameSize appends the size field of a frame whose body has size bytes.
func AppendFrameSize(dst []byte, size int) []byte {
	return binary.BigEndian.AppendUint32(dst, uint32(size))
}

// WriteFrame writes body as one frame in two writes; give it a buffered writer.
func WriteFrame(w io.Writer, body []byte) error {
	head := AppendFrameSize(make([]byte, 0, frameSizeLen), len(body))
	if _, err := w.Write(head); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}
