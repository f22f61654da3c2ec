package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ErrAuthentication is returned, with ErrUnreachable, when the broker does not
// let the node in. The message never holds the password.
var ErrAuthentication = errors.New("the broker refuses the user of broker.sasl")

// secure makes the TLS handshake, where Config has one.
func secure(ctx context.Context, nc net.Conn, cfg *Config) (net.Conn, error) {
	if cfg.TLS == nil {
		return nc, nil
	}
	t := cfg.TLS.Clone()
	if t.ServerName == "" {
		host, _, err := net.SplitHostPort(cfg.BootstrapServer)
		if err != nil {
			return nil, err
		}
		t.ServerName = host
	}
	secured := tls.Client(nc, t)
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("tls handshake, check broker.ssl and broker.security_protocol: %w", err)
	}
	return secured, nil
}

// authenticate says who we are (KIP-43, KIP-152). A broker that ends sessions
// (connections.max.reauth.ms, KIP-368) closes the connection later, which is
// dealt with like any lost connection.
func (c *conn) authenticate(ctx context.Context, cfg *Config) error {
	if cfg.SASL == nil {
		return nil
	}
	if _, err := c.versions.pick(kmsg.SASLHandshake, 1, 1); err != nil {
		return err
	}
	version, err := c.versions.pick(kmsg.SASLAuthenticate, 0, 2)
	if err != nil {
		return err
	}
	hello := kmsg.NewPtrSASLHandshakeRequest()
	hello.Version, hello.Mechanism = 1, cfg.SASL.Name()
	got, err := c.call(ctx, hello)
	if err != nil {
		return err
	}
	if resp := got.(*kmsg.SASLHandshakeResponse); resp.ErrorCode != 0 {
		return fmt.Errorf("%w: mechanism %s: %w; the broker has %v", ErrAuthentication, hello.Mechanism,
			codeError(resp.ErrorCode, nil), resp.SupportedMechanisms)
	}
	session, next, err := cfg.SASL.Authenticate(ctx, cfg.BootstrapServer)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAuthentication, err)
	}
	for done := false; !done; {
		req := kmsg.NewPtrSASLAuthenticateRequest()
		req.Version, req.SASLAuthBytes = version, next
		if got, err = c.call(ctx, req); err != nil {
			// Some brokers close the connection in place of an answer. That it
			// ended is no reason to try an older version, so io.EOF is not wrapped.
			return fmt.Errorf("%w, or was cut off while it asked: check username and password: %s", ErrAuthentication, err.Error())
		}
		resp := got.(*kmsg.SASLAuthenticateResponse)
		switch {
		case resp.ErrorCode == kerr.SaslAuthenticationFailed.Code:
			return fmt.Errorf("%w with %s: check username and password", ErrAuthentication, hello.Mechanism)
		case resp.ErrorCode != 0:
			return fmt.Errorf("%w: %w", ErrAuthentication, codeError(resp.ErrorCode, nil))
		}
		if done, next, err = session.Challenge(resp.SASLAuthBytes); err != nil {
			return fmt.Errorf("%w: %w", ErrAuthentication, err)
		}
	}
	return nil
}
