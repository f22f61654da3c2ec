//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
)

// saslDial is a bare connection on which the client has authenticated, once, and
// for how long the broker said that this is good: in version 0 it does not.
func saslDial(ctx context.Context, addr string, secure *tls.Config, m sasl.Mechanism, version int16) (net.Conn, time.Duration, error) {
	nc, err := (&tls.Dialer{Config: secure}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, 0, err
	}
	lifetime, err := saslOn(ctx, nc, m, version)
	if err != nil {
		nc.Close()
		return nil, 0, err
	}
	return nc, lifetime, nil
}

func saslOn(ctx context.Context, nc net.Conn, m sasl.Mechanism, version int16) (time.Duration, error) {
	if err := nc.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return 0, err
	}
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.SetVersion(1)
	handshake.Mechanism = m.Name()
	resp, err := roundTripOn(nc, handshake)
	if err != nil {
		return 0, fmt.Errorf("SASL handshake: %w", err)
	}
	if err := kerr.ErrorForCode(resp.(*kmsg.SASLHandshakeResponse).ErrorCode); err != nil {
		return 0, fmt.Errorf("SASL handshake: %w", err)
	}
	steps, message, err := m.Authenticate(ctx, "")
	if err != nil {
		return 0, err
	}
	for {
		req := kmsg.NewPtrSASLAuthenticateRequest()
		req.SetVersion(version)
		req.SASLAuthBytes = message
		resp, err := roundTripOn(nc, req)
		if err != nil {
			return 0, fmt.Errorf("authenticate: %w", err)
		}
		answer := resp.(*kmsg.SASLAuthenticateResponse)
		if err := kerr.ErrorForCode(answer.ErrorCode); err != nil {
			return 0, fmt.Errorf("authenticate: %w", err)
		}
		done, next, err := steps.Challenge(answer.SASLAuthBytes)
		if err != nil {
			return 0, fmt.Errorf("authenticate: %w", err)
		}
		if done {
			return time.Duration(answer.SessionLifetimeMillis) * time.Millisecond, nil
		}
		message = next
	}
}

// goOn sends one request after the other on a connection until it is closed, and
// returns how long after the call the last one was sent that was answered.
func goOn(nc net.Conn, limit time.Duration, req func() kmsg.Request) (last time.Duration, err error) {
	begin := time.Now()
	for {
		sent := time.Since(begin)
		if sent > limit {
			return last, fmt.Errorf("still served after %s", limit)
		}
		if err := nc.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return last, err
		}
		if _, err := roundTripOn(nc, req()); err != nil {
			var slow net.Error
			if errors.As(err, &slow) && slow.Timeout() {
				return last, err
			}
			return last, nil // closed
		}
		last = sent
	}
}

// stubborn goes on without authenticating again: with nothing but Produce at a
// proxy, which writes with rights of its own, and directly at a broker to see what
// Kafka does. Both must cut it off when the session is over, not before.
func (s *scramCluster) stubborn(ctx context.Context) {
	s.t.Helper()
	produce := func() kmsg.Request {
		return rawProduceRequest("small", 0, batch{producerID: -1, epoch: -1, sequence: -1, values: []string{"stubborn"}}.encode(), 5*time.Second)
	}
	metadata := func() kmsg.Request {
		req := kmsg.NewPtrMetadataRequest()
		req.SetVersion(9)
		return req
	}
	leader := s.leader(ctx, "small")
	var all sync.WaitGroup
	for _, who := range []struct {
		name, addr string
		version    int16
		req        func() kmsg.Request
	}{
		{"a broker", loopback(s.clients[leader]), 2, metadata},
		{"a proxy", s.c.node(leader).kafkaAddr(), 2, produce},
		{"a proxy, which was not asked how long", s.c.node(leader).kafkaAddr(), 0, produce},
	} {
		all.Go(func() {
			nc, lifetime, err := saslDial(ctx, who.addr, s.tls(), s.sha512("admin", "admin-512"), who.version)
			if err != nil {
				s.t.Error(err)
				return
			}
			defer nc.Close()
			if told := lifetime > 0; told != (who.version > 0) || lifetime > scramSession {
				s.t.Errorf("%s grants a session of %s, the broker's setting is %s", who.name, lifetime, scramSession)
			}
			last, err := goOn(nc, 3*scramSession, who.req)
			if err != nil || last > scramSession || last < scramSession/2 {
				s.t.Errorf("%s served a client until %s after it had authenticated, sessions are %s: %v", who.name, last, scramSession, err)
			}
			s.t.Logf("%s: session %s, last request served after %s", who.name, lifetime, last.Round(time.Millisecond))
		})
	}
	all.Wait()
}
