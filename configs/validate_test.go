package configs

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// Every rule, broken alone: the message names the key and what to do.
func TestValidateRefuses(t *testing.T) {
	three := "1=127.0.0.1:7400,2=127.0.0.1:7401,3=127.0.0.1:7402"
	tests := []struct {
		name     string
		sets     []string
		messages []string
	}{
		{"node id unset", []string{"node.id=0"}, []string{"node.id is not set"}},
		{"node id negative", []string{"node.id=-1"}, []string{"node ids start at 1"}},
		{"node not a peer", []string{"node.id=4"}, []string{`node.id = "4": not among raft.peers ` + three}},
		{"cluster unset", []string{"cluster.id="}, []string{"cluster.id is not set"}},
		{"cluster name", []string{"cluster.id=a b"}, []string{"cluster.id", "not a plain name"}},
		{"data dir", []string{"data_dir="}, []string{"data_dir is not set"}},
		{"no listener", []string{"listeners="}, []string{"listeners is not set"}},
		{"SASL without a broker's listener", []string{"listeners=SASL_PLAINTEXT://127.0.0.1:9092"}, []string{`listeners = "SASL_PLAINTEXT://127.0.0.1:9092"`, "set broker.client_server"}},
		{"broker protocol", []string{"broker.security_protocol=TLS"}, []string{"broker.security_protocol", "PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"}},
		{"client protocol", []string{"broker.client_server=h:1", "broker.client_security_protocol=x"}, []string{"broker.client_security_protocol"}},
		{"client protocol of nothing", []string{"broker.client_security_protocol=SSL"}, []string{"broker.client_server is not set"}},
		{"broker TLS files unused", []string{"broker.ssl.ca_file=a"}, []string{"neither protocol"}},
		{"broker certificate without key", []string{"broker.security_protocol=SSL", "broker.ssl.cert_file=a"}, []string{"broker.ssl", "set both or none"}},
		{"SASL unused", []string{"broker.sasl.mechanism=PLAIN"}, []string{"has no SASL"}},
		{"no mechanism", []string{"broker.security_protocol=SASL_SSL"}, []string{"broker.sasl.mechanism", "SCRAM-SHA-256"}},
		{"no user", []string{"broker.security_protocol=SASL_SSL", "broker.sasl.mechanism=PLAIN"}, []string{"broker.sasl.username is not set"}},
		{"no password", []string{"broker.security_protocol=SASL_SSL", "broker.sasl.mechanism=PLAIN", "broker.sasl.username=a"}, []string{"broker.sasl.password_file is not set"}},
		{"TLS without certificate", []string{"listeners=SSL://127.0.0.1:9092"}, []string{`listeners = "SSL://127.0.0.1:9092"`, "set ssl.cert_file and ssl.key_file"}},
		{"TLS without key", []string{"listeners=SSL://127.0.0.1:9092", "ssl.cert_file=a"}, []string{"set ssl.cert_file and ssl.key_file"}},
		{"TLS files of no listener", []string{"ssl.cert_file=a", "ssl.key_file=b"}, []string{"nothing would be encrypted"}},
		{"client_auth", []string{"ssl.client_auth=maybe"}, []string{"ssl.client_auth", "none, requested, required"}},
		{"client_auth without authority", []string{"listeners=SSL://127.0.0.1:9092", "ssl.cert_file=a", "ssl.key_file=b", "ssl.client_auth=required"}, []string{"set ssl.ca_file"}},
		{"open admin", []string{"admin.listen=0.0.0.0:7501"}, []string{"admin.listen", "set admin.token_file", "admin.insecure: true"}},
		{"open admin, all addresses", []string{"admin.listen=:7501"}, []string{"set admin.token_file"}},
		{"admin token and insecure", []string{"admin.token_file=a", "admin.insecure=true"}, []string{"admin.insecure", "remove one"}},
		{"open admin, TLS alone", []string{"admin.listen=0.0.0.0:7501", "admin.tls.cert_file=a", "admin.tls.key_file=b"}, []string{"admin.listen", "admin.tls with ca_file"}},
		{"admin certificate without key", []string{"admin.tls.cert_file=a"}, []string{"admin.tls", "key_file"}},
		{"admin authority alone", []string{"admin.tls.ca_file=a"}, []string{"admin.tls", "set admin.tls.cert_file"}},
		{"admin authority and insecure", []string{"admin.insecure=true", "admin.tls.cert_file=a", "admin.tls.key_file=b", "admin.tls.ca_file=c"}, []string{"admin.insecure", "remove one"}},
		{"listener name", []string{"listeners=internal://127.0.0.1:9092"}, []string{"not a listener name"}},
		{"listener port", []string{"listeners=A://127.0.0.1:0"}, []string{"clients need a fixed port"}},
		{"listener name twice", []string{"listeners=A://127.0.0.1:1,A://127.0.0.1:2"}, []string{"two listeners have this name"}},
		{"listener address twice", []string{"listeners=A://127.0.0.1:1,B://127.0.0.1:1"}, []string{"two listeners have this address"}},
		{"unspecified and not advertised", []string{"listeners=A://0.0.0.0:9092"}, []string{`advertised_listeners = "A://0.0.0.0:9092"`, "set advertised_listeners to the name"}},
		{"empty host and not advertised", []string{"listeners=A://:9092"}, []string{"set advertised_listeners to the name"}},
		{"advertised without listener", []string{"advertised_listeners=PLAINTEXT://h:1,B://h:1"}, []string{`"B://h:1": no listener has this name`}},
		{"advertised twice", []string{"advertised_listeners=PLAINTEXT://h:1,PLAINTEXT://h:2"}, []string{"advertised twice"}},
		{"listener not advertised", []string{"listeners=A://127.0.0.1:1,B://127.0.0.1:2", "advertised_listeners=A://h:1"}, []string{"the listener B is not advertised"}},
		{"broker unset", []string{"broker.bootstrap_server="}, []string{"broker.bootstrap_server is not set"}},
		{"broker address", []string{"broker.bootstrap_server=localhost"}, []string{"broker.bootstrap_server", "write host:port"}},
		{"broker host", []string{"broker.bootstrap_server=:9092"}, []string{"the host is missing"}},
		{"broker timeout", []string{"broker.request_timeout=1ms"}, []string{"broker.request_timeout", "at least 100ms"}},
		{"broker unreachable", []string{"broker.unreachable_after=0s"}, []string{"broker.unreachable_after", "at least 100ms"}},
		{"no peers", []string{"raft.peers="}, []string{"raft.peers is not set"}},
		{"peer id twice", []string{"raft.peers=1=127.0.0.1:1,1=127.0.0.1:2"}, []string{"two peers have this id"}},
		{"peer address twice", []string{"raft.peers=1=127.0.0.1:1,2=127.0.0.1:1"}, []string{"two peers have this address"}},
		{"peer id", []string{"raft.peers=1=127.0.0.1:1,0=127.0.0.1:2"}, []string{`raft.peers = "0=127.0.0.1:2": node ids start at 1`}},
		{"peer address", []string{"raft.peers=1=127.0.0.1:1,2=b"}, []string{"raft.peers", "write host:port"}},
		{"peer port", []string{"raft.peers=1=127.0.0.1:1,2=b:0"}, []string{"port 0"}},
		{"peer unspecified", []string{"raft.peers=1=127.0.0.1:1,2=0.0.0.0:2"}, []string{"no address that a peer can dial"}},
		{"advertise", []string{"raft.advertise=127.0.0.1:7999"}, []string{"raft.advertise", "raft.peers has 127.0.0.1:7400"}},
		{"listen", []string{"raft.listen=x"}, []string{"raft.listen", "write host:port"}},
		{"open listen", []string{"raft.listen=0.0.0.0:7400"}, []string{"raft.listen", "mutual TLS", "raft.insecure: true"}},
		{"open advertise", []string{"raft.peers=1=h:1,2=i:1", "raft.listen=127.0.0.1:1"}, []string{"raft.advertise", "mutual TLS"}},
		{"half TLS", []string{"raft.tls.cert_file=a"}, []string{"raft.tls", "incomplete"}},
		{"TLS and insecure", []string{"raft.tls.cert_file=a", "raft.tls.key_file=b", "raft.tls.ca_file=c", "raft.insecure=true"}, []string{"raft.insecure", "remove one"}},
		{"lease long", []string{"raft.leader_lease_timeout=501ms"}, []string{"raft.leader_lease_timeout", "set it to half of that, 250ms"}},
		{"lease short", []string{"raft.leader_lease_timeout=100ms"}, []string{"raft.leader_lease_timeout", "a fifth"}},
		{"election short", []string{"raft.election_timeout=249ms"}, []string{"raft.election_timeout", "at least as long"}},
		{"heartbeat", []string{"raft.heartbeat_timeout=4ms"}, []string{"raft.heartbeat_timeout", "at least 5ms"}},
		{"commit", []string{"raft.commit_timeout=0s"}, []string{"raft.commit_timeout", "at least 1ms"}},
		{"store", []string{"raft.store_timeout=-5s"}, []string{"raft.store_timeout"}},
		{"reap", []string{"raft.reap_after=9m59s"}, []string{"raft.reap_after", "10m"}},
		{"reap, negative", []string{"raft.reap_after=-1s"}, []string{"raft.reap_after"}},
		{"rebalance", []string{"raft.leader_rebalance_delay=-1s"}, []string{"raft.leader_rebalance_delay"}},
		{"groups none", []string{"raft.groups=0"}, []string{`raft.groups = "0": too small; set it to at least 1`}},
		{"groups many", []string{"raft.groups=65"}, []string{"raft.groups", "at most 64"}},
		{"log store", []string{"raft.log_store=badger"}, []string{"raft.log_store", "use one of wal, boltdb"}},
		{"entry", []string{"raft.max_entry_bytes=17MiB"}, []string{"raft.max_entry_bytes", "at most 16MiB"}},
		{"batch", []string{"raft.batch_bytes=9MiB"}, []string{"raft.batch_bytes", "at most 8MiB"}},
		{"segment", []string{"raft.segment_bytes=4MiB"}, []string{"raft.segment_bytes", "at least 8MiB"}},
		{"append entries", []string{"raft.max_append_entries=1025"}, []string{"raft.max_append_entries", "at most 1024"}},
		{"inflight entries", []string{"raft.max_inflight_entries=0"}, []string{"raft.max_inflight_entries"}},
		{"frame", []string{"limits.max_frame_bytes=17MiB"}, []string{"limits.max_frame_bytes", "at most 16MiB"}},
		{"connection below frame", []string{"limits.max_inflight_bytes_per_connection=4MiB"}, []string{"limits.max_inflight_bytes_per_connection", "never be read"}},
		{"process below connection", []string{"limits.max_inflight_bytes=16MiB"}, []string{"limits.max_inflight_bytes", "at least as large"}},
		{"connections", []string{"limits.max_connections=0"}, []string{"limits.max_connections"}},
		{"idle", []string{"limits.idle_timeout=1ms"}, []string{"limits.idle_timeout"}},
		{"partial", []string{"limits.partial_request_timeout=1ms"}, []string{"limits.partial_request_timeout"}},
		{"partitions", []string{"topics.num_partitions=0"}, []string{"topics.num_partitions"}},
		{"message", []string{"topics.max_message_bytes=8MiB"}, []string{"topics.max_message_bytes", "lower it to at most 8188KiB"}},
		{"message none", []string{"topics.max_message_bytes=0"}, []string{"topics.max_message_bytes", "too small"}},
		{"reads", []string{"reads=stale"}, []string{"reads", "use one of leader, linearizable"}},
		{"offsets", []string{"groups.offsets_retention=1s"}, []string{"groups.offsets_retention", "at least 1m0s"}},
		{"admin", []string{"admin.listen=7501"}, []string{"admin.listen", "write host:port"}},
		{"trust", []string{"broker.trust_after=10ms"}, []string{"broker.trust_after", "at least 1s"}},
		{"log dirs", []string{"broker.log_dirs=kafka-logs"}, []string{"broker.log_dirs", "from / on"}},
		{"snapshot", []string{"raft.snapshot_bytes=1KiB"}, []string{"raft.snapshot_bytes", "at least 64KiB"}},
		{"log limit below retention", []string{"raft.log_limit_bytes=256MiB"}, []string{"raft.log_limit_bytes", "at least 512MiB"}},
		{"replication factor", []string{"replication.factor=4"}, []string{"replication.factor", "set it to 3 or 5"}},
		{"copy", []string{"recovery.copy_bytes_per_second=1"}, []string{"recovery.copy_bytes_per_second", "at least 64KiB"}},
		{"scrub rate", []string{"recovery.scrub_bytes_per_second=1"}, []string{"recovery.scrub_bytes_per_second", "at least 64KiB"}},
		{"scrub", []string{"recovery.scrub_interval=1ms"}, []string{"recovery.scrub_interval", "at least 1s"}},
		{"rebuild", []string{"recovery.rebuild=never"}, []string{"recovery.rebuild", "use one of auto, manual"}},
		{"level", []string{"log.level=loud"}, []string{"log.level", "use one of trace, debug, info, warn, error"}},
		{"format", []string{"log.format=xml"}, []string{"log.format", "use one of text, json"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(write(t, minimal), tt.sets, nil)
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("got %v, want %v", err, ErrInvalid)
			}
			for _, message := range tt.messages {
				if !strings.Contains(err.Error(), message) {
					t.Errorf("got %q, want it to contain %q", err, message)
				}
			}
			if lines := strings.Count(err.Error(), "\n"); lines > 0 {
				t.Errorf("one mistake, %d problems: %v", lines+1, err)
			}
		})
	}
}

