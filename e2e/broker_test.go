//go:build e2e

package e2e

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// broker is one Apache Kafka node, controller and broker in one process, alone
// in its cluster. Its methods are called from the test goroutine only.
type broker struct {
	dist           *kafkaDist
	dir            string // holds server.properties, data/, broker.log, broker.out
	nodeID         int
	port           int
	controllerPort int
	extraFlags     []string
	tuning         []string // of the JVM, over the flags for a quick start
	clusterID      string   // of a cluster of several brokers; empty: one of its own
	settings       []string // lines of server.properties that come last, and win
	users          []string // with SCRAM, as kafka-storage format --add-scram takes them
	embedded       string   // the lockstep binary whose embedded broker stands in for Kafka; empty: Kafka
	proc           *process
}

// brokerReady bounds a start: 1.3 s alone on an idle machine, 5 s after a
// kill -9, many times that when three start on two busy cores.
const brokerReady = 90 * time.Second

// newBroker starts a broker on an empty disk and returns when it answers.
func newBroker(t *testing.T, dir string, nodeID int) *broker {
	t.Helper()
	b := makeBroker(t, dir, nodeID)
	ctx, cancel := context.WithTimeout(t.Context(), brokerReady)
	defer cancel()
	if err := b.format(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.start(ctx); err != nil {
		t.Fatal(err)
	}
	return b
}

// makeBroker chooses ports and a directory; format and start do the work and
// may be called from another goroutine than the test's, one at a time.
func makeBroker(t *testing.T, dir string, nodeID int) *broker {
	t.Helper()
	b := &broker{dist: kafka(t), dir: dir, nodeID: nodeID, port: freePort(t), controllerPort: freePort(t)}
	t.Cleanup(func() { b.cleanUp(t) })
	return b
}

// makeEmbedded is makeBroker for the fake broker of lockstep demo, which starts
// in a moment. It forgets its producers on kill -9: it may only be stopped.
func makeEmbedded(t *testing.T, dir, binary string) *broker {
	t.Helper()
	b := &broker{dir: dir, port: freePort(t), embedded: binary}
	t.Cleanup(func() { b.cleanUp(t) })
	return b
}

func (b *broker) cleanUp(t *testing.T) {
	if b.proc != nil {
		if err := b.proc.kill9(); err != nil {
			t.Error(err)
		}
	}
}

func (b *broker) addr() string    { return loopback(b.port) }
func (b *broker) dataDir() string { return filepath.Join(b.dir, "data") }
func (b *broker) outFile() string { return filepath.Join(b.dir, "broker.out.log") }

// properties are Kafka's defaults but for what one node alone needs and what
// shortens a start.
func (b *broker) properties() string {
	controller := loopback(b.controllerPort)
	lines := []string{
		"process.roles=broker,controller",
		fmt.Sprintf("node.id=%d", b.nodeID),
		fmt.Sprintf("controller.quorum.voters=%d@%s", b.nodeID, controller),
		"listeners=PLAINTEXT://" + b.addr() + ",CONTROLLER://" + controller,
		"advertised.listeners=PLAINTEXT://" + b.addr(),
		"controller.listener.names=CONTROLLER",
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"inter.broker.listener.name=PLAINTEXT",
		"log.dirs=" + b.dataDir(),
		"auto.create.topics.enable=false",
		"group.initial.rebalance.delay.ms=0",
		"offsets.topic.replication.factor=1",
		"offsets.topic.num.partitions=4",
		"transaction.state.log.replication.factor=1",
		"transaction.state.log.min.isr=1",
		"transaction.state.log.num.partitions=2",
		"share.coordinator.state.topic.replication.factor=1",
		"share.coordinator.state.topic.min.isr=1",
		// A broker that was killed may register again only when the session of
		// its former life has ended; by default that alone takes 9 s.
		// Shorter than 4 s and a busy machine fences a living broker.
		"broker.session.timeout.ms=4000",
		"broker.heartbeat.interval.ms=1000",
		"num.network.threads=2",
		"num.io.threads=4",
		"log.cleaner.dedupe.buffer.size=8388608",
	}
	return strings.Join(append(lines, b.settings...), "\n") + "\n"
}

// format writes the configuration and gives the broker a cluster id of its own.
func (b *broker) format(ctx context.Context) error {
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return fmt.Errorf("make broker directory: %w", err)
	}
	if b.embedded != "" {
		return nil
	}
	conf := filepath.Join(b.dir, "server.properties")
	if err := os.WriteFile(conf, []byte(b.properties()), 0o644); err != nil {
		return fmt.Errorf("write broker configuration: %w", err)
	}
	if b.clusterID == "" {
		b.clusterID = newClusterID()
	}
	args := []string{"format", "-t", b.clusterID, "-c", conf}
	for _, user := range b.users {
		args = append(args, "--add-scram", user)
	}
	_, err := b.dist.tool(ctx, b.dir, "kafka.tools.StorageTool", args...)
	return err
}

