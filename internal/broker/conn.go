package broker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// versions holds the version ranges a broker answered to ApiVersions, per API
// key. Immutable once made.
type versions map[int16]kmsg.ApiVersionsResponseApiKey

// pick returns the highest version of key in [lowest, highest] that the broker
// has.
func (v versions) pick(key kmsg.Key, lowest, highest int16) (int16, error) {
	have, ok := v[int16(key)]
	if !ok {
		return 0, fmt.Errorf("%w: %s", ErrUnsupported, key.Name())
	}
	use := min(highest, have.MaxVersion)
	if use < lowest || use < have.MinVersion {
		return 0, fmt.Errorf("%w: %s v%d-v%d offered, v%d-v%d needed", ErrUnsupported,
			key.Name(), have.MinVersion, have.MaxVersion, lowest, highest)
	}
	return use, nil
}

// conn is one TCP connection to the broker after the ApiVersions exchange. Its
// methods are for one goroutine at a time; close may be called from any.
type conn struct {
	nc       net.Conn
	br       *bufio.Reader
	format   *kmsg.RequestFormatter
	maxBytes int
	corr     int32
	buf      []byte

	versions versions
	offered  *kmsg.ApiVersionsResponse
}

// dial connects and learns the broker's versions within cfg.DialTimeout.
func dial(ctx context.Context, cfg *Config) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
	defer cancel()
	c, err := dialWith(ctx, cfg, 3)
	// A broker older than 2.4 answers v3 with a v0 UNSUPPORTED_VERSION; some
	// lookalikes close the connection instead.
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		c, err = dialWith(ctx, cfg, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %w", ErrUnreachable, cfg.BootstrapServer, err)
	}
	return c, nil
}

func dialWith(ctx context.Context, cfg *Config, version int16) (*conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", cfg.BootstrapServer)
	if err != nil {
		return nil, err
	}
	secured, err := secure(ctx, nc, cfg)
	if err != nil {
		nc.Close()
		return nil, err
	}
	c := &conn{
		nc:       secured,
		br:       bufio.NewReaderSize(secured, 32<<10),
		format:   kmsg.NewRequestFormatter(kmsg.FormatterClientID(cfg.ClientID)),
		maxBytes: cfg.MaxResponseBytes,
	}
	if err := c.handshake(ctx, version); err != nil {
		c.close()
		return nil, err
	}
	if err := c.authenticate(ctx, cfg); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *conn) handshake(ctx context.Context, version int16) error {
	resp, err := c.apiVersions(ctx, version)
	if err != nil {
		return err
	}
	if resp.ErrorCode == kerr.UnsupportedVersion.Code && version > 0 {
		if resp, err = c.apiVersions(ctx, 0); err != nil {
			return err
		}
	}
	if err := codeError(resp.ErrorCode, nil); err != nil {
		return fmt.Errorf("ask for API versions: %w", err)
	}
	c.offered = resp
	c.versions = make(versions, len(resp.ApiKeys))
	for _, k := range resp.ApiKeys {
		c.versions[k.ApiKey] = k
	}
	return nil
}

func (c *conn) apiVersions(ctx context.Context, version int16) (*kmsg.ApiVersionsResponse, error) {
	body, err := c.exchange(ctx, apiVersionsRequest(version))
	if err != nil {
		return nil, err
	}
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.Version = version
	// Error 35 comes in the v0 layout whatever version was asked (KIP-511).
	if len(body) >= 6 && body[4] == 0 && body[5] == byte(kerr.UnsupportedVersion.Code) {
		resp.Version = 0
	}
	return resp, decodeResponse(body, resp)
}

func apiVersionsRequest(version int16) *kmsg.ApiVersionsRequest {
	req := kmsg.NewPtrApiVersionsRequest()
	req.Version = version
	req.ClientSoftwareName = "lockstep"
	req.ClientSoftwareVersion = "1"
	return req
}

// call sends req, whose version is set, and waits for its answer. After an
// error the connection is of no further use.
func (c *conn) call(ctx context.Context, req kmsg.Request) (kmsg.Response, error) {
	body, err := c.exchange(ctx, req)
	if err != nil {
		return nil, err
	}
	resp := req.ResponseKind()
	if err := decodeResponse(body, resp); err != nil {
		return nil, err
	}
	return resp, nil
}

// exchange writes one request and reads one frame, both given up when ctx
// ends.
func (c *conn) exchange(ctx context.Context, req kmsg.Request) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline() // the zero time means none
	if err := c.nc.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	c.corr++
	c.buf = c.format.AppendRequest(c.buf[:0], req, c.corr)
	if _, err := c.nc.Write(c.buf); err != nil {
		return nil, ctxError(ctx, err)
	}
	body, err := readFrame(c.br, c.maxBytes)
	if err != nil {
		return nil, ctxError(ctx, err)
	}
	if got := correlation(body); got != c.corr {
		return nil, fmt.Errorf("%w: correlation id %d, want %d", ErrMalformed, got, c.corr)
	}
	return body, nil
}

// ctxError prefers the reason the context ended over the I/O error that this
// caused.
func ctxError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

func (c *conn) close() { _ = c.nc.Close() }
