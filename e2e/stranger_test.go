//go:build e2e

package e2e

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStranger knocks at the internode ports of a cluster with raft.tls, in
// service: without TLS, with noise, without a certificate, with one of another
// authority, with one of the right authority that names no node or another one.
// Each sends forged AppendEntries, RequestVote, InstallSnapshot and TimeoutNow of
// a far higher term to every group, and calls of peers. Terms, leaders and records
// stay what they are, and the log names the causes.
func TestStranger(t *testing.T) {
	ca, other := newTestAuthority(t), newTestAuthority(t)
	dir := t.TempDir()
	writeSecret(t, filepath.Join(dir, "ca.pem"), ca.pem())
	certs := map[int]tls.Certificate{}
	c := newClusterWith(t, clusterOpts{settings: func(n *node) []string {
		name := fmt.Sprintf("lockstep-node-%d", n.id)
		files := filepath.Join(dir, name)
		certs[n.id] = ca.issueNode(t, files, name)
		return []string{"raft.tls.cert_file=" + files + ".pem", "raft.tls.key_file=" + files + ".key", "raft.tls.ca_file=" + filepath.Join(dir, "ca.pem")}
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	const topic, partitions = "guarded", 6
	c.createTopic(c.node(1), topic, partitions)
	w := startWorkload(t, c.bootstrap(), topic, partitions, 10*time.Millisecond, "p1")
	if err := w.h.waitAcks(ctx, partitions, time.Time{}, 100); err != nil {
		t.Fatal(err)
	}
	before, err := c.node(1).status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	foreign, nobody := other.issueNode(t, "", "lockstep-node-2"), ca.issueNode(t, "", "somebody")
	for _, n := range c.nodes {
		claims := n.id%3 + 1 // a peer of n
		third := claims%3 + 1
		for _, k := range []struct {
			what  string
			tls   bool
			certs []tls.Certificate
			want  string // of the answer; TLS itself tells no more than an alert
		}{
			{"without TLS", false, nil, "requires TLS"},
			{"without a certificate", true, nil, ""},
			{"with a certificate of another authority", true, []tls.Certificate{foreign}, ""},
			{"with a certificate that names no node", true, []tls.Certificate{nobody}, "the certificate is not that of node"},
			{"with the certificate of another node", true, []tls.Certificate{certs[third]}, "the certificate is not that of node"},
		} {
			s := stranger{cluster: before.ClusterID, claims: claims}
			if k.tls {
				s.tls = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, Certificates: k.certs}
			}
			for group := range uint32(len(before.Groups)) {
				if said := s.knock(t, n.raftAddr(), 2, group, forgedRaft(claims)); !strings.Contains(said, k.want) {
					t.Errorf("node %d, stranger %s, group %d: answer %q, want %q in it", n.id, k.what, group, said, k.want)
				}
			}
			if said := s.knock(t, n.raftAddr(), 1, 0, forgedCalls()); !strings.Contains(said, k.want) {
				t.Errorf("node %d, stranger %s, calls: answer %q, want %q in it", n.id, k.what, said, k.want)
			}
		}
		noise(t, n.raftAddr())
	}
	if err := w.h.waitAcks(ctx, partitions, time.Now(), 100); err != nil {
		t.Fatalf("after the strangers: %v", err)
	}
	after, err := c.node(1).status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(after.terms(), before.terms()) || !maps.Equal(after.leaders(), before.leaders()) {
		t.Errorf("terms %v and leaders %v, before %v and %v", after.terms(), after.leaders(), before.terms(), before.leaders())
	}
	for _, cause := range []string{"the certificate is not that of node", "enable it on all nodes or on none", "closed connection of a stranger"} {
		if len(c.logLines(cause)) == 0 {
			t.Errorf("no log line says %q", cause)
		}
	}
	if err := w.stopProducing(ctx); err != nil {
		t.Fatalf("wait for the last answers: %v", err)
	}
	if err := w.waitConsumed(ctx); err != nil {
		t.Errorf("consumer did not reach the last acknowledged record: %v", err)
	}
	c.waitBrokersHold(c.nodes, topic, w.h.ends())
	w.h.check(c.readBrokers(c.nodes, topic, partitions), partitions).report(t)
	c.verify()
}

// stranger says that it is a node, and knows all that is no secret.
type stranger struct {
	cluster string
	claims  int
	tls     *tls.Config // nil: none
}

// knock opens a stream (1 calls, 2 a group's Raft), sends what is forged behind
// the opening without waiting for the answer, and returns what the node said
// until it closed the connection. A welcome fails the test.
func (s *stranger) knock(t *testing.T, addr string, kind byte, group uint32, forged []byte) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var to net.Conn = conn
	if s.tls != nil {
		to = tls.Client(conn, s.tls)
	}
	hello, err := json.Marshal(map[string]any{"cluster_id": s.cluster, "node_id": s.claims, "incarnation": "forged", "groups": 3, "version": "forged"})
	if err != nil {
		t.Fatal(err)
	}
	b := append([]byte("\xf1LKS\x02"), kind)
	b = binary.BigEndian.AppendUint32(b, group)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(hello))), hello...)
	if _, err := to.Write(append(b, forged...)); err != nil {
		return "" // refused before that
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // the refusal waits for it
	}
	said, err := io.ReadAll(io.LimitReader(to, 1<<20))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s kept the connection of a stranger", addr)
	}
	if len(said) > 5 && string(said[:4]) == "\xf1LKS" && said[5] == 0 {
		t.Errorf("%s welcomed a stranger: %q", addr, said)
	}
	return string(said)
}

