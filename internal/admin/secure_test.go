package admin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/internal/tlsfiles"
)

// testCA signs certificates into files of a directory of its own.
type testCA struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	file string
}

func newTestCA(t *testing.T) *testCA {
	t.Helper()
	a := &testCA{t: t, dir: t.TempDir(), key: newKey(t)}
	a.cert = a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, a.key, time.Hour)
	a.file = a.write("ca.pem", "CERTIFICATE", a.cert.Raw)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *testCA) sign(tmpl, parent *x509.Certificate, key *ecdsa.PrivateKey, holds time.Duration) *x509.Certificate {
	a.t.Helper()
	var err error
	if tmpl.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		a.t.Fatal(err)
	}
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(holds)
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// issue writes NAME.pem and NAME.key for 127.0.0.1.
func (a *testCA) issue(name string, use x509.ExtKeyUsage, holds time.Duration) (certFile, keyFile string) {
	a.t.Helper()
	key := newKey(a.t)
	cert := a.sign(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{use}}, a.cert, key, holds)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write(name+".pem", "CERTIFICATE", cert.Raw), a.write(name+".key", "PRIVATE KEY", der)
}

func (a *testCA) write(name, kind string, der []byte) string {
	a.t.Helper()
	file := filepath.Join(a.dir, name)
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return file
}

// logged is a log that many goroutines write.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), part)
}

// openTLS opens a server whose /livez answers 200 without a node behind it.
func openTLS(t *testing.T, nodes, clients *testCA, cfg Config) (addr string, log *logged) {
	t.Helper()
	certFile, keyFile := nodes.issue("node", x509.ExtKeyUsageServerAuth, time.Hour)
	f := tlsfiles.Files{CertFile: certFile, KeyFile: keyFile}
	if clients != nil {
		f.CAFile, f.ClientAuth, cfg.Certificates = clients.file, tlsfiles.ClientAuthRequested, true
	}
	files, err := tlsfiles.Load(f, func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	log = &logged{}
	cfg.Listen, cfg.TLS, cfg.Logger = "127.0.0.1:0", files.Config(), hclog.New(&hclog.LoggerOptions{Output: log})
	s := New(cfg, nil, nil, nil)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /partitions", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, []PartitionInfo{{Topic: "read"}})
	})
	mux.HandleFunc("POST /rebuild", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, "changed") })
	s.http.Handler = mux
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.Addr().String(), log
}

// asks is what a client of those files gets: nil where it may read, and where it
// may change.
func asks(t *testing.T, addr, ca, cert, key, token string) (read, change error) {
	t.Helper()
	secure, err := ClientTLS(ca, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	c := NewTLSClient(secure)
	defer c.Close()
	c.Token = token
	infos, read := c.Partitions(t.Context(), addr)
	if read == nil && (len(infos) != 1 || infos[0].Topic != "read") {
		t.Fatalf("read %v", infos)
	}
	return read, c.Rebuild(t.Context(), addr, "orders", false)
}

func TestCertificateOrTokenChanges(t *testing.T) {
	const token = "0123456789abcdef-secret"
	nodes, clients, strangers := newTestCA(t), newTestCA(t), newTestCA(t)
	cert := func(a *testCA, use x509.ExtKeyUsage, holds time.Duration) [2]string {
		certFile, keyFile := a.issue(fmt.Sprint("client", use, holds), use, holds)
		return [2]string{certFile, keyFile}
	}
	right := cert(clients, x509.ExtKeyUsageClientAuth, time.Hour)
	both := Config{Token: token}
	for _, test := range []struct {
		name         string
		cfg          Config
		clients      *testCA
		show         [2]string
		token        string
		read, change string // a part of what is said; empty: it works
	}{
		{"nothing", both, clients, [2]string{}, "", "", "--token-file FILE or LOCKSTEP_ADMIN_TOKEN), or a certificate"},
		{"certificate", both, clients, right, "", "", ""},
		{"token", both, clients, [2]string{}, token, "", ""},
		{"both", both, clients, right, token, "", ""},
		{"certificate and a wrong token", both, clients, right, "0123456789abcdef-wrong", "", ""},
		{"of another authority", both, clients, cert(strangers, x509.ExtKeyUsageClientAuth, time.Hour), "", "admin.tls.ca_file", "admin.tls.ca_file"},
		{"of the nodes' authority", both, clients, cert(nodes, x509.ExtKeyUsageClientAuth, time.Hour), "", "admin.tls.ca_file", "admin.tls.ca_file"},
		{"a server's", both, clients, cert(clients, x509.ExtKeyUsageServerAuth, time.Hour), "", "admin.tls.ca_file", "admin.tls.ca_file"},
		{"expired", both, clients, cert(clients, x509.ExtKeyUsageClientAuth, -time.Minute), "", "admin.tls.ca_file", "admin.tls.ca_file"},
		{"no token configured, nothing", Config{}, clients, [2]string{}, "", "", "--admin-cert"},
		{"no token configured, token", Config{}, clients, [2]string{}, token, "", "--admin-cert"},
		{"no token configured, certificate", Config{}, clients, right, "", "", ""},
		{"no authority configured, certificate", both, nil, right, "", "", "--token-file"},
		{"no authority configured, token", both, nil, [2]string{}, token, "", ""},
		{"nothing configured on loopback", Config{}, nil, [2]string{}, "", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			addr, log := openTLS(t, nodes, test.clients, test.cfg)
			read, change := asks(t, addr, nodes.file, test.show[0], test.show[1], test.token)
			for what, got := range map[string]error{"read": read, "change": change} {
				want := test.read
				if what == "change" {
					want = test.change
				}
				if want == "" && got != nil || want != "" && (got == nil || !strings.Contains(got.Error(), want)) {
					t.Errorf("%s: got %v, want %q", what, got, want)
				}
				if got != nil && strings.Contains(got.Error(), token) || log.has(token) {
					t.Errorf("the token is told: %v", got)
				}
			}
			if test.read != "" && !log.has("refused a connection to the admin port") {
				t.Error("the log says nothing of a refused certificate")
			}
		})
	}
}

