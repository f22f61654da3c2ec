package kafkawire

import (
	"encoding/binary"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// RequestHeader is the header of one request (KIP-482 for the flexible form).
type RequestHeader struct {
	Key, Version  int16
	CorrelationID int32
	ClientID      *string // nil when the client sent null
	Flexible      bool    // the request is of a flexible version
}

// shape is what the header needs to know of one API.
type shape struct {
	known            bool
	maxVersion       int16
	requestFlexible  int16 // first flexible version of the request
	responseFlexible int16 // first flexible version of the response
}

// shapes is indexed by API key and never written after init.
var shapes = buildShapes()

func buildShapes() (table [kmsg.MaxKey + 1]shape) {
	for key := range table {
		req := kmsg.RequestForKey(int16(key))
		if req == nil {
			continue
		}
		s := shape{known: true, maxVersion: req.MaxVersion()}
		resp := req.ResponseKind()
		s.requestFlexible = firstFlexible(s.maxVersion, func(v int16) bool { req.SetVersion(v); return req.IsFlexible() })
		s.responseFlexible = firstFlexible(s.maxVersion, func(v int16) bool { resp.SetVersion(v); return resp.IsFlexible() })
		table[key] = s
	}
	return table
}

func firstFlexible(last int16, is func(int16) bool) int16 {
	for v := int16(0); v <= last; v++ {
		if is(v) {
			return v
		}
	}
	return last + 1
}

func shapeOf(key int16) shape {
	if key < 0 || int(key) >= len(shapes) {
		return shape{}
	}
	return shapes[key]
}

// headerlessKey is ControlledShutdown, whose version 0 has no client id.
const headerlessKey = 7

// PeekRequest returns API key and version of a request without looking at
// anything else, and -1 if the frame is too short to have them.
func PeekRequest(frame []byte) (key, version int16) {
	r := reader{buf: frame}
	if key, version = r.int16(), r.int16(); r.err != nil {
		return -1, -1
	}
	return key, version
}

// ParseRequestHeader splits a request frame into header and body; the body
// aliases the frame. It returns ErrMalformed, ErrUnknownAPI or
// ErrUnsupportedVersion (the version is outside what the protocol library
// knows). In the last two cases key, version and correlation id are filled in
// so that an answer can be sent: an ApiVersions request of any version must be
// answered (KIP-511), see UnsupportedApiVersionsResponse.
func ParseRequestHeader(frame []byte) (RequestHeader, []byte, error) {
	r := reader{buf: frame}
	h := RequestHeader{Key: r.int16(), Version: r.int16(), CorrelationID: r.int32()}
	if r.err != nil {
		return RequestHeader{}, nil, fmt.Errorf("parse request header: %w", r.err)
	}
	s := shapeOf(h.Key)
	if !s.known {
		return h, nil, fmt.Errorf("%w: %d", ErrUnknownAPI, h.Key)
	}
	if h.Version < 0 || h.Version > s.maxVersion {
		return h, nil, fmt.Errorf("%w: %s version %d", ErrUnsupportedVersion, kmsg.NameForKey(h.Key), h.Version)
	}
	h.Flexible = h.Version >= s.requestFlexible
	if h.Key != headerlessKey || h.Version > 0 {
		// The client id is never compact, whatever the version, so that a
		// broker of any age can read as far as this.
		if id := r.nullableString(false); id != nil {
			text := string(id)
			h.ClientID = &text
		}
		r.tags(h.Flexible)
	}
	if r.err != nil {
		return h, nil, fmt.Errorf("parse request header: %w", r.err)
	}
	return h, frame[r.pos:], nil
}

// AppendRequestHeader appends h in wire form, without a frame size. Whether
// the header is flexible follows from key and version, not from h.Flexible.
func AppendRequestHeader(dst []byte, h RequestHeader) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(h.Key))
	dst = binary.BigEndian.AppendUint16(dst, uint16(h.Version))
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.CorrelationID))
	if h.Key == headerlessKey && h.Version == 0 {
		return dst
	}
	if h.ClientID == nil {
		dst = append(dst, 0xff, 0xff)
	} else {
		id := *h.ClientID
		id = id[:min(len(id), 1<<15-1)]
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(id)))
		dst = append(dst, id...)
	}
	if s := shapeOf(h.Key); s.known && h.Version >= s.requestFlexible {
		dst = append(dst, 0) // no tagged fields
	}
	return dst
}

