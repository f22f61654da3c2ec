//go:build unix

package node

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestGuardOfASuspendedProcess: a process that is stopped in the middle of a
// write for longer than a write may take, and goes on, does not blame its disk.
// It runs itself again as that process.
func TestGuardOfASuspendedProcess(t *testing.T) {
	const limit = 500 * time.Millisecond
	if os.Getenv("GUARD_SUSPENDED") != "" {
		in := bufio.NewReader(os.Stdin)
		g := &guard{limit: limit, fatal: func(err error) { fmt.Println("fatal:", err) }}
		_ = g.write("write", func() error {
			fmt.Println("writing")
			_, _ = in.ReadString('\n')
			<-time.After(limit / 5) // the disk answers a little after the process goes on
			return nil
		})
		fmt.Println("written", g.failed())
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestGuardOfASuspendedProcess$")
	cmd.Env = append(os.Environ(), "GUARD_SUSPENDED=1")
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), want) {
			t.Errorf("%q, want %q", lines.Text(), want)
		}
	}
	expect("writing")
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	<-time.After(3 * limit) // that this much time passes is what is tested
	if _, err := fmt.Fprintln(in); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Error(err)
	}
	expect("written false")
	for lines.Scan() { // what the test says of itself
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
