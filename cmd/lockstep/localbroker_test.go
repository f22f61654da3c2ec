package main

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/internal/broker"
)

const anyPort = "127.0.0.1:0"

// greeted is a localBroker in front of kfake.
type greeted struct {
	*localBroker
	t *testing.T
}

func greet(t *testing.T, addr string) *greeted {
	t.Helper()
	b := newLocalBroker(broker.Config{BootstrapServer: addr, Logger: hclog.NewNullLogger()})
	if err := b.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return &greeted{b, t}
}

// await waits for what the watcher brings about, and no channel tells of.
func (g *greeted) await(what string, cond func() bool) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			g.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// gated is a listener that takes nobody before it is open.
type gated struct {
	net.Listener
	open chan struct{}
}

// Accept implements net.Listener.
func (g gated) Accept() (net.Conn, error) {
	<-g.open
	return g.Listener.Accept()
}

// startKfake starts a broker that has the test's controls, and serves then.
func startKfake(t *testing.T, addr string, control func(*kfake.Cluster)) *kfake.Cluster {
	t.Helper()
	open := make(chan struct{})
	defer close(open)
	k, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.ListenFn(func(network, _ string) (net.Listener, error) {
		ln, err := net.Listen(network, addr)
		return gated{ln, open}, err
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	control(k)
	return k
}

// says makes kfake answer DescribeConfigs with a code or an authorizer.
func says(k *kfake.Cluster, answer func() (code int16, authorizer string, answered bool)) {
	k.ControlKey(int16(kmsg.DescribeConfigs), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		code, authorizer, answered := answer()
		if !answered {
			return nil, nil, false
		}
		resp := kreq.ResponseKind().(*kmsg.DescribeConfigsResponse)
		for _, asked := range kreq.(*kmsg.DescribeConfigsRequest).Resources {
			r := kmsg.NewDescribeConfigsResponseResource()
			r.ErrorCode, r.ResourceType, r.ResourceName = code, asked.ResourceType, asked.ResourceName
			if authorizer != "" {
				c := kmsg.NewDescribeConfigsResponseResourceConfig()
				c.Name, c.Value = "authorizer.class.name", &authorizer
				r.Configs = append(r.Configs, c)
			}
			resp.Resources = append(resp.Resources, r)
		}
		return resp, nil, true
	})
}

// A broker that answers before it knows itself is asked again, though its health
// does not change; until then it is asked about clients, and not taken for one that
// is known to tell them apart.
func TestBrokerThatDoesNotKnowItselfYet(t *testing.T) {
	for name, before := range map[string]func(k *kfake.Cluster, asked func(), known *atomic.Bool){
		"Metadata without brokers": func(k *kfake.Cluster, asked func(), known *atomic.Bool) {
			k.ControlKey(int16(kmsg.Metadata), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
				k.KeepControl()
				asked()
				return kreq.ResponseKind(), nil, !known.Load()
			})
		},
		"an error for its settings": func(k *kfake.Cluster, asked func(), known *atomic.Bool) {
			says(k, func() (int16, string, bool) {
				asked()
				return kerr.UnknownServerError.Code, "", !known.Load()
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, known := make(chan struct{}), new(atomic.Bool)
			tell := sync.OnceFunc(func() { close(first) })
			k := startKfake(t, anyPort, func(k *kfake.Cluster) { before(k, tell, known) })
			b := greet(t, k.ListenAddrs()[0])
			<-first
			up := b.health.State()
			if !up.Up || !b.Authorizes() || !b.Judges() {
				t.Errorf("before it said so: up %v, may authorize %v, judges %v", up.Up, b.Authorizes(), b.Judges())
			}
			known.Store(true)
			b.await("the broker to be asked again", func() bool { return !b.Authorizes() })
			if b.Judges() || b.health.State() != up {
				t.Errorf("judges %v; health was %+v, is %+v", b.Judges(), up, b.health.State())
			}
		})
	}
}

// A broker that lets lockstep not see its settings tells clients apart.
func TestBrokerThatHidesItsSettings(t *testing.T) {
	k := startKfake(t, anyPort, func(k *kfake.Cluster) {
		says(k, func() (int16, string, bool) { return kerr.ClusterAuthorizationFailed.Code, "", true })
	})
	b := greet(t, k.ListenAddrs()[0])
	b.await("the refusal to be taken for an authorizer", b.judges.Load)
	if !b.Authorizes() {
		t.Error("it is taken for open")
	}
}

// A broker that had no authorizer is open while it is away, and comes back as one
// that has not said what it is.
func TestBrokerThatComesBackWithAnAuthorizer(t *testing.T) {
	k := startKfake(t, anyPort, func(*kfake.Cluster) {})
	addr := k.ListenAddrs()[0]
	b := greet(t, addr)
	b.await("the broker to be open", func() bool { return !b.Authorizes() })
	k.Close()
	b.await("the broker to be away", func() bool { return !b.health.State().Up })
	if b.Authorizes() {
		t.Error("it is away, and clients are kept out who were not before")
	}
	asked, release := make(chan struct{}, 10), make(chan struct{})
	startKfake(t, addr, func(k *kfake.Cluster) {
		says(k, func() (int16, string, bool) {
			asked <- struct{}{}
			<-release
			return 0, "an.Authorizer", true
		})
	})
	<-asked
	if !b.Authorizes() || !b.Judges() {
		t.Errorf("before it said so: may authorize %v, judges %v", b.Authorizes(), b.Judges())
	}
	close(release)
	b.await("the authorizer", b.judges.Load)
	if !b.Authorizes() || !b.Judges() {
		t.Error("it is taken for open")
	}
}
