package proxy

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kversion"
)

// patience bounds every wait of the tests; nothing is expected to take it.
const patience = 20 * time.Second

const testListener = "PLAINTEXT"

// fixture is a proxy in front of one kfake broker, as node 1 of a cluster of three
// whose other nodes are only names.
type fixture struct {
	t        *testing.T
	srv      *Server
	addr     string
	broker   *kfake.Cluster
	upstream string
	cluster  *fakeCluster
	producer *fakeProducer
	log      *logBuffer
}

// noAuthorizer is for newFixture: the broker is known to have none.
func noAuthorizer(c *Config) { c.BrokerAuthorizes = func() bool { return false } }

// newFixture starts a proxy. configure may change the configuration first.
func newFixture(t *testing.T, configure func(*Config)) *fixture {
	t.Helper()
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.MaxVersions(kversion.V4_0_0()))
	if err != nil {
		t.Fatalf("start kfake: %v", err)
	}
	t.Cleanup(broker.Close)
	f := &fixture{t: t, broker: broker, upstream: broker.ListenAddrs()[0], log: &logBuffer{}}
	f.cluster = newFakeCluster(f.upstream)
	f.producer = newFakeProducer(t, f.upstream)
	t.Cleanup(f.producer.close)
	cfg := Config{
		Listeners: []Listener{{Name: testListener, Addr: "127.0.0.1:0"}},
		Upstream:  f.upstream,
		Topics:    Topics{AutoCreate: true, NumPartitions: 2},
		Logger:    hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: f.log}),
	}
	if configure != nil {
		configure(&cfg)
	}
	f.start(cfg)
	return f
}

func (f *fixture) start(cfg Config) {
	f.t.Helper()
	srv, err := New(cfg, f.cluster, f.producer)
	if err != nil {
		f.t.Fatalf("new: %v", err)
	}
	if err := srv.Listen(); err != nil {
		f.t.Fatalf("listen: %v", err)
	}
	f.srv, f.addr = srv, srv.Addrs()[0].String()
	f.cluster.setEndpoint(f.addr)
	served := make(chan error, 1)
	go func() { served <- srv.Serve() }()
	f.t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			f.t.Errorf("close: %v", err)
		}
		if err := <-served; !errors.Is(err, ErrServerClosed) {
			f.t.Errorf("serve returned %v, want ErrServerClosed", err)
		}
	})
}

// createTopic makes a topic in the catalog and on the broker.
func (f *fixture) createTopic(name string, partitions int32, config map[string]string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f.cluster.CreateTopic(ctx, TopicSpec{Name: name, Partitions: partitions, Config: config}); err != nil {
		f.t.Fatalf("create topic %s: %v", name, err)
	}
}

// logBuffer captures the log.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// lines returns the captured lines that contain all of the words.
func (l *logBuffer) lines(words ...string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
next:
	for line := range strings.SplitSeq(l.buf.String(), "\n") {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		if line != "" {
			found = append(found, line)
		}
	}
	return found
}

// eventually waits for a condition that another goroutine brings about and that
// no channel tells of.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for !cond() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// waitUpstream waits until n calls of all connections wait for the broker.
func (f *fixture) waitUpstream(n int) {
	f.t.Helper()
	eventually(f.t, "calls to wait for the broker", func() bool {
		waiting := 0
		for _, c := range f.srv.snapshot() {
			c.up.mu.Lock()
			l := c.up.current
			c.up.mu.Unlock()
			if l != nil {
				l.mu.Lock()
				waiting += len(l.pending)
				l.mu.Unlock()
			}
		}
		return waiting == n
	})
}
