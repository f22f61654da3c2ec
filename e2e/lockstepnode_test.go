//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// The configuration of one node, as an operator writes it. It is spelled out
// here rather than taken from the configs package because the names of the keys
// are a promise, and the tests stand outside.
type (
	nodeConfig struct {
		Node                nodeSection   `yaml:"node"`
		Cluster             clusterPart   `yaml:"cluster"`
		DataDir             string        `yaml:"data_dir"`
		Listeners           []string      `yaml:"listeners"`
		AdvertisedListeners []string      `yaml:"advertised_listeners"`
		Broker              brokerSection `yaml:"broker"`
		Raft                raftSection   `yaml:"raft"`
		Admin               listenSection `yaml:"admin"`
		Log                 logSection    `yaml:"log"`
	}
	nodeSection struct {
		ID   int    `yaml:"id"`
		Rack string `yaml:"rack"`
	}
	clusterPart struct {
		ID string `yaml:"id"`
	}
	brokerSection struct {
		BootstrapServer string `yaml:"bootstrap_server"`
	}
	raftSection struct {
		Listen    string     `yaml:"listen"`
		Advertise string     `yaml:"advertise"`
		Peers     []raftPeer `yaml:"peers"`
		Groups    int        `yaml:"groups"`
		LogStore  string     `yaml:"log_store"`
	}
	raftPeer struct {
		ID      int    `yaml:"id"`
		Address string `yaml:"address"`
	}
	listenSection struct {
		Listen string `yaml:"listen"`
	}
	logSection struct {
		Level  string `yaml:"level"`
		Format string `yaml:"format"`
	}
)

// program is a binary of this run.
type program struct {
	variable string // of the environment: a binary to use instead of building one
	tags     string
	command  string // in place of lockstep
	once     sync.Once
	dir      string
	path     string
	err      error
}

var (
	built = program{variable: "LOCKSTEP_BIN"}
	// sabotaged can be killed at named places, be made to make mistakes, and
	// takes marked batches unchecked.
	sabotaged = program{variable: "LOCKSTEP_TEST_BIN", tags: "failpoints,mutants,poison"}
	// bareRaftProgram is a node of hashicorp/raft alone.
	bareRaftProgram = program{variable: "BARERAFT_BIN", command: "bareraft"}
	// byteFloorProgram moves bytes as three proxies must, and does nothing else.
	byteFloorProgram = program{variable: "BYTEFLOOR_BIN", command: "bytefloor"}
)

// lockstepBinary returns the binary under test; the first call builds it.
func lockstepBinary(t *testing.T) string {
	t.Helper()
	return built.get(t)
}

func (p *program) get(t *testing.T) string {
	t.Helper()
	p.once.Do(func() { p.err = p.build() })
	if p.err != nil {
		t.Fatal(p.err)
	}
	return p.path
}

func (p *program) build() (err error) {
	if p.path = os.Getenv(p.variable); p.path != "" {
		return nil
	}
	if p.dir, err = os.MkdirTemp("", "lockstep-bin-*"); err != nil {
		return err
	}
	command := p.command
	if command == "" {
		command = "lockstep"
	}
	p.path = filepath.Join(p.dir, command)
	args := []string{"build", "-o", p.path, "-tags", p.tags}
	if os.Getenv("E2E_RACE") == "1" {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./cmd/"+command)...)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", command, err, out)
	}
	return nil
}

func removeBuilt() {
	for _, p := range []*program{&built, &sabotaged, &bareRaftProgram, &byteFloorProgram} {
		if p.dir != "" {
			_ = os.RemoveAll(p.dir)
		}
	}
}

// node is one broker and the Lockstep proxy in front of it. Its methods are
// called from the test goroutine only.
type node struct {
	id        int
	dir       string
	bin       string
	broker    *broker
	upstream  string                // where the proxy looks for its broker
	settings  []string              // key=value, given with --set
	env       []string              // added to the environment of the proxy
	peerAddr  func(to *node) string // where this node finds another; nil: where that one listens
	secure    *adminTLS             // how its admin port is asked; nil: in plain HTTP
	kafkaPort int
	raftPort  int
	adminPort int
	proc      *process
}

