//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is one child in its own process group. Its exit is always waited
// for by one goroutine, so no zombie stays behind.
type process struct {
	name string
	cmd  *exec.Cmd
	pid  int
	done chan struct{} // closed when the child has been reaped
	err  error         // result of Wait; read only after done is closed
}

// started holds every process of this run until it has been reaped.
var started = struct {
	sync.Mutex
	byPid map[int]*process
}{byPid: map[int]*process{}}

// starter runs cmd.Start on one thread that lives as long as the test binary:
// the kernel sends Pdeathsig when the *thread* that forked ends (prctl(2)), and
// Go may end a thread long before the process.
var starter = sync.OnceValue(func() chan func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// startProcess starts cmd in its own process group, to be killed by the kernel
// if the test binary dies.
func startProcess(name string, cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// A grandchild that keeps the output open must not hold Wait for ever.
	cmd.WaitDelay = 5 * time.Second
	errCh := make(chan error)
	starter() <- func() { errCh <- cmd.Start() }
	if err := <-errCh; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, pid: cmd.Process.Pid, done: make(chan struct{})}
	started.Lock()
	started.byPid[p.pid] = p
	started.Unlock()
	go func() {
		p.err = cmd.Wait()
		started.Lock()
		delete(started.byPid, p.pid)
		started.Unlock()
		close(p.done)
	}()
	return p, nil
}

// exited tells whether the child has been reaped.
func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// signal sends sig to the whole group of a child that was not reaped yet.
func (p *process) signal(sig syscall.Signal) error {
	if p.exited() {
		return nil
	}
	if err := syscall.Kill(-p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s to %s: %w", sig, p.name, err)
	}
	return nil
}

// kill9 ends the group with SIGKILL and returns when the child was reaped.
func (p *process) kill9() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// stop ends the group with SIGTERM and returns when the child was reaped. One
// that has not ended when ctx does is killed, and that is an error.
func (p *process) stop(ctx context.Context) error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("stop %s: still running after SIGTERM: %w", p.name, ctx.Err()), p.kill9())
	}
}

// wait returns the child's own exit error, or kills it when ctx ends first.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("wait for %s: %w", p.name, ctx.Err()), p.kill9())
	}
}

// killAllStarted is the last resort at the end of a run.
func killAllStarted() {
	started.Lock()
	left := make([]*process, 0, len(started.byPid))
	for _, p := range started.byPid {
		left = append(left, p)
	}
	started.Unlock()
	for _, p := range left {
		if err := p.kill9(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

type leftProcess struct {
	pid     int
	command string
}

// leftProcesses reads the kernel's table, not our own book-keeping: it returns
// every living child of this process.
func leftProcesses() []leftProcess {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	var left []leftProcess
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		// pid (comm) state ppid ...; comm may hold spaces and parentheses.
		s := string(b)
		end := strings.LastIndexByte(s, ')')
		if end < 0 {
			continue
		}
		fields := strings.Fields(s[end+1:])
		if len(fields) < 2 || fields[1] != strconv.Itoa(os.Getpid()) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		command := strings.ReplaceAll(string(cmdline), "\x00", " ")
		if len(command) > 200 {
			command = "..." + command[len(command)-200:]
		}
		left = append(left, leftProcess{pid: pid, command: fields[0] + " " + command})
	}
	return left
}

// TestLeftProcessesSeesAChild shows that the check at the end of a run would
// see a leftover, and that killing a group reaps it.
func TestLeftProcessesSeesAChild(t *testing.T) {
	p, err := startProcess("sleeper", exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	has := func() bool {
		for _, l := range leftProcesses() {
			if l.pid == p.pid {
				return true
			}
		}
		return false
	}
	if !has() {
		t.Errorf("child %d is running and was not seen", p.pid)
	}
	if err := p.kill9(); err != nil {
		t.Fatal(err)
	}
	if has() {
		t.Errorf("child %d was killed and is still there", p.pid)
	}
}

// commandTo is a command whose output goes to w.
func commandTo(w io.Writer, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = w, w
	return cmd
}
