package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	methodEcho = 1
	methodFail = 2
	methodHold = 3
)

func echo(_ context.Context, _ Hello, payload []byte) ([]byte, error) { return payload, nil }

func TestCallReachesHandlerWithCaller(t *testing.T) {
	a, b := pair(t)
	b.Handle(methodEcho, func(_ context.Context, from Hello, payload []byte) ([]byte, error) {
		return fmt.Appendf(nil, "%d/%s said %s", from.NodeID, from.Incarnation, payload), nil
	})
	serveAll(t, a, b)
	got, err := a.Call(testContext(t), 2, methodEcho, []byte("hello"))
	if err != nil || string(got) != "1/first said hello" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestCallErrorOfHandler(t *testing.T) {
	a, b := pair(t)
	b.Handle(methodFail, func(context.Context, Hello, []byte) ([]byte, error) {
		return []byte("ignored"), errors.New("disk is full")
	})
	serveAll(t, a, b)
	_, err := a.Call(testContext(t), 2, methodFail, nil)
	var remote *RemoteError
	if !errors.As(err, &remote) || remote.Message != "disk is full" || remote.Node != 2 {
		t.Fatalf("got %v, want the handler's error", err)
	}
	if errors.Is(err, ErrNotSent) || errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("a handler's error must not look like a transport error: %v", err)
	}
}

