package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Config is everything a Server is made of besides its two collaborators.
// Zero limits become the defaults named below.
type Config struct {
	Listeners []Listener

	// Upstream is the host:port at which the co-located broker is dialled,
	// always: the address the broker advertises is ignored, for a client of
	// the broker would be sent there and past us.
	Upstream string

	// UpstreamTLS, if not nil, is spoken with the broker. Its ServerName must be
	// set.
	UpstreamTLS *tls.Config

	// BrokerVersions returns the versions that every member's broker offers.
	// What is advertised is our table intersected with it. It is called at
	// every ApiVersions request, so the answer may change while the server
	// runs. Nil, or an empty answer (no broker is known yet), stands for our
	// whole table.
	BrokerVersions func() []kmsg.ApiVersionsResponseApiKey

	// BrokerAuthorizes says whether the broker may have an authorizer, and
	// must be asked what a client may do before it is done with the node's
	// own rights. Nil: it always is asked. Any goroutine may call it.
	BrokerAuthorizes func() bool

	// BrokerJudges says whether the broker is to be taken for one that tells clients
	// apart: while it is silent they are then shown nothing that it might not show,
	// and else the way to the other nodes. Nil: it is. Any goroutine may call it.
	BrokerJudges func() bool

	// BrokerAuthenticates says that the broker's listener at Upstream may be one
	// on which clients must authenticate: until the broker has answered a client
	// it is told nothing but ApiVersions and what belongs to SASL.
	BrokerAuthenticates bool

	// LinearizableReads makes every answer that says where a log ends wait
	// until a majority confirmed, after the request came, that this node
	// leads. Otherwise a leader takes its own word for as long as its lease.
	LinearizableReads bool

	Limits Limits
	Topics Topics
	Logger hclog.Logger
}

// Listener is one Kafka port. Name is the listener's name (Kafka: the part
// before "://" in listeners); it selects the endpoints in Node.Listeners.
type Listener struct {
	Name string
	Addr string // host:port to bind

	// TLS, if not nil, is spoken on the port. It may choose another
	// configuration for each connection (GetConfigForClient).
	TLS *tls.Config

	// SASL makes clients authenticate before anything else, as Kafka's listeners
	// of the protocols SASL_PLAINTEXT and SASL_SSL do. The broker at Upstream
	// judges them.
	SASL bool
}

// Limits bound what clients can make the node hold or wait for.
type Limits struct {
	MaxFrameBytes              int           // largest request (Kafka: socket.request.max.bytes)
	MaxResponseBytes           int           // largest response taken from the broker, and all of them together; Fetch is kept far below
	MaxInflightBytesPerConn    int64         // request bytes held for one connection
	MaxInflightBytes           int64         // request bytes held for all connections
	MaxRequestsInFlightPerConn int           // pipelined requests of one connection
	MaxConnections             int           // more are closed at once
	IdleTimeout                time.Duration // silence between requests (Kafka: connections.max.idle.ms)
	PartialRequestTimeout      time.Duration // from a request's first byte to its last, beyond its bytes at minRequestRate
	WriteTimeout               time.Duration // without progress while writing a response
	UpstreamTimeout            time.Duration // for the broker to dial and to answer, beyond any wait the client asked for
	RightsTimeout              time.Duration // for the broker to say what the client may do, with nothing before it: Metadata waits for that
}

// Defaults of Limits.
const (
	defaultMaxFrameBytes              = 8 << 20
	defaultMaxResponseBytes           = 128 << 20
	defaultMaxInflightBytesPerConn    = 16 << 20
	defaultMaxInflightBytes           = 256 << 20
	defaultMaxRequestsInFlightPerConn = 64
	defaultMaxConnections             = 10_000
	defaultIdleTimeout                = 10 * time.Minute
	defaultPartialRequestTimeout      = 10 * time.Second
	defaultWriteTimeout               = 30 * time.Second
	defaultUpstreamTimeout            = 30 * time.Second
	defaultRightsTimeout              = 5 * time.Second
)

// minRequestRate, in bytes per second, is the slowest upload that is not taken
// for an attempt to hold memory.
const minRequestRate = 128 << 10

// A Fetch may return as many bytes as its share of the response memory, within
// these bounds: readers on slow links keep what they were sent in our memory,
// and must not keep it from the others.
const (
	minFetchBytes = 128 << 10
	maxFetchBytes = 8 << 20
)

// hardMaxFrameBytes is the largest frame any configuration may allow: a larger
// batch could not become one Raft entry.
const hardMaxFrameBytes = 16<<20 + 64<<10

// Topics are the cluster's defaults for topics (Kafka's words: the broker
// settings auto.create.topics.enable, num.partitions, message.max.bytes).
type Topics struct {
	AutoCreate      bool
	NumPartitions   int32
	MaxMessageBytes int
}

// defaultMaxMessageBytes is Kafka's message.max.bytes: 1 MiB and the 12 bytes
// of offset and length (LogConfig, ServerLogConfigs).
const defaultMaxMessageBytes = 1<<20 + 12

var (
	// ErrServerClosed is returned by Listen and Serve after Shutdown or Close.
	ErrServerClosed = errors.New("proxy is closed")
	// ErrNotListening is returned by Serve before Listen.
	ErrNotListening = errors.New("proxy is not listening: call Listen first")

	errConfigListeners = errors.New("no listener: at least one is needed")
	errConfigUpstream  = errors.New("no upstream: the broker's host:port is needed")
)

// withDefaults returns the limits with every zero replaced.
func (l Limits) withDefaults() Limits {
	setDefault(&l.MaxFrameBytes, defaultMaxFrameBytes)
	setDefault(&l.MaxResponseBytes, defaultMaxResponseBytes)
	setDefault(&l.MaxInflightBytesPerConn, defaultMaxInflightBytesPerConn)
	setDefault(&l.MaxInflightBytes, defaultMaxInflightBytes)
	setDefault(&l.MaxRequestsInFlightPerConn, defaultMaxRequestsInFlightPerConn)
	setDefault(&l.MaxConnections, defaultMaxConnections)
	setDefault(&l.IdleTimeout, defaultIdleTimeout)
	setDefault(&l.PartialRequestTimeout, defaultPartialRequestTimeout)
	setDefault(&l.WriteTimeout, defaultWriteTimeout)
	setDefault(&l.UpstreamTimeout, defaultUpstreamTimeout)
	setDefault(&l.RightsTimeout, defaultRightsTimeout)
	return l
}

func setDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// complete fills the defaults in and refuses what cannot work.
func (c *Config) complete() error {
	if len(c.Listeners) == 0 {
		return errConfigListeners
	}
	if c.Upstream == "" {
		return errConfigUpstream
	}
	c.Limits = c.Limits.withDefaults()
	if c.Limits.MaxFrameBytes < 0 || c.Limits.MaxFrameBytes > hardMaxFrameBytes {
		return fmt.Errorf("max frame bytes %d: must be between 1 and %d", c.Limits.MaxFrameBytes, hardMaxFrameBytes)
	}
	if frame := int64(c.Limits.MaxFrameBytes); c.Limits.MaxInflightBytesPerConn < frame || c.Limits.MaxInflightBytes < frame {
		return fmt.Errorf("in-flight limits %d per connection and %d in all: each must hold one frame of %d bytes",
			c.Limits.MaxInflightBytesPerConn, c.Limits.MaxInflightBytes, frame)
	}
	if c.Topics.NumPartitions <= 0 {
		c.Topics.NumPartitions = 1
	}
	if c.Topics.MaxMessageBytes <= 0 {
		c.Topics.MaxMessageBytes = defaultMaxMessageBytes
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	return nil
}