// forgedRaft are requests of a leader and of a candidate whose term is far ahead,
// in the layout of transport/raftcodec.go.
func forgedRaft(from int) (all []byte) {
	const term = 1 << 40
	message := func(kind byte, fields ...any) {
		head := []byte{3} // Raft's protocol version
		for _, id := range []string{fmt.Sprint(from), "127.0.0.1:1"} {
			head = append(binary.BigEndian.AppendUint32(head, uint32(len(id))), id...)
		}
		for _, f := range fields {
			head, _ = binary.Append(head, binary.BigEndian, f)
		}
		all = append(binary.BigEndian.AppendUint32(append(all, kind), uint32(len(head))), head...)
	}
	message(2, uint64(term), uint64(term), uint64(term), true)                                            // RequestVote, as if leadership were handed over
	message(1, uint64(term), uint64(0), uint64(0), uint64(term), uint32(0))                               // AppendEntries
	message(4, uint8(1), uint64(term), uint64(term), uint64(term), uint32(0), uint64(term), uint64(1<<4)) // InstallSnapshot
	all = append(all, make([]byte, 16)...)
	message(5) // TimeoutNow
	return all
}

// forgedCalls are requests with every method's number and a body that is JSON.
func forgedCalls() (all []byte) {
	for method := range byte(64) {
		all = binary.BigEndian.AppendUint32(all, uint32(10+2))
		all = binary.BigEndian.AppendUint64(all, uint64(method)+1)
		all = append(all, 1, method, '{', '}')
	}
	return all
}

// noise sends bytes that mean nothing.
func noise(t *testing.T, addr string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := make([]byte, 64<<10)
	_, _ = rand.Read(b)
	b[0] = 'x' // neither TLS nor Lockstep
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write(b) // it may be closed before all is written
	if _, err := io.Copy(io.Discard, conn); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s kept the connection of one that sends noise", addr)
		}
	}
}

// issueNode makes a certificate with a DNS name, for both sides of a connection,
// and writes it to files.pem and files.key unless files is "".
func (a *testAuthority) issueNode(t *testing.T, files, name string) tls.Certificate {
	t.Helper()
	key := newTestKey(t)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	cert := a.sign(t, &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, a.cert, key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if files != "" {
		writeSecret(t, files+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
		writeSecret(t, files+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}
