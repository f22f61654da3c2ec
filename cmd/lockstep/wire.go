package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/hashicorp/go-hclog"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/configs"
	"lockstep/fsm"
	"lockstep/internal/admin"
	"lockstep/internal/apply"
	"lockstep/internal/broker"
	"lockstep/internal/cluster"
	"lockstep/internal/node"
	"lockstep/proxy"
	"lockstep/transport"
)

// app is one node, put together. Nothing else in the program sees all rooms.
type app struct {
	cfg     configs.Config
	log     hclog.Logger
	broker  *localBroker
	node    *node.Node
	applier *apply.Applier
	access  *apply.Access
	cluster *cluster.Cluster
	proxy   *proxy.Server
	admin   *admin.Server

	serving chan error // what ended the Kafka listeners; nil before open
}

var (
	_ proxy.Cluster  = (*cluster.Cluster)(nil)
	_ proxy.Producer = (*cluster.Cluster)(nil)
)

// Methods of peer calls that this room registers; internal/cluster has the
// first free one and the one after methodCopy.
const methodCopy = node.FirstFreeMethod + 1

// newNode puts a node together; recent has what log wrote of late.
func newNode(cfg configs.Config, log hclog.Logger, recent *recentLog) (*app, error) {
	n := &app{cfg: cfg, log: log}
	brokerTLS, brokerSASL, err := brokerSecurity(cfg.Broker)
	if err != nil {
		return nil, err
	}
	n.broker = newLocalBroker(broker.Config{BootstrapServer: cfg.Broker.BootstrapServer, TLS: brokerTLS, SASL: brokerSASL,
		RequestTimeout: cfg.Broker.RequestTimeout, Logger: log.Named("broker")})
	nodeCfg, err := nodeConfig(cfg, log)
	if err != nil {
		return nil, err
	}
	n.node = node.New(nodeCfg)
	if err := n.node.Init(); err != nil {
		return nil, err
	}
	n.applier = apply.New(apply.Config{Broker: n.broker, DataDir: cfg.DataDir,
		LogDirs: cfg.Broker.LogDirs, TrustAfter: cfg.Broker.TrustAfter,
		// The cluster needs the applier, and is only asked once both are open.
		OthersTrusted: func(group uint32, index uint64) bool { return n.cluster.OthersTrusted(group, index) },
		Logger:        log})
	n.access = apply.NewAccess(apply.AccessConfig{Catalog: n.node.Catalog(), Broker: n.broker,
		BrokerChanged: n.broker.health.Changed,
		// As above: only asked when the cluster is there.
		Current: func(ctx context.Context) error { return n.cluster.CatalogCurrent(ctx) }, Logger: log})
	n.cluster = cluster.New(cluster.Config{
		Lease: cfg.Raft.LeaderLeaseTimeout,
		Self:  cfg.Node.ID, ClusterID: cfg.Cluster.ID, Version: version, Groups: nodeCfg.Groups,
		MaxBatchBytes: int(cfg.Raft.MaxEntryBytes), ReplicationFactor: cfg.Replication.Factor,
		Broker: n.broker.Report, BrokerChanged: n.broker.health.Changed, Recovery: n.recovery,
		Foreign: apply.NewSurveyor(n.applier, n.broker), AutoAdopt: cfg.Topics.Adopt == configs.AdoptAuto,
		GroupBroker: n.broker, OffsetsRetention: cfg.Groups.OffsetsRetention,
		AccessApplied:    n.access.Applied(),
		AutoRebuild:      cfg.Recovery.Rebuild == configs.RebuildAuto,
		UnreachableAfter: cfg.Broker.UnreachableAfter, RebalanceDelay: cfg.Raft.LeaderRebalanceDelay, ReapAfter: cfg.Raft.ReapAfter, Logger: log,
	}, n.node, n.applier)
	n.applier.CopyFrom(apply.CopyConfig{Peers: n.cluster, Broker: n.broker, Method: methodCopy,
		BytesPerSecond: int64(cfg.Recovery.CopyBytesPerSecond)})
	n.applier.ScrubWith(apply.ScrubConfig{Broker: n.broker, Interval: cfg.Recovery.ScrubInterval,
		BytesPerSecond: int64(cfg.Recovery.ScrubBytesPerSecond)})
	n.node.Handle(methodCopy, func(ctx context.Context, _ transport.Hello, payload []byte) ([]byte, error) {
		return n.applier.HeardCopy(ctx, payload)
	})
	proxyCfg := proxyConfig(cfg, log, n.cluster, n.broker)
	if proxyCfg.UpstreamTLS, err = upstreamTLS(cfg.Broker, proxyCfg.Upstream); err != nil {
		return nil, err
	}
	if err := secureListeners(cfg, proxyCfg.Listeners, log.Named("kafka")); err != nil {
		return nil, err
	}
	if n.proxy, err = proxy.New(proxyCfg, n.cluster, n.cluster); err != nil {
		return nil, fmt.Errorf("kafka listeners: %w", err)
	}
	token, err := adminToken(cfg.Admin)
	if err != nil {
		return nil, err
	}
	if cfg.Admin.ReadableToken() {
		log.Warn("the admin token crosses the network in plain HTTP: whoever listens there can change the cluster", "admin", cfg.Admin.Listen,
			"next", "set admin.tls, or let admin.listen be on loopback")
	}
	secure, err := adminTLS(cfg.Admin.TLS, log.Named("admin"))
	if err != nil {
		return nil, err
	}
	ofRaft, err := raftMetrics()
	if err != nil {
		return nil, err
	}
	n.admin = admin.New(admin.Config{Listen: cfg.Admin.Listen, Token: token, TLS: secure, Certificates: cfg.Admin.TLS.CAFile != "", Insecure: cfg.Admin.Insecure,
		Self: cfg.Node.ID, Version: version, Logger: log.Named("admin"), Log: recent.lines,
		Metrics: append(n.cluster.Metrics(), n.proxy, n.node.Metrics(), ofRaft)},
		n.cluster, n.node, n.broker)
	return n, nil
}

