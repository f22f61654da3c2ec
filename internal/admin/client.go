package admin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"lockstep/internal/cluster"
)

const (
	askTimeout = 10 * time.Second
	// maxAnswer bounds a status or a list of partitions: about 100,000
	// partitions.
	maxAnswer = 32 << 20
	// maxLine bounds one line of a digest, which is some 200 bytes.
	maxLine = 4 << 10
	// stallTimeout ends a digest of which nothing more comes: longer than the
	// node waits for its broker.
	stallTimeout = 45 * time.Second
)

// ErrStalled is returned when a node stops sending in the middle of a digest.
var ErrStalled = errors.New("the node sends nothing more")

// Client asks nodes' admin ports. Safe for use by many goroutines.
type Client struct {
	// Token goes with every request that changes something. Set it before the
	// first one.
	Token string

	http *http.Client
	tls  *tls.Config // nil: plain HTTP where an address does not say https
}

// NewClient returns a client without connections. It speaks plain HTTP to
// addresses that do not begin with https://.
func NewClient() *Client {
	t := &http.Transport{DialContext: (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
		ResponseHeaderTimeout: stallTimeout, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute}
	return &Client{http: &http.Client{Transport: t}}
}

// NewTLSClient is NewClient for nodes whose admin ports have TLS: it speaks it to
// all addresses but those that begin with http://.
func NewTLSClient(t *tls.Config) *Client {
	c := NewClient()
	c.tls = t
	c.http.Transport.(*http.Transport).TLSClientConfig = t
	return c
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns what a node says of the cluster, decoded and as it was sent.
func (c *Client) Status(ctx context.Context, addr string) (st cluster.Status, raw []byte, err error) {
	raw, err = c.ask(ctx, addr, "/status", nil)
	if err == nil {
		err = json.Unmarshal(raw, &st)
	}
	if err != nil {
		return st, nil, fmt.Errorf("ask %s for its status: %w", addr, err)
	}
	return st, raw, nil
}

// Reach returns whether the other nodes reach the one that is asked.
func (c *Client) Reach(ctx context.Context, addr string) (map[int32]cluster.PeerReach, error) {
	out := make(map[int32]cluster.PeerReach)
	raw, err := c.ask(ctx, addr, "/reach", nil)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s whether the others reach it: %w", addr, err)
	}
	return out, nil
}

// Partitions returns what a node's state machines hold.
func (c *Client) Partitions(ctx context.Context, addr string) ([]PartitionInfo, error) {
	var out []PartitionInfo
	raw, err := c.ask(ctx, addr, "/partitions", nil)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s for its partitions: %w", addr, err)
	}
	return out, nil
}

// LogEnds returns where a partition's log on the node's broker starts and ends.
func (c *Client) LogEnds(ctx context.Context, addr, topic string, partition int32) (LogDigest, error) {
	var out LogDigest
	q := digestQuery(topic, partition)
	q.Set("ends", "true")
	raw, err := c.ask(ctx, addr, "/digest", q)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		return out, fmt.Errorf("ask %s for the ends of %s/%d: %w", addr, topic, partition, err)
	}
	return out, nil
}

// Rebuild orders that a topic is made anew on the node's broker.
func (c *Client) Rebuild(ctx context.Context, addr, topic string, force bool) error {
	q := url.Values{"topic": {topic}, "force": {strconv.FormatBool(force)}}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, addr, "/rebuild", q)
	if err != nil {
		return fmt.Errorf("order a rebuild from %s: %w", addr, err)
	}
	return resp.Body.Close()
}

// Leave has every broker told what consumer groups have committed.
func (c *Client) Leave(ctx context.Context, addr string) (map[int32]cluster.LeaveReport, error) {
	out := make(map[int32]cluster.LeaveReport)
	resp, err := c.do(ctx, http.MethodPost, addr, "/leave", nil)
	if err == nil {
		defer resp.Body.Close()
		err = json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&out)
	}
	if err != nil {
		return nil, fmt.Errorf("have %s tell the brokers what was committed: %w", addr, err)
	}
	return out, nil
}