func newClusterID() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	id[0] &= 0x7f        // a Kafka id must not start with '-', the sign of an option
	return base64.RawURLEncoding.EncodeToString(id)
}

// start runs the broker and returns when it serves.
func (b *broker) start(ctx context.Context) error {
	if err := b.spawn(); err != nil {
		return err
	}
	return b.waitReady(ctx)
}

// spawn starts the process and does not wait for it to serve.
func (b *broker) spawn() error {
	cmd := b.command()
	out, err := os.OpenFile(b.outFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open broker output: %w", err)
	}
	defer out.Close() // the child has its own descriptor
	cmd.Stdout, cmd.Stderr = out, out
	b.proc, err = startProcess(fmt.Sprintf("kafka-%d", b.nodeID), cmd)
	return err
}

func (b *broker) command() *exec.Cmd {
	if b.embedded != "" {
		return exec.Command(b.embedded, "embedded-broker", "--listen", b.addr(), "--data-dir", b.dataDir())
	}
	flags := append(slices.Clone(b.extraFlags), b.dist.jvmFlags(384, filepath.Join(b.dir, "broker.log"))...)
	flags = append(flags, b.tuning...)
	return exec.Command(b.dist.java, append(flags, "kafka.Kafka", filepath.Join(b.dir, "server.properties"))...)
}

// waitReady returns when the broker lists itself, which it does once it is
// registered and unfenced, and every partition it knows has a leader.
func (b *broker) waitReady(ctx context.Context) error {
	err := waitUntil(ctx, 50*time.Millisecond, func(ctx context.Context) error {
		if b.proc.exited() {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		req := kmsg.NewPtrMetadataRequest()
		req.SetVersion(9)
		resp, err := rawCall[*kmsg.MetadataResponse](ctx, b.addr(), req)
		if err != nil {
			return err
		}
		for _, topic := range resp.Topics {
			for _, p := range topic.Partitions {
				if p.ErrorCode != 0 || p.Leader != int32(b.nodeID) {
					return fmt.Errorf("partition %s/%d has no leader yet (error %d)", *topic.Topic, p.Partition, p.ErrorCode)
				}
			}
		}
		for _, n := range resp.Brokers {
			if n.NodeID == int32(b.nodeID) {
				return nil
			}
		}
		return fmt.Errorf("broker is not in its own metadata yet")
	})
	if b.proc.exited() {
		return fmt.Errorf("kafka-%d ended at start: %w\n%s", b.nodeID, b.proc.err, tail(b.outFile(), 20))
	}
	if err != nil {
		return fmt.Errorf("kafka-%d not ready: %w", b.nodeID, err)
	}
	return nil
}

// kill9 is SIGKILL; it returns when the process has been reaped.
func (b *broker) kill9(t *testing.T) {
	t.Helper()
	if err := b.proc.kill9(); err != nil {
		t.Fatal(err)
	}
}

// stop is a controlled shutdown (SIGTERM).
func (b *broker) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := b.proc.stop(ctx); err != nil {
		t.Fatal(err)
	}
}

// restart starts the broker again on its disk and returns when it serves.
func (b *broker) restart(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), brokerReady)
	defer cancel()
	if err := b.start(ctx); err != nil {
		t.Fatal(err)
	}
}