// Who speaks the wrong one of the two is told which is right, and so is who trusts
// another authority.
func TestPlainAndTLSAdminPorts(t *testing.T) {
	nodes, strangers := newTestCA(t), newTestCA(t)
	addr, log := openTLS(t, nodes, nil, Config{Token: "0123456789abcdef"})
	plain := NewClient()
	defer plain.Close()
	if _, err := plain.Partitions(t.Context(), addr); !errors.Is(err, ErrWantsTLS) {
		t.Errorf("plain HTTP to TLS: %v", err)
	}
	eventuallyLogged(t, log, "this port speaks TLS (admin.tls)")
	if _, err := plain.Partitions(t.Context(), "https://"+addr); !errors.Is(err, ErrStrangeNode) {
		t.Errorf("an authority that the system does not know: %v", err)
	}
	if read, _ := asks(t, addr, strangers.file, "", "", ""); !errors.Is(read, ErrStrangeNode) {
		t.Errorf("another authority: %v", read)
	}
	if read, _ := asks(t, strings.Replace(addr, "127.0.0.1", "localhost", 1), nodes.file, "", "", ""); !errors.Is(read, ErrStrangeNode) {
		t.Errorf("a name that the certificate does not have: %v", read)
	}

	s := New(Config{Listen: "127.0.0.1:0"}, nil, nil, nil)
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if read, _ := asks(t, s.Addr().String(), nodes.file, "", "", ""); !errors.Is(read, ErrSpeaksPlain) {
		t.Errorf("TLS to plain HTTP: %v", read)
	}
	secure, err := ClientTLS(nodes.file, "", "")
	if err != nil {
		t.Fatal(err)
	}
	c := NewTLSClient(secure)
	defer c.Close()
	// The topic is missing: the request that gets through changes nothing.
	if err := c.Rebuild(t.Context(), Registered(s.Addr().String()), "", false); err == nil || !strings.Contains(err.Error(), "?topic=") {
		t.Errorf("plain HTTP to a node that registered it: %v", err)
	}
}

func eventuallyLogged(t *testing.T, log *logged, part string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !log.has(part) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the log does not say %q:\n%s", part, log.b.String())
		}
	}
}

// A certificate that expires while its connection stays open changes nothing more.
func TestCertificateThatExpires(t *testing.T) {
	a := newTestCA(t)
	for holds, want := range map[time.Duration]bool{time.Hour: true, -time.Minute: false} {
		leaf := a.sign(&x509.Certificate{}, a.cert, newKey(t), holds)
		r := &http.Request{TLS: &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{leaf, a.cert}}}}
		if got := certified(r); got != want {
			t.Errorf("a certificate that holds for %s: %v", holds, got)
		}
	}
	if certified(&http.Request{}) || certified(&http.Request{TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{a.cert}}}) {
		t.Error("no certificate, or one that was not verified, was taken")
	}
}

func TestClientFilesThatCannotBeUsed(t *testing.T) {
	a := newTestCA(t)
	cert, key := a.issue("a", x509.ExtKeyUsageClientAuth, time.Hour)
	_, other := a.issue("b", x509.ExtKeyUsageClientAuth, time.Hour)
	for _, test := range []struct{ ca, cert, key, want string }{
		{"", cert, "", "--admin-key"}, {"", "", key, "--admin-cert"}, {cert + ".none", "", "", cert + ".none"},
		{key, "", "", "holds no PEM certificate"}, {"", cert, other, other},
	} {
		if _, err := ClientTLS(test.ca, test.cert, test.key); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: got %v", test.want, err)
		}
	}
}

// The log of a port that is asked wrongly again and again stays small.
func TestComplaintsAreBounded(t *testing.T) {
	log := &logged{}
	c := &complaints{log: hclog.New(&hclog.LoggerOptions{Output: log})}
	for i := range 1000 {
		fmt.Fprintf(c, "%s127.0.0.1:%d: remote error: tls: bad certificate\n", handshakeFailed, i)
		fmt.Fprintf(c, "%s127.0.0.1:%d: EOF\n", handshakeFailed, i)
	}
	for i := range 1000 { // a client may choose what is said of it
		fmt.Fprintf(c, "%s127.0.0.1:%d: reason %d\n", handshakeFailed, i, i)
	}
	if n := strings.Count(log.b.String(), "refused a connection"); n != 1 {
		t.Errorf("%d lines of one host", n)
	}
	for i := range 2 * maxComplaints {
		fmt.Fprintf(c, "%s127.0.%d.%d:1: reason\n", handshakeFailed, i/256, i%256)
	}
	if n := strings.Count(log.b.String(), "refused a connection"); n < 2*maxComplaints {
		t.Errorf("%d lines of %d hosts", n, 2*maxComplaints)
	}
	if len(c.seen) > maxComplaints {
		t.Errorf("%d hosts are remembered", len(c.seen))
	}
	fmt.Fprintln(c, "http: panic serving 127.0.0.1:1: boom")
	if !log.has("boom") {
		t.Error("a panic is not told")
	}
}