func digestQuery(topic string, partition int32) url.Values {
	return url.Values{"topic": {topic}, "partition": {strconv.Itoa(int(partition))}}
}

func (c *Client) ask(ctx context.Context, addr, path string, q url.Values) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := c.get(ctx, addr, path, q)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(raw) > maxAnswer {
		err = fmt.Errorf("the answer is above %d bytes", maxAnswer)
	}
	return raw, err
}

// get returns an answer with status 200. The caller closes its body.
func (c *Client) get(ctx context.Context, addr, path string, q url.Values) (*http.Response, error) {
	return c.do(ctx, http.MethodGet, addr, path, q)
}

// URL is where the client asks the node at an address.
func (c *Client) URL(addr string) url.URL {
	if scheme, host, ok := strings.Cut(addr, "://"); ok {
		return url.URL{Scheme: scheme, Host: host}
	}
	if c.tls != nil {
		return url.URL{Scheme: "https", Host: addr}
	}
	return url.URL{Scheme: "http", Host: addr}
}

func (c *Client) do(ctx context.Context, method, addr, path string, q url.Values) (*http.Response, error) {
	u := c.URL(addr)
	u.Path, u.RawQuery = path, q.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if c.Token != "" && method != http.MethodGet {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // the caller names the address
		}
		if shows(c.tls, err) {
			return nil, fmt.Errorf("%w (%w)", ErrStrangeClient, err)
		}
		return nil, causeOf(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxLine)) // what came is told
	var body struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(text, &body) == nil && body.Error != "" {
		return nil, errors.New(body.Error)
	}
	if u.Scheme == "http" && resp.StatusCode == http.StatusBadRequest && bytes.Contains(text, []byte("HTTPS server")) { // net/http says so
		return nil, ErrWantsTLS
	}
	return nil, fmt.Errorf("HTTP %s: %s", resp.Status, strings.TrimSpace(string(text)))
}

// Digest is a partition's log on a node's broker, read batch by batch. It
// belongs to one goroutine.
type Digest struct {
	LogDigest
	cancel context.CancelCauseFunc
	ctx    context.Context
	body   io.Closer
	lines  *bufio.Scanner
	stall  *time.Timer
}

// Digest opens the digest of a partition. It must be closed.
func (c *Client) Digest(ctx context.Context, addr, topic string, partition int32) (*Digest, error) {
	return c.openDigest(ctx, addr, topic, partition, false)
}

func (c *Client) openDigest(ctx context.Context, addr, topic string, partition int32, records bool) (*Digest, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	query := digestQuery(topic, partition)
	if records {
		query.Set("records", "true")
	}
	resp, err := c.get(ctx, addr, "/digest", query)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("ask %s for the log of %s/%d: %w", addr, topic, partition, err)
	}
	d := &Digest{ctx: ctx, cancel: cancel, body: resp.Body, lines: bufio.NewScanner(resp.Body),
		stall: time.AfterFunc(stallTimeout, func() { cancel(ErrStalled) })}
	d.lines.Buffer(make([]byte, 0, maxLine), maxLine)
	if err := d.line(&d.LogDigest); err != nil {
		d.Close()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read the log of %s/%d from %s: %w", topic, partition, addr, err)
	}
	return d, nil
}

// Next returns the next batch, io.EOF after the last.
func (d *Digest) Next() (BatchDigest, error) {
	var l digestLine
	if err := d.line(&l); err != nil {
		return BatchDigest{}, err
	}
	if l.Error != "" {
		return BatchDigest{}, errors.New(l.Error)
	}
	return l.BatchDigest, nil
}

// digestLine is a batch, or why no more follow.
type digestLine struct {
	BatchDigest
	Error string `json:"error,omitempty"`
}

func (d *Digest) line(v any) error {
	d.stall.Reset(stallTimeout)
	ok := d.lines.Scan()
	d.stall.Stop()
	if !ok {
		if cause := context.Cause(d.ctx); cause != nil {
			return cause
		}
		if err := d.lines.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	return json.Unmarshal(d.lines.Bytes(), v)
}

// Close ends the request.
func (d *Digest) Close() {
	d.stall.Stop()
	d.cancel(nil)
	_ = d.body.Close()
}
