package configs

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// minimal is the smallest configuration that is valid.
const minimal = `
node: {id: 1}
cluster: {id: demo}
data_dir: /tmp/lockstep
listeners: [PLAINTEXT://127.0.0.1:9092]
broker: {bootstrap_server: 127.0.0.1:19092}
raft:
  peers: [{id: 1, address: 127.0.0.1:7400}, {id: 2, address: 127.0.0.1:7401}, {id: 3, address: 127.0.0.1:7402}]
`

// write puts text into a file that lives as long as the test.
func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lockstep.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustLoad(t *testing.T, text string, sets, environ []string) Config {
	t.Helper()
	c, err := Load(write(t, text), sets, environ)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return c
}

func TestLoadFillsWhatFollows(t *testing.T) {
	c := mustLoad(t, minimal, nil, nil)
	if got, want := c.Raft.Advertise, "127.0.0.1:7400"; got != want {
		t.Errorf("raft.advertise %q, want %q", got, want)
	}
	if got, want := c.Raft.Listen, "127.0.0.1:7400"; got != want {
		t.Errorf("raft.listen %q, want %q", got, want)
	}
	if got, want := c.AdvertisedListeners, c.Listeners; !reflect.DeepEqual(got, want) {
		t.Errorf("advertised_listeners %v, want %v", got, want)
	}
	if got, want := c.Raft.MaxAppendEntries, 8; got != want {
		t.Errorf("raft.max_append_entries %d, want %d", got, want)
	}
	if got, want := c.Raft.HeartbeatTimeout, 500*time.Millisecond; got != want {
		t.Errorf("raft.heartbeat_timeout %v, want the default %v", got, want)
	}
}

// The later source wins, and no source disturbs what only an earlier one set.
func TestLoadPrecedence(t *testing.T) {
	text := minimal + "log: {level: debug, format: json}\ntopics: {num_partitions: 2}\n"
	environ := []string{"LOCKSTEP_LOG_LEVEL=warn", "LOCKSTEP_TOPICS_NUM_PARTITIONS=3", "PATH=/bin"}
	c := mustLoad(t, text, []string{"topics.num_partitions=4"}, environ)
	if c.Log.Format != "json" || c.Log.Level != "warn" || c.Topics.NumPartitions != 4 {
		t.Errorf("got format %s, level %s, partitions %d; want json from the file, warn from the environment, 4 from --set",
			c.Log.Format, c.Log.Level, c.Topics.NumPartitions)
	}
}

// Every kind of value can be written in all three places.
func TestLoadValues(t *testing.T) {
	want := mustLoad(t, minimal, nil, nil)
	want.Raft.Groups = 8
	want.Raft.MaxAppendEntries = 1
	want.Raft.HeartbeatTimeout = 400 * time.Millisecond
	want.Raft.ElectionTimeout = 1500 * time.Millisecond
	want.Raft.BatchBytes = 128 * KiB
	want.Raft.Insecure = true
	want.Raft.Peers = []Peer{{1, "127.0.0.1:7400"}, {2, "[::1]:7401"}}
	want.Listeners = []Listener{{"INTERNAL", "127.0.0.1", 9092}, {"EXTERNAL", "::1", 9093}}
	want.AdvertisedListeners = want.Listeners

	inFile := mustLoad(t, `
node.id: 1
cluster: {id: demo}
data_dir: /tmp/lockstep
listeners: ["INTERNAL://127.0.0.1:9092", "EXTERNAL://[::1]:9093"]
broker: {bootstrap_server: 127.0.0.1:19092}
raft:
  peers:
    - {id: 1, address: 127.0.0.1:7400}
    - {id: 2, address: "[::1]:7401"}
  groups: 8
  max_append_entries: 1
  heartbeat_timeout: 400ms
  election_timeout: 1.5s
  batch_bytes: 131072
  insecure: true
`, nil, nil)
	sets := []string{
		"listeners=INTERNAL://127.0.0.1:9092,EXTERNAL://[::1]:9093", "raft.peers=1=127.0.0.1:7400,2=[::1]:7401",
		"raft.groups=8", "raft.max_append_entries=1", "raft.heartbeat_timeout=400ms", "raft.election_timeout=1.5s",
		"raft.batch_bytes=128KiB", "raft.insecure=true",
	}
	var environ []string
	for _, s := range sets {
		key, value, _ := strings.Cut(s, "=")
		environ = append(environ, envName(key)+"="+value)
	}
	for name, got := range map[string]Config{
		"file":        inFile,
		"--set":       mustLoad(t, minimal, sets, nil),
		"environment": mustLoad(t, minimal, nil, environ),
	} {
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, want)
		}
	}
}

