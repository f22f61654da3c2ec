//go:build e2e

package e2e

import (
	"io"
	"net"
	"sync"
	"testing"
)

// relay stands between a proxy and its broker. It can hold back what the
// connections of the moment send, pass it on when their owner is long dead, and
// serve newer connections meanwhile: what a slow network does to a request whose
// sender was killed.
type relay struct {
	ln     net.Listener
	target string
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]*gate // both sides of each connection; the gate of the client's
	held  int                // bytes held back since hold
}

// gate is shut while its connection is held back.
type gate struct{ open chan struct{} }

func openGate() *gate {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	return g
}

// startRelay listens on a port of its own.
func startRelay(t *testing.T, target string) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", loopback(freePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{ln: ln, target: target, conns: map[net.Conn]*gate{}}
	r.wg.Go(r.accept)
	t.Cleanup(r.close)
	return r
}

func (r *relay) addr() string { return r.ln.Addr().String() }

func (r *relay) accept() {
	for {
		client, err := r.ln.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", r.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		r.mu.Lock()
		r.conns[client], r.conns[server] = openGate(), openGate()
		r.mu.Unlock()
		r.wg.Go(func() { r.forward(client, server) })
		r.wg.Go(func() { // answers; they go nowhere when the client is gone
			_, _ = io.Copy(client, server)
			_, _ = io.Copy(io.Discard, server)
			r.forget(client, server)
		})
	}
}

// forward passes on what the client sends. It reads ahead of a shut gate,
// because what the dead have sent may be lost with their connection.
func (r *relay) forward(client, server net.Conn) {
	chunks := make(chan []byte, 1<<14)
	r.wg.Go(func() {
		defer close(chunks)
		for {
			b := make([]byte, 32<<10)
			n, err := client.Read(b)
			if n > 0 {
				r.count(client, n)
				chunks <- b[:n]
			}
			if err != nil {
				return
			}
		}
	})
	for b := range chunks {
		<-r.gate(client)
		if _, err := server.Write(b); err != nil {
			break
		}
	}
	for range chunks { // until the reader is through
	}
	_ = server.(*net.TCPConn).CloseWrite()
}

// gate is closed when what the client sends may pass.
func (r *relay) gate(client net.Conn) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g := r.conns[client]; g != nil {
		return g.open
	}
	return openGate().open
}

// count notes bytes that came to a shut gate.
func (r *relay) count(client net.Conn, n int) {
	select {
	case <-r.gate(client):
	default:
		r.mu.Lock()
		defer r.mu.Unlock()
		r.held += n
	}
}

// holds returns how many bytes are held back.
func (r *relay) holds() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held
}

func (r *relay) forget(conns ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		delete(r.conns, c)
	}
}

// hold shuts the gates of all connections there are; release, which may be
// called more than once, opens them.
func (r *relay) hold() (release func()) {
	g := &gate{open: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = 0
	for c := range r.conns {
		r.conns[c] = g
	}
	return sync.OnceFunc(func() { close(g.open) })
}

// close ends all connections; what was held must have been released.
func (r *relay) close() {
	_ = r.ln.Close() // nothing was to come of it any more
	r.mu.Lock()
	for c := range r.conns {
		_ = c.Close() // its owner may have closed it already
	}
	r.mu.Unlock()
	r.wg.Wait()
}
