//go:build e2e

// Package e2e runs Lockstep against unmodified Apache Kafka brokers, in real
// processes, on the loopback interface.
//
//	go test -tags e2e ./e2e -v -timeout 30m
//
// Environment: E2E_GROUPS (3), E2E_LOG_STORE (wal), E2E_KILLS (10) of
// TestFailover, E2E_ROUNDS (16), E2E_SEED (random) and E2E_FAULT (part of a
// fault's name: only those) of TestKillAnything, E2E_FRAMES (20000) and
// E2E_FRAMES_BROKER (kafka: not the embedded one) of TestMutatedFrames, E2E_RACE
// (1 builds lockstep with the race detector), LOCKSTEP_BIN (a binary to use
// instead of building one), E2E_DIR (where run directories are made), E2E_API
// (one API alone) of TestProtocolDifferences, STATUS_PAGE_SHOTS (a directory for
// the screenshots) of TestStatusPage, which needs chromium and chromedriver.
// TestMetrics needs prometheus.
package e2e

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

// TestMain fails the run when a process that a test started is still there
// after the last test, because a leftover broker falsifies the next run.
func TestMain(m *testing.M) {
	code := m.Run()
	left := leftProcesses()
	for _, p := range left {
		fmt.Fprintf(os.Stderr, "FAIL: process left behind by a test: pid %d (%s)\n", p.pid, p.command)
	}
	killAllStarted()
	removeBuilt()
	if len(left) > 0 && code == 0 {
		code = 1
	}
	os.Exit(code)
}

// envInt returns the positive integer in the environment variable name, or def
// when it is not set.
func envInt(t *testing.T, name string, def int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil || n <= 0 {
		t.Fatalf("%s=%q: want a positive number", name, s)
	}
	return n
}

// envOr returns the environment variable name, or def when it is empty.
func envOr(name, def string) string {
	if s := os.Getenv(name); s != "" {
		return s
	}
	return def
}
