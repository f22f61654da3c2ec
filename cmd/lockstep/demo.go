package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

const (
	demoNodes = 3
	// Ports that clients never see are chosen once per data directory, below
	// the range that Linux gives to outgoing connections.
	internalPortsFrom = 10_000
	internalPortsTo   = 32_000
	portTries         = 200

	defaultDemoDir = "data/demo"
)

var errPortTaken = errors.New("port is taken")

// demoConfig is what the flags of demo say.
type demoConfig struct {
	dir        string
	kafkaPorts []int
	adminPorts []int
}

func demoCommand() *cobra.Command {
	var cfg demoConfig
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run three nodes with three embedded brokers on this machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.check(); err != nil {
				return err
			}
			ctx, cancel := stopSignals()
			defer cancel()
			return failed(runDemo(ctx, cfg, cmd.OutOrStdout(), nil))
		},
	}
	cmd.AddCommand(killLeaderCommand(&cfg))
	cmd.PersistentFlags().StringVar(&cfg.dir, "data-dir", defaultDemoDir, "directory that holds everything; used again, it continues")
	cmd.PersistentFlags().IntSliceVar(&cfg.kafkaPorts, "kafka-ports", []int{9092, 9093, 9094}, "ports of 127.0.0.1 for Kafka clients, one per node")
	cmd.PersistentFlags().IntSliceVar(&cfg.adminPorts, "admin-ports", []int{7501, 7502, 7503}, "ports of 127.0.0.1 for status and metrics, one per node")
	return cmd
}

func (c *demoConfig) check() error {
	if c.dir == "" {
		return errors.New("--data-dir is empty")
	}
	seen := make(map[int]string)
	for _, f := range []struct {
		flag  string
		ports []int
	}{{"--kafka-ports", c.kafkaPorts}, {"--admin-ports", c.adminPorts}} {
		if len(f.ports) != demoNodes {
			return fmt.Errorf("%s names %d ports: it takes %d, one per node", f.flag, len(f.ports), demoNodes)
		}
		for _, p := range f.ports {
			if p < 1 || p > 65535 {
				return fmt.Errorf("%s: port %d is not between 1 and 65535", f.flag, p)
			}
			if other, ok := seen[p]; ok {
				return fmt.Errorf("%s: port %d is already in %s", f.flag, p, other)
			}
			seen[p] = f.flag
		}
	}
	return nil
}

// demoPorts are the ports that only the demo's own processes use.
type demoPorts struct {
	Raft   []int `json:"raft"`
	Broker []int `json:"broker"`
}

// internalPorts returns the ports of the data directory, chosen at its first use.
func (c *demoConfig) internalPorts() (demoPorts, error) {
	var p demoPorts
	file := filepath.Join(c.dir, "ports.json")
	raw, err := os.ReadFile(file)
	if err == nil {
		if err := json.Unmarshal(raw, &p); err != nil || len(p.Raft) != demoNodes || len(p.Broker) != demoNodes {
			return p, fmt.Errorf("%s is not what a demo wrote there; remove it to have ports chosen anew", file)
		}
		return p, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return p, fmt.Errorf("read the demo's ports: %w", err)
	}
	free, err := freePorts(2*demoNodes, slices.Concat(c.kafkaPorts, c.adminPorts))
	if err != nil {
		return p, err
	}
	p = demoPorts{Raft: free[:demoNodes], Broker: free[demoNodes:]}
	if raw, err = json.Marshal(p); err != nil {
		return p, err
	}
	if err := os.WriteFile(file, raw, 0o640); err != nil {
		return p, fmt.Errorf("note the demo's ports: %w", err)
	}
	return p, nil
}