// Every caller gets its own answer, whatever the order handlers end in.
func TestCallsManyAtOnce(t *testing.T) {
	const callers, each = 16, 20
	a, b := pair(t)
	b.Handle(methodEcho, echo)
	serveAll(t, a, b)
	ctx := testContext(t)
	var wg sync.WaitGroup
	for caller := range callers {
		wg.Go(func() {
			for i := range each {
				// Some payloads travel in parts.
				payload := bytes.Repeat([]byte{byte(caller)}, 8+(i%5)*40_000)
				binary.BigEndian.PutUint64(payload, uint64(caller*each+i))
				got, err := a.Call(ctx, 2, methodEcho, payload)
				if err != nil || !bytes.Equal(got, payload) {
					t.Errorf("caller %d call %d: answer of %d bytes is not the request, %v", caller, i, len(got), err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// held is a handler that tells when it runs and waits to be let go.
type held struct {
	running chan struct{}
	release chan struct{}
	ended   chan error // the state of its context when it returned
}

func newHeld() *held {
	return &held{make(chan struct{}, 1024), make(chan struct{}), make(chan error, 1024)}
}

func (h *held) handle(ctx context.Context, _ Hello, payload []byte) ([]byte, error) {
	h.running <- struct{}{}
	select {
	case <-h.release:
	case <-ctx.Done():
	}
	h.ended <- ctx.Err()
	return payload, nil
}

// callAsync starts a call and delivers its error.
func callAsync(ctx context.Context, n *testNode, node int32, method uint8, payload []byte) <-chan error {
	out := make(chan error, 1)
	go func() {
		_, err := n.Call(ctx, node, method, payload)
		out <- err
	}()
	return out
}

func TestCallPassesSlowHandlers(t *testing.T) {
	const slow = 100
	a, b := pair(t)
	h := newHeld()
	b.Handle(methodHold, h.handle)
	b.Handle(methodEcho, echo)
	serveAll(t, a, b)
	ctx := testContext(t)
	var waiting []<-chan error
	for range slow {
		waiting = append(waiting, callAsync(ctx, a, 2, methodHold, nil))
	}
	for range slow {
		within(t, h.running, "a slow handler to start")
	}
	if _, err := a.Call(ctx, 2, methodEcho, nil); err != nil {
		t.Fatalf("call beside slow handlers: %v", err)
	}
	close(h.release)
	for _, ch := range waiting {
		if err := within(t, ch, "a slow call"); err != nil {
			t.Fatal(err)
		}
	}
	if n := a.reg.count(func(c *conn) bool { return c.node == 2 }); n != 1 {
		t.Fatalf("%d connections, want one for all calls", n)
	}
}

func TestCallLargePayload(t *testing.T) {
	a, b := pair(t)
	b.Handle(methodEcho, echo)
	serveAll(t, a, b)
	payload := make([]byte, 8<<20)
	for i := range payload {
		payload[i] = byte(i * 7 >> 3)
	}
	got, err := a.Call(testContext(t), 2, methodEcho, payload)
	if err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("8 MiB came back as %d bytes, %v", len(got), err)
	}
}

func TestCallContextEndsWhileHandlerRuns(t *testing.T) {
	a, b := pair(t)
	h := newHeld()
	b.Handle(methodHold, h.handle)
	serveAll(t, a, b)
	ctx, cancel := context.WithCancel(testContext(t))
	result := callAsync(ctx, a, 2, methodHold, nil)
	within(t, h.running, "the handler to start")
	cancel()
	err := within(t, result, "the call to give up")
	if !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, context.Canceled) || errors.Is(err, ErrNotSent) {
		t.Fatalf("got %v, want an unknown outcome", err)
	}
	if within(t, h.ended, "the handler to be told") == nil {
		t.Fatal("the handler's context was not cancelled")
	}
}

func TestCallWithEndedContext(t *testing.T) {
	a, b := pair(t)
	b.Handle(methodEcho, echo)
	serveAll(t, a, b)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := a.Call(ctx, 2, methodEcho, nil)
	if !errors.Is(err, ErrNotSent) || !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestCallConnectionLost(t *testing.T) {
	a, b := pair(t)
	h := newHeld()
	b.Handle(methodHold, h.handle)
	b.Handle(methodEcho, echo)
	serveAll(t, a, b)
	ctx := testContext(t)
	result := callAsync(ctx, a, 2, methodHold, nil)
	within(t, h.running, "the handler to start")
	b.DropPeer(1)
	err := within(t, result, "the call to fail")
	if !errors.Is(err, ErrConnLost) || !errors.Is(err, ErrOutcomeUnknown) || errors.Is(err, ErrNotSent) {
		t.Fatalf("got %v, want a lost connection with unknown outcome", err)
	}
	if within(t, h.ended, "the handler to be told") == nil {
		t.Fatal("the handler's context was not cancelled")
	}
	if _, err := a.Call(ctx, 2, methodEcho, nil); err != nil {
		t.Fatalf("no new connection was made: %v", err)
	}
}

func TestCallNotDialled(t *testing.T) {
	a, b := pair(t)
	introduceAll(a, b)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for node, want := range map[int32]error{2: nil, 1: ErrUnknownPeer, 9: ErrUnknownPeer} {
		_, err := a.Call(testContext(t), node, methodEcho, nil)
		if !errors.Is(err, ErrNotSent) || errors.Is(err, ErrOutcomeUnknown) {
			t.Fatalf("node %d: got %v", node, err)
		}
		if want != nil && !errors.Is(err, want) {
			t.Fatalf("node %d: got %v, want %v", node, err, want)
		}
	}
}

func TestCallLimits(t *testing.T) {
	a, b := pair(t, func(c *Config) { c.MaxHandlers, c.MaxMessage = 1, 200_000 })
	h := newHeld()
	b.Handle(methodHold, h.handle)
	b.Handle(methodEcho, echo)
	b.Handle(methodFail, func(context.Context, Hello, []byte) ([]byte, error) { return make([]byte, 200_001), nil })
	serveAll(t, a, b)
	ctx := testContext(t)

	if _, err := a.Call(ctx, 2, methodEcho, make([]byte, 200_001)); !errors.Is(err, ErrTooLarge) || !errors.Is(err, ErrNotSent) {
		t.Errorf("too large a request: %v", err)
	}
	if _, err := a.Call(ctx, 2, methodEcho, make([]byte, 200_000)); err != nil {
		t.Errorf("the largest request: %v", err)
	}
	var remote *RemoteError
	if _, err := a.Call(ctx, 2, methodFail, nil); !errors.As(err, &remote) {
		t.Errorf("too large an answer: %v", err)
	}
	if _, err := a.Call(ctx, 2, 99, nil); !errors.Is(err, ErrUnknownMethod) || !errors.Is(err, ErrNotSent) {
		t.Errorf("unknown method: %v", err)
	}
	result := callAsync(ctx, a, 2, methodHold, nil)
	within(t, h.running, "the handler to start")
	if _, err := a.Call(ctx, 2, methodEcho, nil); !errors.Is(err, ErrBusy) || !errors.Is(err, ErrNotSent) {
		t.Errorf("second call beside one handler: %v", err)
	}
	close(h.release)
	if err := within(t, result, "the held call"); err != nil {
		t.Error(err)
	}
	if _, err := a.Call(ctx, 2, methodEcho, nil); err != nil {
		t.Errorf("call after the handler ended: %v", err)
	}
}

// The peer reads nothing: a large request can never leave completely, and giving
// it up is then known not to have executed anything.
func TestCallToStalledPeerGivesUpUnsent(t *testing.T) {
	a := newNode(t, helloOf(1), admitAll)
	addr, conns := fakePeer(t, helloOf(2))
	a.SetPeer(2, addr)
	ctx, cancel := context.WithCancel(testContext(t))
	result := callAsync(ctx, a, 2, methodEcho, make([]byte, 20<<20))
	c := within(t, conns, "the dial")
	var one [1]byte
	if _, err := c.Read(one[:]); err != nil { // the request is on its way
		t.Fatal(err)
	}
	cancel()
	if err := within(t, result, "the call to give up"); !errors.Is(err, ErrNotSent) || !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

// An idle connection says that it lives; one whose peer says nothing is closed.
func TestCallConnectionIsWatched(t *testing.T) {
	a := newNode(t, helloOf(1), admitAll)
	a.timing.ping, a.timing.idle = 5*time.Millisecond, 200*time.Millisecond
	addr, conns := fakePeer(t, helloOf(2))
	a.SetPeer(2, addr)
	result := callAsync(testContext(t), a, 2, methodEcho, []byte("x"))
	fr := &frameReader{r: within(t, conns, "the dial"), max: DefaultMaxMessage}
	for pings := 0; pings < 3; {
		m, err := fr.next()
		if err != nil {
			t.Fatal(err)
		}
		if m.kind == framePing {
			pings++
		}
	}
	if err := within(t, result, "the dead connection to be noticed"); !errors.Is(err, ErrConnLost) {
		t.Fatalf("got %v", err)
	}

	b := newNode(t, helloOf(2), admitAll)
	b.timing.idle = 50 * time.Millisecond
	b.SetPeer(1, "127.0.0.1:1")
	if err := b.Serve(); err != nil {
		t.Fatal(err)
	}
	wantClosed(t, dialAs(t, b, helloOf(1), kindCalls, 0)) // silent after its hello
}

// A peer that breaks the protocol loses its connection and nothing else.
func TestCallProtocolViolations(t *testing.T) {
	a, b := pair(t)
	b.Handle(methodEcho, echo)
	serveAll(t, a, b)
	part := func(id uint64) string { return frameBytes(id, frameRequest|moreFollows, methodEcho, "x") }
	for name, input := range map[string]string{
		"length of 4 GiB":     "\xff\xff\xff\xff\x00\x00",
		"length of nothing":   "\x00\x00\x00\x00",
		"above a chunk":       "\x00\x01\x00\x0b" + strings.Repeat("\x00", 100),
		"answer from dialler": frameBytes(1, frameAnswer, 0, ""),
		"unknown kind":        frameBytes(1, 77, 0, ""),
		"two in parts":        part(1) + part(2),
		"abort of nothing":    frameBytes(1, frameAbort, 0, ""),
		"ping with payload":   frameBytes(1, framePing, 0, "x"),
		"empty part":          frameBytes(1, frameRequest|moreFollows, methodEcho, ""),
	} {
		t.Run(name, func(t *testing.T) {
			c := dialAs(t, b, helloOf(1), kindCalls, 0)
			mustWrite(t, c, []byte(input))
			wantClosed(t, c)
			if _, err := a.Call(testContext(t), 2, methodEcho, nil); err != nil {
				t.Fatalf("another connection suffers: %v", err)
			}
		})
	}
}
