package configs

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Hard limits, whatever is configured.
const (
	// MaxFrameBytesCeiling is the largest limits.max_frame_bytes.
	MaxFrameBytesCeiling = 16 * MiB
	// MaxEntryBytesCeiling is the largest raft.max_entry_bytes: far below the
	// 64 MiB above which raft-wal writes entries that it cannot read back.
	MaxEntryBytesCeiling = 16 * MiB

	maxGroups         = 64
	maxPeers          = 15
	maxSegmentBytes   = GiB
	maxLogBytes       = 1024 * GiB
	maxRaftEntries    = 1024 // hashicorp/raft refuses more
	maxPartitions     = 10_000
	minRaftTimeout    = 5 * time.Millisecond // hashicorp/raft refuses less
	minReapAfter      = 10 * time.Minute     // a machine that restarts, and checks its disks, is not dead
	maxReapAfter      = 365 * 24 * time.Hour
	entryHeadroom     = 4 * KiB // what an entry or a frame holds beside its batch
	maxIDLength       = 64
	maxConnectionsCap = 1_000_000
)

var (
	idPattern           = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
	listenerNamePattern = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)
	logLevels           = []string{"trace", "debug", "info", "warn", "error"}
	logStores           = []string{LogStoreWAL, LogStoreBoltDB}
	adopts              = []string{AdoptAsk, AdoptAuto}
	rebuilds            = []string{RebuildAuto, RebuildManual}
	reads               = []string{ReadsLeader, ReadsLinearizable}
	logFormats          = []string{LogFormatText, LogFormatJSON}
)

// Validate reports every setting that cannot work, or cannot work together
// with another, as one error that wraps ErrInvalid. Each line names the key,
// its value, the cause and what to do. It opens nothing and resolves no names.
// It is for a configuration that Resolve has completed.
func (c Config) Validate() error {
	p := &problems{}
	c.validateIdentity(p)
	c.validateListeners(p)
	c.validateTrust(p)
	c.validateBroker(p)
	c.validateBrokerSecurity(p)
	c.validatePeers(p)
	c.validateRaftTraffic(p)
	c.validateRaftTiming(p)
	sizesOK := c.validateRaftSizes(p)
	sizesOK = c.validateLimits(p) && sizesOK
	c.validateRest(p)
	if sizesOK {
		c.validateMemory(p)
	}
	return errors.Join(p.errs...)
}

// problems collects what Validate finds.
type problems struct{ errs []error }

// add records one problem: what is wrong with the key's value, and what to do.
func (p *problems) add(key string, value any, cause, next string) {
	p.errs = append(p.errs, fmt.Errorf("%w: %s = %q: %s; %s", ErrInvalid, key, fmt.Sprint(value), cause, next))
}

func (p *problems) missing(key, next string) {
	p.errs = append(p.errs, fmt.Errorf("%w: %s is not set: it has no default; %s", ErrInvalid, key, next))
}

// between reports whether low <= v <= high and records a problem if not.
func between[T int | int32 | Size | time.Duration](p *problems, key string, v, low, high T) bool {
	switch {
	case v < low:
		p.add(key, v, "too small", fmt.Sprintf("set it to at least %v", low))
	case v > high:
		p.add(key, v, "too large", fmt.Sprintf("set it to at most %v", high))
	default:
		return true
	}
	return false
}

func (p *problems) oneOf(key, value string, allowed []string) {
	if !slices.Contains(allowed, value) {
		p.add(key, value, "unknown", "use one of "+strings.Join(allowed, ", "))
	}
}

// address checks host:port with a host and a real port.
func (p *problems) address(key, value string) (host string, ok bool) {
	host, port, err := splitAddress(value)
	switch {
	case err != nil:
		p.add(key, value, "not an address", "write host:port, and an IPv6 host in brackets")
	case host == "":
		p.add(key, value, "the host is missing", "write a name or an address before the colon")
	case port == 0:
		p.add(key, value, "port 0 is no address others can know", "write a port from 1 to 65535")
	default:
		return host, true
	}
	return "", false
}

