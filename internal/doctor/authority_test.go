package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// pemAuthority is a certificate, as it stands in a file.
func pemAuthority(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// An authority that is among others in a bundle signs all the same.
func TestSharedAuthorityInABundle(t *testing.T) {
	t.Parallel()
	a, b, c := pemAuthority(t), pemAuthority(t), pemAuthority(t)
	write := func(name string, parts ...[]byte) string {
		var text []byte
		for _, part := range parts {
			text = append(append(text, "# an authority\n"...), part...)
		}
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	own := write("own.pem", a)
	examine := func(file string, others map[string]string) []Finding {
		return Examine(t.Context(), []Check{SharedAuthorityCheck(file, others)})
	}
	shared := map[string]string{"ssl.ca_file": write("other.pem", b), "raft.tls.ca_file": write("bundle.pem", b, a, c)}
	has(t, examine(own, shared), Warning, "admin.tls.ca_file and raft.tls.ca_file share an authority")
	has(t, examine(write("bundle.pem", c, a), map[string]string{"broker.ssl.ca_file": own}), Warning, "admin.tls.ca_file and broker.ssl.ca_file share")
	for _, f := range examine(own, map[string]string{"ssl.ca_file": write("others.pem", b, c), "raft.tls.ca_file": "", "broker.ssl.ca_file": own + ".none"}) {
		if f.Severity != OK {
			t.Errorf("nothing is shared: %+v", f)
		}
	}
}
