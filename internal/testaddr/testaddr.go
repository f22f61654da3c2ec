// Package testaddr gives tests addresses at which nobody else listens.
package testaddr

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
)

// Ports are below those that Linux gives to outgoing connections and to port 0
// (32768 and up): one that is free stays so while its owner is down.
const portsFrom, portsTo = 12_000, 32_000

// drawn counts the hosts of this process.
var drawn atomic.Uint32

// Host is a loopback address that nobody else uses: another test of the process
// has another one, and so has a process that runs beside it. It may be used
// from any goroutine.
type Host struct {
	ip string

	mu    sync.Mutex
	given map[int]bool // Free never gives a port twice, even if nobody took it yet
}

// New returns a host that no other call in this process returned, for the first
// 254 calls.
func New() *Host {
	pid := os.Getpid()
	return &Host{ip: fmt.Sprintf("127.%d.%d.%d", 1+pid>>8&0x7f, pid&0xff, 1+(drawn.Add(1)-1)%254), given: make(map[int]bool)}
}

// local is 127.0.0.1 for the whole process.
var local = &Host{ip: "127.0.0.1", given: make(map[int]bool)}

// Local returns 127.0.0.1, for what cannot be told to use another host. Other
// processes use it too.
func Local() *Host { return local }

// Free returns host and port of an address that nobody listens at and that was
// not returned before. It fails the test if there is none.
func (h *Host) Free(t testing.TB) string {
	t.Helper()
	return h.addr(h.FreePort(t))
}

func (h *Host) addr(port int) string { return net.JoinHostPort(h.ip, strconv.Itoa(port)) }

// FreePort returns the port of an address that Free would return.
func (h *Host) FreePort(t testing.TB) int {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for range 1000 {
		port := portsFrom + rand.IntN(portsTo-portsFrom)
		if h.given[port] {
			continue
		}
		ln, err := net.Listen("tcp", h.addr(port))
		if err != nil {
			continue
		}
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
		h.given[port] = true
		return port
	}
	t.Fatalf("no free port on %s", h.ip)
	return 0
}
