package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/internal/cluster"
	"lockstep/internal/testaddr"
	"lockstep/internal/verify"
)

// buildLockstep builds the program once for a test.
func buildLockstep(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "lockstep")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// testPorts returns n free ports of 127.0.0.1.
func testPorts(t *testing.T, n int) []int {
	t.Helper()
	out := make([]int, n)
	for i := range out {
		out[i] = testaddr.Local().FreePort(t)
	}
	return out
}

func commas(ports []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(ports), " ", ","), "[]")
}

// output collects what a process prints and passes on its lines.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed and replaced when more arrives
}

func newOutput() *output { return &output{more: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = make(chan struct{})
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// await returns what matches in the output, which is the whole match and its groups.
func (o *output) await(t *testing.T, within time.Duration, re string) []string {
	t.Helper()
	timeout := time.After(within)
	for {
		o.mu.Lock()
		m, more := regexp.MustCompile(re).FindStringSubmatch(o.text.String()), o.more
		o.mu.Unlock()
		if m != nil {
			return m
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("nothing like %q within %s in\n%s", re, within, o)
		}
	}
}

// runningDemo is a demo under test.
type runningDemo struct {
	t            *testing.T
	bin, dir     string
	kafka, admin []int
	out          *output
	cmd          *exec.Cmd
	exited       chan error
}

func startDemo(t *testing.T, bin, dir string, kafka, admin []int) *runningDemo {
	t.Helper()
	d := &runningDemo{t: t, bin: bin, dir: dir, kafka: kafka, admin: admin, out: newOutput(), exited: make(chan error, 1)}
	d.cmd = exec.Command(bin, "demo", "--data-dir", dir, "--kafka-ports", commas(kafka), "--admin-ports", commas(admin))
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { d.exited <- d.cmd.Wait() }()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill() // its children end with it
		if t.Failed() {
			t.Logf("the demo said:\n%s", d.out)
		}
	})
	return d
}

