package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	// controlFile is in the data directory while a demo runs, and says where
	// its control port is.
	controlFile = "control.json"
	// controlTimeout is longer than a broker may take to start.
	controlTimeout = demoReadyTimeout + brokerStart
	maxControl     = 64 << 10
)

// errNoDemo is returned when no demo runs in a data directory.
var errNoDemo = errors.New("no demo runs there")

// controlAddress is what stands in the control file, which its owner alone can
// read.
type controlAddress struct {
	Address string `json:"address"`
	Token   string `json:"token"`
}

// demoMember is one node of a running demo.
type demoMember struct {
	ID        int32  `json:"id"`
	Kafka     string `json:"kafka"`
	Admin     string `json:"admin"`
	Broker    string `json:"broker"`
	PID       int    `json:"pid"`
	BrokerPID int    `json:"broker_pid"`
	Dead      bool   `json:"dead"` // one of the two has ended
}

// demoControl is how another process has the demo kill and start its nodes.
// Only the demo signals them: they are its own children, whose ids nobody else
// can have before it has reaped them.
type demoControl struct {
	file     string
	token    string
	server   *http.Server
	requests chan controlRequest
	served   chan struct{} // closed when the server has ended
}

// controlRequest is done by the goroutine that owns the demo.
type controlRequest struct {
	what   string // nodes, kill or start
	node   int
	answer chan controlAnswer // takes one without blocking
}

type controlAnswer struct {
	Nodes []demoMember `json:"nodes,omitempty"`
	Error string       `json:"error,omitempty"`
}

// openDemoControl listens on a free port of 127.0.0.1 and notes it in dir.
func openDemoControl(dir string) (*demoControl, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for demo kill-leader: %w", err)
	}
	c := &demoControl{file: filepath.Join(dir, controlFile), token: rand.Text(),
		requests: make(chan controlRequest), served: make(chan struct{})}
	raw, err := json.Marshal(controlAddress{Address: ln.Addr().String(), Token: c.token})
	if err == nil {
		_ = os.Remove(c.file) // one left by a demo that was killed may have other rights
		err = os.WriteFile(c.file, raw, 0o600)
	}
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("note the demo's control port: %w", err)
	}
	c.server = &http.Server{Handler: c, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 8 << 10}
	go func() {
		defer close(c.served)
		_ = c.server.Serve(ln) // until close
	}()
	return c, nil
}

// close ends every request and returns when the server has ended.
func (c *demoControl) close() {
	_ = os.Remove(c.file)
	_ = c.server.Close()
	<-c.served
}

// ServeHTTP takes POST /nodes, /kill?node=N and /start?node=N.
func (c *demoControl) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+c.token)) != 1 {
		http.Error(w, "not the token of this demo", http.StatusForbidden)
		return
	}
	node, err := strconv.Atoi(r.URL.Query().Get("node"))
	if r.Method != http.MethodPost || err != nil && r.URL.Path != "/nodes" {
		http.Error(w, "it is POST, with a node", http.StatusBadRequest)
		return
	}
	req := controlRequest{what: r.URL.Path[1:], node: node, answer: make(chan controlAnswer, 1)}
	select {
	case c.requests <- req:
	case <-r.Context().Done():
		return
	}
	select {
	case a := <-req.answer:
		_ = json.NewEncoder(w).Encode(a) // who asked may be gone
	case <-r.Context().Done():
	}
}

// do does what came in at the control port.
func (d *demo) do(ctx context.Context, req controlRequest) controlAnswer {
	i := req.node - 1
	if req.what != "nodes" && (i < 0 || i >= len(d.nodes)) {
		return controlAnswer{Error: fmt.Sprintf("there is no node %d", req.node)}
	}
	var err error
	switch req.what {
	case "nodes":
	case "kill":
		d.killed[d.brokers[i].PID()], d.killed[d.proxies[i].PID()] = true, true
		var both sync.WaitGroup // at once, as when a machine dies
		both.Go(d.brokers[i].Kill)
		both.Go(d.proxies[i].Kill)
		both.Wait()
	case "start":
		err = d.startAgain(ctx, i)
	default:
		return controlAnswer{Error: fmt.Sprintf("%q is unknown to this demo: is it another version?", req.what)}
	}
	if err != nil {
		return controlAnswer{Error: err.Error()}
	}
	var a controlAnswer
	for i, n := range d.nodes {
		a.Nodes = append(a.Nodes, demoMember{ID: int32(n.id), Kafka: n.kafka, Admin: n.admin, Broker: n.broker,
			PID: d.proxies[i].PID(), BrokerPID: d.brokers[i].PID(), Dead: hasEnded(d.proxies[i]) || hasEnded(d.brokers[i])})
	}
	return a
}

// startAgain starts what has ended of a node.
func (d *demo) startAgain(ctx context.Context, i int) error {
	if hasEnded(d.brokers[i]) {
		if err := d.startBroker(ctx, i); err != nil {
			return err
		}
	}
	if hasEnded(d.proxies[i]) {
		return d.startProxy(i)
	}
	return nil
}

func hasEnded(m member) bool {
	select {
	case <-m.Done():
		return true
	default:
		return false
	}
}

// controlClient speaks to the control port of a running demo.
type controlClient struct {
	at   controlAddress
	http *http.Client
}

// findDemo returns a client of the demo that runs in dir, errNoDemo if none
// does.
func findDemo(ctx context.Context, dir string) (*controlClient, []demoMember, error) {
	raw, err := os.ReadFile(filepath.Join(dir, controlFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, errNoDemo
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read where the demo's control port is: %w; run this as the user who runs the demo", err)
	}
	c := &controlClient{http: &http.Client{Timeout: controlTimeout}}
	if err := json.Unmarshal(raw, &c.at); err != nil {
		return nil, nil, fmt.Errorf("%w: %s was not written by one", errNoDemo, filepath.Join(dir, controlFile))
	}
	nodes, err := c.do(ctx, "nodes", 0)
	for _, gone := range []error{syscall.ECONNREFUSED, syscall.ECONNRESET, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, gone) {
			return nil, nil, errNoDemo // it was killed, or has just ended
		}
	}
	return c, nodes, err
}

// do has the demo do something and returns its nodes.
func (c *controlClient) do(ctx context.Context, what string, node int32) ([]demoMember, error) {
	u := url.URL{Scheme: "http", Host: c.at.Address, Path: "/" + what,
		RawQuery: url.Values{"node": {strconv.Itoa(int(node))}}.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.at.Token)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the demo: %w", err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxControl))
	if err != nil {
		return nil, fmt.Errorf("ask the demo: %w", err)
	}
	var a controlAnswer
	if err := json.Unmarshal(raw, &a); err != nil || resp.StatusCode != http.StatusOK {
		return nil, errNoDemo // another program has the port of a demo that was killed
	}
	if a.Error != "" {
		return nil, errors.New(a.Error)
	}
	return a.Nodes, nil
}
