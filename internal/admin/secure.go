package admin

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/internal/tlsfiles"
)

var (
	// ErrWantsTLS is returned when plain HTTP was spoken to a port with TLS.
	ErrWantsTLS = errors.New("this admin port speaks TLS: give --admin-ca FILE with the authority that signed its certificate (or set LOCKSTEP_ADMIN_CA)")

	// ErrSpeaksPlain is returned when TLS was spoken to a port without.
	ErrSpeaksPlain = errors.New("this admin port speaks plain HTTP: leave out --admin-ca, LOCKSTEP_ADMIN_CA and https://, or set admin.tls on the node")

	// ErrStrangeNode is returned when a node's certificate is not to be trusted.
	ErrStrangeNode = errors.New("the node's certificate is not trusted: --admin-ca (or LOCKSTEP_ADMIN_CA) must name the authority that signed it, and --admin an address that it is valid for")

	// ErrStrangeClient is returned when a node refused the client's certificate.
	ErrStrangeClient = errors.New("the node refuses the certificate: --admin-cert must be valid, and signed by an authority of the node's admin.tls.ca_file")
)

// ClientTLS is how a client speaks to admin ports: ca names the authorities of the
// nodes' certificates, those of the system if empty; cert and key are what it shows
// itself, nothing if empty.
func ClientTLS(ca, cert, key string) (*tls.Config, error) {
	if (cert == "") != (key == "") {
		return nil, errors.New("certificate for the admin port: one of --admin-cert and --admin-key (LOCKSTEP_ADMIN_CERT, LOCKSTEP_ADMIN_KEY) without the other; give both")
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if ca != "" {
		if c.RootCAs, err = tlsfiles.ReadAuthorities(ca); err != nil {
			return nil, fmt.Errorf("authority of the admin port: %w", err)
		}
	}
	if cert == "" {
		return c, nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("certificate for the admin port: %s with key %s: %w", cert, key, err)
	}
	// It is shown whoever signed it: a node that does not take it says so, where
	// Go would else keep it back and be taken for somebody without one.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return c, nil
}

// TLSScheme begins the registered address of an admin port with TLS.
const TLSScheme = "https://"

// Registered is the URL of the admin port that a node registered as addr.
func Registered(addr string) string {
	if strings.HasPrefix(addr, TLSScheme) {
		return addr
	}
	return "http://" + addr
}

// causeOf tells what a request failed of, where that is TLS.
func causeOf(err error) error {
	var unverified *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var op *net.OpError
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return ErrSpeaksPlain
	case errors.As(err, &unverified), errors.As(err, &unknown):
		return fmt.Errorf("%w (%w)", ErrStrangeNode, err)
	case errors.As(err, &op) && op.Op == "remote error": // an alert, crypto/tls
		return fmt.Errorf("%w (%w)", ErrStrangeClient, err)
	}
	return err
}

// shows reports whether a refused certificate may be the cause: the node closes
// after its alert, which may overtake it.
func shows(t *tls.Config, err error) bool {
	return t != nil && t.GetClientCertificate != nil && (errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET))
}

// certified reports whether the client showed a certificate that TLS verified,
// and that holds still.
func certified(r *http.Request) bool {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return false
	}
	now := time.Now()
	for _, cert := range r.TLS.VerifiedChains[0] {
		if now.After(cert.NotAfter) {
			return false // the connection outlived it
		}
	}
	return true
}

// complaintEvery is how long complaints of a host that need the same remedy stay unrepeated, and
// maxComplaints bounds what is remembered of them.
const (
	complaintEvery = 30 * time.Second
	maxComplaints  = 256
)

// complaints is where net/http writes what goes wrong with connections.
type complaints struct {
	log hclog.Logger

	mu   sync.Mutex
	seen map[string]time.Time
}

const handshakeFailed = "http: TLS handshake error from "

// Write implements io.Writer, for a log.Logger.
func (c *complaints) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	rest, ok := strings.CutPrefix(line, handshakeFailed)
	if !ok {
		c.log.Error("admin port", "error", line)
		return len(b), nil
	}
	remote, reason, _ := strings.Cut(rest, ": ")
	if reason == "EOF" {
		return len(b), nil // looked whether the port is open
	}
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	// Not by the reason, which may hold a port, or what the client likes.
	if next := nextOf(reason); c.first(host + " " + next) {
		c.log.Warn("refused a connection to the admin port", "remote", remote, "error", reason, "next", next)
	}
	return len(b), nil
}

func nextOf(reason string) string {
	if strings.Contains(reason, "HTTPS") || strings.Contains(reason, "first record does not look like") {
		return "this port speaks TLS (admin.tls): ask it by https, commands with --admin-ca"
	}
	return "check the authority that the client trusts and, with admin.tls.ca_file, the client's certificate"
}

func (c *complaints) first(complaint string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if at, ok := c.seen[complaint]; ok && now.Sub(at) < complaintEvery {
		return false
	}
	if c.seen == nil || len(c.seen) >= maxComplaints {
		c.seen = make(map[string]time.Time)
	}
	c.seen[complaint] = now
	return true
}
