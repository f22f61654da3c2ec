//go:build e2e

package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBenchFloor measures what moving the bytes costs three proxies at least,
// whatever they do with them: received once and sent three times by the leader,
// received and sent once by each follower, written to three logs, one fsync for
// what came meanwhile. It is the CPU per GiB below which no proxies with a log of
// their own can go. BENCH_ROUNDS and BENCH_SECONDS as for TestBench.
func TestBenchFloor(t *testing.T) {
	rounds, span := envInt(t, "BENCH_ROUNDS", 5), time.Duration(envInt(t, "BENCH_SECONDS", 4))*time.Second
	cpu, rate := map[ceilingRow][]float64{}, map[ceilingRow][]float64{}
	for range rounds {
		for _, row := range ceilingRows {
			c, r := byteFloor(t, row, span)
			cpu[row], rate[row] = append(cpu[row], c), append(rate[row], r)
		}
	}
	var w strings.Builder
	w.WriteString("\n| moved and written, nothing else | CPU seconds per GiB, three nodes | MiB/s |\n|---|---|---|\n")
	for _, row := range ceilingRows {
		fmt.Fprintf(&w, "| %d KiB, %d under way | %.1f | %.1f |\n", row.Bytes>>10, row.Flying, medianOf(cpu[row]), medianOf(rate[row]))
	}
	t.Log(w.String())
}

// byteFloor keeps a row's frames under way for span; client and brokers, which
// read and answer, are this process, and do not count.
func byteFloor(t *testing.T, row ceilingRow, span time.Duration) (secondsPerGiB, mibPerSecond float64) {
	t.Helper()
	args := []string{filepath.Join(runDir(t), "floor")}
	for range 3 {
		args = append(args, serveFrames(t))
	}
	cmd := exec.Command(byteFloorProgram.get(t), args...)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", strings.TrimSpace(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(span + 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	answered, to := 0, time.Now().Add(span)
	turns, sent := make(chan struct{}, row.Flying), make(chan error, 1)
	go func() {
		defer close(turns)
		frame := append(binary.BigEndian.AppendUint32(nil, uint32(row.Bytes)), make([]byte, row.Bytes)...)
		for time.Now().Before(to) {
			turns <- struct{}{}
			if _, err := conn.Write(frame); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	r, answer, begin := bufio.NewReader(conn), make([]byte, 4), time.Now()
	for range turns {
		if _, err := io.ReadFull(r, answer); err != nil {
			t.Fatal(err)
		}
		answered++
	}
	took, used := time.Since(begin), cpuSeconds(cmd.Process.Pid)
	if err := errors.Join(<-sent, conn.Close(), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	mib := float64(answered) * float64(row.Bytes) / (1 << 20)
	return used / (mib / 1024), mib / took.Seconds()
}

// serveFrames is a broker that reads one connection's frames and answers each. It
// returns its address.
func serveFrames(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReaderSize(conn, 256<<10)
		for {
			var size [4]byte
			if _, err := io.ReadFull(r, size[:]); err != nil {
				return // the node's end
			}
			if _, err := io.CopyN(io.Discard, r, int64(binary.BigEndian.Uint32(size[:]))); err != nil {
				return
			}
			if _, err := conn.Write(size[:]); err != nil {
				return
			}
		}
	}()
	return ln.Addr().String()
}