func (n *node) kafkaAddr() string { return loopback(n.kafkaPort) }
func (n *node) adminAddr() string { return loopback(n.adminPort) }
func (n *node) raftAddr() string  { return loopback(n.raftPort) }
func (n *node) dataDir() string   { return filepath.Join(n.dir, "data") }
func (n *node) logFile() string   { return filepath.Join(n.dir, "lockstep.log") }
func (n *node) confFile() string  { return filepath.Join(n.dir, "lockstep.yaml") }
func (n *node) running() bool     { return n.proc != nil && !n.proc.exited() }

// adminTLS is how an admin port with TLS is asked: the files of commands, and a
// client for reading.
type adminTLS struct {
	flags  []string
	client *http.Client
}

func (n *node) adminURL() string {
	if n.secure != nil {
		return "https://" + n.adminAddr()
	}
	return "http://" + n.adminAddr()
}

func (n *node) adminClient() *http.Client {
	if n.secure != nil {
		return n.secure.client
	}
	return adminClient
}

// adminFlags are what a command that asks this node is given.
func (n *node) adminFlags() []string {
	flags := []string{"--admin", n.adminAddr()}
	if n.secure != nil {
		flags = append(flags, n.secure.flags...)
	}
	return flags
}

// writeConfig writes the node's YAML file; all nodes get the same peers.
func (n *node) writeConfig(all []*node, clusterID string, groups int, logStore string) error {
	c := nodeConfig{
		Node:                nodeSection{ID: n.id, Rack: string(rune('a' + n.id - 1))},
		Cluster:             clusterPart{ID: clusterID},
		DataDir:             n.dataDir(),
		Listeners:           []string{"PLAINTEXT://" + n.kafkaAddr()},
		AdvertisedListeners: []string{"PLAINTEXT://" + n.kafkaAddr()},
		Broker:              brokerSection{BootstrapServer: n.upstream},
		Raft:                raftSection{Listen: n.raftAddr(), Advertise: n.raftAddr(), Groups: groups, LogStore: logStore},
		Admin:               listenSection{Listen: n.adminAddr()},
		Log:                 logSection{Level: envOr("E2E_LOG_LEVEL", "info"), Format: "text"},
	}
	for _, p := range all {
		at := p.raftAddr()
		if p != n && n.peerAddr != nil {
			at = n.peerAddr(p)
		}
		c.Raft.Peers = append(c.Raft.Peers, raftPeer{ID: p.id, Address: at})
	}
	b, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return os.WriteFile(n.confFile(), b, 0o644)
}

// startProxy starts lockstep serve; its log is appended to over restarts.
func (n *node) startProxy(t *testing.T) {
	t.Helper()
	out, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	args := []string{"serve", "--config", n.confFile()}
	for _, set := range n.settings {
		args = append(args, "--set", set)
	}
	cmd := exec.Command(n.bin, args...)
	cmd.Env = append(os.Environ(), n.env...)
	cmd.Stdout, cmd.Stderr = out, out
	if n.proc, err = startProcess(fmt.Sprintf("lockstep-%d", n.id), cmd); err != nil {
		t.Fatal(err)
	}
}

// stopProxy is a planned stop (SIGTERM), after which the exit code must be 0.
func (n *node) stopProxy(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := n.proc.stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.proc.err; err != nil {
		t.Errorf("lockstep of node %d was stopped by SIGTERM and ended with %v\n%s", n.id, err, tail(n.logFile(), 20))
	}
}

// status is what /status and "lockstep status -o json" say.
type status struct {
	ClusterID          string            `json:"cluster_id"`
	NodeID             int               `json:"node_id"`
	Nodes              []nodeStatus      `json:"nodes"`
	Groups             []raftGroupStatus `json:"groups"`
	PartitionsNotReady int               `json:"partitions_not_ready"`
	Healthy            bool              `json:"healthy"`
	Problems           []string          `json:"problems"`
}