func (c Config) validateIdentity(p *problems) {
	if c.Node.ID == 0 {
		p.missing("node.id", "set it to this node's id in raft.peers, from 1 up")
	} else if c.Node.ID < 0 {
		p.add("node.id", c.Node.ID, "node ids start at 1", "set it to this node's id in raft.peers")
	}
	switch {
	case c.Cluster.ID == "":
		p.missing("cluster.id", "give the cluster a name, the same on every node")
	case len(c.Cluster.ID) > maxIDLength || !idPattern.MatchString(c.Cluster.ID):
		p.add("cluster.id", c.Cluster.ID, "not a plain name", fmt.Sprintf("use at most %d letters, digits, dots, dashes and underscores", maxIDLength))
	}
	if c.DataDir == "" {
		p.missing("data_dir", "name a directory of its own for this node, on a disk that survives restarts")
	}
}

func (c Config) validateListeners(p *problems) {
	if len(c.Listeners) == 0 {
		p.missing("listeners", "say where clients connect, such as PLAINTEXT://127.0.0.1:9092")
	}
	names, addresses := map[string]bool{}, map[string]bool{}
	for _, l := range c.Listeners {
		c.validateListener(p, "listeners", l)
		if names[l.Name] {
			p.add("listeners", l, "two listeners have this name", "give each its own, such as INTERNAL and EXTERNAL")
		}
		if addresses[l.Address()] {
			p.add("listeners", l, "two listeners have this address", "give each its own port")
		}
		names[l.Name], addresses[l.Address()] = true, true
	}
	advertised := map[string]bool{}
	for _, l := range c.AdvertisedListeners {
		same := slices.Contains(c.Listeners, l) // what is wrong with it was said above
		if !same {
			c.validateListener(p, "advertised_listeners", l)
		}
		switch {
		case !names[l.Name]:
			p.add("advertised_listeners", l, "no listener has this name", "use the names of listeners")
		case advertised[l.Name] && !same:
			p.add("advertised_listeners", l, "this name is advertised twice", "advertise each listener once")
		case isUnspecified(l.Host):
			p.add("advertised_listeners", l, "this host is no address that a client can dial", "set advertised_listeners to the name or address by which clients reach this node")
		}
		advertised[l.Name] = true
	}
	for _, l := range c.Listeners {
		if !advertised[l.Name] {
			p.add("advertised_listeners", formatList(c.AdvertisedListeners), "the listener "+l.Name+" is not advertised", "add "+l.Name+"://host:port as clients reach it")
		}
	}
}

func (c Config) validateListener(p *problems, key string, l Listener) {
	if !listenerNamePattern.MatchString(l.Name) {
		p.add(key, l, "not a listener name", "use capital letters, digits and underscores, such as INTERNAL")
	}
	if l.Port < 1 || l.Port > 65535 {
		p.add(key, l, "clients need a fixed port", "write a port from 1 to 65535")
	}
}

func formatList[T fmt.Stringer](list []T) string {
	items := make([]string, len(list))
	for i, item := range list {
		items[i] = item.String()
	}
	return strings.Join(items, ",")
}

func (c Config) validateBroker(p *problems) {
	if c.Broker.BootstrapServer == "" {
		p.missing("broker.bootstrap_server", "name the Kafka broker beside this node as host:port")
	} else {
		p.address("broker.bootstrap_server", c.Broker.BootstrapServer)
	}
	if c.Broker.ClientServer != "" {
		p.address("broker.client_server", c.Broker.ClientServer)
	}
	between(p, "broker.request_timeout", c.Broker.RequestTimeout, 100*time.Millisecond, time.Hour)
	between(p, "broker.unreachable_after", c.Broker.UnreachableAfter, 100*time.Millisecond, time.Hour)
	between(p, "broker.trust_after", c.Broker.TrustAfter, time.Second, 24*time.Hour)
	for _, dir := range c.Broker.LogDirs {
		if !filepath.IsAbs(dir) {
			p.add("broker.log_dirs", dir, "not an absolute path", "write each of the broker's log.dirs as the node sees it, from / on")
		}
	}
}

