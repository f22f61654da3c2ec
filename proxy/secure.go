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
// nothing, and neither does what this node answers by itself. A client of version
// 0 is not told how long its session is; it ends all the same, so the broker is
// asked in version 1.
func handleSASLAuthenticate(r *request) error {
	req, err := parse[*kmsg.SASLAuthenticateRequest](r)
	if err != nil {
		return err
	}
	mechanism := r.c.mechanism
	if r.h.Version == 0 && r.c.srv.offers(r.h.Key, 1) {
		req.SetVersion(1)
	}
	askAs(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(resp *kmsg.SASLAuthenticateResponse, held *lease, err error) {
		defer held.release()
		if err != nil {
			r.abandon(r.c.srv.unanswered(r, err))
			return
		}
		if acceptedSASL(resp, mechanism) {
			r.c.beginSession(time.Duration(min(resp.SessionLifetimeMillis, maxSession.Milliseconds())) * time.Millisecond)
		}
		r.reply(resp)
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
// well. SCRAM has two of them, and only the last has the server's signature (RFC
// 5802, section 5.1). PLAIN and OAUTHBEARER have one. Of other mechanisms the
// first yes counts.
func acceptedSASL(resp *kmsg.SASLAuthenticateResponse, mechanism string) bool {
	return resp.ErrorCode == 0 && (!strings.HasPrefix(mechanism, "SCRAM-") || bytes.HasPrefix(resp.SASLAuthBytes, []byte("v=")))
}