func TestValidateAccepts(t *testing.T) {
	tests := []struct {
		name string
		sets []string
	}{
		{"one node", []string{"raft.peers=1=127.0.0.1:7400"}},
		{"insecure by decision", []string{"raft.peers=1=a:1,2=b:1,3=c:1", "raft.insecure=true", "raft.listen=0.0.0.0:1"}},
		{"TLS", []string{"raft.peers=1=a:1,2=b:1,3=c:1", "raft.tls.cert_file=a", "raft.tls.key_file=b", "raft.tls.ca_file=c"}},
		{"open admin with a token", []string{"admin.listen=0.0.0.0:7501", "admin.token_file=a"}},
		{"open admin with certificates", []string{"admin.listen=0.0.0.0:7501", "admin.tls.cert_file=a", "admin.tls.key_file=b", "admin.tls.ca_file=c"}},
		{"open admin with TLS and a token", []string{"admin.listen=0.0.0.0:7501", "admin.token_file=t", "admin.tls.cert_file=a", "admin.tls.key_file=b"}},
		{"admin with TLS on loopback", []string{"admin.tls.cert_file=a", "admin.tls.key_file=b"}},
		{"two listeners", []string{"listeners=INTERNAL://0.0.0.0:1,EXTERNAL://:2", "advertised_listeners=EXTERNAL://localhost:9092,INTERNAL://node-1:1"}},
		{"broker's log directories", []string{"broker.log_dirs=/a, /b"}},
		{"no scrub", []string{"recovery.scrub_interval=0s"}},
		{"largest entry", []string{"raft.max_entry_bytes=16MiB", "limits.max_frame_bytes=16MiB"}},
		{"fast elections", []string{"raft.heartbeat_timeout=100ms", "raft.election_timeout=100ms", "raft.leader_lease_timeout=100ms"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { mustLoad(t, minimal, tt.sets, nil) })
	}
}

func TestReadableToken(t *testing.T) {
	files := []string{"admin.tls.cert_file=a", "admin.tls.key_file=b"}
	for _, tt := range []struct {
		sets []string
		want bool
	}{
		{[]string{"admin.token_file=a", "admin.listen=0.0.0.0:1"}, true},
		{[]string{"admin.token_file=a", "admin.listen=node-1:1"}, true},
		{[]string{"admin.token_file=a"}, false},
		{append([]string{"admin.token_file=a", "admin.listen=0.0.0.0:1"}, files...), false},
		{[]string{"admin.insecure=true", "admin.listen=0.0.0.0:1"}, false},
	} {
		if got := mustLoad(t, minimal, tt.sets, nil).Admin.ReadableToken(); got != tt.want {
			t.Errorf("%q: %v, want %v", tt.sets, got, tt.want)
		}
	}
}

// A Config made in code and never resolved is refused, not waved through.
func TestValidateUnresolved(t *testing.T) {
	if err := Default().Validate(); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want %v", err, ErrInvalid)
	}
}