func (c Config) validatePeers(p *problems) {
	if len(c.Raft.Peers) == 0 {
		p.missing("raft.peers", "list every node of the cluster, such as 1=node-1.example:7400,2=node-2.example:7400,3=node-3.example:7400")
		return
	}
	if len(c.Raft.Peers) > maxPeers {
		p.add("raft.peers", formatList(c.Raft.Peers), "too many nodes", fmt.Sprintf("list at most %d; 3 or 5 is usual", maxPeers))
	}
	ids, addresses := map[int32]bool{}, map[string]bool{}
	for _, peer := range c.Raft.Peers {
		if host, ok := p.address("raft.peers", peer.Address); ok && isUnspecified(host) {
			p.add("raft.peers", peer, "this host is no address that a peer can dial", "write the name or address of that node")
		}
		if peer.ID < 1 {
			p.add("raft.peers", peer, "node ids start at 1", "give every node an id from 1 up")
		}
		if ids[peer.ID] {
			p.add("raft.peers", peer, "two peers have this id", "give every node its own id")
		}
		if addresses[peer.Address] {
			p.add("raft.peers", peer, "two peers have this address", "give every node its own address")
		}
		ids[peer.ID], addresses[peer.Address] = true, true
	}
	if c.Node.ID < 1 {
		return // reported with the identity
	}
	own, ok := c.ownPeer()
	if !ok {
		p.add("node.id", c.Node.ID, "not among raft.peers "+formatList(c.Raft.Peers), "add this node to raft.peers on every node, or correct node.id")
		return
	}
	if c.Raft.Advertise != own.Address {
		p.add("raft.advertise", c.Raft.Advertise, "raft.peers has "+own.Address+" for this node", "remove raft.advertise, or make the two the same")
	}
}

// validateRaftTraffic refuses an internode port that strangers can reach
// without TLS: whoever speaks on it can write to every topic.
func (c Config) validateRaftTraffic(p *problems) {
	t := c.Raft.TLS
	if t.Enabled() && (t.CertFile == "" || t.KeyFile == "" || t.CAFile == "") {
		p.add("raft.tls", fmt.Sprintf("cert_file %s, key_file %s, ca_file %s", t.CertFile, t.KeyFile, t.CAFile), "incomplete", "set cert_file, key_file and ca_file")
	}
	if t.Enabled() && c.Raft.Insecure {
		p.add("raft.insecure", true, "raft.tls is set as well", "remove one of the two")
	}
	if c.Raft.Listen == "" || c.Raft.Advertise == "" {
		return // they come from raft.peers, where the cause was reported
	}
	listenHost, listenPort, err := splitAddress(c.Raft.Listen)
	if err != nil || listenPort == 0 {
		p.add("raft.listen", c.Raft.Listen, "not an address with a port", "write host:port, such as 0.0.0.0:7400")
		return
	}
	advertiseHost, _, err := splitAddress(c.Raft.Advertise)
	if err != nil || t.Enabled() || c.Raft.Insecure {
		return
	}
	next := "set raft.tls, or raft.insecure: true if the network between the nodes is closed to everybody else"
	if !isLoopback(listenHost) {
		p.add("raft.listen", c.Raft.Listen, "outside loopback the internode port needs mutual TLS", next)
	} else if !isLoopback(advertiseHost) {
		p.add("raft.advertise", c.Raft.Advertise, "outside loopback the internode port needs mutual TLS", next)
	}
}

