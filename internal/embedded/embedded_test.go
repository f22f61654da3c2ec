package embedded

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/internal/broker"
)

const testWait = 30 * time.Second

// The test binary is also the child: roleEnv says what to be.
const (
	roleEnv = "LOCKSTEP_EMBEDDED_TEST_ROLE"
	dirEnv  = "LOCKSTEP_EMBEDDED_TEST_DIR"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "broker":
		ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer cancel()
		exit(Run(ctx, Config{Listen: "127.0.0.1:0", DataDir: os.Getenv(dirEnv), Ready: os.Stdout, Parent: os.Stdin}))
	case "stubborn": // ready, then deaf
		signal.Ignore(syscall.SIGTERM)
		fmt.Fprintln(os.Stdout, "ready 127.0.0.1:1")
		select {}
	case "failing":
		os.Exit(3)
	case "silent":
		_, _ = io.Copy(io.Discard, os.Stdin)
	case "parent": // starts a broker, says where, waits to be killed
		child, err := StartChild(context.Background(), childConfig("broker", os.Getenv(dirEnv)))
		exit(err)
		fmt.Fprintln(os.Stdout, "ready "+child.Addr())
		select {}
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func childConfig(role, dir string) ChildConfig {
	return ChildConfig{
		Argv:   []string{os.Args[0], "-test.run=^$"},
		Env:    []string{roleEnv + "=" + role, dirEnv + "=" + dir},
		Stderr: os.Stderr,
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	t.Cleanup(cancel)
	return ctx
}

func startChild(t *testing.T, dir string) *Child {
	t.Helper()
	c, err := StartChild(testContext(t), childConfig("broker", dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop() })
	return c
}

// appendOnce appends one record with a producer sequence and returns the
// offset.
func appendOnce(t *testing.T, addr, topic string, seq int32) int64 {
	t.Helper()
	a := broker.NewAppender(broker.Config{BootstrapServer: addr})
	defer a.Close()
	s, err := a.Session(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan broker.Result, 1)
	b := batch(seq)
	s.Append(broker.Append{Topic: topic, Head: [61]byte(b), Body: b[61:]}, func(r broker.Result) { result <- r })
	r := <-result
	if r.Err != nil || r.Code != 0 {
		t.Fatalf("append sequence %d: %+v", seq, r)
	}
	return r.BaseOffset
}

func batch(seq int32) []byte {
	record := []byte{12, 0, 0, 0, 1, 0, 0} // one record: null key, empty value
	b := kmsg.NewRecordBatch()
	b.Length = int32(49 + len(record))
	b.PartitionLeaderEpoch = -1
	b.Magic = 2
	b.ProducerID, b.FirstSequence, b.NumRecords = 1<<40, seq, 1
	b.Records = record
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

func createTopic(t *testing.T, addr, topic string) {
	t.Helper()
	a := broker.NewAdmin(broker.Config{BootstrapServer: addr})
	defer a.Close()
	if _, err := a.CreateTopic(testContext(t), topic, 1, nil); err != nil {
		t.Fatal(err)
	}
}

// A clean stop keeps records, topic ids and the producers' sequence windows.
func TestChildStopKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	first := startChild(t, dir)
	createTopic(t, first.Addr(), "kept")
	before := topicID(t, first.Addr(), "kept")
	for seq := range int32(3) {
		// From 5: a first sequence other than 0 must be taken.
		if got := appendOnce(t, first.Addr(), "kept", 5+seq); got != int64(seq) {
			t.Fatalf("sequence %d at offset %d", 5+seq, got)
		}
	}
	for range 2 {
		if err := first.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-first.Done():
	default:
		t.Fatal("Stop returned before the process ended")
	}
	second := startChild(t, dir)
	if got := appendOnce(t, second.Addr(), "kept", 7); got != 2 {
		t.Fatalf("repeat of the last after a restart at offset %d, want 2", got)
	}
	if got := appendOnce(t, second.Addr(), "kept", 8); got != 3 {
		t.Fatalf("next after a restart at offset %d, want 3", got)
	}
	if after := topicID(t, second.Addr(), "kept"); after != before || after == [16]byte{} {
		t.Fatalf("topic id %x after a restart, was %x", after, before)
	}
}

func topicID(t *testing.T, addr, topic string) [16]byte {
	t.Helper()
	a := broker.NewAdmin(broker.Config{BootstrapServer: addr})
	defer a.Close()
	info, err := a.Topic(testContext(t), topic)
	if err != nil {
		t.Fatal(err)
	}
	return info.UUID
}

// With the parent under kill -9, the broker ends too, and cleanly.
func TestChildDiesWithItsParent(t *testing.T) {
	dir := t.TempDir()
	parent, err := StartChild(testContext(t), childConfig("parent", dir))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = parent.Stop() }()
	createTopic(t, parent.Addr(), "kept")
	appendOnce(t, parent.Addr(), "kept", 0)
	conn, err := net.Dial("tcp", parent.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := parent.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(testWait))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("broker still there after its parent was killed: %v", err)
	}
	// The next one waits for the directory until the first has saved.
	again := startChild(t, dir)
	if got := appendOnce(t, again.Addr(), "kept", 0); got != 0 {
		t.Fatalf("repeat at offset %d, want 0", got)
	}
}

