package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// secure makes the TLS handshake, where the listener has one, within the time of
// one request.
func (c *conn) secure() error {
	secured, ok := c.nc.(*tls.Conn)
	if !ok {
		return nil
	}
	c.nc.SetDeadline(time.Now().Add(c.srv.cfg.Limits.PartialRequestTimeout))
	err := secured.HandshakeContext(c.ctx)
	c.nc.SetDeadline(time.Time{})
	if err != nil {
		return c.endOf(handshakeViolation(err))
	}
	return nil
}

// handshakeViolation names why there is no TLS with a client, and what to do.
func handshakeViolation(err error) error {
	var plain tls.RecordHeaderError
	switch {
	case errors.As(err, &plain):
		return &violation{"plaintext on a TLS listener", fmt.Errorf("%w; set security.protocol to SSL or SASL_SSL in the client, or use a plaintext listener", err)}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &violation{reason: "TLS handshake was not finished in time"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %w", errClientGone, err)
	}
	return &violation{"TLS handshake failed", fmt.Errorf("%w; check the authority that the client trusts and, with ssl.client_auth, the client's certificate", err)}
}

// authenticates reports whether a request may come before the client has said
// who it is (Kafka: SaslServerAuthenticator).
func authenticates(key int16) bool {
	switch kmsg.Key(key) {
	case kmsg.ApiVersions, kmsg.SASLHandshake, kmsg.SASLAuthenticate:
		return true
	}
	return false
}

// handleSASLAuthenticate passes a client's authentication to the broker, which
// judges it. What is refused here is a client whose broker knows no SASL and
// would serve anybody, and one in the middle of an exchange: the broker serves it
// nothing, and neither does what this node answers by itself.
func handleSASLAuthenticate(r *request) error {
	mechanism := r.c.mechanism
	r.forward(r.c.srv.cfg.Limits.UpstreamTimeout, nil, func(resp []byte, held *lease, err error) {
		if err != nil {
			r.abandon(r.c.srv.unanswered(r, err))
			return
		}
		if acceptedSASL(resp, r.h.Version, mechanism) {
			r.c.needsSASL.Store(false)
		}
		r.relay(resp, held)
	})
	return nil
}

// acceptedSASL reports whether an answer to SaslAuthenticate ends the exchange
// well. SCRAM has two of them, and only the last has the server's signature (RFC
// 5802, section 5.1). PLAIN and OAUTHBEARER have one. Of other mechanisms the
// first yes counts. From version 2 the header ends with its tags, of which
// brokers send none.
func acceptedSASL(frame []byte, version int16, mechanism string) bool {
	at := 4
	if version >= 2 {
		at = 5
	}
	if len(frame) < at || version >= 2 && frame[4] != 0 {
		return false
	}
	resp := kmsg.NewPtrSASLAuthenticateResponse()
	resp.SetVersion(version)
	if err := resp.ReadFrom(frame[at:]); err != nil || resp.ErrorCode != 0 {
		return false
	}
	return !strings.HasPrefix(mechanism, "SCRAM-") || bytes.HasPrefix(resp.SASLAuthBytes, []byte("v="))
}
