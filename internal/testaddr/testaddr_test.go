package testaddr

import (
	"net"
	"strconv"
	"testing"
)

// A port that was given away and is not listened at yet is not given again: two
// nodes of a cluster would have it. Among so many draws some repeat.
func TestFreeNeverRepeats(t *testing.T) {
	h := New()
	seen := make(map[string]bool)
	for range 1000 {
		addr := h.Free(t)
		if seen[addr] {
			t.Fatalf("%s was given twice", addr)
		}
		seen[addr] = true
	}
}

// An outgoing connection cannot take a port while its owner is down.
func TestFreeIsNotEphemeral(t *testing.T) {
	h := New()
	for range 100 {
		_, port, err := net.SplitHostPort(h.Free(t))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := strconv.Atoi(port); err != nil || n < 1024 || n >= 32768 {
			t.Fatalf("port %s (%v)", port, err)
		}
	}
}

func TestHostsDiffer(t *testing.T) {
	seen := make(map[string]bool)
	for range 200 {
		h := New()
		if ip := net.ParseIP(h.ip); ip == nil || !ip.IsLoopback() || seen[h.ip] {
			t.Fatalf("host %s, seen before: %v", h.ip, seen[h.ip])
		}
		seen[h.ip] = true
	}
}