func TestLoadWithoutFile(t *testing.T) {
	c, err := Load("", []string{"node.id=2", "cluster.id=c", "data_dir=/d", "listeners=PLAINTEXT://127.0.0.1:9092"},
		[]string{"LOCKSTEP_BROKER_BOOTSTRAP_SERVER=127.0.0.1:19092", "LOCKSTEP_RAFT_PEERS=2=127.0.0.1:7400"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Node.ID != 2 || len(c.Raft.Peers) != 1 || c.Raft.Advertise != "127.0.0.1:7400" {
		t.Errorf("got %+v", c)
	}
}

// What names no setting is refused and the nearest setting is named; what
// names one but cannot be read says where and why.
func TestLoadRefuses(t *testing.T) {
	tests := []struct {
		name, text    string
		sets, environ []string
		is            error
		message       string
	}{
		{name: "key", text: "\nbroker:\n  bootstrap_servers: a:1\n", is: ErrUnknownKey,
			message: "unknown key broker.bootstrap_servers (line 3): did you mean broker.bootstrap_server?"},
		{name: "key under another section", text: "bootstrap_server: a:1", is: ErrUnknownKey,
			message: "unknown key bootstrap_server (line 1): did you mean broker.bootstrap_server?"},
		{name: "section", text: "rafts: {groups: 1}", is: ErrUnknownKey, message: "did you mean raft?"},
		{name: "Kafka's dots", text: "auto.create.topics.enable: true", is: ErrUnknownKey,
			message: "did you mean topics.auto_create_topics_enable?"},
		{name: "key of a peer", text: "raft: {peers: [{id: 1, adress: a:1}]}", is: ErrUnknownKey,
			message: "unknown key raft.peers.adress (line 1): did you mean address?"},
		{name: "--set key", sets: []string{"raft.group=1"}, is: ErrUnknownKey,
			message: "unknown key raft.group (--set): did you mean raft.groups?"},
		{name: "environment", environ: []string{"LOCKSTEP_RAFT_HEARTBEAT=1s"}, is: ErrUnknownKey,
			message: "unknown key LOCKSTEP_RAFT_HEARTBEAT (environment): did you mean LOCKSTEP_RAFT_HEARTBEAT_TIMEOUT?"},
		{name: "--set without value", sets: []string{"raft.groups"}, is: ErrInvalid, message: "write key=value"},
		{name: "twice", text: "data_dir: /a\ndata_dir: /b", is: ErrInvalid, message: "already set on line 1"},
		{name: "twice by a dotted key", text: "node: {id: 1}\nnode.id: 2", is: ErrInvalid, message: "node.id (line 2): already set on line 1"},
		{name: "no value", text: "data_dir:", is: ErrInvalid, message: "data_dir (line 1): has no value"},
		{name: "value for a section", text: "raft: 3", is: ErrInvalid, message: "raft (line 1): expected keys here"},
		{name: "keys for a value", text: "data_dir: {a: b}", is: ErrInvalid, message: "expected a value here"},
		{name: "list for a value", text: "data_dir: [a, b]", is: ErrInvalid, message: "takes one value, not a list"},
		{name: "whole file", text: "- a", is: ErrInvalid, message: "the file (line 1): expected keys"},
		{name: "second document", text: "data_dir: /a\n---\ndata_dir: /b", is: ErrInvalid, message: "after its first YAML document"},
		{name: "syntax", text: "raft: {", is: ErrInvalid, message: "yaml:"},
		{name: "bare duration", text: "raft: {commit_timeout: 50}", is: ErrInvalid, message: `"50" is not a duration`},
		{name: "decimal unit", text: "raft: {batch_bytes: 256KB}", is: ErrInvalid, message: `"256KB" is not a size`},
		{name: "negative size", text: "raft: {batch_bytes: -1}", is: ErrInvalid, message: `"-1" is not a size`},
		{name: "size overflow", text: "raft: {batch_bytes: 9223372036854775807GiB}", is: ErrInvalid, message: "is not a size"},
		{name: "bool", text: "raft: {insecure: yes}", is: ErrInvalid, message: `raft.insecure (line 1): "yes" is neither true nor false`},
		{name: "int", environ: []string{"LOCKSTEP_NODE_ID=one"}, is: ErrInvalid, message: "node.id (environment LOCKSTEP_NODE_ID)"},
		{name: "int32", text: "node: {id: 2147483648}", is: ErrInvalid, message: "up to 2147483647"},
		{name: "listener", text: "listeners: [127.0.0.1:9092]", is: ErrInvalid, message: "write NAME://host:port"},
		{name: "listener port", text: "listeners: [A://h:99999]", is: ErrInvalid, message: `"99999" is not a port`},
		{name: "peer", sets: []string{"raft.peers=a:1"}, is: ErrInvalid, message: "write id=host:port"},
		{name: "peer without id", text: "raft: {peers: [{address: a:1}]}", is: ErrInvalid, message: "a peer needs both"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(write(t, tt.text), tt.sets, tt.environ)
			if !errors.Is(err, tt.is) {
				t.Fatalf("got %v, want %v", err, tt.is)
			}
			if !strings.Contains(err.Error(), tt.message) {
				t.Errorf("got %q, want it to contain %q", err, tt.message)
			}
		})
	}
}

// All mistakes of a file are told at once.
func TestLoadCollects(t *testing.T) {
	_, err := Load(write(t, "nodes: {id: 1}\nraft: {groups: x}\n"), nil, nil)
	if !errors.Is(err, ErrUnknownKey) || !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want both mistakes", err)
	}
}

