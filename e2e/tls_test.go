//go:build e2e

package e2e

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
	"io"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

// TestSASLOverTLSEndToEnd: clients reach Lockstep by SASL_SSL, and both its own
// connections and theirs reach real brokers by SASL_SSL. A leader is killed
// meanwhile; a certificate is replaced; and no secret is where it must not be.
func TestSASLOverTLSEndToEnd(t *testing.T) {
	const ownSecret, clientSecret, token = "own-secret-4c1f", "client-secret-9e2b", "admin-token-0123456789"
	dir := t.TempDir()
	ca := newTestAuthority(t)
	password, tokenFile := filepath.Join(dir, "password"), filepath.Join(dir, "token")
	writeSecret(t, password, []byte(ownSecret+"\n"))
	writeSecret(t, tokenFile, []byte(token+"\n"))
	writeSecret(t, filepath.Join(dir, "ca.pem"), ca.pem())
	certFile, keyFile := ca.issue(t, dir)
	ports := map[*broker]int{}
	c := newClusterWith(t, clusterOpts{
		via: func(b *broker) string { return loopback(ports[b]) },
		settings: func(n *node) []string {
			ports[n.broker] = freePort(t)
			at := "SASL_SSL://" + n.kafkaAddr()
			return []string{"listeners=" + at, "advertised_listeners=" + at, "ssl.cert_file=" + certFile, "ssl.key_file=" + keyFile,
				"broker.security_protocol=SASL_SSL", "broker.ssl.ca_file=" + filepath.Join(dir, "ca.pem"),
				"broker.sasl.mechanism=PLAIN", "broker.sasl.username=lockstep", "broker.sasl.password_file=" + password,
				"admin.token_file=" + tokenFile}
		},
		prepare: func(t *testing.T, n *node) {
			n.broker.settings = saslOverTLS(t, n.broker, ports[n.broker], certFile, keyFile, ownSecret, clientSecret)
		},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	client := func(password string) *kgo.Client {
		cl, err := kgo.NewClient(append(clientOpts(c.bootstrap()), kgo.DialTLSConfig(&tls.Config{RootCAs: ca.pool}),
			kgo.SASL(plain.Auth{User: "admin", Pass: password}.AsMechanism()), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cl.Close)
		return cl
	}
	good := client(clientSecret)
	if err := createAs(ctx, good, "orders"); err != nil {
		t.Fatalf("create a topic: %v", err)
	}
	short, done := context.WithTimeout(ctx, 5*time.Second)
	if err := sendAs(short, client("wrong"), "orders", "spy"); err == nil {
		t.Error("a client with a wrong password produced")
	}
	done()
	for i := range 20 {
		if i == 10 {
			c.killNode(1)
		}
		if err := sendAs(ctx, good, "orders", fmt.Sprint(i)); err != nil {
			t.Fatalf("produce record %d: %v", i, err)
		}
	}
	c.restartNode(1)
	c.waitHealthy()
	c.waitBrokersHold(c.nodes, "orders", map[int32]int64{0: 20})

	before := serialAt(t, ca, c.nodes[1].kafkaAddr())
	ca.issue(t, dir)
	if after := serialAt(t, ca, c.nodes[1].kafkaAddr()); after.Cmp(before) == 0 {
		t.Error("a new connection got the old certificate")
	}
	if _, err := c.nodes[0].cli(ctx, "rebuild", "orders", "--admin", c.nodes[0].adminAddr()); err == nil {
		t.Error("a rebuild was ordered without the token")
	}
	c.verify()
	for _, n := range c.nodes {
		secretsAbsent(t, n, ownSecret, clientSecret, token)
	}
}

// saslOverTLS gives a broker a listener for SASL_SSL. Whoever comes by the other
// one, the test itself, may do everything.
func saslOverTLS(t *testing.T, b *broker, port int, certFile, keyFile, own, client string) []string {
	t.Helper()
	cert, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(filepath.Dir(certFile), fmt.Sprintf("broker-%d.pem", b.nodeID))
	writeSecret(t, store, append(key, cert...))
	return []string{
		fmt.Sprintf("listeners=PLAINTEXT://%s,CONTROLLER://%s,SECURE://%s", b.addr(), loopback(b.controllerPort), loopback(port)),
		fmt.Sprintf("advertised.listeners=PLAINTEXT://%s,SECURE://%s", b.addr(), loopback(port)),
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL",
		"listener.name.secure.ssl.keystore.type=PEM",
		"listener.name.secure.ssl.keystore.location=" + store,
		"listener.name.secure.sasl.enabled.mechanisms=PLAIN",
		fmt.Sprintf(`listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_lockstep="%s" user_admin="%s";`, own, client),
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users=User:ANONYMOUS;User:lockstep;User:admin",
	}
}

// secretsAbsent looks at everything the node writes and says.
func secretsAbsent(t *testing.T, n *node, secrets ...string) {
	t.Helper()
	files := 0
	look := func(where string, b []byte) {
		files++
		for _, s := range secrets {
			if bytes.Contains(b, []byte(s)) {
				t.Errorf("node %d: %s holds the secret %q", n.id, where, s)
			}
		}
	}
	err := filepath.WalkDir(n.dir, func(path string, d fs.DirEntry, err error) error {
		var b []byte
		if err == nil && d.Type().IsRegular() {
			if b, err = os.ReadFile(path); err == nil {
				look(path, b)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the node put another in its place meanwhile
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/status", "/metrics", "/", "/partitions"} {
		resp, err := n.adminClient().Get(n.adminURL() + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || len(b) == 0 {
			t.Fatalf("%s: %d bytes, %v", path, len(b), err)
		}
		look(path, b)
	}
	if files < 6 {
		t.Errorf("node %d: only %d places were looked at", n.id, files)
	}
}

// testAuthority signs certificates for 127.0.0.1.
type testAuthority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newTestAuthority(t *testing.T) *testAuthority {
	t.Helper()
	a := &testAuthority{key: newTestKey(t), pool: x509.NewCertPool()}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	tmpl.Subject.CommonName = "test authority"
	a.cert = a.sign(t, tmpl, tmpl, a.key)
	a.pool.AddCert(a.cert)
	return a
}

func newTestKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *testAuthority) sign(t *testing.T, tmpl, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
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

func (a *testAuthority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// issue writes a new certificate for servers and clients, and its key, into dir, in
// place of those there.
func (a *testAuthority) issue(t *testing.T, dir string) (certFile, keyFile string) {
	t.Helper()
	key := newTestKey(t)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	cert := a.sign(t, &x509.Certificate{SerialNumber: serial, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, a.cert, key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeSecret(t, certFile, append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), a.pem()...))
	writeSecret(t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return certFile, keyFile
}

func writeSecret(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// serialAt is the serial number of the certificate that is shown at addr.
func serialAt(t *testing.T, ca *testAuthority, addr string) *big.Int {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", addr, &tls.Config{RootCAs: ca.pool})
	if err != nil {
		t.Fatal(err)
	}
	defer c.NetConn().Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber
}
