//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// network is a relay for each directed link between nodes: node i finds node j
// at link (i, j) and nowhere else. Its methods may be called from any goroutine.
type network struct {
	t     *testing.T
	mu    sync.Mutex
	links map[[2]int]*link
}

func newNetwork(t *testing.T) *network { return &network{t: t, links: map[[2]int]*link{}} }

// addr is where from looks for to.
func (w *network) addr(from, to *node) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := [2]int{from.id, to.id}
	if w.links[k] == nil {
		w.links[k] = startLink(w.t, to.raftAddr())
	}
	return w.links[k].ln.Addr().String()
}

func (w *network) link(from, to int) *link {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.links[[2]int{from, to}]
}

// oneWay holds back all that from sends to to, over connections that either of
// them made; undo passes it on.
func (w *network) oneWay(from, to int) (undo func()) {
	a, b := w.link(from, to), w.link(to, from)
	a.change(func() { a.shut[0]++ })
	b.change(func() { b.shut[1]++ })
	return sync.OnceFunc(func() {
		a.change(func() { a.shut[0]-- })
		b.change(func() { b.shut[1]-- })
	})
}

// reset ends the connections between two nodes and refuses new ones.
func (w *network) reset(x, y int) (undo func()) {
	a, b := w.link(x, y), w.link(y, x)
	for _, l := range []*link{a, b} {
		l.change(func() { l.refuse++ })
		l.closeAll()
	}
	return sync.OnceFunc(func() {
		for _, l := range []*link{a, b} {
			l.change(func() { l.refuse-- })
		}
	})
}

// slow delays everything between two nodes.
func (w *network) slow(x, y int, by time.Duration) (undo func()) {
	a, b := w.link(x, y), w.link(y, x)
	for _, l := range []*link{a, b} {
		l.change(func() { l.delay += by })
	}
	return sync.OnceFunc(func() {
		for _, l := range []*link{a, b} {
			l.change(func() { l.delay -= by })
		}
	})
}

// felt counts what the links held back, refused or delayed so far.
func (w *network) felt() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var n int64
	for _, l := range w.links {
		n += l.felt.Load()
	}
	return n
}

// link forwards connections to one node. What is held back is not lost: TCP
// delivers it when the link is whole again, however old it is.
type link struct {
	ln     net.Listener
	target string
	wg     sync.WaitGroup
	felt   atomic.Int64

	mu      sync.Mutex
	shut    [2]int // how many faults hold back what goes to the target, and what comes from it
	refuse  int    // how many faults refuse connections
	delay   time.Duration
	changed chan struct{} // closed and replaced at every change
	conns   map[net.Conn]struct{}
	closed  chan struct{}
}

func startLink(t *testing.T, target string) *link {
	t.Helper()
	ln, err := net.Listen("tcp", loopback(freePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	l := &link{ln: ln, target: target, changed: make(chan struct{}), conns: map[net.Conn]struct{}{}, closed: make(chan struct{})}
	l.wg.Go(l.accept)
	t.Cleanup(l.close)
	return l
}

func (l *link) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *link) accept() {
	for {
		c, err := l.ln.Accept()
		if err != nil {
			return
		}
		l.mu.Lock()
		refused := l.refuse > 0
		l.mu.Unlock()
		if refused {
			l.felt.Add(1)
			_ = c.Close()
			continue
		}
		// A node that is down refuses; the one that asked is told the same.
		server, err := net.DialTimeout("tcp", l.target, time.Second)
		if err != nil {
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
			continue
		}
		l.mu.Lock()
		l.conns[c], l.conns[server] = struct{}{}, struct{}{}
		l.mu.Unlock()
		l.wg.Go(func() { l.pump(0, server, c) })
		l.wg.Go(func() { l.pump(1, c, server) })
	}
}

// pump copies one direction until either side ends, then ends both.
func (l *link) pump(dir int, to, from net.Conn) {
	defer l.drop(to, from)
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if !l.pass(dir) {
				return
			}
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				return
			}
			// The end of a stream is held back like the rest of it.
			l.pass(dir)
			return
		}
	}
}

// pass waits until bytes may go on; false: the link is gone.
func (l *link) pass(dir int) bool {
	l.mu.Lock()
	delay := l.delay
	l.mu.Unlock()
	if delay > 0 {
		l.felt.Add(1)
		select {
		case <-time.After(delay):
		case <-l.closed:
			return false
		}
	}
	counted := false
	for {
		l.mu.Lock()
		shut, changed := l.shut[dir] > 0, l.changed
		l.mu.Unlock()
		if !shut {
			return true
		}
		if !counted {
			counted = true
			l.felt.Add(1)
		}
		select {
		case <-changed:
		case <-l.closed:
			return false
		}
	}
}

func (l *link) drop(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		delete(l.conns, c)
	}
}

// closeAll ends the connections of the moment.
func (l *link) closeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		l.felt.Add(1)
		_ = c.Close()
	}
}

func (l *link) close() {
	_ = l.ln.Close()
	close(l.closed)
	l.closeAll()
	l.wg.Wait()
}

// TestLink: what a fault of a link does to bytes and connections.
func TestLink(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	echoed := make(chan struct{})
	go func() { // echoes until the listener closes
		defer close(echoed)
		var wg sync.WaitGroup
		defer wg.Wait()
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); _, _ = io.Copy(c, c) })
		}
	}()
	w := &network{t: t, links: map[[2]int]*link{{1, 2}: startLink(t, target.Addr().String()), {2, 1}: startLink(t, target.Addr().String())}}
	c, err := net.Dial("tcp", w.link(1, 2).ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	echo := func(wait time.Duration) error {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	await := func() error {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	if err := echo(10 * time.Second); err != nil {
		t.Fatalf("through a whole link: %v", err)
	}
	for _, dir := range [][2]int{{1, 2}, {2, 1}} { // there, and back
		undo := w.oneWay(dir[0], dir[1])
		if err := echo(200 * time.Millisecond); err == nil {
			t.Errorf("a byte came through with %v shut", dir)
		}
		undo()
		if err := await(); err != nil {
			t.Errorf("what was held back did not come: %v", err)
		}
	}
	undo := w.slow(1, 2, 150*time.Millisecond)
	begin := time.Now()
	if err := echo(10 * time.Second); err != nil || time.Since(begin) < 300*time.Millisecond {
		t.Errorf("there and back over a slow link took %s, %v", time.Since(begin), err)
	}
	undo()
	undo = w.reset(1, 2)
	if err := echo(10 * time.Second); err == nil {
		t.Error("a connection outlived the reset")
	}
	if c, err = net.Dial("tcp", w.link(1, 2).ln.Addr().String()); err == nil && echo(10*time.Second) == nil {
		t.Error("a new connection passes while they are refused")
	}
	undo()
	if c, err = net.Dial("tcp", w.link(1, 2).ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if err := echo(10 * time.Second); err != nil {
		t.Errorf("after the reset was undone: %v", err)
	}
	if w.felt() < 4 {
		t.Error(fmt.Errorf("four faults, %d effects counted", w.felt()))
	}
	_ = c.Close()
	_ = target.Close()
	for _, l := range w.links {
		l.closeAll()
	}
	<-echoed
}