func TestLoadMissingFile(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "absent.yaml"), nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want %v", err, os.ErrNotExist)
	}
}

func TestLoadHugeFile(t *testing.T) {
	text := minimal + strings.Repeat("# filler\n", maxFileBytes/9+1)
	if _, err := Load(write(t, text), nil, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want %v", err, ErrInvalid)
	}
}

// A service called lockstep must not stop its own pods.
func TestLoadIgnoresForeignVariables(t *testing.T) {
	environ := []string{
		"LOCKSTEP_CONFIG=/etc/x", "LOCKSTEP_SERVICE_HOST=10.0.0.1", "LOCKSTEP_SERVICE_PORT=9092", "LOCKSTEP_SERVICE_PORT_KAFKA=9092",
		"LOCKSTEP_PORT=tcp://10.0.0.1:9092", "LOCKSTEP_PORT_9092_TCP_ADDR=10.0.0.1", "LOCKSTEP_1_SERVICE_HOST=10.0.0.2",
		"LOCKSTEP_E2E_KAFKA=/opt/kafka", "LOCKSTEP_BIN=/tmp/lockstep",
	}
	mustLoad(t, minimal, nil, environ)
	for _, k := range Keys() {
		if notSettings.MatchString(k.Env) {
			t.Errorf("%s would be ignored", k.Env)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(minimal), "raft.groups=8", "LOCKSTEP_LOG_LEVEL=debug")
	f.Add([]byte("node.id: 1\nlog: {level: info}\n"), "raft.peers=1=a:1,2=b:2", "LOCKSTEP_LISTENERS=A://:1,B://[::]:2")
	f.Add([]byte("a: &a [*a]\n<<: {b: 1}\n? [x]\n: y"), "limits.memory_budget=8EiB", "LOCKSTEP_=")
	f.Add([]byte("raft: {peers: [{id: 1}, 2=x], groups: 99999999999, max_entry_bytes: 9223372036854775807}"), "=", "LOCKSTEP_RAFT_PEERS==")
	f.Add([]byte("limits: {memory_budget: 9007199254740991KiB, max_inflight_bytes: 0}"), "node.id=-1", "X")
	path := filepath.Join(f.TempDir(), "lockstep.yaml")
	f.Fuzz(func(t *testing.T, text []byte, set, env string) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(path, []string{set}, []string{env})
		if err != nil {
			return
		}
		// What was accepted is complete and stays accepted.
		if !reflect.DeepEqual(c, c.Resolve()) {
			t.Errorf("not resolved: %+v", c)
		}
		if err := c.Validate(); err != nil {
			t.Errorf("accepted, then refused: %v", err)
		}
		if used := c.ReplicationBytes() + int64(c.Limits.MaxInflightBytes); used > int64(c.Limits.MemoryBudget) {
			t.Errorf("accepted with %d bytes over a budget of %v", used, c.Limits.MemoryBudget)
		}
	})
}
