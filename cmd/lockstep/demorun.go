package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"lockstep/internal/admin"
	"lockstep/internal/cluster"
	"lockstep/internal/embedded"
)

const (
	demoReadyTimeout = 60 * time.Second
	demoAskEvery     = 100 * time.Millisecond
	brokerStart      = 20 * time.Second
	logTail          = 2 << 10
)

var (
	errDemoNotReady = errors.New("the demo is not ready")
	errStopped      = errors.New("stopped by a signal")
)

// child is a process of the demo.
type child interface {
	PID() int
	Done() <-chan struct{}
	Err() error
	Stop() error
}

// member is a child and what an operator wants to know of it.
type member struct {
	child
	name  string
	log   string
	again string // the command that starts it once more
}

// demo is a running demo. It belongs to one goroutine.
type demo struct {
	cfg     demoConfig
	out     io.Writer
	self    string // this program
	nodes   []demoNode
	brokers []member
	proxies []member
	files   []io.Closer // the brokers' logs
}

// runDemo starts everything and stops it again when it is told to.
func runDemo(cfg demoConfig, out io.Writer) (err error) {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	if err := os.MkdirAll(cfg.dir, 0o750); err != nil {
		return fmt.Errorf("make --data-dir: %w", err)
	}
	own, err := cfg.internalPorts()
	if err != nil {
		return err
	}
	if err := cfg.checkPorts(own); err != nil {
		return err
	}
	d := &demo{cfg: cfg, out: out}
	if d.self, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	for i := range demoNodes {
		d.nodes = append(d.nodes, cfg.node(i, own))
	}
	defer func() {
		err = errors.Join(err, d.stop())
		if err == nil {
			d.say("stopped; the data stays in %s", cfg.dir)
		}
	}()
	err = d.start(ctx)
	if err == nil {
		d.hints()
		d.watch(ctx)
	}
	if errors.Is(err, errStopped) || ctx.Err() != nil {
		d.say("stopping")
		return nil
	}
	return err
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// start returns when clients can be served.
func (d *demo) start(ctx context.Context) error {
	began := time.Now()
	d.say("three nodes with embedded brokers, data and logs in %s", d.cfg.dir)
	for i := range d.nodes {
		if err := d.nodes[i].writeConfig(d.nodes); err != nil {
			return fmt.Errorf("write the configuration of node %d: %w", i+1, err)
		}
	}
	for i := range d.nodes {
		if err := d.startBroker(ctx, &d.nodes[i]); err != nil {
			return err
		}
	}
	for i := range d.nodes {
		if err := d.startProxy(&d.nodes[i]); err != nil {
			return err
		}
	}
	for i, n := range d.nodes {
		d.say("  node %d   kafka %s  admin %s  pid %-7d  broker %s pid %d", n.id, n.kafka, n.admin,
			d.proxies[i].PID(), n.broker, d.brokers[i].PID())
	}
	d.say("waiting for leaders")
	if err := d.awaitReady(ctx); err != nil {
		return err
	}
	var kafka []string
	for _, n := range d.nodes {
		kafka = append(kafka, n.kafka)
	}
	d.say("ready after %.1f s: Kafka on %s", time.Since(began).Seconds(), strings.Join(kafka, ", "))
	return nil
}

func (d *demo) startBroker(ctx context.Context, n *demoNode) error {
	out, err := os.OpenFile(n.brokerLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("open log file: %w", err)
	}
	d.files = append(d.files, out)
	ctx, cancel := context.WithTimeout(ctx, brokerStart)
	defer cancel()
	args := []string{"embedded-broker", "--listen", n.broker, "--data-dir", n.brokerDir}
	name := fmt.Sprintf("the broker of node %d", n.id)
	c, err := embedded.StartChild(ctx, embedded.ChildConfig{Argv: append([]string{d.self}, append(args, "--with-parent")...), Stderr: out})
	if err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return errStopped
		}
		return fmt.Errorf("%s: %w\n%s", name, err, lastOf(n.brokerLog))
	}
	d.brokers = append(d.brokers, member{child: c, name: name, log: n.brokerLog, again: command(args...)})
	return nil
}

func (d *demo) startProxy(n *demoNode) error {
	p, err := startProcess([]string{d.self, "serve", "--config", n.config}, demoEnv(), n.log)
	if err != nil {
		return fmt.Errorf("node %d: %w", n.id, err)
	}
	d.proxies = append(d.proxies, member{child: p, name: fmt.Sprintf("node %d", n.id), log: n.log,
		again: command("serve", "--config", n.config)})
	return nil
}

// demoEnv leaves out settings that are meant for a real node.
func demoEnv() []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "LOCKSTEP_") {
			out = append(out, kv)
		}
	}
	return out
}

