package node

import (
	"cmp"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"lockstep/fsm"
	"lockstep/transport"
)

// Config of a node. All fields are required unless a default is named.
type Config struct {
	ClusterID string
	NodeID    int32
	DataDir   string
	Version   string

	Listen string           // internode port
	Peers  map[int32]string // host:port by node id, this node included
	TLS    *transport.TLS   // nil: plaintext
	Join   bool             // this node enters a cluster that is there, and never begins one

	Groups   uint32
	LogStore string // StoreWAL or StoreBoltDB

	MaxAppendEntries   int // entries of one AppendEntries
	EntryBytes         int // proposals are coalesced up to this size
	MaxInFlightEntries int
	SegmentBytes       int // of the WAL

	Timing
	Retention Retention

	// Self is what the catalog is told of this node; id and incarnation are
	// filled in.
	Self fsm.CatalogNode

	Logger hclog.Logger
}

// Timing of a node. All are required unless a default is named.
type Timing struct {
	HeartbeatTimeout, ElectionTimeout, LeaseTimeout, CommitTimeout time.Duration

	StoreTimeout time.Duration // a write to disk that takes longer stops the node

	// JoinGrace is how long a majority without state waits for the rest of
	// the peers before it begins the cluster (default 2 s).
	JoinGrace time.Duration
}

// Retention says how much of their logs the groups keep. Zero values take the
// defaults.
type Retention struct {
	// SnapshotBytes is how much a group applies between two snapshots
	// (default 64 MiB).
	SnapshotBytes int64
	// LogRetainBytes is how much all groups together keep for followers that
	// lag (default 512 MiB).
	LogRetainBytes int64
	// LogLimitBytes is how much log all groups together may hold that the
	// local broker is not trusted with yet (default 4 GiB). Above it a leader
	// takes no new proposals.
	LogLimitBytes int64
}

func (r *Retention) defaults() {
	r.SnapshotBytes = cmp.Or(r.SnapshotBytes, 64<<20)
	r.LogRetainBytes = cmp.Or(r.LogRetainBytes, 512<<20)
	r.LogLimitBytes = cmp.Or(r.LogLimitBytes, 4<<30)
}

// breakers stand between the stores and the disk; nil, except in tests that
// break the disk.
type breakers struct {
	log    func(group uint32, s raft.LogStore) raft.LogStore
	stable func(group uint32, s raft.StableStore) raft.StableStore
	snaps  func(group uint32, s raft.SnapshotStore) raft.SnapshotStore
}