func TestChildIsKilledWhenItDoesNotStop(t *testing.T) {
	cfg := childConfig("stubborn", "")
	cfg.StopTimeout = 50 * time.Millisecond
	c, err := StartChild(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if c.Err() != nil {
		t.Fatalf("running child: %v", c.Err())
	}
	if err := c.Stop(); err == nil || c.Err() == nil {
		t.Fatal("a killed child counts as a clean end")
	}
}

func TestChildNotReady(t *testing.T) {
	if _, err := StartChild(testContext(t), childConfig("failing", "")); !errors.Is(err, ErrNotReady) {
		t.Fatalf("child that exits at once: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := StartChild(ctx, childConfig("silent", "")); !errors.Is(err, ErrNotReady) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("child that says nothing: %v", err)
	}
	if _, err := StartChild(testContext(t), ChildConfig{Argv: []string{"/nowhere/to/be/found"}}); err == nil {
		t.Fatal("no such program started")
	}
}

// runBroker runs a broker in this process.
func runBroker(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	dir := t.TempDir()
	go func() { done <- Run(ctx, Config{Listen: "127.0.0.1:0", DataDir: dir, Ready: pw}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	buf := make([]byte, 100)
	n, err := pr.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	addr, ok := strings.CutPrefix(strings.TrimSpace(string(buf[:n])), readyPrefix)
	if !ok {
		t.Fatalf("ready line %q", buf[:n])
	}
	return addr
}

func TestRunNeedsDataDir(t *testing.T) {
	if err := Run(testContext(t), Config{Listen: "127.0.0.1:0"}); !errors.Is(err, ErrNoDataDir) {
		t.Fatal(err)
	}
}

// Nonsense ends its own connection and nothing else.
func TestGuard(t *testing.T) {
	addr := runBroker(t)
	for name, in := range map[string][]byte{
		"unknown key":     {0, 0, 0, 10, 3, 0xe7, 0, 0, 0, 0, 0, 1, 0xff, 0xff},
		"unknown version": {0, 0, 0, 10, 0, 3, 0, 99, 0, 0, 0, 1, 0xff, 0xff},
		"negative":        {0, 0, 0, 10, 0, 3, 0xff, 0xff, 0, 0, 0, 1, 0xff, 0xff},
		"HTTP":            []byte("GET / HTTP/1.1\r\n\r\n"),
		"huge":            {0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff},
		"too short":       {0, 0, 0, 2, 0, 3, 0, 1, 1, 1, 1, 1},
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(testWait))
		if _, err := conn.Write(in); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(make([]byte, 1))
		if n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %d bytes, %v, want the connection closed", name, n, err)
		}
		_ = conn.Close()
	}
	createTopic(t, addr, "alive")
	if got := appendOnce(t, addr, "alive", 0); got != 0 {
		t.Fatalf("append after nonsense at offset %d", got)
	}
}

// A frame cut into single bytes arrives whole.
func TestGuardPassesFramesUnchanged(t *testing.T) {
	frames := []byte{0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 8, 0, 3, 0, 1, 9, 9, 9, 9}
	for _, chunk := range []int{1, 3, 64} {
		a, b := net.Pipe()
		go func() {
			for in := frames; len(in) > 0; in = in[min(chunk, len(in)):] {
				_, _ = a.Write(in[:min(chunk, len(in))])
			}
			_ = a.Close()
		}()
		got, err := io.ReadAll(&guardConn{Conn: b})
		if err != nil || !bytes.Equal(got, frames) {
			t.Fatalf("in chunks of %d: %x, %v", chunk, got, err)
		}
	}
}

func FuzzCheckHead(f *testing.F) {
	f.Add([]byte{0, 0, 0, 10, 0, 18, 0, 0})
	f.Add([]byte("GET / HT"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) != frameHead {
			return
		}
		rest, err := checkHead([frameHead]byte(in))
		if err != nil {
			return
		}
		if rest < 4 || rest > maxFrame || kmsg.RequestForKey(int16(binary.BigEndian.Uint16(in[4:]))) == nil {
			t.Fatalf("%x passed with %d bytes to come", in, rest)
		}
	})
}
