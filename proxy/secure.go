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

// maxSession is the longest session that is told from one without an end.
const maxSession = 10 * 365 * 24 * time.Hour

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

// renewsSession reports whether a request may come when the session has ended. A
// broker takes nothing else then (SocketServer.processCompletedReceives).
func renewsSession(key int16) bool {
	return kmsg.Key(key) == kmsg.SASLHandshake || kmsg.Key(key) == kmsg.SASLAuthenticate
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
		if lifetime, ok := acceptedSASL(resp, r.h.Version, mechanism); ok {
			r.c.beginSession(lifetime)
		}
		r.relay(resp, held)
	})
	return nil
}

// beginSession lets the client in, for as long as the broker said; 0 stands for
// ever. An end that was there stays until the broker names another: mechanisms of
// several steps say nothing of it before the last.
func (c *conn) beginSession(lifetime time.Duration) {
	c.needsSASL.Store(false)
	if lifetime > 0 {
		end := time.Now().Add(lifetime)
		c.sessionEnd.Store(&end)
	}
}

// sessionExpired reports whether the client had to authenticate again by now
// (KIP-368). The broker would close its connection at the next request, but hears
// nothing of those that this node answers by itself.
func (c *conn) sessionExpired() bool {
	end := c.sessionEnd.Load()
	return end != nil && time.Now().After(*end)
}

// acceptedSASL reports whether an answer to SaslAuthenticate ends the exchange
// well, and how long the session is then (from version 1 on). SCRAM has two of them, and only the last has the server's signature (RFC
// 5802, section 5.1). PLAIN and OAUTHBEARER have one. Of other mechanisms the
// first yes counts. From version 2 the header ends with its tags, of which
// brokers send none.
func acceptedSASL(frame []byte, version int16, mechanism string) (lifetime time.Duration, ok bool) {
	at := 4
	if version >= 2 {
		at = 5
	}
	if len(frame) < at || version >= 2 && frame[4] != 0 {
		return 0, false
	}
	resp := kmsg.NewPtrSASLAuthenticateResponse()
	resp.SetVersion(version)
	if err := resp.ReadFrom(frame[at:]); err != nil || resp.ErrorCode != 0 {
		return 0, false
	}
	lifetime = time.Duration(min(resp.SessionLifetimeMillis, maxSession.Milliseconds())) * time.Millisecond
	return lifetime, !strings.HasPrefix(mechanism, "SCRAM-") || bytes.HasPrefix(resp.SASLAuthBytes, []byte("v="))
}
