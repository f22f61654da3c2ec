package transport

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// Close ends everything that is under way and leaves no goroutine.
func TestCloseJoinsEverything(t *testing.T) {
	a, b := pair(t)
	h := newHeld()
	b.Handle(methodHold, h.handle)
	introduceAll(a, b)
	var groups []*GroupTransport
	for _, n := range []*testNode{a, b} {
		g, err := n.RaftTransport(0, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		groups = append(groups, g)
	}
	serveAll(t, a, b)

	call := callAsync(testContext(t), a, 2, methodHold, nil)
	within(t, h.running, "the handler to start")
	half := dialRaw(t, b) // inside its handshake
	mustWrite(t, half, []byte(magic))
	idle := dialAs(t, b, helloOf(1), kindRaft, 0) // raft waits for its first byte
	l, err := a.layer(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.dial(2, time.Second); err != nil {
		t.Fatal(err)
	}

	closed := make(chan error, 3)
	for range 3 { // any number of times, at once
		go func() { closed <- b.Close() }()
	}
	for range 3 {
		if err := within(t, closed, "Close"); err != nil {
			t.Fatal(err)
		}
	}
	if within(t, h.ended, "the handler") == nil {
		t.Error("the handler's context was not cancelled")
	}
	if err := within(t, call, "the call"); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("a call to a node that closed: %v", err)
	}
	wantClosed(t, half)
	wantClosed(t, idle)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Call(context.Background(), 2, methodHold, nil); !errors.Is(err, ErrClosed) || !errors.Is(err, ErrNotSent) {
		t.Errorf("call after Close: %v", err)
	}
	if err := a.Serve(); !errors.Is(err, ErrClosed) {
		t.Errorf("serve after Close: %v", err)
	}
	for _, g := range groups {
		if g.layer.ctx.Err() == nil {
			t.Error("a raft transport is still open")
		}
	}
	wantNoGoroutines(t)
}

// wantNoGoroutines waits, within bounds, for the last goroutines to end: raft's
// own listener is told to end, not waited for.
func wantNoGoroutines(t *testing.T) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		left := leaked()
		if len(left) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
		}
	}
}

// Close returns after the handlers have, not before.
func TestCloseWaitsForHandlers(t *testing.T) {
	a, b := pair(t)
	told, release := make(chan struct{}), make(chan struct{})
	b.Handle(methodHold, func(ctx context.Context, _ Hello, _ []byte) ([]byte, error) {
		told <- struct{}{}
		<-ctx.Done()
		told <- struct{}{}
		<-release
		return nil, nil
	})
	serveAll(t, a, b)
	callAsync(testContext(t), a, 2, methodHold, nil)
	within(t, told, "the handler to start")
	closed := make(chan error, 1)
	go func() { closed <- b.Close() }()
	within(t, told, "the handler to be told to end")
	select {
	case err := <-closed:
		t.Fatalf("Close returned while a handler ran: %v", err)
	case <-time.After(50 * time.Millisecond): // long enough for one that does not wait
	}
	close(release)
	if err := within(t, closed, "Close"); err != nil {
		t.Fatal(err)
	}
}

// A peer that is half gone, its buffers full, cannot hold Close up.
func TestCloseDespiteStalledPeer(t *testing.T) {
	b := newNode(t, helloOf(2), admitAll)
	b.Handle(methodEcho, func(context.Context, Hello, []byte) ([]byte, error) { return make([]byte, 16<<20), nil })
	b.SetPeer(1, "127.0.0.1:1")
	if err := b.Serve(); err != nil {
		t.Fatal(err)
	}
	c := dialAs(t, b, helloOf(1), kindCalls, 0)
	mustWrite(t, c, []byte(frameBytes(1, frameRequest, methodEcho, "")+frameBytes(2, frameRequest, methodEcho, "")))
	var one [1]byte
	if _, err := c.Read(one[:]); err != nil { // it writes, and nobody reads on
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- b.Close() }()
	if err := within(t, closed, "Close"); err != nil {
		t.Fatal(err)
	}
}

func TestCloseBreaksDialOff(t *testing.T) {
	a := newNode(t, helloOf(1), admitAll, func(c *Config) { c.HandshakeTimeout = time.Hour })
	silent := newNode(t, helloOf(2), admitAll) // bound, and nobody accepts
	a.SetPeer(2, silent.Addr().String())
	result := callAsync(testContext(t), a, 2, methodEcho, nil)
	closed := make(chan error, 1)
	go func() { closed <- a.Close() }()
	if err := within(t, closed, "Close"); err != nil {
		t.Fatal(err)
	}
	if err := within(t, result, "the call"); !errors.Is(err, ErrNotSent) {
		t.Fatalf("got %v", err)
	}
}

func TestListenChecksConfiguration(t *testing.T) {
	long := helloOf(1)
	long.Version = strings.Repeat("v", maxName+1)
	for name, tr := range map[string]*Transport{
		"no gate":       New(Config{Self: helloOf(1), Listen: "127.0.0.1:0"}, nil),
		"no cluster":    New(Config{Self: Hello{NodeID: 1, Groups: 1}, Listen: "127.0.0.1:0"}, admitAll),
		"negative node": New(Config{Self: helloOf(-1), Listen: "127.0.0.1:0"}, admitAll),
		"long name":     New(Config{Self: long, Listen: "127.0.0.1:0"}, admitAll),
		"no address":    New(Config{Self: helloOf(1), Listen: "127.0.0.1"}, admitAll),
	} {
		if err := tr.Open(); err == nil {
			t.Errorf("%s: opened", name)
		}
		if err := tr.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
	}
}
