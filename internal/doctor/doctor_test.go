package doctor

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lockstep/internal/testaddr"
)

// planted is a broker with what a test plants in it.
type planted struct {
	nodes    map[int32]string
	settings map[string]string
	topics   map[string]map[string]string
	quotas   map[string]float64
	err      error
}

func (p planted) Describe(context.Context) (string, error)        { return "kafka", p.err }
func (p planted) Nodes(context.Context) (map[int32]string, error) { return p.nodes, p.err }
func (p planted) Settings(context.Context, int32) (map[string]string, error) {
	return p.settings, p.err
}
func (p planted) TopicSettings(_ context.Context, topics, _ []string) (map[string]map[string]string, error) {
	out := make(map[string]map[string]string)
	for _, name := range topics {
		if have, ok := p.topics[name]; ok {
			out[name] = have
		}
	}
	return out, p.err
}
func (p planted) OwnQuotas(context.Context, string) (map[string]float64, error) {
	return p.quotas, p.err
}
func (p planted) find(t *testing.T) []Finding {
	t.Helper()
	return Examine(t.Context(), BrokerChecks(p, "b:1", "lockstep", []string{"here:9092"}, 8<<20))
}

// has fails unless something of that severity speaks of part, with a next step.
func has(t *testing.T, fs []Finding, s Severity, part string) {
	t.Helper()
	for _, f := range fs {
		if f.Severity == s && strings.Contains(f.What, part) {
			if s != OK && f.Next == "" || (s == Warning || s == Error) && f.Why == "" {
				t.Errorf("%+v has no next step, or does not say why", f)
			}
			return
		}
	}
	t.Errorf("no %s speaks of %q: %+v", s, part, fs)
}

func TestBroker(t *testing.T) {
	t.Parallel()
	alone := map[int32]string{1: "127.0.0.1:19092"}
	good := planted{nodes: alone, settings: map[string]string{"auto.create.topics.enable": "false", "offsets.topic.replication.factor": "1", "socket.request.max.bytes": "104857600",
		"log.segment.bytes": "1073741824", "log.message.timestamp.type": "CreateTime", "compression.type": "producer", "create.topic.policy.class.name": ""}}
	for _, f := range good.find(t) {
		if f.Severity != OK {
			t.Errorf("nothing is wrong: %+v", f)
		}
	}
	for name, want := range map[string]struct {
		value string
		Severity
	}{
		"auto.create.topics.enable": {"true", Warning}, "delete.topic.enable": {"false", Error},
		"offsets.topic.replication.factor": {"3", Error}, "transaction.state.log.replication.factor": {"3", Warning},
		"min.insync.replicas": {"2", Error}, "socket.request.max.bytes": {"1048576", Error}, "log.segment.bytes": {"1048576", Error},
		"log.message.timestamp.type": {"LogAppendTime", Warning}, "compression.type": {"gzip", Warning},
		"create.topic.policy.class.name": {"com.example.No", Warning}, "alter.config.policy.class.name": {"com.example.No", Warning},
	} {
		has(t, planted{nodes: alone, settings: map[string]string{name: want.value}}.find(t), want.Severity, name+" is "+want.value)
	}
	has(t, planted{nodes: alone, quotas: map[string]float64{"producer_byte_rate": 1024}}.find(t), Warning, "producer_byte_rate is 1024 for lockstep's own connection")
	has(t, planted{nodes: map[int32]string{1: "10.0.0.1:9092"}}.find(t), Warning, "other machines")
	has(t, planted{nodes: map[int32]string{1: "here:9092"}}.find(t), Error, "where clients reach this node")
	has(t, planted{nodes: map[int32]string{1: "a:1", 2: "b:1"}}.find(t), Error, "cluster of 2")
	dead := planted{err: errors.New("refused")}.find(t)
	has(t, dead, Error, "no Kafka broker answers at b:1")
	has(t, dead, Unknown, "cannot be asked")
	if !Bad(dead) || Bad(good.find(t)) {
		t.Error("only errors are bad")
	}
}

