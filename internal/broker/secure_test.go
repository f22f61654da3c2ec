package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

const testPassword = "correct-horse-battery"

func mechanisms(user, password string) []sasl.Mechanism {
	return []sasl.Mechanism{
		plain.Auth{User: user, Pass: password}.AsMechanism(),
		scram.Auth{User: user, Pass: password}.AsSha256Mechanism(),
		scram.Auth{User: user, Pass: password}.AsSha512Mechanism(),
	}
}

// TestTLSAndSASLTowardsTheBroker: appends and admin requests go by TLS and each
// mechanism; without either, or with a wrong one, nothing does.
func TestTLSAndSASLTowardsTheBroker(t *testing.T) {
	server, pool := brokerTLS(t)
	opts := []kfake.Opt{kfake.TLS(server), kfake.EnableSASL()}
	for _, m := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		opts = append(opts, kfake.Superuser(m, "lockstep", testPassword))
	}
	_, addr := newBroker(t, opts...)
	trusted := &tls.Config{RootCAs: pool}
	for _, m := range mechanisms("lockstep", testPassword) {
		cfg := Config{BootstrapServer: addr, TLS: trusted, SASL: m}
		admin := NewAdmin(cfg)
		if _, err := admin.Topic(testContext(t), testTopic); err != nil {
			t.Errorf("%s: describe a topic: %v", m.Name(), err)
		}
		_ = admin.Close()
		mustSession(t, newAppender(t, cfg))
	}
	for name, test := range map[string]struct {
		cfg  Config
		want string
		is   error
	}{
		"no TLS":              {Config{SASL: mechanisms("lockstep", testPassword)[0]}, "", ErrUnreachable},
		"unknown authority":   {Config{TLS: &tls.Config{RootCAs: x509.NewCertPool()}}, "check broker.ssl", ErrUnreachable},
		"PLAIN, wrong":        {Config{TLS: trusted, SASL: mechanisms("lockstep", testPassword+"x")[0]}, "check username and password", ErrAuthentication},
		"SCRAM, wrong":        {Config{TLS: trusted, SASL: mechanisms("lockstep", testPassword+"x")[1]}, "broker.sasl", ErrAuthentication},
		"SCRAM, unknown user": {Config{TLS: trusted, SASL: mechanisms("nobody", testPassword)[2]}, "broker.sasl", ErrAuthentication},
	} {
		test.cfg.BootstrapServer, test.cfg.DialTimeout = addr, 3*time.Second
		admin := NewAdmin(test.cfg)
		_, err := admin.Topic(testContext(t), testTopic)
		if err == nil || !errors.Is(err, test.is) && !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %v with %q", name, err, test.is, test.want)
		}
		if err != nil && strings.Contains(err.Error(), testPassword) {
			t.Errorf("%s: the error tells the password: %v", name, err)
		}
		_ = admin.Close()
	}
}

// brokerTLS makes a certificate for 127.0.0.1 and the pool that trusts it.
func brokerTLS(t *testing.T) (*tls.Config, *x509.CertPool) {
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
