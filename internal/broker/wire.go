package broker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// firstChunk is what is allocated for a frame before any of it has arrived;
// beyond it memory grows only as bytes come in.
const firstChunk = 1 << 20

// readFrame reads one length-prefixed frame and returns its body.
func readFrame(r io.Reader, maxBytes int) ([]byte, error) {
	var prefix [4]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, err
	}
	size := int64(int32(binary.BigEndian.Uint32(prefix[:])))
	if size < 4 || size > int64(maxBytes) {
		return nil, fmt.Errorf("%w: frame of %d bytes, limit %d", ErrMalformed, size, maxBytes)
	}
	body := make([]byte, 0, min(size, firstChunk))
	for int64(len(body)) < size {
		if len(body) == cap(body) {
			grown := make([]byte, len(body), min(size, 2*int64(cap(body))))
			copy(grown, body)
			body = grown
		}
		end := min(int64(cap(body)), size)
		n, err := io.ReadFull(r, body[len(body):end])
		body = body[:len(body)+n]
		if err != nil {
			return nil, noEOF(err)
		}
	}
	return body, nil
}

// noEOF turns an end of stream inside a frame into an unexpected one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// correlation returns the correlation id a response frame starts with.
// readFrame never returns fewer than 4 bytes.
func correlation(body []byte) int32 { return int32(binary.BigEndian.Uint32(body)) }

// decodeResponse decodes the response frame body into resp, whose version is
// set. Byte fields of resp alias body.
func decodeResponse(body []byte, resp kmsg.Response) error {
	rest := body[4:]
	// The response to ApiVersions keeps header v0 whatever its version
	// (KIP-511), so that a client can read a downgrade.
	if resp.IsFlexible() && resp.Key() != int16(kmsg.ApiVersions) {
		var err error
		if rest, err = skipTags(rest); err != nil {
			return err
		}
	}
	if err := resp.ReadFrom(rest); err != nil {
		return fmt.Errorf("%w: %s v%d: %w", ErrMalformed, kmsg.NameForKey(resp.Key()), resp.GetVersion(), err)
	}
	return nil
}

// skipTags drops the tagged fields of a response header.
func skipTags(b []byte) ([]byte, error) {
	count, n := binary.Uvarint(b)
	if n <= 0 {
		return nil, fmt.Errorf("%w: response header tags", ErrMalformed)
	}
	b = b[n:]
	for ; count > 0; count-- {
		if _, n = binary.Uvarint(b); n <= 0 { // the tag
			return nil, fmt.Errorf("%w: response header tags", ErrMalformed)
		}
		b = b[n:]
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return nil, fmt.Errorf("%w: response header tags", ErrMalformed)
		}
		b = b[n+int(size):]
	}
	return b, nil
}
