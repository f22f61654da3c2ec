package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority signs certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	a.cert = a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, key)
	return a
}

func (a *authority) sign(t *testing.T, tmpl *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber = serial
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent := a.cert
	if parent == nil {
		parent = tmpl // its own
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issue writes a certificate, its key and the authorities to trust into dir.
func (a *authority) issue(t *testing.T, dir string, tmpl x509.Certificate, trust ...*authority) (certFile, keyFile, caFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if tmpl.ExtKeyUsage == nil {
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	cert := a.sign(t, &tmpl, key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var cas []byte
	for _, ca := range trust {
		cas = append(cas, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})...)
	}
	write := func(name string, b []byte) string {
		name = filepath.Join(dir, name)
		// As an operator's tool would: a new file takes the old one's place.
		if err := os.WriteFile(name+".new", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
		return name
	}
	certFile = write("cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	keyFile = write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	caFile = write("ca.pem", cas)
	return certFile, keyFile, caFile
}

// nodeCert is a template with the name that binds it to a node.
func nodeCert(name string) x509.Certificate { return x509.Certificate{DNSNames: []string{name}} }

// withTLS gives a node a certificate by a, trusting the authorities in trust.
func (a *authority) withTLS(t *testing.T, tmpl x509.Certificate, trust ...*authority) func(*Config) {
	t.Helper()
	files, err := LoadTLS(a.issue(t, t.TempDir(), tmpl, trust...))
	if err != nil {
		t.Fatal(err)
	}
	return func(c *Config) { c.TLS = files }
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t, "ours"), newAuthority(t, "other")
	one, two := nodeCert("lockstep-node-1"), nodeCert("lockstep-node-2")
	tests := []struct {
		name string
		a, b func(*Config)
		fail string // part of the dialler's error, "" when it must work
	}{
		{"names in SAN", ca.withTLS(t, one, ca), ca.withTLS(t, two, ca), ""},
		{"name in CN", ca.withTLS(t, x509.Certificate{Subject: pkix.Name{CommonName: "lockstep-node-1"}}, ca), ca.withTLS(t, two, ca), ""},
		{"dialler of another authority", other.withTLS(t, one, ca), ca.withTLS(t, two, ca), "tls"},
		{"acceptor of another authority", ca.withTLS(t, one, ca), other.withTLS(t, two, ca), "unknown authority"},
		{"dialler with another node's certificate", ca.withTLS(t, two, ca), ca.withTLS(t, two, ca), "not that of node 1"},
		{"acceptor with another node's certificate", ca.withTLS(t, one, ca), ca.withTLS(t, one, ca), "not that of node 2"},
		{"no name of a node", ca.withTLS(t, nodeCert("db.example"), ca), ca.withTLS(t, two, ca), "not that of node 1"},
		{"wildcard", ca.withTLS(t, nodeCert("*.example"), ca), ca.withTLS(t, two, ca), "not that of node 1"},
		{"not for servers", ca.withTLS(t, one, ca), ca.withTLS(t, x509.Certificate{
			DNSNames: two.DNSNames, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca), "key usage"},
		{"dialler in plaintext", func(*Config) {}, ca.withTLS(t, two, ca), "this node requires TLS"},
		{"acceptor in plaintext", ca.withTLS(t, one, ca), func(*Config) {}, "tls handshake"},
		// The host 127.0.0.1 is that of both nodes, so it names neither.
		{"host of two nodes", ca.withTLS(t, x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, ca), ca.withTLS(t, two, ca), "not that of node 1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a, b := newNode(t, helloOf(1), admitAll, test.a), newNode(t, helloOf(2), admitAll, test.b)
			b.Handle(methodEcho, echo)
			serveAll(t, a, b)
			got, err := a.Call(testContext(t), 2, methodEcho, []byte("secret"))
			if test.fail == "" {
				if err != nil || string(got) != "secret" {
					t.Fatalf("got %q, %v", got, err)
				}
				return
			}
			if !errors.Is(err, ErrNotSent) || !strings.Contains(err.Error(), test.fail) {
				t.Fatalf("got %v, want it to name %q", err, test.fail)
			}
		})
	}
}

func TestRaftOverTLS(t *testing.T) {
	ca := newAuthority(t, "ours")
	var nodes []*testNode
	for id, name := range []string{"lockstep-node-1", "lockstep-node-2", "lockstep-node-3"} {
		nodes = append(nodes, newNode(t, helloOf(int32(id+1)), admitAll, ca.withTLS(t, nodeCert(name), ca)))
	}
	introduceAll(nodes...)
	members, leaders := startRaft(t, 0, nodes...)
	serveAll(t, nodes...)
	commit(t, leaders, "sealed")
	wantApplied(t, "sealed", members...)
}

func TestCheckNodeName(t *testing.T) {
	tests := []struct {
		name string
		cert x509.Certificate
		host string
		ok   bool
	}{
		{"host in SAN", x509.Certificate{DNSNames: []string{"A.example"}}, "a.example", true},
		{"address in SAN", x509.Certificate{IPAddresses: []net.IP{net.ParseIP("::1")}}, "0:0::1", true},
		{"another host", x509.Certificate{DNSNames: []string{"b.example"}}, "a.example", false},
		{"host in CN only", x509.Certificate{Subject: pkix.Name{CommonName: "a.example"}}, "a.example", false},
		{"wildcard", x509.Certificate{DNSNames: []string{"*.example"}}, "a.example", false},
		{"no host known", x509.Certificate{DNSNames: []string{""}}, "", false},
		{"name wins over host", x509.Certificate{DNSNames: []string{"lockstep-node-2", "a.example"}}, "a.example", false},
		{"longer number", x509.Certificate{DNSNames: []string{"lockstep-node-11"}}, "", false},
	}
	for _, test := range tests {
		if err := checkNodeName(&test.cert, 1, test.host); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// New files are used from the next handshake on; unusable ones are not.
func TestTLSFilesAreReread(t *testing.T) {
	old, next := newAuthority(t, "old"), newAuthority(t, "next")
	dir := t.TempDir()
	certFile, keyFile, caFile := old.issue(t, dir, nodeCert("lockstep-node-2"), old)
	files, err := LoadTLS(certFile, keyFile, caFile)
	if err != nil {
		t.Fatal(err)
	}
	b := newNode(t, helloOf(2), admitAll, func(c *Config) { c.TLS = files })
	b.Handle(methodEcho, echo)
	both := newNode(t, helloOf(1), admitAll, old.withTLS(t, nodeCert("lockstep-node-1"), old, next))
	renewed := newNode(t, helloOf(3), admitAll, next.withTLS(t, nodeCert("lockstep-node-3"), old, next))
	serveAll(t, both, b, renewed)
	ctx := testContext(t)
	if _, err := both.Call(ctx, 2, methodEcho, nil); err != nil {
		t.Fatalf("before: %v", err)
	}
	if _, err := renewed.Call(ctx, 2, methodEcho, nil); err == nil {
		t.Fatal("a certificate of an authority not yet trusted passed")
	}

	good, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(certFile, good[:len(good)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	both.DropPeer(2)
	if _, err := both.Call(ctx, 2, methodEcho, nil); err != nil {
		t.Fatalf("while the file is half written: %v", err)
	}
	if b.lines.count("cannot reread tls files") != 1 {
		t.Error("nobody is told that the file is unusable")
	}

	next.issue(t, dir, nodeCert("lockstep-node-2"), old, next)
	if _, err := renewed.Call(ctx, 2, methodEcho, nil); err != nil {
		t.Fatalf("after the new authority came in: %v", err)
	}
	both.DropPeer(2)
	if _, err := both.Call(ctx, 2, methodEcho, nil); err != nil {
		t.Fatalf("after the certificate was renewed: %v", err)
	}
	if b.lines.count("tls files are readable again") != 1 {
		t.Error("nobody is told that the files are good again")
	}
}

func TestLoadTLSNamesTheFile(t *testing.T) {
	ca := newAuthority(t, "ours")
	certFile, keyFile, caFile := ca.issue(t, t.TempDir(), nodeCert("lockstep-node-1"), ca)
	for _, files := range [][3]string{{certFile + "x", keyFile, caFile}, {certFile, keyFile, keyFile}, {certFile, caFile, caFile}} {
		if _, err := LoadTLS(files[0], files[1], files[2]); err == nil || !strings.Contains(err.Error(), ".pem") {
			t.Errorf("%v: got %v", files, err)
		}
	}
}
