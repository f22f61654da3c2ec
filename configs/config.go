// Package configs holds the settings of a Lockstep node: their defaults, the
// strict reading of a YAML file, of the environment and of --set, and the
// checks that refuse settings which cannot work before anything is opened.
//
// What each key means is written once, in reference.yaml, and read from there
// by Keys. A test keeps that file, Config and Default in step.
package configs

import "time"

// Config is every setting of one node. A key's dotted path is built from the
// yaml tags and is its name everywhere: in the file, after --set, in messages
// and, with underscores, in the environment. See reference.yaml.
type Config struct {
	Node                Node        `yaml:"node"`
	Cluster             Cluster     `yaml:"cluster"`
	DataDir             string      `yaml:"data_dir"`
	Listeners           []Listener  `yaml:"listeners"`
	AdvertisedListeners []Listener  `yaml:"advertised_listeners"`
	SSL                 SSL         `yaml:"ssl"`
	Broker              Broker      `yaml:"broker"`
	Raft                Raft        `yaml:"raft"`
	Replication         Replication `yaml:"replication"`
	Recovery            Recovery    `yaml:"recovery"`
	Limits              Limits      `yaml:"limits"`
	Topics              Topics      `yaml:"topics"`
	Groups              Groups      `yaml:"groups"`
	Reads               string      `yaml:"reads"`
	Admin               Admin       `yaml:"admin"`
	Log                 Log         `yaml:"log"`
}

// Node says which node of the cluster this is.
type Node struct {
	ID   int32  `yaml:"id"`
	Rack string `yaml:"rack"`
}

// Cluster says which cluster the node belongs to.
type Cluster struct {
	ID string `yaml:"id"`
}

// Broker says where the co-located Kafka broker is and how long to wait for it.
type Broker struct {
	BootstrapServer  string `yaml:"bootstrap_server"`
	ClientServer     string `yaml:"client_server"`
	SecurityProtocol string `yaml:"security_protocol"`

	ClientSecurityProtocol string `yaml:"client_security_protocol"`

	SSL              TLS           `yaml:"ssl"`
	SASL             SASL          `yaml:"sasl"`
	RequestTimeout   time.Duration `yaml:"request_timeout"`
	UnreachableAfter time.Duration `yaml:"unreachable_after"`
	LogDirs          []string      `yaml:"log_dirs"`
	TrustAfter       time.Duration `yaml:"trust_after"`
}

// Raft holds the addresses, the timing and the sizes of the Raft groups.
type Raft struct {
	Listen               string        `yaml:"listen"`
	Advertise            string        `yaml:"advertise"`
	Peers                []Peer        `yaml:"peers"`
	Join                 bool          `yaml:"join"`
	Groups               int           `yaml:"groups"`
	LogStore             string        `yaml:"log_store"`
	HeartbeatTimeout     time.Duration `yaml:"heartbeat_timeout"`
	ElectionTimeout      time.Duration `yaml:"election_timeout"`
	LeaderLeaseTimeout   time.Duration `yaml:"leader_lease_timeout"`
	CommitTimeout        time.Duration `yaml:"commit_timeout"`
	MaxAppendEntries     int           `yaml:"max_append_entries"`
	MaxInflightEntries   int           `yaml:"max_inflight_entries"`
	BatchBytes           Size          `yaml:"batch_bytes"`
	MaxEntryBytes        Size          `yaml:"max_entry_bytes"`
	SegmentBytes         Size          `yaml:"segment_bytes"`
	StoreTimeout         time.Duration `yaml:"store_timeout"`
	SnapshotBytes        Size          `yaml:"snapshot_bytes"`
	LogRetainBytes       Size          `yaml:"log_retain_bytes"`
	LogLimitBytes        Size          `yaml:"log_limit_bytes"`
	LeaderRebalanceDelay time.Duration `yaml:"leader_rebalance_delay"`
	ReapAfter            time.Duration `yaml:"reap_after"`
	Insecure             bool          `yaml:"insecure"`
	TLS                  TLS           `yaml:"tls"`
}

// Replication says how many nodes hold what clients produce.
type Replication struct {
	Factor int `yaml:"factor"`
}

// Recovery says how a broker's copy is brought up to date, checked and made
// anew.
type Recovery struct {
	CopyBytesPerSecond  Size          `yaml:"copy_bytes_per_second"`
	ScrubInterval       time.Duration `yaml:"scrub_interval"`
	ScrubBytesPerSecond Size          `yaml:"scrub_bytes_per_second"`
	Rebuild             string        `yaml:"rebuild"`
}

// TLS names PEM files: this node's certificate and key, and the authority that
// signs the certificates of those it speaks with.
type TLS struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	CAFile   string `yaml:"ca_file"`
}

// Enabled reports whether any file is named. Validate refuses an incomplete set.
func (t TLS) Enabled() bool { return t != TLS{} }

// Limits bounds what clients can make the process hold.
type Limits struct {
	MaxFrameBytes                 Size          `yaml:"max_frame_bytes"`
	MaxInflightBytesPerConnection Size          `yaml:"max_inflight_bytes_per_connection"`
	MaxInflightBytes              Size          `yaml:"max_inflight_bytes"`
	MaxConnections                int           `yaml:"max_connections"`
	IdleTimeout                   time.Duration `yaml:"idle_timeout"`
	PartialRequestTimeout         time.Duration `yaml:"partial_request_timeout"`
	MemoryBudget                  Size          `yaml:"memory_budget"`
}

