//go:build linux

package progress

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// openPTY returns the terminal's side of a pseudo-terminal.
func openPTY(t *testing.T) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return tty
}

// A real pseudo-terminal gets a bar, and no colour where none is wanted.
func TestPseudoTerminal(t *testing.T) {
	pty := openPTY(t)
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	if s := styleOf(pty); !s.terminal || !s.color || s.width() <= 0 {
		t.Errorf("a terminal: %+v", s)
	}
	t.Setenv("NO_COLOR", "1")
	if s := styleOf(pty); !s.terminal || s.color {
		t.Errorf("with NO_COLOR: %+v", s)
	}
	t.Setenv("TERM", "dumb")
	if s := styleOf(pty); s.terminal {
		t.Errorf("TERM=dumb: %+v", s)
	}
}
