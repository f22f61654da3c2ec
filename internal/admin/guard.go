package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
)

var (
	errWebPage = errors.New("requests of web pages are refused")
	errToken   = errors.New("this needs the node's admin token: give --token-file FILE or set LOCKSTEP_ADMIN_TOKEN, with what the node's admin.token_file holds")
	errCert    = errors.New("this needs a certificate of an authority in the node's admin.tls.ca_file: give --admin-cert FILE and --admin-key FILE, or set LOCKSTEP_ADMIN_CERT and LOCKSTEP_ADMIN_KEY")
	errEither  = errors.New("this needs the node's admin token (--token-file FILE or LOCKSTEP_ADMIN_TOKEN), or a certificate of an authority in the node's admin.tls.ca_file (--admin-cert FILE and --admin-key FILE, or LOCKSTEP_ADMIN_CERT and LOCKSTEP_ADMIN_KEY)")
	errNoToken = errors.New("changes are refused here: this admin port is not on loopback; set admin.token_file, or admin.tls with ca_file, on the node")
	errHost    = errors.New("refused: the request names another host than this node; ask by address (127.0.0.1) or as localhost")
)

// maxToken bounds a token file, and minToken what can be guessed.
const (
	minToken = 16
	maxToken = 4 << 10
)

// ReadToken reads a token file: its one line without the space around it. The
// error names the file and never its content.
func ReadToken(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("admin token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if len(token) < minToken || len(token) > maxToken || strings.ContainsAny(token, " \t\r\n") {
		return "", fmt.Errorf("admin token: %s must hold one line of %d to %d characters; make one with: openssl rand -hex 32", file, minToken, maxToken)
	}
	return token, nil
}

// guard stands before every handler of the port. A change needs the token or a
// certificate where one of them is asked for, and none is taken from a web page. A port on loopback answers only
// to requests that name the machine itself: a page whose name was made to resolve
// to 127.0.0.1 (DNS rebinding) would else be one origin with the node.
func (s *Server) guard(next http.Handler) http.Handler {
	host, _, _ := net.SplitHostPort(s.cfg.Listen) // Listen would have failed
	local := isLocal(host)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if local && !namesLocal(r.Host) {
			writeError(w, http.StatusForbidden, errHost)
			return
		}
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		if r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") == "cross-site" {
			writeError(w, http.StatusForbidden, errWebPage)
			return
		}
		if code, err := s.mayChange(r, local); err != nil {
			if s.cfg.Token != "" {
				w.Header().Set("WWW-Authenticate", "Bearer")
			}
			writeError(w, code, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// mayChange returns why the request may change nothing. The token and a
// certificate are worth the same.
func (s *Server) mayChange(r *http.Request, local bool) (code int, err error) {
	token, certificates := s.cfg.Token != "", s.cfg.Certificates
	switch {
	case !token && !certificates && !local && !s.cfg.Insecure:
		return http.StatusForbidden, errNoToken
	case !token && !certificates, token && bears(r, s.cfg.Token), certificates && certified(r):
		return 0, nil
	case token && certificates:
		return http.StatusUnauthorized, errEither
	case certificates:
		return http.StatusUnauthorized, errCert
	}
	return http.StatusUnauthorized, errToken
}

// bears reports whether the request carries the token. Digests are compared, so
// that the time taken tells neither its length nor its beginning.
func bears(r *http.Request, token string) bool {
	scheme, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	a, b := sha256.Sum256([]byte(strings.TrimSpace(got))), sha256.Sum256([]byte(token))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

func isLocal(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// namesLocal reports whether a Host header is localhost or an address, which no
// web page of another machine can have for its name.
func namesLocal(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	return strings.EqualFold(host, "localhost") || net.ParseIP(host) != nil
}
