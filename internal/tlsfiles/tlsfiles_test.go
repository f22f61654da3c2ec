package tlsfiles

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
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

// issue writes a self-signed certificate, which is its own authority, and its
// key, as an operator's tool would: a new file takes the old one's place.
func issue(t *testing.T, dir, name string) (certFile, keyFile string, pair tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	put(t, certFile, certPEM)
	put(t, keyFile, keyPEM)
	if pair, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile, pair
}

func put(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// shake makes a handshake and returns the name the server showed, and what the
// server made of it.
func shake(t *testing.T, s *Server, client *tls.Config) (string, error) {
	t.Helper()
	a, b := net.Pipe()
	client.InsecureSkipVerify = true // the name is compared by the test
	served := make(chan error, 1)
	go func() {
		err := tls.Server(b, s.Config()).Handshake()
		b.Close()
		served <- err
	}()
	c := tls.Client(a, client)
	err := c.Handshake()
	if err == nil {
		_, _ = c.Read(make([]byte, 1)) // takes the server's alert, if there is one
	}
	a.Close()
	if serverErr := <-served; serverErr != nil || err != nil {
		return "", errors.Join(serverErr, err)
	}
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
}

func TestReplacedFilesAreTakenAndBrokenOnesAreNot(t *testing.T) {
	dir := t.TempDir()
	cert, key, _ := issue(t, dir, "first")
	var told []error
	s, err := Load(Files{CertFile: cert, KeyFile: key}, func(err error) { told = append(told, err) })
	if err != nil {
		t.Fatal(err)
	}
	shows := func(want string) {
		t.Helper()
		if got, err := shake(t, s, &tls.Config{}); err != nil || got != want {
			t.Fatalf("the server shows %q, %v; want %q", got, err, want)
		}
	}
	shows("first")
	issue(t, dir, "second")
	shows("second")
	if len(told) != 1 || told[0] != nil {
		t.Fatalf("told %v, want one change", told)
	}
	put(t, cert, []byte("half a certif"))
	shows("second")
	shows("second")
	if len(told) != 2 || told[1] == nil || !strings.Contains(told[1].Error(), cert) {
		t.Fatalf("told %v, want the broken file to be named once", told)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	shows("second")
	if len(told) != 3 || !errors.Is(told[2], os.ErrNotExist) {
		t.Fatalf("told %v, want the missing file", told)
	}
	issue(t, dir, "third")
	shows("third")
	if len(told) != 4 || told[3] != nil {
		t.Fatalf("told %v, want the recovery", told)
	}
}

func TestClientAuth(t *testing.T) {
	cert, key, _ := issue(t, t.TempDir(), "server")
	ours, _, good := issue(t, t.TempDir(), "client")
	_, _, stranger := issue(t, t.TempDir(), "stranger")
	show := func(c tls.Certificate) *tls.Config {
		return &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }}
	}
	for _, test := range []struct {
		auth             string
		none, good, evil bool
	}{
		{"", true, true, true},
		{ClientAuthNone, true, true, true},
		{ClientAuthRequested, true, true, false},
		{ClientAuthRequired, false, true, false},
	} {
		s, err := Load(Files{CertFile: cert, KeyFile: key, CAFile: ours, ClientAuth: test.auth}, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		for who, c := range map[string]struct {
			cfg  *tls.Config
			want bool
		}{"nobody": {&tls.Config{}, test.none}, "client": {show(good), test.good}, "stranger": {show(stranger), test.evil}} {
			if _, err := shake(t, s, c.cfg); (err == nil) != c.want {
				t.Errorf("client_auth %q, %s: got %v, want let in: %v", test.auth, who, err, c.want)
			}
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	cert, key, _ := issue(t, dir, "server")
	_, otherKey, _ := issue(t, t.TempDir(), "other")
	for name, f := range map[string]Files{
		"no certificate":       {CertFile: filepath.Join(dir, "none"), KeyFile: key},
		"another's key":        {CertFile: cert, KeyFile: otherKey},
		"no authority":         {CertFile: cert, KeyFile: key, ClientAuth: ClientAuthRequired},
		"a key for authority":  {CertFile: cert, KeyFile: key, CAFile: key, ClientAuth: ClientAuthRequired},
		"no such client auth.": {CertFile: cert, KeyFile: key, ClientAuth: "maybe"},
	} {
		if _, err := Load(f, func(error) {}); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
}
