// Package tlsfiles gives listeners TLS from PEM files that may be replaced
// while the process runs. It is a leaf.
package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
)

// ErrClientAuth is returned by Load for a client authentication that is none.
var ErrClientAuth = errors.New("client authentication is none, requested or required")

// Names of the client authentication, as in Kafka's ssl.client.auth.
const (
	ClientAuthNone      = "none"
	ClientAuthRequested = "requested"
	ClientAuthRequired  = "required"
)

// Files names a server's PEM files. CAFile may be empty if no client is asked
// for a certificate.
type Files struct {
	CertFile, KeyFile, CAFile string
	ClientAuth                string // empty: none
}

// Server holds what the files held when they could last be used. Before every
// handshake they are looked at, and read again if one changed: no restart and no
// signal is needed. While the new ones are unusable (half written, or a key that
// is not the certificate's) the previous stay in use. Open connections keep the
// certificate they began with. Safe for use by many goroutines.
type Server struct {
	files  Files
	auth   tls.ClientAuthType
	report func(error)

	mu     sync.Mutex
	seen   []os.FileInfo
	told   string // the trouble that was reported last, "" when there is none
	loaded *tls.Config
}

// Load reads the files. report is called with the error when changed files
// cannot be used, once until that changes, and with nil when they were taken; it
// is called from the goroutine of the handshake and must not block.
func Load(f Files, report func(error)) (*Server, error) {
	s := &Server{files: f, report: report}
	switch f.ClientAuth {
	case "", ClientAuthNone:
	case ClientAuthRequested: // whoever shows none is let in, a wrong one is not
		s.auth = tls.VerifyClientCertIfGiven
	case ClientAuthRequired:
		s.auth = tls.RequireAndVerifyClientCert
	default:
		return nil, fmt.Errorf("%w, not %q", ErrClientAuth, f.ClientAuth)
	}
	seen, err := s.look()
	if err != nil {
		return nil, err
	}
	if s.loaded, err = s.read(); err != nil {
		return nil, err
	}
	s.seen = seen
	return s, nil
}

// Config is the configuration to hand to tls.Server for every connection.
func (s *Server) Config() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.current(), nil },
	}
}

func (s *Server) current() *tls.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen, err := s.look()
	if err == nil {
		if s.same(seen) {
			s.told = "" // the old files are back, if they were away
			return s.loaded
		}
		var next *tls.Config
		if next, err = s.read(); err == nil {
			s.seen, s.loaded, s.told = seen, next, ""
			s.report(nil)
			return next
		}
	}
	if s.told != err.Error() {
		s.told = err.Error()
		s.report(err)
	}
	return s.loaded
}

func (s *Server) names() []string {
	names := []string{s.files.CertFile, s.files.KeyFile}
	if s.auth != tls.NoClientCert {
		names = append(names, s.files.CAFile)
	}
	return names
}

func (s *Server) look() ([]os.FileInfo, error) {
	var infos []os.FileInfo
	for _, name := range s.names() {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

func (s *Server) same(now []os.FileInfo) bool {
	for i, info := range now {
		old := s.seen[i]
		if !os.SameFile(old, info) || !old.ModTime().Equal(info.ModTime()) || old.Size() != info.Size() {
			return false
		}
	}
	return true
}

func (s *Server) read() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(s.files.CertFile, s.files.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", s.files.CertFile, s.files.KeyFile, err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, ClientAuth: s.auth,
		SessionTicketsDisabled: true} // a resumed session would outlive a withdrawn authority
	if s.auth != tls.NoClientCert {
		if c.ClientCAs, err = ReadAuthorities(s.files.CAFile); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// ReadAuthorities reads the certificates of the authorities to trust.
func ReadAuthorities(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no PEM certificate", file)
	}
	return pool, nil
}
