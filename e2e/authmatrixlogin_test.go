//go:build e2e

package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// loginConn is a connection to one side as one user (SASL PLAIN, whose password
// is its name). It is made anew when the other end has closed it. One goroutine
// uses it at a time.
type loginConn struct {
	side *side
	user string
	how  login
	nc   net.Conn
}

func (c *loginConn) close() {
	if c.nc != nil {
		c.nc.Close()
		c.nc = nil
	}
}

// send sends a request and reads the answer. A request that is not to be answered
// is followed by one that is.
func (c *loginConn) send(ctx context.Context, x *exchange) (diffOutcome, error) {
	if c.nc == nil {
		if err := c.dial(ctx); err != nil {
			c.close()
			return diffOutcome{}, err
		}
	}
	out, err := c.exchange(x)
	if err != nil || out.state != "answered" {
		c.close() // the next one begins anew
	}
	return out, err
}

func (c *loginConn) dial(ctx context.Context) error {
	nc, err := (&net.Dialer{Timeout: recordedWithin}).DialContext(ctx, "tcp", c.side.addr)
	if err != nil {
		return err
	}
	c.nc = nc
	if c.how == unknownClient {
		return nil
	}
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Mechanism = "PLAIN"
	out, err := c.exchange(&exchange{name: "login", key: handshake.Key(), version: 1, build: func(*side) kmsg.Request { return handshake }})
	if err != nil {
		return err
	}
	if resp, ok := out.resp.(*kmsg.SASLHandshakeResponse); !ok || resp.ErrorCode != 0 {
		return fmt.Errorf("sasl handshake: %s", out.state)
	}
	if c.how == halfLoggedIn {
		return nil
	}
	out, err = c.exchange(&exchange{name: "login", key: int16(kmsg.SASLAuthenticate), version: 1, build: func(*side) kmsg.Request { return plainLogin(c.user, c.user) }})
	if err != nil {
		return err
	}
	resp, ok := out.resp.(*kmsg.SASLAuthenticateResponse)
	if !ok {
		return fmt.Errorf("log in as %s: %s", c.user, out.state)
	}
	return kerr.ErrorForCode(resp.ErrorCode)
}

func plainLogin(user, password string) kmsg.Request {
	req := kmsg.NewPtrSASLAuthenticateRequest()
	req.SASLAuthBytes = []byte("\x00" + user + "\x00" + password)
	return req
}

func (c *loginConn) exchange(x *exchange) (diffOutcome, error) {
	const correlation, probe = 7, 8
	if err := c.nc.SetDeadline(time.Now().Add(recordedWithin)); err != nil {
		return diffOutcome{}, err
	}
	raw, req := x.bytes(c.side, correlation)
	if x.ackless {
		raw = append(raw, kmsg.NewRequestFormatter(kmsg.FormatterClientID("e2e")).AppendRequest(nil, apiVersionsRequest(0), probe)...)
	}
	var frame []byte
	_, err := c.nc.Write(raw)
	if err == nil {
		frame, err = readAnswer(c.nc)
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return diffOutcome{state: "closed"}, nil
	case err != nil:
		return diffOutcome{}, err
	}
	if got := binary.BigEndian.Uint32(frame); x.ackless && got == probe {
		return diffOutcome{state: "unanswered"}, nil
	} else if got != correlation {
		return diffOutcome{}, fmt.Errorf("correlation id %d, want %d", got, correlation)
	}
	resp, err := decodeResponse(req, frame[4:])
	return diffOutcome{"answered", resp}, err
}