// AppendRequest appends a complete request frame, size included. The version
// is req's own; key and version of h are ignored.
func AppendRequest(dst []byte, h RequestHeader, req kmsg.Request) []byte {
	start := len(dst)
	h.Key, h.Version = req.Key(), req.GetVersion()
	dst = AppendFrameSize(dst, 0)
	dst = AppendRequestHeader(dst, h)
	return sealFrame(req.AppendTo(dst), start)
}

// AppendResponse appends a complete response frame, size included, and sets
// resp's version to version.
func AppendResponse(dst []byte, key, version int16, corr int32, resp kmsg.Response) []byte {
	start := len(dst)
	dst = AppendFrameSize(dst, 0)
	dst = AppendResponseHeader(dst, key, version, corr)
	resp.SetVersion(version)
	return sealFrame(resp.AppendTo(dst), start)
}

// AppendResponseHeader appends a response header without a frame size.
func AppendResponseHeader(dst []byte, key, version int16, corr int32) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(corr))
	if ResponseHeaderLen(key, version) > minResponseLen {
		dst = append(dst, 0) // no tagged fields
	}
	return dst
}

// sealFrame writes the size field of the frame that begins at start.
func sealFrame(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-frameSizeLen))
	return dst
}

// ResponseHeaderLen is the length in bytes of the response header that goes
// with a request of this key and version, when it carries no tagged fields.
func ResponseHeaderLen(key, version int16) int {
	if responseFlexible(key, version) {
		return minResponseLen + 1
	}
	return minResponseLen
}

// responseFlexible reports whether a response header has tagged fields. An
// ApiVersions response never has, because its reader does not know yet what
// the broker speaks (KIP-511).
func responseFlexible(key, version int16) bool {
	s := shapeOf(key)
	return s.known && key != keyApiVersions && version >= s.responseFlexible
}

// ParseResponseHeader splits a response frame to a request of this key and
// version into correlation id and body; the body aliases the frame. It returns
// ErrMalformed.
func ParseResponseHeader(key, version int16, frame []byte) (corr int32, body []byte, err error) {
	r := reader{buf: frame}
	corr = r.int32()
	r.tags(responseFlexible(key, version))
	if r.err != nil {
		return corr, nil, fmt.Errorf("parse response header: %w", r.err)
	}
	return corr, frame[r.pos:], nil
}

// SetCorrelationID overwrites the correlation id of a response frame (without
// its size field) in place. It returns ErrMalformed when the frame is too short.
func SetCorrelationID(frame []byte, corr int32) error {
	if len(frame) < minResponseLen {
		return fmt.Errorf("set correlation id: %w: %d bytes", ErrMalformed, len(frame))
	}
	binary.BigEndian.PutUint32(frame, uint32(corr))
	return nil
}

// ParseRequest decodes the body of a request whose header is h. Byte fields of
// the result (the records of a Produce) alias body; strings do not. The
// request must be in the allow-list: it returns ErrUnknownAPI,
// ErrUnsupportedVersion, or ErrMalformed, which also stands for bytes after
// the end. The body is walked once before memory is taken for it.
func ParseRequest(h RequestHeader, body []byte) (kmsg.Request, error) {
	req := kmsg.RequestForKey(h.Key)
	if req == nil {
		return nil, fmt.Errorf("%w: %d", ErrUnknownAPI, h.Key)
	}
	if err := checkRequestShape(h.Key, h.Version, body); err != nil {
		return nil, fmt.Errorf("parse %s version %d: %w", kmsg.NameForKey(h.Key), h.Version, err)
	}
	req.SetVersion(h.Version)
	if err := req.ReadFrom(body); err != nil {
		return nil, fmt.Errorf("parse %s version %d: %w: %w", kmsg.NameForKey(h.Key), h.Version, ErrMalformed, err)
	}
	return req, nil
}