// Topics holds the cluster's defaults for new topics.
type Topics struct {
	AutoCreateTopicsEnable bool `yaml:"auto_create_topics_enable"`
	NumPartitions          int  `yaml:"num_partitions"`
	MaxMessageBytes        Size `yaml:"max_message_bytes"`

	Adopt string `yaml:"adopt"`
}

// Groups holds what concerns consumer groups.
type Groups struct {
	OffsetsRetention time.Duration `yaml:"offsets_retention"`
}

// Admin says where the node's own HTTP server listens, and who may change
// something there.
type Admin struct {
	Listen    string `yaml:"listen"`
	TokenFile string `yaml:"token_file"`
	Insecure  bool   `yaml:"insecure"`
	TLS       TLS    `yaml:"tls"`
}

// Log says how much is logged and in which form.
type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// Values of raft.log_store.
const (
	LogStoreWAL    = "wal"
	LogStoreBoltDB = "boltdb"
)

// Values of reads.
const (
	ReadsLeader       = "leader"
	ReadsLinearizable = "linearizable"
)

// Values of recovery.rebuild.
const (
	AdoptAsk  = "ask"
	AdoptAuto = "auto"

	RebuildAuto   = "auto"
	RebuildManual = "manual"
)

// Values of log.format.
const (
	LogFormatText = "text"
	LogFormatJSON = "json"
)

// Default returns the settings that hold where nothing else is said. It is not
// a valid configuration: who the node is, who its peers are and where its
// broker and its data are cannot be guessed.
func Default() Config {
	return Config{
		Broker: Broker{SecurityProtocol: ProtocolPlaintext, ClientSecurityProtocol: ProtocolPlaintext, RequestTimeout: 30 * time.Second, UnreachableAfter: time.Second, TrustAfter: time.Minute},
		Raft: Raft{
			Groups:               3,
			LogStore:             LogStoreWAL,
			HeartbeatTimeout:     500 * time.Millisecond,
			ElectionTimeout:      500 * time.Millisecond,
			LeaderLeaseTimeout:   400 * time.Millisecond,
			CommitTimeout:        50 * time.Millisecond,
			MaxInflightEntries:   8,
			BatchBytes:           256 * KiB,
			MaxEntryBytes:        8 * MiB,
			SegmentBytes:         32 * MiB,
			StoreTimeout:         5 * time.Second,
			SnapshotBytes:        64 * MiB,
			LogRetainBytes:       512 * MiB,
			LogLimitBytes:        4 * GiB,
			LeaderRebalanceDelay: 10 * time.Second,
		},
		Replication: Replication{Factor: 3},
		Recovery: Recovery{
			CopyBytesPerSecond:  32 * MiB,
			ScrubInterval:       time.Hour,
			ScrubBytesPerSecond: 8 * MiB,
			Rebuild:             RebuildAuto,
		},
		Limits: Limits{
			MaxFrameBytes:                 8 * MiB,
			MaxInflightBytesPerConnection: 32 * MiB,
			MaxInflightBytes:              256 * MiB,
			MaxConnections:                2048,
			IdleTimeout:                   10 * time.Minute,
			PartialRequestTimeout:         30 * time.Second,
			MemoryBudget:                  GiB,
		},
		// Kafka's own default for message.max.bytes: 1 MiB and the 12 bytes of
		// the old log overhead.
		Topics: Topics{AutoCreateTopicsEnable: true, NumPartitions: 1, MaxMessageBytes: MiB + 12, Adopt: AdoptAsk},
		Reads:  ReadsLeader,
		Groups: Groups{OffsetsRetention: 7 * 24 * time.Hour},
		Admin:  Admin{Listen: "127.0.0.1:7501"},
		SSL:    SSL{ClientAuth: ClientAuthNone},
		Log:    Log{Level: "info", Format: LogFormatText},
	}
}

// Resolve returns the configuration with every setting filled in that follows
// from others: advertised_listeners from listeners, raft.advertise and
// raft.listen from the node's own entry in raft.peers, and
// raft.max_append_entries from the memory budget. Load does this; only a
// Config put together in code needs it. It changes nothing that is set.
func (c Config) Resolve() Config {
	if len(c.AdvertisedListeners) == 0 {
		c.AdvertisedListeners = append([]Listener(nil), c.Listeners...)
	}
	own, _ := c.ownPeer()
	if c.Raft.Advertise == "" {
		c.Raft.Advertise = own.Address
	}
	if c.Raft.Listen == "" {
		c.Raft.Listen = c.Raft.Advertise
	}
	if c.Raft.MaxAppendEntries == 0 {
		c.Raft.MaxAppendEntries = c.fittingAppendEntries()
	}
	return c
}

// ownPeer returns the entry of raft.peers that is this node.
func (c Config) ownPeer() (Peer, bool) {
	for _, p := range c.Raft.Peers {
		if p.ID == c.Node.ID {
			return p, true
		}
	}
	return Peer{}, false
}