// command is how this program was called, with other arguments.
func command(args ...string) string { return strings.Join(append([]string{os.Args[0]}, args...), " ") }

func (d *demo) members() []member {
	return append(append([]member{}, d.brokers...), d.proxies...)
}

// ends passes on which members end, until ctx does.
func (d *demo) ends(ctx context.Context) <-chan member {
	all := d.members()
	out := make(chan member)
	for _, m := range all {
		go func() {
			select {
			case <-m.Done():
			case <-ctx.Done():
				return
			}
			select {
			case out <- m:
			case <-ctx.Done():
			}
		}()
	}
	return out
}

// awaitReady asks the nodes until all of them say that clients can be served
// and that each node leads something.
func (d *demo) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, demoReadyTimeout)
	defer cancel()
	client := admin.NewClient()
	defer client.Close()
	ended := d.ends(ctx)
	tick := time.NewTicker(demoAskEvery)
	defer tick.Stop()
	for {
		why := d.notReady(ctx, client)
		if why == nil {
			return nil
		}
		select {
		case <-tick.C:
		case m := <-ended:
			return fmt.Errorf("%w: %s ended: %s\n%s", errDemoNotReady, m.name, howEnded(m), lastOf(m.log))
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return errStopped
			}
			return fmt.Errorf("%w after %s: %w; see the logs in %s", errDemoNotReady, demoReadyTimeout, why,
				filepath.Join(d.cfg.dir, "node*"))
		}
	}
}

func (d *demo) notReady(ctx context.Context, client *admin.Client) error {
	for _, n := range d.nodes {
		st, _, err := client.Status(ctx, n.admin)
		if err != nil {
			return err
		}
		if err := spreadAndHealthy(&st); err != nil {
			return fmt.Errorf("node %d: %w", n.id, err)
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", n.kafka)
		if err != nil {
			return err
		}
		conn.Close()
	}
	return nil
}

func spreadAndHealthy(st *cluster.Status) error {
	if !st.Healthy {
		return errors.New(strings.Join(st.Problems, "; "))
	}
	leaders := make(map[int32]bool)
	for _, g := range st.Groups {
		leaders[g.Leader] = true
	}
	if len(leaders) < min(demoNodes, len(st.Groups)) {
		return errors.New("the groups' leaders are not yet spread over the nodes")
	}
	return nil
}

// watch reports members that end until ctx does. Nothing is started again:
// whoever killed it wants to see what happens.
func (d *demo) watch(ctx context.Context) {
	ended := d.ends(ctx)
	for {
		select {
		case m := <-ended:
			d.say("%s (pid %d) ended: %s; start it again with: %s", m.name, m.PID(), howEnded(m), m.again)
		case <-ctx.Done():
			return
		}
	}
}

func howEnded(m member) string {
	if err := m.Err(); err != nil {
		return err.Error()
	}
	return "exit status 0"
}

// stop stops the proxies, then the brokers, and returns when all are gone. A
// member that ended before was reported when it did.
func (d *demo) stop() error {
	errs := stopAll(d.proxies)
	errs = append(errs, stopAll(d.brokers)...)
	for _, f := range d.files {
		f.Close()
	}
	return errors.Join(errs...)
}

func stopAll(members []member) []error {
	var wg sync.WaitGroup
	errs := make([]error, len(members))
	for i, m := range members {
		select {
		case <-m.Done():
			continue
		default:
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := m.Stop(); err != nil {
				errs[i] = fmt.Errorf("%s did not stop cleanly: %w; see %s", m.name, err, m.log)
			}
		}()
	}
	wg.Wait()
	return errs
}

// lastOf returns the end of a log file for a message.
func lastOf(file string) string {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	if len(raw) > logTail {
		raw = raw[len(raw)-logTail:]
		if _, rest, ok := bytes.Cut(raw, []byte("\n")); ok {
			raw = rest
		}
	}
	return file + " ends with:\n" + strings.TrimSpace(string(raw))
}

// hints says what to type next.
func (d *demo) hints() {
	// The one to kill is neither of those that the commands use.
	first, victim, last := d.nodes[0], 1, d.nodes[demoNodes-1]
	flags := ""
	if first.admin != defaultAdmin[0] {
		flags = " --admin " + first.admin
	}
	d.say(`
in another terminal:
  kcat -b %[1]s -L
  seq 1000 | kcat -b %[1]s -t numbers -P
  kcat -b %[2]s -t numbers -C -e -o beginning
  %[3]s
  %[4]s
then kill node %[7]d with its broker and do all of it again (verify --allow-missing):
  kill -9 %[5]d %[6]d
Ctrl-C stops everything and keeps the data`,
		first.kafka, last.kafka, command("status"+flags), command("verify"+flags),
		d.proxies[victim].PID(), d.brokers[victim].PID(), d.nodes[victim].id)
}
