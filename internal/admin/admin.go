// Package admin is a node's own HTTP port: liveness, readiness, status,
// metrics, and the digests by which the brokers' logs are compared.
package admin

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"lockstep/internal/broker"
	"lockstep/internal/cluster"
	"lockstep/internal/node"
)

// Config of a Server.
type Config struct {
	Listen string

	// Token, if not empty, must come with every request that changes something
	// (Authorization: Bearer). It is never logged.
	Token string

	// TLS, if not nil, is what the port speaks, in place of plain HTTP. With
	// Certificates it asks clients for certificates and verifies those that are
	// shown: one that it verified authorizes changes, as the token does.
	TLS          *tls.Config
	Certificates bool

	// Insecure allows changes without either though Listen is not loopback.
	Insecure bool

	// Log returns the newest lines of the process's log.
	Log func() []byte

	// Metrics are the collectors of the other rooms.
	Metrics []prometheus.Collector

	Self    int32
	Version string
	Logger  hclog.Logger
}

// Broker reads the local broker's log.
type Broker interface {
	LogEnd(ctx context.Context, topic string, partition int32) (start, end int64, err error)
	Batches(ctx context.Context, topic string, partition int32, from, to int64, fn func(batch []byte) error) error
	Topic(ctx context.Context, name string) (broker.TopicInfo, error)
}

// Server is the admin port of one node.
type Server struct {
	cfg     Config
	cluster *cluster.Cluster
	node    *node.Node
	broker  Broker
	http    *http.Server
	ln      net.Listener
	done    chan struct{} // closed when Serve has returned; nil before Open

	reaching chan struct{} // held by whoever has the other nodes asked; capacity 1
	logging  chan struct{} // held by whoever reads the log
}

// New returns a server that does nothing until Open.
func New(cfg Config, c *cluster.Cluster, n *node.Node, b Broker) *Server {
	s := &Server{cfg: cfg, cluster: c, node: n, broker: b, reaching: make(chan struct{}, 1), logging: make(chan struct{}, logReaders)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", s.livez)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /status", s.status)
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("GET /digest", s.digest)
	mux.HandleFunc("GET /partitions", s.partitions)
	mux.HandleFunc("POST /rebuild", s.rebuild)
	mux.HandleFunc("GET /foreign", s.foreign)
	mux.HandleFunc("GET /reach", s.reach)
	mux.HandleFunc("POST /adopt", s.adopt)
	mux.HandleFunc("POST /leave", s.leave)
	s.handleMembers(mux)
	mux.HandleFunc("GET /goroutines", s.goroutines)
	mux.HandleFunc("GET /log", s.log)
	mux.Handle("GET /metrics", promhttp.HandlerFor(newRegistry(c, cfg), promhttp.HandlerOpts{}))
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	if cfg.TLS != nil {
		s.http.ErrorLog = log.New(&complaints{log: cfg.Logger}, "", 0)
	}
	return s
}

// Open binds the port and starts to serve.
func (s *Server) Open() error {
	ln, err := net.Listen("tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for admin requests on %s: %w", s.cfg.Listen, err)
	}
	if s.cfg.TLS != nil {
		ln = tls.NewListener(ln, s.cfg.TLS)
	}
	s.ln, s.done = ln, make(chan struct{})
	s.http.Handler = s.guard(s.http.Handler)
	go func() {
		defer close(s.done)
		if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.cfg.Logger.Error("admin port failed", "error", err)
		}
	}()
	return nil
}

// Addr is the bound address, nil before Open.
func (s *Server) Addr() net.Addr {
	if s.ln == nil {
		return nil
	}
	return s.ln.Addr()
}

// Close stops serving and returns when the goroutine is gone.
func (s *Server) Close() error {
	err := s.http.Close()
	if s.done != nil {
		<-s.done
	}
	return err
}

// livez answers as long as the process does.
func (s *Server) livez(w http.ResponseWriter, _ *http.Request) {
	checks{{"process", nil}, {"disk", s.node.Err()}}.write(w)
}

// readyz says whether clients can use this node.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	st := s.cluster.Status()
	cs := checks{{"member", nil}, {"broker", nil}, {"groups", nil}}
	if p := s.node.Problem(); p != "" || !s.node.Member() {
		cs[0].err = errors.New(cmp.Or(p, "not a member yet"))
	}
	for _, n := range st.Nodes {
		if n.ID == s.cfg.Self && n.Broker.State != "up" {
			cs[1].err = fmt.Errorf("broker is %s: %s", n.Broker.State, n.Broker.Error)
		}
	}
	for _, g := range st.Groups {
		if g.Leader == 0 {
			cs[2].err = fmt.Errorf("group %d has no leader", g.Group)
		}
	}
	cs.write(w)
}

type checks []struct {
	name string
	err  error
}

func (cs checks) write(w http.ResponseWriter) {
	var b strings.Builder
	code := http.StatusOK
	for _, c := range cs {
		if c.err == nil {
			fmt.Fprintf(&b, "[+]%s ok\n", c.name)
			continue
		}
		code = http.StatusServiceUnavailable
		fmt.Fprintf(&b, "[-]%s failed: %v\n", c.name, c.err)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(b.String())) // the client is gone: nobody to tell
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.cluster.Status())
}

// reach says whether the other nodes reach this one. They connect to find out,
// so one is answered after the other, however many ask.
func (s *Server) reach(w http.ResponseWriter, r *http.Request) {
	select {
	case s.reaching <- struct{}{}:
		defer func() { <-s.reaching }()
		writeJSON(w, http.StatusOK, s.cluster.Reach(r.Context()))
	case <-r.Context().Done():
	}
}

// leave has every broker told what consumer groups have committed. The answer
// begins at once, so that the client does not take the node for dead.
func (s *Server) leave(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	_ = json.NewEncoder(w).Encode(s.cluster.Leave(r.Context())) // the client is gone: nobody to tell
}

// rebuild orders that a topic is made anew on this node's broker.
func (s *Server) rebuild(w http.ResponseWriter, r *http.Request) {
	topic := r.URL.Query().Get("topic")
	if topic == "" {
		writeError(w, http.StatusBadRequest, errors.New("rebuild needs ?topic="))
		return
	}
	if err := s.cluster.Rebuild(topic, r.URL.Query().Get("force") == "true"); err != nil {
		writeError(w, http.StatusConflict, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"ordered": topic})
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nobody to tell
}

func writeError(w http.ResponseWriter, code int, err error) {
	writeJSON(w, code, map[string]string{"error": err.Error()})
}
