package broker

import (
	"context"
	"strings"
	"testing"
	"time"

	"lockstep/internal/testaddr"
)

// awaitHealth waits for a state on the Changed channel.
func awaitHealth(t *testing.T, h *Health, up bool) HealthState {
	t.Helper()
	timeout := time.After(testWait)
	for {
		changed := h.Changed()
		if s := h.State(); s.Up == up {
			return s
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("health stayed %+v", h.State())
		}
	}
}

func TestHealthFollowsTheConnection(t *testing.T) {
	_, addr := newBroker(t)
	r := newRelay(t, addr)
	h := NewHealth(Config{BootstrapServer: r.addr(), ProbeInterval: time.Hour})
	if s := h.State(); s.Up || s.Err == "" {
		t.Fatalf("before Open: %+v", s)
	}
	if err := h.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	first := awaitHealth(t, h, true)
	if first.Kind == "" || first.Err != "" || first.Since.IsZero() {
		t.Fatalf("up: %+v", first)
	}
	// No probe is due for an hour: only the read can notice. The relay holds
	// the next handshake, so that down can be seen.
	r.hold()
	r.cut()
	down := awaitHealth(t, h, false)
	if down.Err == "" || !down.Since.After(first.Since) || down.Kind != first.Kind {
		t.Fatalf("down: %+v after %+v", down, first)
	}
	r.release()
	if again := awaitHealth(t, h, true); again.Err != "" || !again.Since.After(down.Since) {
		t.Fatalf("up again: %+v", again)
	}
	for range 2 {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A broker that accepts and answers nothing, as one under SIGSTOP, is down
// after the probe deadline.
func TestHealthSilentBroker(t *testing.T) {
	_, addr := newBroker(t)
	r := newRelay(t, addr)
	h := NewHealth(Config{BootstrapServer: r.addr(), ProbeInterval: 10 * time.Millisecond, ProbeTimeout: 50 * time.Millisecond})
	if err := h.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	awaitHealth(t, h, true)
	r.hold()
	if s := awaitHealth(t, h, false); !strings.Contains(s.Err, "did not answer") {
		t.Fatalf("silent: %+v", s)
	}
	r.release()
	awaitHealth(t, h, true)
}

func TestHealthNobodyListens(t *testing.T) {
	addr := testaddr.Local().Free(t)
	h := NewHealth(Config{BootstrapServer: addr})
	changed := h.Changed()
	ctx, cancel := context.WithCancel(context.Background())
	if err := h.Open(ctx); err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	<-changed
	if s := h.State(); s.Up || !strings.Contains(s.Err, addr) {
		t.Fatalf("state %+v does not name %s", s, addr)
	}
	cancel() // ends it as Close does
	<-h.done
}