// recovery reports on this node's logs and copies.
func (n *app) recovery() cluster.RecoveryReport {
	var l cluster.LogReport
	for _, g := range n.node.Groups() {
		s := g.LogStatus()
		l.Bytes, l.Held, l.Limit, l.Disk = l.Bytes+s.LogBytes, l.Held+s.HeldBytes, l.Limit+s.LimitBytes, l.Disk+s.DiskBytes
		if s.Throttled {
			l.Throttled = append(l.Throttled, g.ID)
		}
	}
	return cluster.Report(n.applier, l)
}

func nodeConfig(cfg configs.Config, log hclog.Logger) (node.Config, error) {
	peers := make(map[int32]string, len(cfg.Raft.Peers))
	for _, p := range cfg.Raft.Peers {
		peers[p.ID] = p.Address
	}
	advertised := make(map[string]string)
	for _, l := range cfg.AdvertisedListeners {
		advertised[l.Name] = l.Address()
	}
	var secure *transport.TLS
	if t := cfg.Raft.TLS; t.Enabled() {
		var err error
		if secure, err = transport.LoadTLS(t.CertFile, t.KeyFile, t.CAFile); err != nil {
			return node.Config{}, fmt.Errorf("raft.tls: %w", err)
		}
	}
	return node.Config{
		ClusterID: cfg.Cluster.ID, NodeID: cfg.Node.ID, DataDir: cfg.DataDir, Version: version,
		Listen: cfg.Raft.Listen, Peers: peers, TLS: secure, Join: cfg.Raft.Join,
		Groups: uint32(cfg.Raft.Groups), LogStore: cfg.Raft.LogStore,
		MaxAppendEntries: cfg.Raft.MaxAppendEntries, EntryBytes: int(cfg.Raft.BatchBytes),
		MaxInFlightEntries: cfg.Raft.MaxInflightEntries, SegmentBytes: int(cfg.Raft.SegmentBytes),
		Timing: node.Timing{
			HeartbeatTimeout: cfg.Raft.HeartbeatTimeout, ElectionTimeout: cfg.Raft.ElectionTimeout,
			LeaseTimeout: cfg.Raft.LeaderLeaseTimeout, CommitTimeout: cfg.Raft.CommitTimeout,
			StoreTimeout: cfg.Raft.StoreTimeout,
		},
		// Zero stands for the default there, so nothing to retain is one byte.
		Retention: node.Retention{SnapshotBytes: int64(cfg.Raft.SnapshotBytes),
			LogRetainBytes: max(1, int64(cfg.Raft.LogRetainBytes)), LogLimitBytes: int64(cfg.Raft.LogLimitBytes)},
		Self:   fsm.CatalogNode{Rack: cfg.Node.Rack, Listeners: advertised, Admin: adminAddress(cfg), Raft: peers[cfg.Node.ID]},
		Logger: log,
	}, nil
}

