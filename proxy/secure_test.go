package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// serverTLS makes a certificate for 127.0.0.1 and the pool that trusts it.
func serverTLS(t *testing.T) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, pool
}

// TestTLSListener: a client produces and consumes, small and large; whoever is
// no TLS client is closed with the cause in the log, and harms nobody.
func TestTLSListener(t *testing.T) {
	server, pool := serverTLS(t)
	f := newFixture(t, func(cfg *Config) {
		cfg.Listeners[0].TLS = server
		cfg.Limits.PartialRequestTimeout = time.Second
	})
	f.createTopic("orders", 1, nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(f.addr), kgo.DialTLSConfig(&tls.Config{RootCAs: pool}), kgo.ConsumeTopics("orders"),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	values := [][]byte{[]byte("small"), make([]byte, 700<<10)}
	if _, err := rand.Read(values[1]); err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "orders", Value: v}).FirstErr(); err != nil {
			t.Fatalf("produce %d bytes: %v", len(v), err)
		}
	}
	var got [][]byte
	for len(got) < len(values) {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) { got = append(got, r.Value) })
	}
	for i, v := range values {
		if string(got[i]) != string(v) {
			t.Fatalf("record %d: %d bytes came back changed", i, len(v))
		}
	}

	for name, offend := range map[string]func(c *rawClient){
		"plaintext on a TLS listener":            func(c *rawClient) { c.write(frameOf(produceTo("orders", 0, batchOf("stranger")))) },
		"TLS handshake was not finished in time": func(c *rawClient) { c.write([]byte{0x16, 0x03, 0x01, 0x02, 0x00}) },
		"TLS handshake failed":                   func(c *rawClient) { distrust(c) },
	} {
		c := f.dial()
		offend(c)
		eventually(t, "the log line of "+name, func() bool { return len(f.log.lines("closed client connection", name, "127.0.0.1")) == 1 })
	}
	if n := f.producer.appended(); n != len(values) {
		t.Fatalf("%d batches were appended, want %d", n, len(values))
	}
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "orders", Value: []byte("after")}).FirstErr(); err != nil {
		t.Fatalf("produce after the strangers: %v", err)
	}
}

// distrust is a TLS client that trusts another authority.
func distrust(c *rawClient) {
	_ = tls.Client(c.nc, &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "127.0.0.1"}).Handshake() // it fails, as it must
}

// TestSASLListenerServesNobodyUnknown: on a listener that promises
// authentication nothing is served before it, whatever the broker would allow.
func TestSASLListenerServesNobodyUnknown(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.Listeners[0].SASL = true })
	f.createTopic("orders", 1, nil)
	var refuse atomic.Bool
	var says atomic.Value
	says.Store("")
	f.broker.ControlKey(int16(kmsg.SASLHandshake), func(req kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		return req.ResponseKind(), nil, true
	})
	f.broker.ControlKey(int16(kmsg.SASLAuthenticate), func(req kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		if refuse.Load() {
			resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
		}
		resp.SASLAuthBytes = []byte(says.Load().(string))
		return resp, nil, true
	})
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Mechanism = "PLAIN"
	for _, version := range []int16{0, 1, 2} {
		refuse.Store(true)
		c := f.dial()
		do[*kmsg.ApiVersionsResponse](c, 3, kmsg.NewPtrApiVersionsRequest())
		do[*kmsg.SASLHandshakeResponse](c, 1, handshake)
		if resp := do[*kmsg.SASLAuthenticateResponse](c, version, kmsg.NewPtrSASLAuthenticateRequest()); resp.ErrorCode != kerr.SaslAuthenticationFailed.Code {
			t.Fatalf("v%d: the broker's refusal did not arrive: %d", version, resp.ErrorCode)
		}
		c.write(frameOf(produceTo("orders", 0, batchOf("stranger"))))
		c.closed()

		refuse.Store(false)
		c = f.dial()
		do[*kmsg.SASLHandshakeResponse](c, 1, handshake)
		if resp := do[*kmsg.SASLAuthenticateResponse](c, version, kmsg.NewPtrSASLAuthenticateRequest()); resp.ErrorCode != 0 {
			t.Fatalf("v%d: not authenticated: %d", version, resp.ErrorCode)
		}
		c.alive()

		// SCRAM has a second step, which is the one with the proof.
		scram := kmsg.NewPtrSASLHandshakeRequest()
		scram.Mechanism = "SCRAM-SHA-256"
		c = f.dial()
		do[*kmsg.SASLHandshakeResponse](c, 1, scram)
		says.Store("r=nonce,s=c2FsdA==,i=4096")
		do[*kmsg.SASLAuthenticateResponse](c, version, kmsg.NewPtrSASLAuthenticateRequest())
		halfway := f.dial()
		do[*kmsg.SASLHandshakeResponse](halfway, 1, scram)
		do[*kmsg.SASLAuthenticateResponse](halfway, version, kmsg.NewPtrSASLAuthenticateRequest())
		halfway.write(frameOf(kmsg.NewPtrMetadataRequest()))
		halfway.closed()
		says.Store("v=c2lnbmF0dXJl")
		do[*kmsg.SASLAuthenticateResponse](c, version, kmsg.NewPtrSASLAuthenticateRequest())
		c.alive()
		says.Store("")
	}
	// Every API that is served, asked by who has said nothing.
	for key := range handlers {
		if authenticates(key) {
			continue
		}
		api, ok := kafkawire.Lookup(key)
		if !ok {
			t.Fatalf("API %d has a handler and is not served", key)
		}
		c := f.dial()
		req := kmsg.RequestForKey(key)
		req.SetVersion(api.Max)
		c.write(frameOf(req))
		c.closed()
	}
	if n := f.producer.appended(); n != 0 {
		t.Fatalf("%d batches of strangers were appended", n)
	}
	eventually(t, "the log line", func() bool { return len(f.log.lines("request before authentication", "security.protocol")) == 1 })
}