func (c Config) validateRaftTiming(p *problems) {
	r := c.Raft
	between(p, "raft.commit_timeout", r.CommitTimeout, time.Millisecond, time.Minute)
	between(p, "raft.store_timeout", r.StoreTimeout, 10*time.Millisecond, time.Hour)
	between(p, "raft.leader_rebalance_delay", r.LeaderRebalanceDelay, 0, time.Hour)
	if r.ReapAfter != 0 {
		between(p, "raft.reap_after", r.ReapAfter, minReapAfter, maxReapAfter)
	}
	ok := between(p, "raft.heartbeat_timeout", r.HeartbeatTimeout, minRaftTimeout, time.Minute)
	ok = between(p, "raft.election_timeout", r.ElectionTimeout, minRaftTimeout, time.Minute) && ok
	ok = between(p, "raft.leader_lease_timeout", r.LeaderLeaseTimeout, minRaftTimeout, time.Minute) && ok
	if !ok {
		return
	}
	if r.ElectionTimeout < r.HeartbeatTimeout {
		p.add("raft.election_timeout", r.ElectionTimeout, fmt.Sprintf("below raft.heartbeat_timeout %v", r.HeartbeatTimeout), "make it at least as long")
	}
	half := r.HeartbeatTimeout / 2
	if r.LeaderLeaseTimeout > r.HeartbeatTimeout {
		p.add("raft.leader_lease_timeout", r.LeaderLeaseTimeout, fmt.Sprintf("above raft.heartbeat_timeout %v: an old leader would go on beside a new one", r.HeartbeatTimeout), fmt.Sprintf("set it to half of that, %v", half))
	}
	// A leader sends heartbeats up to a fifth of the timeout apart, and with
	// nothing else to send only they renew its lease.
	if r.LeaderLeaseTimeout <= r.HeartbeatTimeout/5 {
		p.add("raft.leader_lease_timeout", r.LeaderLeaseTimeout, fmt.Sprintf("a fifth of raft.heartbeat_timeout %v or less: leaders would step down between two heartbeats", r.HeartbeatTimeout), fmt.Sprintf("set it to half of that, %v", half))
	}
}

// validateRaftSizes reports whether the sizes are within their own ranges.
func (c Config) validateRaftSizes(p *problems) bool {
	r := c.Raft
	p.oneOf("raft.log_store", r.LogStore, logStores)
	ok := between(p, "raft.groups", r.Groups, 1, maxGroups)
	ok = between(p, "raft.max_append_entries", r.MaxAppendEntries, 0, maxRaftEntries) && ok
	ok = between(p, "raft.max_inflight_entries", r.MaxInflightEntries, 1, maxRaftEntries) && ok
	if !between(p, "raft.max_entry_bytes", r.MaxEntryBytes, 64*KiB, MaxEntryBytesCeiling) {
		return false
	}
	ok = between(p, "raft.batch_bytes", r.BatchBytes, KiB, r.MaxEntryBytes) && ok
	ok = between(p, "raft.snapshot_bytes", r.SnapshotBytes, 64*KiB, maxLogBytes) && ok
	ok = between(p, "raft.log_retain_bytes", r.LogRetainBytes, 0, maxLogBytes) && ok
	ok = between(p, "raft.log_limit_bytes", r.LogLimitBytes, max(r.SnapshotBytes, r.LogRetainBytes), maxLogBytes) && ok
	return between(p, "raft.segment_bytes", r.SegmentBytes, r.MaxEntryBytes, maxSegmentBytes) && ok
}

