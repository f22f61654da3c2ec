package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	boltstore "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"go.etcd.io/bbolt"

	"lockstep/internal/failpoint"
	"lockstep/internal/mutant"
)

// Log stores by configuration (raft.log_store).
const (
	StoreWAL    = "wal"
	StoreBoltDB = "boltdb"
)

const (
	raftDir = "raft"

	// Keys of ours in the stable store, beside Raft's term and vote.
	incarnationKey = "lockstep-incarnation"
	logBeganKey    = "lockstep-log-began"
)

// stores are one group's log, term and vote on disk.
type stores struct {
	logs    raft.LogStore // cached and guarded
	stable  raft.StableStore
	guard   *guard
	closers []func() error
}

// guard watches every write to a store. A write that fails may have damaged
// what is there (fsyncgate): nothing is written after it. One that takes longer
// than limit would hold up the group without an election, because Raft's
// heartbeats go on. Both are told to fatal, once.
type guard struct {
	limit time.Duration
	fatal func(error)
	err   atomic.Pointer[error]
}

func (g *guard) write(what string, f func() error) error {
	if err := g.err.Load(); err != nil {
		return *err
	}
	t := time.AfterFunc(g.limit, func() {
		g.latch(fmt.Errorf("%s takes longer than %s: the disk hangs", what, g.limit))
	})
	err := f()
	t.Stop()
	if err != nil {
		err = fmt.Errorf("%s: %w", what, err)
		g.latch(err)
	}
	return err
}

func (g *guard) latch(err error) {
	if g.err.CompareAndSwap(nil, &err) {
		g.fatal(err)
	}
}

// guardedLog is a LogStore behind the guard. It notes in the stable store that
// the log has begun, so that a log which is gone later is missed.
type guardedLog struct {
	raft.LogStore
	g     *guard
	began atomic.Bool
	begin func() error
}

func (s *guardedLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *guardedLog) StoreLogs(ls []*raft.Log) error {
	return s.g.write("write the raft log", func() error {
		failpoint.Hit(failpoint.StoreBefore)
		if err := s.LogStore.StoreLogs(ls); err != nil {
			return err
		}
		failpoint.Hit(failpoint.StoreAfter)
		if s.began.Load() {
			return nil
		}
		if err := s.begin(); err != nil {
			return err
		}
		s.began.Store(true)
		return nil
	})
}

func (s *guardedLog) DeleteRange(from, to uint64) error {
	return s.g.write("cut the raft log", func() error { return s.LogStore.DeleteRange(from, to) })
}

// IsMonotonic passes on what the store says: raft-wal cannot have gaps.
func (s *guardedLog) IsMonotonic() bool {
	m, ok := s.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// guardedStable is a StableStore behind the guard.
type guardedStable struct {
	raft.StableStore
	g *guard
}

func (s *guardedStable) Set(k, v []byte) error {
	return s.g.write("write term or vote", func() error { return s.StableStore.Set(k, v) })
}

// SetUint64 does not return if the write fails: Raft would panic then
// (setCurrentTerm), and take the process with it before the node has told the
// cause and closed its doors. The goroutine of Raft that asked ends instead.
func (s *guardedStable) SetUint64(k []byte, v uint64) error {
	failpoint.Hit(failpoint.VoteBefore)
	err := s.g.write("write term or vote", func() error { return s.StableStore.SetUint64(k, v) })
	failpoint.Hit(failpoint.VoteAfter)
	if err != nil {
		runtime.Goexit()
	}
	return nil
}

// storeConfig says where and how a group is stored.
type storeConfig struct {
	dir          string
	kind         string
	segmentBytes int
	timeout      time.Duration
	logger       hclog.Logger
	fatal        func(error)
	wrap         func(raft.LogStore) raft.LogStore // nil; tests break the disk with it
}

func groupDir(dataDir string, group uint32) string {
	return filepath.Join(dataDir, raftDir, fmt.Sprintf("group-%d", group))
}

// openStores opens what is on disk, creating what is missing.
func openStores(c storeConfig) (*stores, error) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", c.dir, err)
	}
	s := &stores{guard: &guard{limit: c.timeout, fatal: c.fatal}}
	stable, err := boltstore.New(boltstore.Options{
		Path:        filepath.Join(c.dir, "stable.db"),
		BoltOptions: &bbolt.Options{Timeout: time.Second},
	})
	if err != nil {
		return nil, fmt.Errorf("open the stable store in %s (does another lockstep use this data_dir?): %w", c.dir, err)
	}
	s.closers = append(s.closers, stable.Close)
	s.stable = &guardedStable{stable, s.guard}
	inner, err := s.openLog(c)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	if c.wrap != nil {
		inner = c.wrap(inner)
	}
	if mutant.On(mutant.DropFsync) {
		inner = writeLater(inner)
	}
	g := &guardedLog{LogStore: inner, g: s.guard, begin: func() error { return stable.Set([]byte(logBeganKey), []byte{1}) }}
	g.began.Store(s.has(logBeganKey))
	s.logs = newCachedLog(g, cacheBytes)
	return s, nil
}

func (s *stores) openLog(c storeConfig) (raft.LogStore, error) {
	if c.kind == StoreBoltDB {
		b, err := boltstore.New(boltstore.Options{
			Path:        filepath.Join(c.dir, "log.db"),
			BoltOptions: &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
		})
		if err != nil {
			return nil, fmt.Errorf("open the raft log in %s: %w", c.dir, err)
		}
		s.closers = append(s.closers, b.Close)
		return b, nil
	}
	dir := filepath.Join(c.dir, "wal")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", dir, err)
	}
	// raft-wal's Close leaves its own metadata store open (v0.4.0): it is
	// given one that is closed here.
	meta := &metadb.BoltMetaDB{}
	w, err := wal.Open(dir, wal.WithMetaStore(meta), wal.WithSegmentFiler(walFiler{segment.NewFiler(dir, fs.New())}),
		wal.WithSegmentSize(c.segmentBytes), wal.WithLogger(c.logger))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the raft log in %s: %w", dir, err), meta.Close())
	}
	s.closers = append(s.closers, meta.Close, w.Close)
	return w, nil
}

// has says whether a key of ours is in the stable store.
func (s *stores) has(key string) bool {
	v, err := s.stable.Get([]byte(key))
	return err == nil && len(v) > 0
}

// check compares what is on disk with what a member must have: a store that
// was lost must not vote as if it were new.
func (s *stores) check(dir, incarnation string) error {
	v, err := s.stable.Get([]byte(incarnationKey))
	if err != nil || string(v) != incarnation {
		return fmt.Errorf("term and vote in %s are missing or not this node's: the directory is damaged; empty data_dir and readmit the node", dir)
	}
	last, err := s.logs.LastIndex()
	if err != nil {
		return fmt.Errorf("read the last index in %s: %w", dir, err)
	}
	if last == 0 && s.has(logBeganKey) {
		return fmt.Errorf("the raft log in %s is gone (was raft.log_store changed?): restore it, or empty data_dir and readmit the node", dir)
	}
	return nil
}

// close closes the stores, the log first.
func (s *stores) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}
