//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// compatEvent is one line of a client program; see compat/README.md.
type compatEvent struct {
	Event      string          `json:"event"`
	Error      string          `json:"error"`
	Partition  int32           `json:"partition"`
	Offset     int64           `json:"offset"`
	Key        string          `json:"key"`
	Value      string          `json:"value"`
	Sum        string          `json:"sum"`
	Headers    [][2]string     `json:"headers"`
	Partitions json.RawMessage `json:"partitions"` // a list where assigned, a number where described
	Replicas   int             `json:"replicas"`
	Members    int             `json:"members"`
	Groups     []string        `json:"groups"`
}

func parseEvent(line string) (compatEvent, bool) {
	var e compatEvent
	if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &e) != nil {
		return e, false
	}
	return e, true
}

func parseEvents(all []string) []compatEvent {
	var out []compatEvent
	for _, line := range all {
		if e, ok := parseEvent(line); ok {
			out = append(out, e)
		}
	}
	return out
}

// ended tells whether the last line ends a feature.
func ended(all []string) bool {
	if len(all) == 0 {
		return false
	}
	e, ok := parseEvent(all[len(all)-1])
	return ok && (e.Event == "done" || e.Event == "error" || e.Event == "unsupported")
}

// errClientCannot is returned when the library cannot do it with any broker.
var errClientCannot = errors.New("the client cannot")

// outcome returns the events of a feature, and its error.
func outcome(all []string) ([]compatEvent, error) {
	events := parseEvents(all)
	if len(events) == 0 {
		return nil, errors.New("the client printed nothing")
	}
	last := events[len(events)-1]
	switch last.Event {
	case "done":
		return events, nil
	case "unsupported":
		return events, fmt.Errorf("%w: %s", errClientCannot, strings.TrimPrefix(last.Error, "unsupported: "))
	case "error":
		return events, errors.New(last.Error)
	}
	return events, fmt.Errorf("the client stopped in the middle, after %q", last.Event)
}

// clientProcess is a client program at work. It belongs to one goroutine.
type clientProcess struct {
	proc   *process
	stdin  io.WriteCloser
	stdout *lines
	stderr *lines
}

func (cl *compatClient) start(args ...string) (*clientProcess, error) {
	p := &clientProcess{stdout: newLines(), stderr: newLines()}
	cmd := exec.Command(cl.command[0], append(cl.command[1:len(cl.command):len(cl.command)], args...)...)
	cmd.Env = append(os.Environ(), cl.env...)
	cmd.Stdout, cmd.Stderr = p.stdout, p.stderr
	var err error
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	p.proc, err = startProcess("client "+cl.id(), cmd)
	return p, err
}

// waitFor returns when ok holds of what was printed. It is an error when the
// program ends before, or limit passes.
func (p *clientProcess) waitFor(ctx context.Context, limit time.Duration, what string, ok func(all []string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	gone := make(chan struct{})
	go func() { // an end prints no line that could wake the wait
		defer close(gone)
		select {
		case <-p.proc.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := p.stdout.waitFor(ctx, ok)
	cancel()
	<-gone
	if err == nil || ok(p.stdout.snapshot()) {
		return nil
	}
	why := fmt.Sprintf("not within %s", limit)
	if p.proc.exited() {
		why = fmt.Sprintf("the program ended (%v)", p.proc.err)
	}
	all := p.stdout.snapshot()
	said := lastBytes(p.stderr.text(), 300)
	for _, e := range parseEvents(all) {
		if e.Event == "notice" || e.Event == "error" {
			said = e.Error
		}
	}
	return fmt.Errorf("%s: %s; it last said %q", what, why, said)
}

// stop asks the program to end (SIGTERM) and insists after ten seconds.
func (p *clientProcess) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return p.proc.stop(ctx)
}

// session is one program that is given one feature after the other, because a
// start of it may take as long as ten features.
type session struct {
	cl   *compatClient
	proc *clientProcess
}

// do has the client run one feature and returns what it printed. One that does
// not come to an end is killed, and the next feature starts anew.
func (s *session) do(ctx context.Context, limit time.Duration, feature string, args ...string) ([]compatEvent, error) {
	if s.proc == nil || s.proc.proc.exited() {
		var err error
		if s.proc, err = s.cl.start("-"); err != nil {
			return nil, err
		}
	}
	from := len(s.proc.stdout.snapshot())
	line := strings.Join(append([]string{feature}, args...), " ")
	if _, err := io.WriteString(s.proc.stdin, line+"\n"); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", feature, err, lastBytes(s.proc.stderr.text(), 500))
	}
	err := s.proc.waitFor(ctx, limit, feature, func(all []string) bool { return ended(all[from:]) })
	if err != nil {
		events := parseEvents(s.proc.stdout.snapshot()[from:])
		return events, errors.Join(fmt.Errorf("%w (%d lines printed)", err, len(events)), s.close())
	}
	return outcome(s.proc.stdout.snapshot()[from:])
}

func (s *session) close() error {
	if s.proc == nil {
		return nil
	}
	_ = s.proc.stdin.Close() // the process ends either way
	err := s.proc.proc.kill9()
	s.proc = nil
	return err
}
