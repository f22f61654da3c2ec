package configs

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// The shipped files load, and together they are one cluster.
func TestNodeFilesAreOneCluster(t *testing.T) {
	var first Config
	for id := int32(1); id <= 3; id++ {
		c, err := Load("node"+strconv.Itoa(int(id))+".yaml", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.Node.ID != id {
			t.Errorf("node%d.yaml is of node %d", id, c.Node.ID)
		}
		if id == 1 {
			first = c
			continue
		}
		if !reflect.DeepEqual(c.Raft.Peers, first.Raft.Peers) || c.Cluster != first.Cluster || c.Raft.Groups != first.Raft.Groups {
			t.Errorf("node%d.yaml is of another cluster than node1.yaml", id)
		}
		if c.Broker.BootstrapServer == first.Broker.BootstrapServer {
			t.Errorf("node%d.yaml has the broker of node1.yaml", id)
		}
	}
}

// The compose file gives every node its file, the names its peers and its
// broker are configured with, and publishes what it advertises to the host.
func TestComposeMatchesNodeFiles(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var compose struct {
		Services map[string]struct {
			Networks    []string
			Ports       []string
			Volumes     []string
			Environment map[string]string
		}
	}
	if err := yaml.Unmarshal(text, &compose); err != nil {
		t.Fatal(err)
	}
	clusters, ids := map[string]bool{}, map[string]bool{}
	for n := 1; n <= 3; n++ {
		id := strconv.Itoa(n)
		c, err := Load("node"+id+".yaml", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		peerHost, _, _ := splitAddress(c.Raft.Advertise)
		brokerHost, _, _ := splitAddress(c.Broker.BootstrapServer)
		node, broker := compose.Services[peerHost], compose.Services[brokerHost]
		if want := "./configs/node" + id + ".yaml:/etc/lockstep/lockstep.yaml:ro"; !slices.Contains(node.Volumes, want) {
			t.Errorf("service %s does not mount %s", peerHost, want)
		}
		if !slices.Contains(node.Networks, broker.Networks[0]) || len(broker.Networks) != 1 {
			t.Errorf("service %s is in the networks %v, its node in %v", brokerHost, broker.Networks, node.Networks)
		}
		if want := "PLAINTEXT://" + c.Broker.BootstrapServer; broker.Environment["KAFKA_ADVERTISED_LISTENERS"] != want {
			t.Errorf("service %s advertises %s, its node dials %s", brokerHost, broker.Environment["KAFKA_ADVERTISED_LISTENERS"], want)
		}
		external := strconv.Itoa(c.AdvertisedListeners[1].Port)
		if want := "127.0.0.1:" + external + ":" + strconv.Itoa(c.Listeners[1].Port); !slices.Contains(node.Ports, want) {
			t.Errorf("service %s publishes %v, not %s", peerHost, node.Ports, want)
		}
		clusters[broker.Environment["CLUSTER_ID"]], ids[broker.Environment["KAFKA_NODE_ID"]] = true, true
	}
	if len(clusters) != 3 || len(ids) != 3 {
		t.Errorf("the brokers share cluster ids %v or node ids %v", clusters, ids)
	}
}

// reference.yaml has every key, explains it, and shows the value that holds
// where it is not set.
func TestReferenceIsComplete(t *testing.T) {
	c, err := Load("reference.yaml", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(reference, &doc); err != nil {
		t.Fatal(err)
	}
	shown := map[string]string{}
	collectValues(doc.Content[0], "", shown)
	// Without a default there is an example; the file as a whole is a valid one.
	examples := []string{"node.id", "cluster.id", "data_dir", "listeners", "advertised_listeners", "broker.bootstrap_server", "raft.listen", "raft.advertise", "raft.peers"}
	defaults := Default()
	for _, l := range knownKeys().leaves {
		value, ok := shown[l.path]
		if !ok {
			t.Errorf("%s is not in reference.yaml", l.path)
			continue
		}
		if slices.Contains(examples, l.path) {
			continue
		}
		if err := l.setText(&c, value); err != nil {
			t.Errorf("%s: %v", l.path, err)
		}
		if got, want := formatValue(l.in(&c)), formatValue(l.in(&defaults)); got != want {
			t.Errorf("%s is %s in reference.yaml, its default is %s", l.path, got, want)
		}
	}
	if len(shown) != len(knownKeys().leaves) {
		t.Errorf("reference.yaml has %d keys, Config %d", len(shown), len(knownKeys().leaves))
	}
}

func collectValues(mapping *yaml.Node, prefix string, values map[string]string) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		path, value := joinPath(prefix, mapping.Content[i].Value), mapping.Content[i+1]
		if value.Kind == yaml.MappingNode {
			collectValues(value, path, values)
			continue
		}
		values[path] = value.Value
	}
}

func TestKeys(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Keys() {
		if len(k.Doc) < 20 || !strings.HasSuffix(k.Doc, ".") {
			t.Errorf("%s is explained as %q", k.Path, k.Doc)
		}
		if seen[k.Env] {
			t.Errorf("%s stands for two keys", k.Env)
		}
		seen[k.Env] = true
		if k.Path == "raft.batch_bytes" {
			want := Key{Path: "raft.batch_bytes", Env: "LOCKSTEP_RAFT_BATCH_BYTES", Default: "256KiB", Doc: "Small batches are collected into one log entry up to this size."}
			if k != want {
				t.Errorf("got %+v, want %+v", k, want)
			}
		}
	}
	if len(seen) == 0 {
		t.Error("no keys")
	}
}

// The configuration that the README shows is a valid one.
func TestReadmeConfigurationIsValid(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for block := range strings.SplitSeq(string(text), "```yaml\n") {
		yaml, _, ok := strings.Cut(block, "\n```")
		if !ok || !strings.Contains(yaml, "\ndata_dir:") {
			continue
		}
		found++
		file := filepath.Join(t.TempDir(), "node.yaml")
		if err := os.WriteFile(file, []byte(yaml+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(file, nil, nil); err != nil {
			t.Errorf("%v\n%s", err, yaml)
		}
	}
	if found == 0 {
		t.Error("the README shows no configuration")
	}
}