// adminAddress is where the other nodes reach the admin port: as it listens,
// with the node's own name for an address that stands for all interfaces, and
// with the scheme if that is https.
func adminAddress(cfg configs.Config) string {
	if cfg.Admin.TLS.Enabled() {
		return admin.TLSScheme + adminHostPort(cfg)
	}
	return adminHostPort(cfg)
}

func adminHostPort(cfg configs.Config) string {
	host, port, err := net.SplitHostPort(cfg.Admin.Listen)
	if err != nil {
		return cfg.Admin.Listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		if own, _, err := net.SplitHostPort(cfg.Raft.Advertise); err == nil {
			return net.JoinHostPort(own, port)
		}
	}
	return cfg.Admin.Listen
}

func proxyConfig(cfg configs.Config, log hclog.Logger, c *cluster.Cluster, b *localBroker) proxy.Config {
	out := proxy.Config{
		Upstream: cfg.Broker.BootstrapServer,
		// Where clients have a listener of their own they are known by name,
		// or not let in at all: the broker says which.
		BrokerAuthorizes:    func() bool { return cfg.Broker.AuthenticatesClients() || b.Authorizes() },
		BrokerJudges:        func() bool { return cfg.Broker.AuthenticatesClients() || b.Judges() },
		BrokerAuthenticates: cfg.Broker.AuthenticatesClients(),
		BrokerVersions:      func() []kmsg.ApiVersionsResponseApiKey { return offeredByAll(c.BrokerAPIs()) },
		LinearizableReads:   cfg.Reads == configs.ReadsLinearizable,
		Limits: proxy.Limits{
			MaxFrameBytes:           int(cfg.Limits.MaxFrameBytes),
			MaxInflightBytesPerConn: int64(cfg.Limits.MaxInflightBytesPerConnection),
			MaxInflightBytes:        int64(cfg.Limits.MaxInflightBytes),
			MaxConnections:          cfg.Limits.MaxConnections,
			IdleTimeout:             cfg.Limits.IdleTimeout,
			PartialRequestTimeout:   cfg.Limits.PartialRequestTimeout,
		},
		Topics: proxy.Topics{AutoCreate: cfg.Topics.AutoCreateTopicsEnable, NumPartitions: int32(cfg.Topics.NumPartitions),
			MaxMessageBytes: int(cfg.Topics.MaxMessageBytes)},
		Logger: log.Named("kafka"),
	}
	if cfg.Broker.ClientServer != "" {
		out.Upstream = cfg.Broker.ClientServer
	}
	for _, l := range cfg.Listeners {
		out.Listeners = append(out.Listeners, proxy.Listener{Name: l.Name, Addr: l.Address()})
	}
	return out
}

// open starts the rooms from the broker outwards: clients are let in last.
func (n *app) open() error {
	if err := n.broker.Open(); err != nil {
		return fmt.Errorf("watch the broker: %w", err)
	}
	logs := make(map[uint32]apply.Log)
	for _, g := range n.node.Groups() {
		logs[g.ID] = g.Log()
	}
	if err := n.applier.Open(logs); err != nil {
		return err
	}
	n.access.Open()
	n.cluster.Open()
	if err := n.admin.Open(); err != nil {
		return err
	}
	if err := n.node.Open(); err != nil {
		return err
	}
	if err := n.proxy.Listen(); err != nil {
		return err
	}
	n.log.Info("serving", "node", n.cfg.Node.ID, "version", version, "kafka", fmt.Sprint(n.proxy.Addrs()),
		"broker", n.cfg.Broker.BootstrapServer, "raft", n.cfg.Raft.Listen, "admin", n.cfg.Admin.Listen)
	n.serving = make(chan error, 1)
	go func() { n.serving <- n.proxy.Serve() }()
	return nil
}

// drain hands leadership over and lets clients finish.
func (n *app) drain(ctx context.Context) {
	n.cluster.HandOver(ctx)
	if err := n.proxy.Shutdown(ctx); err != nil {
		n.log.Warn("some clients were cut off", "error", err)
	}
}

// close stops the rooms from the outside inwards. The applier reads the logs
// that the node closes.
func (n *app) close() error {
	var errs []error
	if n.proxy != nil {
		errs = append(errs, n.proxy.Close())
	}
	if n.serving != nil {
		if err := <-n.serving; !errors.Is(err, proxy.ErrServerClosed) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, n.admin.Close(), n.cluster.Close(), n.access.Close(), n.applier.Close(), n.node.Close(), n.broker.Close())
	return errors.Join(errs...)
}