// validateLimits reports whether the sizes are within their own ranges.
func (c Config) validateLimits(p *problems) bool {
	l := c.Limits
	between(p, "limits.max_connections", l.MaxConnections, 1, maxConnectionsCap)
	between(p, "limits.idle_timeout", l.IdleTimeout, time.Second, 24*time.Hour)
	between(p, "limits.partial_request_timeout", l.PartialRequestTimeout, 100*time.Millisecond, time.Hour)
	if !between(p, "limits.max_frame_bytes", l.MaxFrameBytes, 64*KiB, MaxFrameBytesCeiling) {
		return false
	}
	if l.MaxInflightBytesPerConnection < l.MaxFrameBytes {
		p.add("limits.max_inflight_bytes_per_connection", l.MaxInflightBytesPerConnection, fmt.Sprintf("below limits.max_frame_bytes %v: the largest request would never be read", l.MaxFrameBytes), "make it at least as large")
		return false
	}
	if l.MaxInflightBytes < l.MaxInflightBytesPerConnection {
		p.add("limits.max_inflight_bytes", l.MaxInflightBytes, fmt.Sprintf("below limits.max_inflight_bytes_per_connection %v", l.MaxInflightBytesPerConnection), "make it at least as large")
		return false
	}
	return true
}

// validateMemory refuses what cannot fit limits.memory_budget at the worst.
func (c Config) validateMemory(p *problems) {
	budget, clients := c.Limits.MemoryBudget, c.Limits.MaxInflightBytes
	next := "raise limits.memory_budget, or lower raft.max_entry_bytes, raft.groups or limits.max_inflight_bytes"
	fitting := c.fittingAppendEntries()
	if fitting == 0 {
		p.add("limits.memory_budget", budget, fmt.Sprintf("too small: clients may hold %v, and replication needs %v even with one entry per AppendEntries", clients, Size(c.bytesPerAppendEntry())), next)
		return
	}
	if room := int64(budget) - int64(clients); c.ReplicationBytes() > room {
		p.add("raft.max_append_entries", c.Raft.MaxAppendEntries, fmt.Sprintf("replication may then hold %v, and of limits.memory_budget %v the clients' %v leave %v", Size(c.ReplicationBytes()), budget, clients, Size(room)),
			fmt.Sprintf("set it to at most %d, or to 0 to take what fits, or %s", fitting, next))
	}
}

func (c Config) validateRest(p *problems) {
	t := c.Topics
	between(p, "topics.num_partitions", t.NumPartitions, 1, maxPartitions)
	largest := min(c.Raft.MaxEntryBytes, c.Limits.MaxFrameBytes) - entryHeadroom
	if t.MaxMessageBytes < 1 {
		p.add("topics.max_message_bytes", t.MaxMessageBytes, "too small", "set it to at least 1")
	} else if t.MaxMessageBytes > largest {
		p.add("topics.max_message_bytes", t.MaxMessageBytes, fmt.Sprintf("with the %[3]v that go with it, a batch of this size must fit both raft.max_entry_bytes %[1]v and limits.max_frame_bytes %[2]v", c.Raft.MaxEntryBytes, c.Limits.MaxFrameBytes, entryHeadroom), fmt.Sprintf("lower it to at most %v, or raise the smaller of the two", largest))
	}
	p.oneOf("topics.adopt", t.Adopt, adopts)
	p.oneOf("reads", c.Reads, reads)
	between(p, "groups.offsets_retention", c.Groups.OffsetsRetention, time.Minute, 100*365*24*time.Hour)
	c.validateAdmin(p)
	if f := c.Replication.Factor; between(p, "replication.factor", f, 1, 15) && f%2 == 0 {
		p.add("replication.factor", f, "even: one node more makes a majority no smaller", fmt.Sprintf("set it to %d or %d", f-1, f+1))
	}
	r := c.Recovery
	between(p, "recovery.copy_bytes_per_second", r.CopyBytesPerSecond, 64*KiB, maxLogBytes)
	between(p, "recovery.scrub_bytes_per_second", r.ScrubBytesPerSecond, 64*KiB, maxLogBytes)
	if r.ScrubInterval != 0 {
		between(p, "recovery.scrub_interval", r.ScrubInterval, time.Second, 30*24*time.Hour)
	}
	p.oneOf("recovery.rebuild", r.Rebuild, rebuilds)
	p.oneOf("log.level", c.Log.Level, logLevels)
	p.oneOf("log.format", c.Log.Format, logFormats)
}
