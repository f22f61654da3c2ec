package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"lockstep/configs"
	"lockstep/internal/admin"
)

// tlsNode is an admin port with TLS, which lets in whoever shows its own
// certificate, and the files to ask it with.
func tlsNode(t *testing.T) (addr, cert, key string) {
	t.Helper()
	st := sampleStatus()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/status":
			_ = json.NewEncoder(w).Encode(&st)
		case r.URL.Path == "/partitions":
			_ = json.NewEncoder(w).Encode([]admin.PartitionInfo{{Topic: "orders"}})
		case len(r.TLS.PeerCertificates) == 1:
			_, _ = w.Write([]byte(`{"ordered":true}`))
		default:
			http.Error(w, `{"error":"no certificate was shown"}`, http.StatusUnauthorized)
		}
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	dir := t.TempDir()
	pair := s.TLS.Certificates[0]
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "node.pem"), filepath.Join(dir, "node.key")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return strings.TrimPrefix(s.URL, "https://"), cert, key
}

// selfSigned writes a certificate that holds for so long.
func selfSigned(t *testing.T, holds time.Duration) (file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(holds), DNSNames: []string{"node-1"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "other.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Every command that asks nodes asks those with TLS, by flags and by the
// environment alike.
func TestCommandsAskByTLS(t *testing.T) {
	addr, cert, key := tlsNode(t)
	commands := [][]string{
		{"status"}, {"rebuild", "orders"}, {"log-level", "debug"}, {"transfer", "--group", "0"},
		{"members", "add", "4", "--address", "node-4.example:7400"}, {"members", "remove", "2"},
		{"bundle", "--out", filepath.Join(t.TempDir(), "bundle")},
	}
	run := func(args []string, more ...string) (string, int, error) {
		return runCommand(rootCommand(), append(append(args[:len(args):len(args)], "--admin", addr), more...)...)
	}
	for _, args := range commands[:len(commands)-1] {
		if _, code, err := run(args); code != exitFailed || !strings.Contains(err.Error(), "--admin-ca") {
			t.Errorf("%q in plain HTTP: exit %d, %v", args, code, err)
		}
	}
	for _, args := range commands {
		if out, code, err := run(args, "--admin-ca", cert, "--admin-cert", cert, "--admin-key", key); code != 0 {
			t.Errorf("%q by flags: exit %d, %v\n%s", args, code, err, out)
		}
	}
	if _, code, err := run(commands[1], "--admin-ca", cert); code != exitFailed || !strings.Contains(err.Error(), "no certificate was shown") {
		t.Errorf("without a certificate: exit %d, %v", code, err)
	}
	if _, code, err := run(commands[1], "--admin-ca", cert, "--admin-cert", cert); code != exitFailed || !strings.Contains(err.Error(), "--admin-key") {
		t.Errorf("without a key: exit %d, %v", code, err)
	}
	t.Setenv(adminCAVariable, cert)
	t.Setenv(adminCertVariable, cert)
	t.Setenv(adminKeyVariable, key)
	for _, args := range commands[:len(commands)-1] {
		if out, code, err := run(args); code != 0 {
			t.Errorf("%q by the environment: exit %d, %v\n%s", args, code, err, out)
		}
	}
	if out, code, err := runCommand(rootCommand(), "status", "--admin", "https://"+addr); code != 0 {
		t.Errorf("https:// before the address: exit %d, %v\n%s", code, err, out)
	}
	if got := strings.Join(completions(t, "rebuild", "--admin", addr, ""), " "); got != "orders :4" {
		t.Errorf("completion: %q", got)
	}
	if _, err := configs.Load("", []string{"node.id=1", "cluster.id=t", "data_dir=d", "listeners=A://127.0.0.1:1",
		"raft.peers=1=127.0.0.1:2", "broker.bootstrap_server=127.0.0.1:3"}, os.Environ()); err != nil {
		t.Errorf("a node takes the commands' variables for settings: %v", err)
	}
}

func TestAdminAddresses(t *testing.T) {
	for addr, good := range map[string]bool{
		"127.0.0.1:7501": true, "https://node-1:7501": true, "http://node-1:7501": true, "https://node-1": false, "ftp://node-1:7501": false,
		"https://": false, "://node-1:7501": false, "https://node-1:7501/": false, "https://https://node-1:7501": false,
	} {
		if err := checkAdminAddress(addr); (err == nil) != good {
			t.Errorf("%q: %v", addr, err)
		}
	}
}

// The doctor asks its own node by TLS without being told whom to trust, and says
// what is wrong with the admin port's files.
func TestDoctorOfAdminTLS(t *testing.T) {
	addr, cert, key := tlsNode(t)
	b, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other, soon, over := selfSigned(t, 365*24*time.Hour), selfSigned(t, 24*time.Hour), selfSigned(t, -time.Minute)
	ports := testPorts(t, 3)
	for _, test := range []struct {
		name string
		sets []string
		want string
	}{
		{"running", []string{"admin.listen=" + addr, "admin.tls.cert_file=" + cert, "admin.tls.key_file=" + key}, "certificate of admin.tls"},
		{"another certificate", []string{"admin.listen=" + addr, "admin.tls.cert_file=" + other, "admin.tls.key_file=" + key}, "shows another certificate than " + other},
		{"missing", []string{"admin.tls.cert_file=" + cert + ".none", "admin.tls.key_file=" + key}, cert + ".none"},
		{"soon over", []string{"admin.tls.cert_file=" + soon, "admin.tls.key_file=" + key}, "warning certificate of admin.tls " + soon},
		{"over", []string{"admin.tls.cert_file=" + over, "admin.tls.key_file=" + key}, "error certificate of admin.tls " + over},
		{"a key for an authority", []string{"admin.tls.cert_file=" + cert, "admin.tls.key_file=" + key, "admin.tls.ca_file=" + key}, "certificate of admin.tls.ca_file"},
		{"an authority of its own", []string{"admin.tls.cert_file=" + cert, "admin.tls.key_file=" + key, "admin.tls.ca_file=" + cert}, "ok authority of admin.tls"},
		{"an authority of the nodes, too", []string{"admin.tls.cert_file=" + cert, "admin.tls.key_file=" + key, "admin.tls.ca_file=" + cert,
			"raft.tls.cert_file=" + cert, "raft.tls.key_file=" + key, "raft.tls.ca_file=" + cert}, "admin.tls.ca_file and raft.tls.ca_file share an authority"},
		{"readable token", []string{"admin.listen=0.0.0.0:" + strings.Split(loopback(ports[2]), ":")[1], "admin.token_file=" + token}, "speaks plain HTTP"},
	} {
		cfg, err := configs.Load("", append([]string{"node.id=1", "cluster.id=t", "data_dir=" + t.TempDir(), "listeners=PLAINTEXT://" + loopback(ports[0]),
			"raft.peers=1=" + loopback(ports[1]), "admin.listen=" + loopback(ports[2]), "broker.bootstrap_server=" + b.ListenAddrs()[0]}, test.sets...), nil)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		_ = examine(t.Context(), cfg, nil, outputTable, &out) // what else it finds is not asked here
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), test.want) {
			t.Errorf("%s: want %q in\n%s", test.name, test.want, out.String())
		}
		if test.name == "running" && strings.Contains(out.String(), "does not tell") {
			t.Errorf("the node could not be asked:\n%s", out.String())
		}
	}
}
