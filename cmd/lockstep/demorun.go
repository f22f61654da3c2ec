package main

import (
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
	"lockstep/internal/progress"
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
	// Kill ends the process at once, as kill -9 does, and returns when it is gone.
	Kill()
	Stop() error
}

// member is a child and what an operator wants to know of it.
type member struct {
	child
	name  string
	log   string
	again string // the command that starts it once more
}

// demo is a running demo. It belongs to one goroutine, which also does what
// comes in at its control port.
type demo struct {
	cfg     demoConfig
	out     io.Writer
	self    string // this program
	nodes   []demoNode
	brokers []member    // by node
	proxies []member    // by node
	files   []io.Closer // the brokers' logs
	control *demoControl

	killed   map[int]bool  // process ids of members that were killed on demand
	ended    chan member   // members that ended
	quit     chan struct{} // closed by stop
	watchers sync.WaitGroup
}

// stopSignals ends with what asks the demo to stop, a closed terminal included.
func stopSignals() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
}

// runDemo starts everything, calls ready where that is given, and stops
// everything again when ctx ends or ready has returned.
func runDemo(ctx context.Context, cfg demoConfig, out io.Writer, ready func(context.Context) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := os.MkdirAll(cfg.dir, 0o750); err != nil {
		return fmt.Errorf("make --data-dir: %w", err)
	}
	if err := cfg.checkAlone(ctx); err != nil {
		return err
	}
	own, err := cfg.internalPorts()
	if err != nil {
		return err
	}
	if err := cfg.awaitPorts(ctx, own, out); err != nil {
		if ctx.Err() != nil {
			return nil // Ctrl-C; nothing was started
		}
		return err
	}
	d := &demo{cfg: cfg, out: out, killed: make(map[int]bool), ended: make(chan member), quit: make(chan struct{})}
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
	if err := d.start(ctx); err != nil {
		if errors.Is(err, errStopped) || ctx.Err() != nil {
			d.say("stopping")
			return nil
		}
		return err
	}
	if ready == nil {
		d.hints()
		d.serve(ctx)
		d.say("stopping")
		return nil
	}
	result := make(chan error, 1)
	go func() {
		defer cancel() // which ends serve
		result <- ready(ctx)
	}()
	d.serve(ctx)
	return <-result
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
	var err error
	if d.control, err = openDemoControl(d.cfg.dir); err != nil {
		return err
	}
	d.brokers, d.proxies = make([]member, len(d.nodes)), make([]member, len(d.nodes))
	for i := range d.nodes {
		if err := d.startBroker(ctx, i); err != nil {
			return err
		}
	}
	for i := range d.nodes {
		if err := d.startProxy(i); err != nil {
			return err
		}
	}
	for i, n := range d.nodes {
		d.say("  node %d   kafka %s  admin %s  pid %-7d  broker %s pid %d", n.id, n.kafka, n.admin,
			d.proxies[i].PID(), n.broker, d.brokers[i].PID())
	}
	d.say("waiting for leaders")
	bar := progress.Start(d.out, "demo")
	err = d.awaitReady(ctx, bar)
	bar.Done()
	if err != nil {
		return err
	}
	var kafka []string
	for _, n := range d.nodes {
		kafka = append(kafka, n.kafka)
	}
	d.say("ready after %.1f s: Kafka on %s", time.Since(began).Seconds(), strings.Join(kafka, ", "))
	return nil
}

func (d *demo) startBroker(ctx context.Context, i int) error {
	n := &d.nodes[i]
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
	d.brokers[i] = member{child: c, name: name, log: n.brokerLog, again: command(args...)}
	d.look(d.brokers[i])
	return nil
}

func (d *demo) startProxy(i int) error {
	n := &d.nodes[i]
	p, err := startProcess([]string{d.self, "serve", "--config", n.config}, demoEnv(), n.log)
	if err != nil {
		return fmt.Errorf("node %d: %w", n.id, err)
	}
	d.proxies[i] = member{child: p, name: fmt.Sprintf("node %d", n.id), log: n.log,
		again: command("serve", "--config", n.config)}
	d.look(d.proxies[i])
	return nil
}

// demoEnv leaves out settings that are meant for a real node.
func demoEnv() []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "LOCKSTEP_") && !strings.HasPrefix(kv, notifyEnv+"=") {
			out = append(out, kv)
		}
	}
	return out
}

// look passes on when a member ends.
func (d *demo) look(m member) {
	d.watchers.Go(func() {
		select {
		case <-m.Done():
		case <-d.quit:
			return
		}
		select {
		case d.ended <- m:
		case <-d.quit:
		}
	})
}

// awaitReady asks the nodes until all of them say that clients can be served
// and that each node leads something.
func (d *demo) awaitReady(ctx context.Context, bar *progress.Bar) error {
	ctx, cancel := context.WithTimeout(ctx, demoReadyTimeout)
	defer cancel()
	client := admin.NewClient()
	defer client.Close()
	tick := time.NewTicker(demoAskEvery)
	defer tick.Stop()
	for {
		why := d.notReady(ctx, client)
		if why == nil {
			return nil
		}
		bar.Set(0, 0, why.Error())
		select {
		case <-tick.C:
		case m := <-d.ended:
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
		if err := notServing(ctx, client, n.admin, n.kafka); err != nil {
			return fmt.Errorf("node %d: %w", n.id, err)
		}
	}
	return nil
}

// notServing says why a node of the demo cannot serve clients yet.
func notServing(ctx context.Context, client *admin.Client, adminAddr, kafka string) error {
	st, _, err := client.Status(ctx, adminAddr)
	if err != nil {
		return err
	}
	if err := spreadAndHealthy(&st); err != nil {
		return err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", kafka)
	if err != nil {
		return err
	}
	return conn.Close()
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

// serve reports members that end, and does what comes in at the control port,
// until ctx ends. Nothing is started again unless it is asked for: whoever
// killed it wants to see what happens.
func (d *demo) serve(ctx context.Context) {
	for {
		select {
		case m := <-d.ended:
			again := "; start it again with: " + m.again
			if d.killed[m.PID()] { // who asked for that starts it again
				again = ""
			}
			d.say("%s (pid %d) ended: %s%s", m.name, m.PID(), howEnded(m), again)
		case req := <-d.control.requests:
			req.answer <- d.do(ctx, req)
		case <-ctx.Done():
			return
		}
	}
}

// stop stops the proxies, then the brokers, and returns when all are gone. A
// member that ended before was reported when it did.
func (d *demo) stop() error {
	if d.control != nil {
		d.control.close()
	}
	close(d.quit)
	d.watchers.Wait()
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
		if m.child == nil {
			continue // it was not started
		}
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