func TestMachine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run := func(checks []Check) []Finding { return Examine(t.Context(), checks) }
	found := run(DiskChecks(filepath.Join(dir, "not", "yet"), []string{filepath.Join(dir, "no")}, time.Hour, 1))
	has(t, found, OK, "syncs of 4096 bytes")
	has(t, found, Error, "no such file")
	has(t, run(DiskChecks(dir, nil, time.Nanosecond, 1<<62)), Error, "at worst")
	has(t, run(DiskChecks(dir, nil, time.Hour, 1<<62)), Warning, "are free")
	has(t, run(LimitChecks(1, 1)), OK, "the budget is")
	has(t, run(LimitChecks(1<<30, 1<<60)), Warning, "files may be open")
	has(t, run(LimitChecks(1<<30, 1<<60)), Warning, "limits.memory_budget is")
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("it left %v, %v", left, err)
	}
	file := filepath.Join(dir, "x.pem")
	has(t, run([]Check{CertificateCheck("raft.tls", file)}), Error, "no such file")
	if err := os.WriteFile(file, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	has(t, run([]Check{CertificateCheck("raft.tls", file)}), Error, "holds no PEM")
}

func TestNetwork(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken := ln.Addr().String()
	defer ln.Close()
	closed := testaddr.Local().Free(t)
	found := Examine(t.Context(), AddressChecks([]string{"127.0.0.1:1", "no-such-host.invalid:1"}, []Peer{{2, taken}, {3, closed}, {4, "no-such-host.invalid:2"}}))
	has(t, found, OK, "the name resolves")
	has(t, found, OK, taken+" is reached")
	has(t, found, Warning, closed)
	has(t, found, Error, "no-such-host.invalid")

	running := func(st *Running, err error, ports map[string]string) []Finding {
		return Examine(t.Context(), []Check{RunningCheck(func(context.Context) (*Running, error) { return st, err }, ports)})
	}
	has(t, running(nil, syscall.ECONNREFUSED, map[string]string{"raft.listen": closed}), OK, "does not run")
	has(t, running(nil, syscall.ECONNREFUSED, map[string]string{"raft.listen": taken}), Error, "raft.listen")
	has(t, running(nil, errors.New("odd"), nil), Unknown, "odd")
	has(t, running(&Running{Problems: []string{"group 1 has no leader"}}, nil, nil), Error, "group 1 has no leader")
	has(t, running(&Running{Versions: map[int32]string{1: "a", 2: "b"}}, nil, nil), Warning, "2 versions")
	has(t, running(&Running{Versions: map[int32]string{1: "a", 2: "a"}}, nil, nil), OK, "healthy")
	has(t, running(&Running{Unasked: "404"}, nil, nil), Unknown, "404")
}

func TestPeers(t *testing.T) {
	t.Parallel()
	peers := func(v PeerView) []Finding {
		return Examine(t.Context(), []Check{RunningCheck(func(context.Context) (*Running, error) {
			return &Running{Peers: map[int32]PeerView{2: v, 3: {Dialed: map[string]string{"here:9092": ""}}}}, nil
		}, nil)})
	}
	has(t, peers(PeerView{Dialed: map[string]string{"here:9092": ""}, Clock: 20 * time.Millisecond}), OK, "2 other nodes reach")
	has(t, peers(PeerView{Dialed: map[string]string{"here:9092": "connection refused"}}), Error, "node 2 does not reach here:9092")
	has(t, peers(PeerView{Dialed: map[string]string{"127.0.0.1:9092": "connection refused"}}), Warning, "node 2 does not reach 127.0.0.1:9092")
	has(t, peers(PeerView{Clock: -3 * time.Second}), Warning, "the clock of node 2 is -3s off")
	has(t, peers(PeerView{Error: "no such method"}), Unknown, "no such method")
	// What the way took may be all of it.
	has(t, peers(PeerView{Clock: 3 * time.Second, Within: 3 * time.Second}), OK, "healthy")
}

// A check that hangs, and does not even look at its context, is not waited for.
func TestAHangingCheckIsUnknown(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	defer close(hang)
	found := examine(t.Context(), []Check{
		{"hangs", func(context.Context) []Finding { <-hang; return nil }},
		{"well", func(context.Context) []Finding { return ok("fine") }},
	}, 50*time.Millisecond)
	if len(found) != 2 || found[0].Severity != Unknown || found[0].Check != "hangs" || found[1].What != "fine" {
		t.Errorf("%+v", found)
	}
}
