package embedded

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// DefaultStopTimeout is how long a child may take to close before it is
// killed.
const DefaultStopTimeout = 10 * time.Second

// ChildConfig says how to start the broker's process.
type ChildConfig struct {
	// Argv is the program and its arguments; it must end in a call of Run with
	// Ready set to standard output and Parent to standard input.
	Argv []string
	// Env is added to this process's environment.
	Env []string
	// Stderr gets the child's standard error. Default: dropped.
	Stderr io.Writer
	// StopTimeout is the time between SIGTERM and SIGKILL in Stop.
	// Default DefaultStopTimeout.
	StopTimeout time.Duration
}

// Child is an embedded broker in a child process. It ends with this process,
// however that ends. Safe for use by many goroutines.
type Child struct {
	cfg   ChildConfig
	cmd   *exec.Cmd
	stdin io.Closer
	addr  string
	done  chan struct{} // closed when the process was reaped; err is set then
	err   error
	stop  sync.Once
}

// StartChild starts the process and returns when it listens. ctx bounds only
// that wait; a child that was not ready by then is killed, ErrNotReady.
func StartChild(ctx context.Context, cfg ChildConfig) (*Child, error) {
	if len(cfg.Argv) == 0 {
		return nil, errors.New("start embedded broker: no command given")
	}
	if cfg.StopTimeout <= 0 {
		cfg.StopTimeout = DefaultStopTimeout
	}
	c := &Child{cfg: cfg, done: make(chan struct{})}
	c.cmd = exec.Command(cfg.Argv[0], cfg.Argv[1:]...)
	c.cmd.Env = append(os.Environ(), cfg.Env...)
	c.cmd.Stderr = cfg.Stderr
	dieWithParent(c.cmd)
	ready, err := c.start()
	if err != nil {
		return nil, fmt.Errorf("start embedded broker: %w", err)
	}
	select {
	case c.addr = <-ready:
		return c, nil
	case <-c.done:
		return nil, fmt.Errorf("%w: it ended: %w", ErrNotReady, c.exitError())
	case <-ctx.Done():
		_ = c.cmd.Process.Kill()
		<-c.done
		return nil, fmt.Errorf("%w: %w", ErrNotReady, context.Cause(ctx))
	}
}

// start starts the process and the goroutine that reaps it. The channel gets
// the address once.
func (c *Child) start() (<-chan string, error) {
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.stdin = stdin
	ready, started := make(chan string, 1), make(chan error, 1)
	go func() {
		// The kernel's death signal belongs to the thread that forked, so the
		// thread has to last as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		watchOutput(stdout, ready)
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	return ready, <-started
}

// watchOutput looks for the ready line and reads on to the end of output, so
// that the child never blocks on a full pipe.
func watchOutput(stdout io.Reader, ready chan<- string) {
	r := bufio.NewReader(stdout)
	for {
		line, err := r.ReadString('\n')
		if addr, ok := strings.CutPrefix(strings.TrimSpace(line), readyPrefix); ok {
			ready <- addr
			break
		}
		if err != nil {
			return
		}
	}
	_, _ = io.Copy(io.Discard, r)
}

// Addr is the host:port the broker listens on.
func (c *Child) Addr() string { return c.addr }

// PID is the process id.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Done is closed when the process has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Err says how the process ended: nil for a clean end or while it runs.
func (c *Child) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

func (c *Child) exitError() error {
	if c.err != nil {
		return c.err
	}
	return errors.New("exit status 0")
}

// Kill ends the process at once, as kill -9 does, and returns when it has
// ended.
func (c *Child) Kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	<-c.done
}

// Stop asks the broker to close, kills it after StopTimeout, and returns when
// the process has ended. It returns nil after a clean end. Idempotent.
func (c *Child) Stop() error {
	c.stop.Do(func() {
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		_ = c.stdin.Close()
		timer := time.NewTimer(c.cfg.StopTimeout)
		defer timer.Stop()
		select {
		case <-c.done:
		case <-timer.C:
			_ = c.cmd.Process.Kill()
		}
	})
	<-c.done
	if c.err != nil {
		return fmt.Errorf("stop embedded broker: %w", c.err)
	}
	return nil
}