// The defaults fit the budget for the clusters people run, and what is chosen
// automatically is the most that fits.
func TestMemoryBudget(t *testing.T) {
	five := "raft.peers=1=127.0.0.1:7400,2=127.0.0.1:7401,3=127.0.0.1:7402,4=127.0.0.1:7403,5=127.0.0.1:7404"
	tests := []struct {
		name string
		sets []string
		want int
	}{
		{"3 nodes, 3 groups", nil, 8},
		{"3 nodes, 8 groups", []string{"raft.groups=8"}, 3},
		{"5 nodes, 3 groups", []string{five}, 4},
		{"5 nodes, 8 groups", []string{five, "raft.groups=8"}, 1},
		{"no more than helps", []string{"raft.groups=1", "limits.memory_budget=64GiB"}, 64},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := mustLoad(t, minimal, tt.sets, nil)
			if got := c.Raft.MaxAppendEntries; got != tt.want {
				t.Fatalf("raft.max_append_entries %d, want %d", got, tt.want)
			}
			room := int64(c.Limits.MemoryBudget - c.Limits.MaxInflightBytes)
			if got := c.ReplicationBytes(); got > room {
				t.Errorf("replication may hold %d, room is %d", got, room)
			}
		})
	}
}

func TestMemoryBudgetRefuses(t *testing.T) {
	tests := []struct {
		name, set, message string
	}{
		{"entries", "raft.max_append_entries=9", "set it to at most 8, or to 0"},
		{"groups", "raft.groups=64", `limits.memory_budget = "1GiB": too small: clients may hold 256MiB, and replication needs 2GiB`},
		{"clients", "limits.max_inflight_bytes=1GiB", "limits.memory_budget"},
		{"budget", "limits.memory_budget=0", "limits.memory_budget"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(write(t, minimal), []string{tt.set}, nil)
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.message) {
				t.Errorf("got %v, want it to contain %q", err, tt.message)
			}
		})
	}
}

func TestReplicationBytes(t *testing.T) {
	c := Default()
	c.Raft.Peers = make([]Peer, 3)
	c.Raft.MaxAppendEntries = 4
	// 3 groups, 2 followers, 2 requests in flight to each, 4 entries of 8 MiB.
	if got, want := c.ReplicationBytes(), int64(3*2*2*4*8<<20); got != want {
		t.Errorf("got %d, want %d", got, want)
	}
	c.Raft.Groups, c.Raft.MaxEntryBytes = 1<<60, 1<<62
	if got := c.ReplicationBytes(); got <= 0 {
		t.Errorf("overflow: %d", got)
	}
}

func TestResolveKeepsWhatIsSet(t *testing.T) {
	c := mustLoad(t, minimal, []string{
		"raft.listen=127.0.0.2:7400", "raft.max_append_entries=2", "advertised_listeners=PLAINTEXT://kafka-1.example:9092",
		"raft.commit_timeout=20ms",
	}, nil)
	if c.Raft.Listen != "127.0.0.2:7400" || c.Raft.MaxAppendEntries != 2 || c.AdvertisedListeners[0].Host != "kafka-1.example" || c.Raft.CommitTimeout != 20*time.Millisecond {
		t.Errorf("got %+v", c)
	}
}
