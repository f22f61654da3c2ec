package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// nodeNamePrefix and a decimal node id make the name that binds a certificate
// to a node.
const nodeNamePrefix = "lockstep-node-"

// TLS gives the internode port mutual TLS 1.3 from three PEM files. Before every
// handshake the files are looked at and read again if one changed; while the new
// ones are unusable (half written, or a key that is not the certificate's) the
// previous stay in use. Open connections keep the certificate they began with.
type TLS struct {
	certFile, keyFile, caFile string

	mu     sync.Mutex
	seen   [3]os.FileInfo
	loaded material
}

// material is what the files held; it is never changed once made.
type material struct {
	cert tls.Certificate
	pool *x509.CertPool
}

// LoadTLS reads a certificate with its chain, its private key, and the
// authorities that sign the certificates of peers, all PEM.
func LoadTLS(certFile, keyFile, caFile string) (*TLS, error) {
	c := &TLS{certFile: certFile, keyFile: keyFile, caFile: caFile}
	if _, err := c.current(); err != nil {
		return nil, fmt.Errorf("load tls files: %w", err)
	}
	return c, nil
}

// current returns what the files hold now, or, with an error, what they held.
func (c *TLS) current() (material, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var now [3]os.FileInfo
	same := true
	for i, name := range []string{c.certFile, c.keyFile, c.caFile} {
		info, err := os.Stat(name)
		if err != nil {
			return c.loaded, err
		}
		now[i] = info
		old := c.seen[i]
		same = same && old != nil && os.SameFile(old, info) && old.ModTime().Equal(info.ModTime()) && old.Size() == info.Size()
	}
	if same {
		return c.loaded, nil
	}
	m, err := c.read()
	if err != nil {
		return c.loaded, err
	}
	c.seen, c.loaded = now, m
	return m, nil
}

func (c *TLS) read() (material, error) {
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return material{}, fmt.Errorf("certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	pem, err := os.ReadFile(c.caFile)
	if err != nil {
		return material{}, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return material{}, fmt.Errorf("%s holds no PEM certificate", c.caFile)
	}
	return material{cert, pool}, nil
}

// server is the configuration of one accepted connection.
func (c *TLS) server(report func(error)) *tls.Config {
	m, err := c.current()
	report(err)
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{m.cert},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              m.pool,
		SessionTicketsDisabled: true, // a resumed session would outlive a withdrawn authority
	}
}

// client is the configuration of one dialled connection. The chain is verified
// here against our authorities; the name is not a host's but a node's, and is
// checked by checkCertificate on both sides alike.
func (c *TLS) client(report func(error)) *tls.Config {
	m, err := c.current()
	report(err)
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Certificates:       []tls.Certificate{m.cert},
		InsecureSkipVerify: true, // replaced by VerifyConnection: only the host name is left out
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("peer sent no certificate")
			}
			between := x509.NewCertPool()
			for _, cert := range s.PeerCertificates[1:] {
				between.AddCert(cert)
			}
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
				Roots:         m.pool,
				Intermediates: between,
				CurrentTime:   time.Now(),
				KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			})
			return err
		},
	}
}

// checkCertificate binds the peer's verified certificate to a node id.
func (t *Transport) checkCertificate(secured *tls.Conn, node int32) error {
	certs := secured.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return errors.New("peer sent no certificate")
	}
	t.mu.Lock()
	host, shared := hostOf(t.peers[node]), false
	for other, addr := range t.peers {
		shared = shared || other != node && strings.EqualFold(hostOf(addr), host)
	}
	t.mu.Unlock()
	if shared {
		host = "" // a host of several nodes names none of them
	}
	return checkNodeName(certs[0], node, host)
}

// checkNodeName reports whether a certificate is that of a node: a DNS name
// among its SANs, or its common name, is lockstep-node-<id>; or, when it carries
// no such name at all, a SAN is exactly the node's host, unless that is empty.
// Wildcards match no node: they would match them all.
func checkNodeName(cert *x509.Certificate, node int32, host string) error {
	want := nodeNamePrefix + strconv.Itoa(int(node))
	bound := false
	for _, name := range append([]string{cert.Subject.CommonName}, cert.DNSNames...) {
		if strings.EqualFold(name, want) {
			return nil
		}
		bound = bound || strings.HasPrefix(strings.ToLower(name), nodeNamePrefix)
	}
	if !bound && host != "" {
		for _, name := range cert.DNSNames {
			if strings.EqualFold(name, host) {
				return nil
			}
		}
		ip := net.ParseIP(host)
		for _, have := range cert.IPAddresses {
			if ip != nil && have.Equal(ip) {
				return nil
			}
		}
	}
	return fmt.Errorf("the certificate is not that of node %d: it names %q and %q; issue one with the DNS name %s",
		node, cert.Subject.CommonName, cert.DNSNames, want)
}

// hostOf is the host of host:port, or "".
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	return host
}
