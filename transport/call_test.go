package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
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
	const callers, each = 32, 50
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