// pids returns the process ids of the nodes and of their brokers.
func (d *runningDemo) pids() (nodes, brokers []int) {
	d.t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^  node \d .* pid (\d+) .* pid (\d+)$`).FindAllStringSubmatch(d.out.String(), -1) {
		n, _ := strconv.Atoi(m[1])
		b, _ := strconv.Atoi(m[2])
		nodes, brokers = append(nodes, n), append(brokers, b)
	}
	if len(nodes) != demoNodes {
		d.t.Fatalf("pids %v and %v in\n%s", nodes, brokers, d.out)
	}
	return nodes, brokers
}

// stop ends the demo with SIGTERM, which must be a clean end.
func (d *runningDemo) stop() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	select {
	case err := <-d.exited:
		if err != nil {
			d.t.Errorf("stopped by SIGTERM: %v\n%s", err, d.out)
		}
	case <-time.After(30 * time.Second):
		d.t.Fatalf("not stopped after 30 s\n%s", d.out)
	}
}

// gone requires that processes do not run.
func gone(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is left: %v", pid, err)
		}
	}
}

// run runs a command against the demo and returns its output and exit code.
func (d *runningDemo) run(args ...string) (stdout string, code int) {
	d.t.Helper()
	cmd := exec.CommandContext(d.t.Context(), d.bin, append(args, "--admin", loopback(d.admin[0]))...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	raw, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	d.t.Logf("lockstep %s: exit %d\n%s%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), raw, &stderr)
	return string(raw), cmd.ProcessState.ExitCode()
}

func (d *runningDemo) client(port int, opts ...kgo.Opt) *kgo.Client {
	d.t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(loopback(port)))...)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(cl.Close)
	return cl
}

// createTopic returns the leader of each partition, once the node that is
// asked announces all of them.
func (d *runningDemo) createTopic(ctx context.Context, cl *kgo.Client, name string, partitions int) map[int32]int32 {
	d.t.Helper()
	create := kmsg.NewPtrCreateTopicsRequest()
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = name, int32(partitions), 3
	create.Topics, create.TimeoutMillis = append(create.Topics, topic), 15_000
	created, err := create.RequestWith(ctx, cl)
	if err != nil || created.Topics[0].ErrorCode != 0 {
		d.t.Fatalf("create topic: %v %+v", err, created)
	}
	ask := kmsg.NewPtrMetadataRequest()
	asked := kmsg.NewMetadataRequestTopic()
	asked.Topic = kmsg.StringPtr(name)
	ask.Topics = append(ask.Topics, asked)
	leaders := make(map[int32]int32)
	d.eventually("every partition has a leader", func() bool {
		md, err := ask.RequestWith(ctx, cl)
		if err != nil {
			d.t.Fatal(err)
		}
		if len(md.Brokers) != demoNodes {
			d.t.Errorf("brokers %+v", md.Brokers)
		}
		for _, p := range md.Topics[0].Partitions {
			if p.Leader > 0 {
				leaders[p.Partition] = p.Leader
			}
		}
		return len(leaders) == partitions
	})
	return leaders
}

// produce writes records "from" to "to"-1, spread over the partitions.
func produce(ctx context.Context, t *testing.T, cl *kgo.Client, topic string, from, to int) {
	t.Helper()
	var records []*kgo.Record
	for i := from; i < to; i++ {
		records = append(records, &kgo.Record{Topic: topic, Partition: int32(i % 6), Value: []byte(strconv.Itoa(i))})
	}
	if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		t.Fatalf("produce %d to %d: %v", from, to, err)
	}
}

// consume reads records from the beginning until it has seen n of them, each once.
func consume(ctx context.Context, t *testing.T, cl *kgo.Client, n int) {
	t.Helper()
	seen := make(map[string]bool)
	for len(seen) < n {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("consume: %v after %d of %d records", err, len(seen), n)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if seen[string(r.Value)] {
				t.Errorf("record %s came twice", r.Value)
			}
			seen[string(r.Value)] = true
		})
	}
}

// TestDemo is the first five minutes of an operator.
func TestDemo(t *testing.T) {
	bin := buildLockstep(t)
	ports := testPorts(t, 6)
	dir := filepath.Join(t.TempDir(), "demo")
	d := startDemo(t, bin, dir, ports[:3], ports[3:])
	d.out.await(t, 60*time.Second, `(?m)^ready .*`)
	nodes, brokers := d.pids()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()

	producer := d.client(ports[0], kgo.RecordPartitioner(kgo.ManualPartitioner()))
	leaders := d.createTopic(ctx, producer, "six", 6)
	led := make(map[int32]int)
	for _, l := range leaders {
		led[l]++
	}
	if led[1] == 0 || led[2] == 0 || led[3] == 0 {
		t.Errorf("leaders by partition: %v", leaders)
	}
	produce(ctx, t, producer, "six", 0, 600)
	consume(ctx, t, d.client(ports[2], kgo.ConsumeTopics("six"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())), 600)
	d.statusSays(true)
	d.verifySays(true, 6)
	if out, code := d.run("verify", "--topic", "seven"); code != 1 || out != "" {
		t.Errorf("verify of a topic that is not there: exit %d, %q", code, out)
	}

	// The leader of a third of the partitions dies; nobody starts it again.
	if err := syscall.Kill(nodes[1], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	produce(ctx, t, producer, "six", 600, 1200)
	again := d.out.await(t, 5*time.Second, `(?m)^node 2 .* start it again with: (.*)$`)[1]
	consume(ctx, t, d.client(ports[0], kgo.ConsumeTopics("six"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())), 1200)
	d.statusSays(false)
	d.verifySays(false, 6)
	if out, code := d.run("verify", "--allow-missing"); code != 0 || !strings.HasSuffix(out, "\nidentical\n") {
		t.Errorf("verify --allow-missing: exit %d\n%s", code, out)
	}
	stopNode := d.restart(again)
	d.verifySays(true, 6)
	stopNode()

	d.stop()
	gone(t, append(nodes, brokers...)...)

	// The same directory goes on where it was; a demo that is killed takes its
	// children along.
	d = startDemo(t, bin, dir, ports[:3], ports[3:])
	d.out.await(t, 60*time.Second, `(?m)^ready .*`)
	consume(ctx, t, d.client(ports[1], kgo.ConsumeTopics("six"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())), 1200)
	nodes, brokers = d.pids()
	d.goAround(ctx, "six")
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-d.exited; err == nil {
		t.Error("a killed demo has exit code 0")
	}
	// Started again at once, it waits for them instead of complaining.
	next := startDemo(t, bin, dir, ports[:3], ports[3:])
	next.out.await(t, 60*time.Second, `(?m)^waiting for leaders`)
	for _, pid := range append(nodes, brokers...) {
		d.eventually(fmt.Sprintf("process %d has ended with its parent", pid), func() bool {
			return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
		})
	}
	next.stop()
}

// goAround writes a record to one broker alone, which verify has to find.
func (d *runningDemo) goAround(ctx context.Context, topic string) {
	d.t.Helper()
	d.verifySays(true, 6)
	port, err := strconv.Atoi(regexp.MustCompile(`(?m)^  node 3 .* broker 127\.0\.0\.1:(\d+) `).FindStringSubmatch(d.out.String())[1])
	if err != nil {
		d.t.Fatal(err)
	}
	cl := d.client(port, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Partition: 4, Value: []byte("alone")}).FirstErr(); err != nil {
		d.t.Fatal(err)
	}
	out, code := d.run("verify")
	if code != 1 || !strings.Contains(out, topic+"/4: offset 200: the broker of node 3 ends at 201") || !strings.HasSuffix(out, "\nNOT identical\n") {
		d.t.Errorf("verify after a record on one broker alone: exit %d\n%s", code, out)
	}
}

// restart runs the command that the demo told and returns when the cluster is
// healthy. The node is the test's own child then, which the test stops.
func (d *runningDemo) restart(command string) (stop func()) {
	d.t.Helper()
	args := strings.Fields(command)
	cmd := exec.Command(args[0], args[1:]...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			d.t.Errorf("the node that was started again: %v\n%s", err, &log)
		}
	})
	d.t.Cleanup(stop)
	d.eventually("the cluster is healthy", func() bool {
		return exec.Command(d.bin, "status", "--admin", loopback(d.admin[0])).Run() == nil
	})
	return stop
}

// eventually asks again for what nothing tells: the state of other processes.
func (d *runningDemo) eventually(what string, ok func() bool) {
	d.t.Helper()
	tick, timeout := time.NewTicker(50*time.Millisecond), time.After(20*time.Second)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			d.t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// statusSays requires the status command's verdict, in both forms.
func (d *runningDemo) statusSays(healthy bool) {
	d.t.Helper()
	want := map[bool]int{true: 0, false: 1}[healthy]
	out, code := d.run("status", "-o", "json")
	var st cluster.Status
	if err := json.Unmarshal([]byte(out), &st); err != nil || code != want || st.Healthy != healthy || len(st.Nodes) != demoNodes {
		d.t.Errorf("status -o json: exit %d, %v", code, err)
	}
	out, code = d.run("status")
	line, _, _ := strings.Cut(out, "\n")
	if code != want || strings.Contains(line, "NOT HEALTHY") == healthy || !strings.Contains(out, "GROUP") {
		d.t.Errorf("status: exit %d\n%s", code, out)
	}
}

func (d *runningDemo) verifySays(identical bool, partitions int) {
	d.t.Helper()
	want := map[bool]int{true: 0, false: 1}[identical]
	out, code := d.run("verify", "-o", "json")
	var r verify.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != want || r.Identical != identical || len(r.Partitions) != partitions {
		d.t.Errorf("verify -o json: exit %d, %v, %+v", code, err, r)
	}
}
