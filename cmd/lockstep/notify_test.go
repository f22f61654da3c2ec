package main

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// manager is the socket of a service manager.
func manager(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func heard(t *testing.T, conn *net.UnixConn, within time.Duration) string {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(within))
	buf := make([]byte, 1024)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatalf("the service manager heard nothing: %v", err)
	}
	return string(buf[:n])
}

func TestNotifyManager(t *testing.T) {
	for _, name := range []string{filepath.Join(shortDir(t), "n"), "@lockstep-" + filepath.Base(t.TempDir()) + time.Now().Format("150405.000000")} {
		conn := manager(t, name)
		t.Setenv(notifyEnv, name)
		if err := notifyManager(notifyReady, "node 1\nserves"); err != nil {
			t.Fatal(err)
		}
		if got := heard(t, conn, time.Second); got != "READY=1\nSTATUS=node 1 serves\n" {
			t.Errorf("%s: heard %q", name, got)
		}
	}
	t.Setenv(notifyEnv, "")
	if err := notifyManager(notifyReady, ""); err != nil {
		t.Errorf("without a manager: %v", err)
	}
	t.Setenv(notifyEnv, "/nowhere/to/be/found")
	if err := notifyManager(notifyReady, ""); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a socket that is not there: %v", err)
	}
}

// shortDir is for sockets, whose names are at most 107 bytes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ls")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// A node tells its service manager when it serves and when it stops, which is
// before it has stopped. A hangup in between ends nothing.
func TestServeNotifies(t *testing.T) {
	name := filepath.Join(shortDir(t), "n")
	conn := manager(t, name)
	n := newLoneNode(t, buildLockstep(t))
	n.start(notifyEnv + "=" + name)
	if got := heard(t, conn, 30*time.Second); !strings.HasPrefix(got, "READY=1\nSTATUS=node 1 ") {
		t.Errorf("heard %q first", got)
	}
	if err := n.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	n.out.await(t, 10*time.Second, "a hangup neither stops nor reloads this node")
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := heard(t, conn, 30*time.Second); !strings.HasPrefix(got, "STOPPING=1\n") {
		t.Errorf("heard %q at the stop", got)
	}
	n.wait()
}

const unitFile = "../../deploy/systemd/lockstep.service"

// unit returns the settings of the unit file, by section and key.
func unit(t *testing.T) map[string][]string {
	t.Helper()
	f, err := os.Open(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, section := make(map[string][]string), ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		switch key, value, ok := strings.Cut(line, "="); {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		case !ok:
			t.Errorf("line %q is no setting", line)
		default:
			out[section+"."+key] = append(out[section+"."+key], value)
		}
	}
	return out
}

// The unit calls a command that exists, with flags that it has, and gives it
// the time that it may take.
func TestSystemdUnit(t *testing.T) {
	u := unit(t)
	words := strings.Fields(strings.Join(u["Service.ExecStart"], " "))
	if len(words) < 2 || filepath.Base(words[0]) != "lockstep" {
		t.Fatalf("ExecStart %q", words)
	}
	cmd, rest, err := rootCommand().Find(words[1:])
	if err != nil || cmd.Name() != "serve" {
		t.Fatalf("ExecStart %q: %v", words, err)
	}
	if err := cmd.ParseFlags(rest); err != nil || cmd.Flags().NArg() > 0 || !cmd.Flags().Changed("config") {
		t.Errorf("ExecStart %q: %v", words, err)
	}
	stop, err := time.ParseDuration(u["Service.TimeoutStopSec"][0])
	if err != nil || stop <= 2*stopTimeout {
		t.Errorf("TimeoutStopSec %s is not above the %s of a graceful stop: %v", stop, 2*stopTimeout, err)
	}
	for key, want := range map[string]string{
		"Service.Type": "notify", "Service.Restart": "on-failure", "Service.RestartPreventExitStatus": "2",
		"Service.NoNewPrivileges": "yes", "Service.ProtectSystem": "strict", "Service.ReadWritePaths": "/var/lib/lockstep",
	} {
		if got := strings.Join(u[key], " "); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	if !strings.Contains(u["Unit.After"][0], "kafka.service") || u["Unit.Requires"] != nil {
		t.Errorf("After=%q Requires=%q: it is ordered after the broker and does not need it", u["Unit.After"], u["Unit.Requires"])
	}
}

// systemd itself reads the unit.
func TestSystemdUnitIsValid(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed: TestSystemdUnit has read the unit, systemd has not")
	}
	raw, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	// The program need not be installed here.
	file := filepath.Join(t.TempDir(), "lockstep.service")
	writeFile(t, file, []byte(strings.ReplaceAll(string(raw), "/usr/local/bin/lockstep", "/bin/true")))
	out, err := exec.CommandContext(t.Context(), analyze, "verify", file).CombinedOutput()
	if err != nil || strings.Contains(string(out), "lockstep.service:") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
