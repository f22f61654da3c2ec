package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// patience is how long a test waits for what must happen; reaching it fails.
const patience = 20 * time.Second

// admitAll is the Gate of tests about something else.
var admitAll = GateFunc(func(Hello, bool) error { return nil })

func helloOf(node int32) Hello {
	return Hello{ClusterID: "test", NodeID: node, Incarnation: "first", Groups: 2, Version: "v0"}
}

// logLines collects log output for tests that count lines.
type logLines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logLines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), part)
}

// testNode is a transport under construction: change it before open.
type testNode struct {
	*Transport
	lines *logLines
}

// newNode makes and binds a transport; serve it with serveAll.
func newNode(t testing.TB, hello Hello, gate Gate, change ...func(*Config)) *testNode {
	t.Helper()
	lines := &logLines{}
	cfg := Config{
		Self:   hello,
		Listen: "127.0.0.1:0",
		Logger: hclog.New(&hclog.LoggerOptions{Output: lines, Level: hclog.Info}),
	}
	for _, f := range change {
		f(&cfg)
	}
	n := &testNode{New(cfg, gate), lines}
	if err := n.Listen(); err != nil {
		t.Fatalf("listen: %v", err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// introduceAll tells every node the addresses of all.
func introduceAll(nodes ...*testNode) {
	for _, n := range nodes {
		for _, m := range nodes {
			n.SetPeer(m.cfg.Self.NodeID, m.Addr().String())
		}
	}
}

func serveAll(t testing.TB, nodes ...*testNode) {
	t.Helper()
	introduceAll(nodes...)
	for _, n := range nodes {
		if err := n.Serve(); err != nil {
			t.Fatalf("serve: %v", err)
		}
	}
}

// pair is two nodes that know each other, 1 and 2, not serving yet.
func pair(t testing.TB, change ...func(*Config)) (a, b *testNode) {
	t.Helper()
	a, b = newNode(t, helloOf(1), admitAll, change...), newNode(t, helloOf(2), admitAll, change...)
	return a, b
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// within fails the test when ch does not deliver in time.
func within[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s\n%s", what, stacks())
		panic("unreachable")
	}
}

func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

// leaked lists the goroutines that run code of this package's types, tests and
// their helpers excepted.
func leaked() []string {
	var found []string
	for _, g := range strings.Split(stacks(), "\n\n") {
		if strings.Contains(g, "testing.tRunner") || strings.Contains(g, "testing.Main") {
			continue
		}
		if strings.Contains(g, "lockstep/transport.") {
			found = append(found, g)
		}
	}
	return found
}

// wantRefused checks that an error is a refusal with a reason.
func wantRefused(t *testing.T, err error, byPeer bool, part string) {
	t.Helper()
	var refused *RefusedError
	if !errors.As(err, &refused) {
		t.Fatalf("got error %v, want a *RefusedError", err)
	}
	if refused.ByPeer != byPeer || !strings.Contains(refused.Reason, part) {
		t.Fatalf("got refusal %+v, want by-peer %v with %q", refused, byPeer, part)
	}
}

// dialRaw connects to a node as a program that is not ours would.
func dialRaw(t *testing.T, n *testNode) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", n.Addr().String())
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatalf("set deadline: %v", err)
	}
	return c
}

// dialAs connects to a node with a good handshake made by hand.
func dialAs(t *testing.T, n *testNode, h Hello, kind streamKind, group uint32) net.Conn {
	t.Helper()
	c := dialRaw(t, n)
	b, err := appendOpening(nil, opening{protocolVersion, kind, group, h})
	if err != nil {
		t.Fatalf("encode opening: %v", err)
	}
	mustWrite(t, c, b)
	a, err := readAnswer(c)
	if err != nil || a.refused || a.hello != n.cfg.Self {
		t.Fatalf("answer %+v, %v; want a welcome by %+v", a, err, n.cfg.Self)
	}
	return c
}

func mustWrite(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatalf("write: %v", err)
	}
}

// wantClosed reads until the other side closes.
func wantClosed(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection was not closed")
	}
}

// fakePeer listens as a node would, welcomes whoever comes, and hands over the
// connections for the test to misbehave on.
func fakePeer(t *testing.T, h Hello) (addr string, conns <-chan net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	out := make(chan net.Conn, 16)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			if _, err := readOpening(c); err != nil {
				t.Errorf("fake peer: %v", err)
				return
			}
			b, err := appendAnswer(nil, answer{protocol: protocolVersion, hello: h})
			if err == nil {
				_, err = c.Write(b)
			}
			if err != nil {
				t.Errorf("fake peer: %v", err)
				return
			}
			out <- c
		}
	}()
	return ln.Addr().String(), out
}
