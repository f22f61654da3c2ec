// Package broker talks to the one broker this node stands in front of: raw
// appends of committed batches, reads of its log, administration of its
// topics, and its health.
//
// A broker's advertised address may be anything (often it is the proxy's own),
// so every connection goes to Config.BootstrapServer and nowhere else. The
// broker is taken to be a cluster of one node. It is reached
// in plaintext and as nobody unless Config has TLS and SASL.
//
// Run against Apache Kafka 4.2.0 (KRaft, one node), for those who build on it:
//
//   - A producer id without state may start with any sequence, up to and across
//     the wrap at 2^31. A gap is refused with code 45, a lower epoch with 47, a
//     higher epoch needs sequence 0.
//   - A repeat of one of the last five batches is answered with its first
//     offset. After a restart of the broker, clean or not, only of the last
//     one: older repeats get 45. So read the log end before sending again.
//   - After a refusal, the requests pipelined behind it still run; only the
//     sequence stops them.
//   - A Produce on a connection that was closed while the broker stood still
//     (SIGSTOP) was executed about 80 ms after it went on. A log end read right
//     after reconnecting may be older than that append.
//   - A new topic shows leaders in Metadata before it can be appended to:
//     Produce was answered 6, for seconds with 100 partitions on a busy
//     machine. Admin waits for ListOffsets, which fails in the same way.
//   - max.message.bytes=2147483647 is accepted; a 16 MiB batch passes.
//   - Fetch with a small limit returns the first batch whole, whatever its
//     size, and cuts off the next.
package broker

import (
	"crypto/tls"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/twmb/franz-go/pkg/sasl"
)

// Config says how to reach the local broker. The zero value of every field
// but BootstrapServer stands for its default.
type Config struct {
	// BootstrapServer is the broker's host:port. It is resolved at every dial.
	BootstrapServer string
	// TLS, if not nil, is spoken with the broker. An empty ServerName stands for
	// the host of BootstrapServer.
	TLS *tls.Config
	// SASL, if not nil, is how every connection authenticates.
	SASL sasl.Mechanism
	// ClientID is sent with every request. Default "lockstep-applier".
	ClientID string
	// DialTimeout bounds connecting, including the ApiVersions exchange.
	// Default 5 s.
	DialTimeout time.Duration
	// RequestTimeout is how long a request may stay unanswered before its
	// connection is given up. For an append the outcome is then unknown.
	// Default 30 s.
	RequestTimeout time.Duration
	// KeepAlive is how long an append connection may be idle before a small
	// request is sent over it; brokers close idle connections
	// (connections.max.idle.ms, 10 min). Default 60 s.
	KeepAlive time.Duration
	// MaxInFlightRequests bounds the unanswered Produce requests of one
	// session. Default 5.
	MaxInFlightRequests int
	// MaxRequestBytes is the size aimed at when batches of several partitions
	// are combined into one Produce request. One larger batch travels alone.
	// Default 1 MiB.
	MaxRequestBytes int
	// MaxResponseBytes is the largest response read from the broker; a larger
	// one ends the connection. It bounds the largest batch that can be read.
	// Default 128 MiB.
	MaxResponseBytes int
	// Connections is the number of append connections that sessions are
	// handed out from in turn. Default 1.
	Connections int
	// ProbeInterval and ProbeTimeout drive Health. Defaults 1 s and 2 s.
	ProbeInterval time.Duration
	ProbeTimeout  time.Duration
	// Logger receives the events nobody else sees. Default: none.
	Logger hclog.Logger
}

// The defaults of Config.
const (
	DefaultClientID         = "lockstep-applier"
	DefaultDialTimeout      = 5 * time.Second
	DefaultRequestTimeout   = 30 * time.Second
	DefaultKeepAlive        = 60 * time.Second
	DefaultInFlightRequests = 5
	DefaultMaxRequestBytes  = 1 << 20
	DefaultMaxResponseBytes = 128 << 20
	DefaultProbeInterval    = time.Second
	DefaultProbeTimeout     = 2 * time.Second
)

func (c Config) withDefaults() Config {
	if c.ClientID == "" {
		c.ClientID = DefaultClientID
	}
	defaultDuration(&c.DialTimeout, DefaultDialTimeout)
	defaultDuration(&c.RequestTimeout, DefaultRequestTimeout)
	defaultDuration(&c.KeepAlive, DefaultKeepAlive)
	defaultDuration(&c.ProbeInterval, DefaultProbeInterval)
	defaultDuration(&c.ProbeTimeout, DefaultProbeTimeout)
	defaultInt(&c.MaxInFlightRequests, DefaultInFlightRequests)
	defaultInt(&c.MaxRequestBytes, DefaultMaxRequestBytes)
	defaultInt(&c.MaxResponseBytes, DefaultMaxResponseBytes)
	defaultInt(&c.Connections, 1)
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	return c
}

func defaultDuration(d *time.Duration, def time.Duration) {
	if *d <= 0 {
		*d = def
	}
}

func defaultInt(n *int, def int) {
	if *n <= 0 {
		*n = def
	}
}