// freePorts finds n ports that nobody listens on.
func freePorts(n int, not []int) ([]int, error) {
	var out []int
	for try := 0; len(out) < n; try++ {
		if try == portTries {
			return nil, fmt.Errorf("no free ports found on 127.0.0.1 between %d and %d", internalPortsFrom, internalPortsTo)
		}
		port := internalPortsFrom + rand.IntN(internalPortsTo-internalPortsFrom)
		if slices.Contains(out, port) || slices.Contains(not, port) || checkFree(port) != nil {
			continue
		}
		out = append(out, port)
	}
	return out, nil
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// checkFree tries whether a port can be bound.
func checkFree(port int) error {
	ln, err := net.Listen("tcp", loopback(port))
	if errors.Is(err, syscall.EADDRINUSE) {
		return errPortTaken
	}
	if err != nil {
		return err
	}
	return ln.Close()
}

// checkPorts names the first port that cannot be had, and what to do.
func (c *demoConfig) checkPorts(own demoPorts) error {
	for _, f := range []struct {
		flag    string
		ports   []int
		example string
	}{{"--kafka-ports", c.kafkaPorts, "19092,19093,19094"}, {"--admin-ports", c.adminPorts, "17501,17502,17503"}} {
		for _, p := range f.ports {
			if err := checkFree(p); err != nil {
				return fmt.Errorf("127.0.0.1:%d (%s): %w; stop what listens there, or choose others, as in %s %s",
					p, f.flag, err, f.flag, f.example)
			}
		}
	}
	for _, p := range slices.Concat(own.Raft, own.Broker) {
		if err := checkFree(p); err != nil {
			return fmt.Errorf("127.0.0.1:%d, which the demo in %s uses between its processes: %w; is that demo running? Else use another --data-dir",
				p, c.dir, err)
		}
	}
	return nil
}

// node describes one node of the demo.
func (c *demoConfig) node(i int, own demoPorts) demoNode {
	dir := filepath.Join(c.dir, "node"+strconv.Itoa(i+1))
	return demoNode{id: i + 1, kafka: loopback(c.kafkaPorts[i]), admin: loopback(c.adminPorts[i]),
		raft: loopback(own.Raft[i]), broker: loopback(own.Broker[i]), dir: dir,
		config: filepath.Join(dir, "lockstep.yaml"), log: filepath.Join(dir, "lockstep.log"),
		brokerDir: filepath.Join(dir, "broker"), brokerLog: filepath.Join(dir, "broker.log")}
}

// demoNode is one node of the demo: its addresses and files.
type demoNode struct {
	id                          int
	kafka, admin, raft, broker  string
	dir, config, log, brokerDir string
	brokerLog                   string
}

// writeConfig writes the node's configuration file.
func (n *demoNode) writeConfig(all []demoNode) error {
	data, err := filepath.Abs(filepath.Join(n.dir, "data"))
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Node %d of lockstep demo, which writes this file anew at every start.\n", n.id)
	fmt.Fprintf(&b, "node: {id: %d, rack: rack-%d}\n", n.id, n.id)
	fmt.Fprintf(&b, "cluster: {id: demo}\n")
	fmt.Fprintf(&b, "data_dir: %s\n", yamlText(data))
	fmt.Fprintf(&b, "listeners: [\"PLAINTEXT://%s\"]\n", n.kafka)
	fmt.Fprintf(&b, "broker: {bootstrap_server: \"%s\"}\n", n.broker)
	fmt.Fprintf(&b, "raft:\n  listen: %s\n  peers:\n", n.raft)
	for _, p := range all {
		fmt.Fprintf(&b, "    - {id: %d, address: \"%s\"}\n", p.id, p.raft)
	}
	fmt.Fprintf(&b, "  leader_rebalance_delay: 1s\n")
	fmt.Fprintf(&b, "admin: {listen: \"%s\"}\n", n.admin)
	if err := os.MkdirAll(n.dir, 0o750); err != nil {
		return err
	}
	return os.WriteFile(n.config, []byte(b.String()), 0o640)
}

// yamlText quotes a string: JSON's strings are YAML's.
func yamlText(s string) string {
	raw, _ := json.Marshal(s) // a string always can be
	return string(raw)
}