// TestSessionThatEnded: when the broker's connections.max.reauth.ms is over, a
// client that goes on without authenticating again is cut off, though nothing of
// what it asks for reaches the broker, and though it was not told (version 0); one
// that does so goes on.
func TestSessionThatEnded(t *testing.T) {
	var most atomic.Int32 // version of SaslAuthenticate that the broker offers
	most.Store(2)
	f := newFixture(t, func(cfg *Config) {
		cfg.Listeners[0].SASL = true
		cfg.BrokerVersions = func() []kmsg.ApiVersionsResponseApiKey {
			return []kmsg.ApiVersionsResponseApiKey{{ApiKey: int16(kmsg.SASLAuthenticate), MaxVersion: int16(most.Load())}}
		}
	})
	f.createTopic("orders", 1, nil)
	var lifetime atomic.Int64
	f.broker.ControlKey(int16(kmsg.SASLHandshake), func(req kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		return req.ResponseKind(), nil, true
	})
	f.broker.ControlKey(int16(kmsg.SASLAuthenticate), func(req kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		if int32(req.GetVersion()) > most.Load() {
			t.Errorf("the broker was asked in version %d", req.GetVersion())
		}
		resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		resp.SessionLifetimeMillis = lifetime.Load()
		return resp, nil, true
	})
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Mechanism = "PLAIN"
	authenticate := func(c *rawClient, version int16, ms int64) {
		t.Helper()
		lifetime.Store(ms)
		do[*kmsg.SASLHandshakeResponse](c, 1, handshake)
		resp := do[*kmsg.SASLAuthenticateResponse](c, version, kmsg.NewPtrSASLAuthenticateRequest())
		if version > 0 && resp.SessionLifetimeMillis != ms || version == 0 && resp.SessionLifetimeMillis != 0 {
			t.Fatalf("v%d: the client was told %d ms, the broker said %d", version, resp.SessionLifetimeMillis, ms)
		}
	}
	for _, version := range []int16{0, 1, 2} {
		forEver, ends, renews := f.dial(), f.dial(), f.dial()
		authenticate(forEver, version, 0)
		authenticate(renews, version, 1)
		authenticate(ends, version, 1)
		before := f.producer.appended()
		begin := time.Now()
		for served(ends, produceTo("orders", 0, batchOf("still there"))) {
			if time.Since(begin) > accessFor {
				t.Fatalf("v%d: a client whose session ended after 1 ms produces after %s", version, accessFor)
			}
		}
		t.Logf("v%d: %d batches before the end of the session was noticed", version, f.producer.appended()-before)
		// This one authenticated before, so its session is over, too.
		authenticate(renews, version, time.Hour.Milliseconds())
		renews.alive()
		// What says nothing of an end (a step of several) takes none away.
		authenticate(renews, version, 1)
		authenticate(renews, version, 0)
		for served(renews, produceTo("orders", 0, batchOf("still there"))) {
			if time.Since(begin) > 2*accessFor {
				t.Fatalf("v%d: the end of the session was forgotten", version)
			}
		}
		forEver.alive()
	}
	// A broker that knows version 0 only knows no sessions that end.
	most.Store(0)
	old := f.dial()
	authenticate(old, 0, 0)
	old.alive()
	eventually(t, "the log line", func() bool {
		return len(f.log.lines("request after the end of the session", "connections.max.reauth.ms")) == 1
	})
}

// served sends a request and reports whether an answer came: if none did, the
// connection was closed.
func served(c *rawClient, req kmsg.Request) bool {
	c.t.Helper()
	if _, err := c.nc.Write(frameOf(req)); err != nil {
		return false
	}
	_, err := kafkawire.ReadResponseFrame(c.nc, 1<<20)
	if isTimeout(err) {
		c.t.Fatal("neither an answer nor the end of the connection")
	}
	return err == nil
}

// TestUpstreamTLS: what clients ask is passed on by TLS, and by nothing else.
func TestUpstreamTLS(t *testing.T) {
	server, pool := serverTLS(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	asked := make(chan []byte, 1)
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		frame, err := kafkawire.ReadResponseFrame(nc, 1<<20)
		if err == nil {
			asked <- frame
		}
	}()
	for _, test := range []struct {
		roots *x509.CertPool
		ok    bool
	}{{x509.NewCertPool(), false}, {pool, true}} {
		if !test.ok {
			// Its handshake fails, and takes the one connection of the other.
			other, err := tls.Listen("tcp", "127.0.0.1:0", server)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			go func() {
				if nc, err := other.Accept(); err == nil {
					_ = nc.(*tls.Conn).Handshake() // it fails, as it must
					nc.Close()
				}
			}()
			passOnHandshake(t, other.Addr().String(), test.roots)
			continue
		}
		passOnHandshake(t, ln.Addr().String(), test.roots)
		select {
		case frame := <-asked:
			if key := int16(frame[0])<<8 | int16(frame[1]); key != int16(kmsg.SASLHandshake) {
				t.Fatalf("the broker was asked API %d", key)
			}
		case <-time.After(patience):
			t.Fatal("the broker was asked nothing")
		}
	}
}

// passOnHandshake sends a SaslHandshake to a proxy whose broker is at addr, and
// sees its connection closed.
func passOnHandshake(t *testing.T, addr string, roots *x509.CertPool) {
	t.Helper()
	f := newFixture(t, func(cfg *Config) {
		cfg.Upstream, cfg.UpstreamTLS = addr, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
	})
	c := f.dial()
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, "PLAIN"
	c.write(frameOf(handshake))
	c.closed()
}
