//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// contestant is one way to keep records, with its processes.
type contestant struct {
	name    string // the column: a to d, or o
	what    string
	seeds   []string
	brokers []*process
	proxies []*process
	cluster *cluster          // of Lockstep only
	config  map[string]string // of every topic
	copies  int16
}

// benchJVM is what operators run Kafka with, in place of the tests' flags for a
// quick start: the full compiler, and the collector of kafka-server-start.
var benchJVM = []string{"-Xms512m", "-Xmx512m", "-XX:TieredStopAtLevel=4", "-XX:-UseSerialGC", "-XX:+UseG1GC",
	"-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35"}

// contestants starts those that are asked for (BENCH_ONLY, letters). They stay
// up side by side, so that all have warm JVMs; idle they cost little. o is
// Lockstep of a commit before, BENCH_OLD: what a change did is seen side by side.
// It has no column in the tables, it is in the log and in the JSON.
func contestants(t *testing.T) []*contestant {
	only := envOr("BENCH_ONLY", "abcd")
	var all []*contestant
	if strings.Contains(only, "a") {
		b := newBenchBroker(t, filepath.Join(runDir(t), "a"), 1)
		startBrokers(t, b)
		all = append(all, &contestant{name: "a", what: "one plain broker", seeds: []string{b.addr()}, brokers: []*process{b.proc}, copies: 1})
	}
	if strings.Contains(only, "b") {
		all = append(all, lockstep(t, "b", "Lockstep", &built))
	}
	if strings.Contains(only, "o") {
		all = append(all, lockstep(t, "o", "Lockstep of before", olderBinary(t, envOr("BENCH_OLD", "HEAD"))))
	}
	if strings.Contains(only, "c") {
		all = append(all, native(t, "c", "native cluster, replication factor 3, page cache", nil))
	}
	if strings.Contains(only, "d") {
		all = append(all, native(t, "d", "the same with flush.messages=1", map[string]string{"flush.messages": "1"}))
	}
	for _, k := range all {
		if k.config == nil {
			k.config = map[string]string{}
		}
		k.config["file.delete.delay.ms"] = "1000"
	}
	return all
}

// lockstep is a cluster of a build, with brokers of its own.
func lockstep(t *testing.T, name, what string, build *program) *contestant {
	t.Helper()
	c := newClusterWith(t, clusterOpts{program: build, dir: filepath.Join(runDir(t), name),
		prepare: func(_ *testing.T, n *node) { n.broker.tuning = benchJVM }})
	k := &contestant{name: name, what: what, seeds: c.bootstrap(), cluster: c, copies: 3}
	for _, n := range c.nodes {
		k.brokers, k.proxies = append(k.brokers, n.broker.proc), append(k.proxies, n.proc)
	}
	return k
}

// native is a KRaft cluster of three brokers that are controllers, too.
func native(t *testing.T, name, what string, config map[string]string) *contestant {
	t.Helper()
	dir := filepath.Join(runDir(t), name)
	var brokers []*broker
	var voters []string
	for id := 1; id <= 3; id++ {
		b := newBenchBroker(t, filepath.Join(dir, strconv.Itoa(id)), id)
		brokers = append(brokers, b)
		voters = append(voters, fmt.Sprintf("%d@%s", id, loopback(b.controllerPort)))
	}
	id := newClusterID()
	for _, b := range brokers {
		b.clusterID = id
		b.settings = []string{"controller.quorum.voters=" + strings.Join(voters, ","), "offsets.topic.replication.factor=3",
			"default.replication.factor=3", "min.insync.replicas=2", "broker.session.timeout.ms=9000"}
	}
	startBrokers(t, brokers...)
	k := &contestant{name: name, what: what, config: config, copies: 3}
	for _, b := range brokers {
		k.seeds, k.brokers = append(k.seeds, b.addr()), append(k.brokers, b.proc)
	}
	return k
}

func newBenchBroker(t *testing.T, dir string, id int) *broker {
	t.Helper()
	b := makeBroker(t, dir, id)
	b.tuning = benchJVM
	return b
}

// startBrokers starts brokers that need each other, and returns when each
// lists itself.
func startBrokers(t *testing.T, brokers ...*broker) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), brokerReady)
	defer cancel()
	for _, b := range brokers {
		if err := b.format(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range brokers {
		if err := b.spawn(); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range brokers {
		if err := b.waitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// topic makes a topic that every partition of has a leader.
func (k *contestant) topic(ctx context.Context, name string, partitions int) error {
	cl, err := kgo.NewClient(clientOpts(k.seeds)...)
	if err != nil {
		return err
	}
	defer cl.Close()
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = 30_000
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = name, int32(partitions), k.copies
	for key, value := range k.config {
		rt.Configs = append(rt.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: key, Value: kmsg.StringPtr(value)})
	}
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(ctx, cl)
	if err == nil && resp.Topics[0].ErrorCode != 0 {
		err = fmt.Errorf("%s", topicError(resp.Topics))
	}
	if err != nil {
		return fmt.Errorf("%s: create %s: %w", k.name, name, err)
	}
	return waitUntil(ctx, 100*time.Millisecond, func(ctx context.Context) error {
		meta := kmsg.NewPtrMetadataRequest()
		mt := kmsg.NewMetadataRequestTopic()
		mt.Topic = kmsg.StringPtr(name)
		meta.Topics = append(meta.Topics, mt)
		resp, err := meta.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		if got := len(resp.Topics[0].Partitions); got != partitions {
			return fmt.Errorf("%d partitions so far", got)
		}
		for _, p := range resp.Topics[0].Partitions {
			if p.Leader < 0 || p.ErrorCode != 0 {
				return fmt.Errorf("partition %d has no leader", p.Partition)
			}
		}
		return nil
	})
}

// drop deletes a topic; a failure costs disk, and nothing else.
func (k *contestant) drop(ctx context.Context, name string) {
	_ = deleteTopic(ctx, k.seeds[0], name)
}

// usage is what processes have used so far.
type usage struct {
	CPU     float64 // seconds
	Written float64 // bytes given to the block device
	Peak    float64 // largest resident size, bytes
}

func used(ps []*process) (u usage) {
	for _, p := range ps {
		u.CPU += cpuSeconds(p.pid)
		u.Written += procField(p.pid, "io", "write_bytes:")
		u.Peak = max(u.Peak, 1024*procField(p.pid, "status", "VmHWM:"))
	}
	return u
}

// cpuSeconds are a process's user and system time (proc(5), stat).
func cpuSeconds(pid int) float64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(raw), ") ")
	f := strings.Fields(after)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100 // USER_HZ
}

// resetPeak forgets the largest resident size (proc(5), clear_refs).
func resetPeak(ps []*process) {
	for _, p := range ps {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.pid), []byte("5"), 0)
	}
}

func procField(pid int, file, name string) float64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			v, _ := strconv.ParseFloat(f[1], 64)
			return v
		}
	}
	return 0
}
