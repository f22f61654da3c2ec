package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	boltstore "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"go.etcd.io/bbolt"

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
	logEndKey      = "lockstep-log-end"  // the last index when the store was closed in good order, else 0
	logGapsKey     = "lockstep-log-gaps" // what the log never held
	logCutKey      = "lockstep-log-cut"  // index of the snapshot that the whole log was last removed for
)

// stores are one group's log, snapshots, term and vote on disk.
type stores struct {
	logs    *cachedLog  // for everybody
	disk    *guardedLog // below logs
	stable  raft.StableStore
	snaps   *snapshotStore // nil before openSnapshots
	guard   *guard
	dir     string
	closers []func() error
}

// storeConfig says where and how a group is stored.
type storeConfig struct {
	dir          string
	kind         string
	segmentBytes int
	timeout      time.Duration
	logger       hclog.Logger
	fatal        func(error)
	retain       int64                             // bytes of the log that are kept for followers that lag
	wrap         func(raft.LogStore) raft.LogStore // nil; tests break the disk with it
	wrapStable   func(raft.StableStore) raft.StableStore
}

func groupDir(dataDir string, group uint32) string {
	return filepath.Join(dataDir, raftDir, fmt.Sprintf("group-%d", group))
}

// openStores opens what is on disk, creating what is missing.
func openStores(c storeConfig) (*stores, error) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", c.dir, err)
	}
	s := &stores{guard: &guard{limit: c.timeout, fatal: c.fatal}, dir: c.dir}
	stable, err := openBolt(filepath.Join(c.dir, "stable.db"), &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open the stable store in %s (does another lockstep use this data_dir?): %w", c.dir, err)
	}
	s.closers = append(s.closers, stable.Close)
	var votes raft.StableStore = stable
	if c.wrapStable != nil {
		votes = c.wrapStable(stable)
	}
	s.stable = &guardedStable{votes, s.guard}
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
	s.disk = &guardedLog{LogStore: inner, g: s.guard, log: c.logger, rules: cutRules{retain: c.retain}}
	s.disk.marks.stable, s.disk.marks.began = stable, s.has(logBeganKey)
	if err := s.disk.marks.loadGaps(); err != nil {
		return nil, errors.Join(fmt.Errorf("read what the log in %s never held: %w", c.dir, err), s.close())
	}
	s.logs = newCachedLog(s.disk, cacheBytes)
	return s, nil
}

// openSnapshots opens the snapshots, from which on the log may be cut.
func (s *stores) openSnapshots(incarnation string, log hclog.Logger, wrap func(raft.SnapshotStore) raft.SnapshotStore) error {
	snaps, err := openSnapshots(s.dir, incarnation, s.guard, log, wrap)
	if err != nil {
		return err
	}
	s.snaps = snaps
	s.disk.rules.covered, s.disk.rules.floor = snaps.covered, snaps.floor
	return nil
}

// openBolt opens a bbolt file. bbolt panics at a page that makes no sense, and
// faults where the file is shorter than it says.
func openBolt(path string, options *bbolt.Options) (b *boltstore.BoltStore, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %v: %w; %s", path, p, errDamaged, adviceLost)
		}
	}()
	if options.NoFreelistSync {
		if err := walkBolt(path); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return boltstore.New(boltstore.Options{Path: path, BoltOptions: options})
}

// walkBolt visits every page of a bbolt file, and looks at the order of the
// keys. bbolt does so itself when it opens the file, to find free pages, but
// panics in a goroutine of its own, which ends the process.
func walkBolt(path string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return err
	}
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
			var before []byte
			return b.ForEach(func(k, _ []byte) error {
				if before != nil && bytes.Compare(before, k) >= 0 || b.Get(k) == nil {
					return fmt.Errorf("key %x after %x: %w; %s", k, before, errDamaged, adviceLost)
				}
				before = k
				return nil
			})
		})
	})
	return errors.Join(err, db.Close())
}

func (s *stores) openLog(c storeConfig) (raft.LogStore, error) {
	if c.kind == StoreBoltDB {
		b, err := openBolt(filepath.Join(c.dir, "log.db"),
			&bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
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
	w, err := wal.Open(dir, wal.WithMetaStore(meta), wal.WithSegmentFiler(walFiler{segment.NewFiler(dir, fs.New()), dir}),
		wal.WithSegmentSize(c.segmentBytes), wal.WithLogger(c.logger))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the raft log in %s: %w", dir, err), meta.Close())
	}
	s.closers = append(s.closers, meta.Close, w.Close)
	return walLog{w}, nil
}

// close closes the stores, the log first. What the log's last index was is
// noted, so that the next start misses what is gone.
func (s *stores) close() error {
	var errs []error
	if s.disk != nil {
		errs = append(errs, s.noteEnd())
		s.disk.closed.Store(true)
	}
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}