type nodeStatus struct {
	ID          int    `json:"id"`
	Alive       bool   `json:"alive"`
	Kafka       any    `json:"kafka"` // advertised addresses
	Incarnation any    `json:"incarnation"`
	Problem     string `json:"problem"`
	Broker      struct {
		State string `json:"state"`
		Kind  string `json:"kind"`
		Error string `json:"error"`
	} `json:"broker"`
}

// raftGroupStatus has leader 0 (or null, or -1) when there is none.
type raftGroupStatus struct {
	Group   int    `json:"group"`
	Leader  int    `json:"leader"`
	Term    uint64 `json:"term"`
	Members []struct {
		Node               int    `json:"node"`
		Role               string `json:"role"`
		Term               uint64 `json:"term"`
		CommitIndex        uint64 `json:"commit_index"`
		AppliedIndex       uint64 `json:"applied_index"`
		BrokerAppliedIndex uint64 `json:"broker_applied_index"`
		Lag                int64  `json:"lag"`
		Quarantined        any    `json:"quarantined"`
	} `json:"members"`
}

// node returns what is said of one node; a node not listed is not alive.
func (s *status) node(id int) nodeStatus {
	for _, n := range s.Nodes {
		if n.ID == id {
			return n
		}
	}
	return nodeStatus{ID: id, Problem: "not listed"}
}

// leaders maps group to leader for the groups that have one.
func (s *status) leaders() map[int]int {
	m := map[int]int{}
	for _, g := range s.Groups {
		if g.Leader > 0 {
			m[g.Group] = g.Leader
		}
	}
	return m
}

// terms maps group to term.
func (s *status) terms() map[int]uint64 {
	m := map[int]uint64{}
	for _, g := range s.Groups {
		m[g.Group] = g.Term
	}
	return m
}

var adminClient = &http.Client{Timeout: 3 * time.Second}

// status asks this node over HTTP.
func (n *node) status(ctx context.Context) (*status, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.adminURL()+"/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := n.adminClient().Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask node %d for its status: %w", n.id, err)
	}
	defer resp.Body.Close()
	var s status
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return nil, fmt.Errorf("read status of node %d (HTTP %d): %w", n.id, resp.StatusCode, err)
	}
	return &s, nil
}

// cli runs a lockstep command against this node and returns its standard
// output; a non-zero exit is an error that holds standard error.
func (n *node) cli(ctx context.Context, args ...string) (string, error) {
	stdout, stderr := newLines(), newLines()
	p, err := startProcess("lockstep-"+args[0], func() *exec.Cmd {
		cmd := exec.Command(n.bin, append(args, n.adminFlags()...)...)
		cmd.Stdout, cmd.Stderr = stdout, stderr
		return cmd
	}())
	if err != nil {
		return "", err
	}
	if err := p.wait(ctx); err != nil {
		return stdout.text(), fmt.Errorf("lockstep %s against node %d: %w: %s", args[0], n.id, err, lastBytes(stderr.text()+stdout.text(), 2000))
	}
	return stdout.text(), nil
}

// metric returns one value of the node's /metrics; 0 if it is not there.
func metric(t *testing.T, n *node, name string) float64 {
	t.Helper()
	resp, err := n.adminClient().Get(n.adminURL() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return 0
}

// waitCutPast returns when the log of the node's only group begins after
// everything that stood in it at the call: Raft asks for more than may go.
func (n *node) waitCutPast(t *testing.T) {
	t.Helper()
	const event = "compacting logs: "
	before := len(n.logLines(event))
	waitFor(t, "the log to be cut", time.Minute, func(context.Context) error {
		lines := n.logLines(event)[before:]
		from, to := make([]int, len(lines)), make([]int, len(lines))
		for i, line := range lines {
			_, bounds, _ := strings.Cut(line, event)
			if _, err := fmt.Sscanf(bounds, "from=%d to=%d", &from[i], &to[i]); err != nil {
				return fmt.Errorf("%q: %w", line, err)
			}
		}
		// The first may be for a snapshot that was taken before the call.
		if n := len(lines); n < 3 || from[n-1] <= to[1] {
			return fmt.Errorf("cut from %v to %v so far", from, to)
		}
		return nil
	})
}
