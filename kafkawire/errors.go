package kafkawire

import (
	"errors"
	"fmt"
)

var (
	// ErrFrameSize is returned when a frame's size field is negative or too
	// small to hold a header. The connection cannot be resynchronised: close it.
	ErrFrameSize = errors.New("frame size is invalid")
	// ErrFrameTooLarge is returned when a frame's size field exceeds the
	// limit. Nothing of the frame's body was read.
	ErrFrameTooLarge = errors.New("frame exceeds the size limit")
	// ErrTLSOnPlaintext is returned when the peer opened a TLS handshake where
	// a Kafka frame was expected. It is an ErrFrameTooLarge.
	ErrTLSOnPlaintext = fmt.Errorf("peer speaks TLS to a plaintext listener: set the client's security.protocol to match the listener: %w", ErrFrameTooLarge)
	// ErrHTTP is returned when the peer sent an HTTP request where a Kafka
	// frame was expected. It is an ErrFrameTooLarge.
	ErrHTTP = fmt.Errorf("peer speaks HTTP to a Kafka listener: the HTTP endpoints are on the admin port: %w", ErrFrameTooLarge)

	// ErrMalformed is returned when a message cannot be what its header says:
	// it ends early, goes on after its end, or holds a length that is out of
	// bounds.
	ErrMalformed = errors.New("malformed message")
	// ErrUnknownAPI is returned when a request's API key is not in the protocol.
	ErrUnknownAPI = errors.New("unknown API key")
	// ErrUnsupportedVersion is returned when a request's version is outside
	// what is known of its API. Kafka's answer is error 35.
	ErrUnsupportedVersion = errors.New("unsupported API version")
	// ErrFollowerFetch is returned when a Fetch claims to come from a replica.
	// Followers see uncommitted data and hold back the high watermark; no
	// client has a reason to be one.
	ErrFollowerFetch = errors.New("fetch carries a replica id")
)
