package node

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"lockstep/fsm"
)

// crashed makes a log of ten batches of five entries, and returns its
// directory as a crash leaves it, or a stop in good order.
func crashed(t *testing.T, kind string, inOrder bool) storeConfig {
	t.Helper()
	cfg := storeConfig{dir: t.TempDir(), kind: kind, segmentBytes: 1 << 20, timeout: time.Minute,
		logger: hclog.NewNullLogger(), fatal: func(err error) { t.Errorf("fatal: %v", err) }}
	s, err := openStores(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.stable.Set([]byte(incarnationKey), []byte("me")); err != nil {
		t.Fatal(err)
	}
	for from := uint64(1); from <= 46; from += 5 {
		if err := s.logs.StoreLogs(numbered(from, from+4, 1)); err != nil {
			t.Fatal(err)
		}
	}
	left := cfg
	left.dir = t.TempDir()
	if inOrder {
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(left.dir, os.DirFS(cfg.dir)); err != nil {
		t.Fatal(err)
	}
	if !inOrder {
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
	return left
}

// reopen does what a start does and returns the last index.
func reopen(t *testing.T, cfg storeConfig) (last uint64, err error) {
	t.Helper()
	s, err := openStores(cfg)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.openSnapshots("me", cfg.logger, nil); err != nil {
		return 0, err
	}
	if err := s.check("me"); err != nil {
		return 0, err
	}
	return s.logs.LastIndex()
}

// logFile returns the file that holds a log's entries, and where one is in it.
func logFile(t *testing.T, dir string, index, term uint64) (path string, at int64) {
	t.Helper()
	want := numbered(index, index, term)[0].Data
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		raw, err := os.ReadFile(p)
		if i := bytes.LastIndex(raw, want); i >= 0 {
			path, at = p, int64(i)
		}
		return err
	})
	if err != nil || path == "" {
		t.Fatalf("entry %d is in no file: %v", index, err)
	}
	return path, at
}

func overwrite(t *testing.T, path string, at int64, with []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(with, at)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What a crash can do to the log's end is repaired without a word; anything
// else on it is the end of the node.
func TestDamagedLog(t *testing.T) {
	zeros := make([]byte, 64<<10)
	for _, tc := range []struct {
		name, kind string
		inOrder    bool
		damage     func(t *testing.T, dir string)
		last       uint64 // 0: the node must not start
	}{
		{"untouched", StoreWAL, false, func(*testing.T, string) {}, 50},
		{"untouched", StoreBoltDB, false, func(*testing.T, string) {}, 50},
		{"stopped", StoreWAL, true, func(*testing.T, string) {}, 50},
		{"last batch is half written", StoreWAL, false, func(t *testing.T, dir string) {
			path, at := logFile(t, dir, 48, 1)
			overwrite(t, path, at+100, zeros)
		}, 45},
		{"last batch has a hole", StoreWAL, false, func(t *testing.T, dir string) {
			path, at := logFile(t, dir, 48, 1)
			overwrite(t, path, (at/512+1)*512, zeros[:512])
		}, 45},
		{"file ends early", StoreWAL, false, func(t *testing.T, dir string) {
			path, at := logFile(t, dir, 48, 1)
			if err := os.Truncate(path, at+100); err != nil {
				t.Fatal(err)
			}
		}, 45},
		{"last batch is half written, though the node had stopped", StoreWAL, true, func(t *testing.T, dir string) {
			path, at := logFile(t, dir, 48, 1)
			overwrite(t, path, at+100, zeros)
		}, 0},
		{"a bit in the last batch", StoreWAL, false, func(t *testing.T, dir string) {
			path, at := logFile(t, dir, 48, 1)
			flip(t, path, at+100)
		}, 0},
		{"a bit in the middle", StoreWAL, false, func(t *testing.T, dir string) {
			path, at := logFile(t, dir, 20, 1)
			flip(t, path, at+100)
		}, 0},
		{"a bit in a frame's header", StoreWAL, false, func(t *testing.T, dir string) {
			path, at := logFile(t, dir, 20, 1)
			frame := at - at%8 // an entry's index, term, type and length come before its data
			for raw, _ := os.ReadFile(path); raw[frame] != walFrameEntry || raw[frame+1] != 0; frame -= 8 {
			}
			flip(t, path, frame)
		}, 0},
		{"a hole in the middle", StoreWAL, false, func(t *testing.T, dir string) {
			path, at := logFile(t, dir, 20, 1)
			overwrite(t, path, at, zeros[:4096])
		}, 0},
		{"a bit in the middle", StoreBoltDB, false, func(t *testing.T, dir string) {
			path, at := logFile(t, dir, 20, 1)
			flip(t, path, at+100)
		}, 0},
		{"a bit in a page's header", StoreBoltDB, false, func(t *testing.T, dir string) {
			path, at := logFile(t, dir, 20, 1)
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			page := at / 4096
			for binary.LittleEndian.Uint64(raw[page*4096:]) != uint64(page) || raw[page*4096+8] != 2 { // a leaf's first page
				page--
			}
			flip(t, path, page*4096+8)
		}, 0},
		{"a bit in a key", StoreBoltDB, false, func(t *testing.T, dir string) {
			path, at := logFile(t, dir, 20, 1)
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			key := bytes.LastIndex(raw[:at], binary.BigEndian.AppendUint64(nil, 20))
			flip(t, path, int64(key))
		}, 0},
		{"bytes behind the end", StoreBoltDB, false, func(t *testing.T, dir string) {
			path, _ := logFile(t, dir, 20, 1)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, path, info.Size(), bytes.Repeat([]byte{'x'}, 5000))
		}, 50},
		{"file ends early", StoreBoltDB, false, func(t *testing.T, dir string) {
			path, at := logFile(t, dir, 48, 1)
			if err := os.Truncate(path, at+100); err != nil {
				t.Fatal(err)
			}
		}, 0},
		{"vote file is gone", StoreWAL, false, func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "stable.db")); err != nil {
				t.Fatal(err)
			}
		}, 0},
		{"log is gone", StoreWAL, false, func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "wal")); err != nil {
				t.Fatal(err)
			}
		}, 0},
	} {
		t.Run(tc.kind+"/"+tc.name, func(t *testing.T) {
			cfg := crashed(t, tc.kind, tc.inOrder)
			tc.damage(t, cfg.dir)
			last, err := reopen(t, cfg)
			switch {
			case tc.last != 0 && (err != nil || last != tc.last):
				t.Fatalf("opened up to %d, %v; want %d", last, err, tc.last)
			case tc.last == 0 && err == nil:
				t.Fatalf("the damage is not noticed: opened up to %d", last)
			case tc.last == 0 && !strings.Contains(err.Error(), "data_dir"):
				t.Errorf("the error names no next step: %v", err)
			}
		})
	}
}

// A node whose log is damaged starts no group, so that it gives no vote; its
// peers go on.
func TestDamagedNodeDoesNotVote(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, func(cfg *Config) { cfg.EntryBytes = 8 << 10 })
	c.start(1, 2, 3)
	c.settled()
	c.openLoad()
	c.load(256<<10, 8<<10)
	c.stop(3)
	path, at := walEntry(t, groupDir(c.dataDir(3), 1), 10)
	flip(t, path, at)
	n := New(c.config(3))
	if err := n.Init(); err != nil {
		t.Fatal(err)
	}
	err := n.Open()
	if !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), "readmit") {
		t.Fatalf("a node with a damaged log opens: %v", err)
	}
	if n.Group(1).Raft() != nil {
		t.Fatal("the damaged group runs")
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	c.load(64<<10, 8<<10)
}

// walEntry finds an entry's data in a WAL directory.
func walEntry(t *testing.T, dir string, nth int) (path string, at int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
	if err != nil || len(files) == 0 {
		t.Fatal("no segments", err)
	}
	raw, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	pos := walFileHeader
	for pos+walFrameHeader < len(raw) {
		n := int(raw[pos+4]) | int(raw[pos+5])<<8 | int(raw[pos+6])<<16
		switch raw[pos] {
		case walFrameCommit:
			n = 0
		case walFrameEntry:
			if nth--; nth == 0 {
				return files[0], int64(pos + walFrameHeader + n/2)
			}
		default:
			t.Fatalf("frame of type %d", raw[pos])
		}
		pos += walFrameHeader + (n+7)/8*8
	}
	t.Fatal("not so many entries")
	return "", 0
}

// Damage that shows while the node runs ends it: it must not vote on such a log.
func TestDamageFoundWhileRunning(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, func(cfg *Config) { cfg.EntryBytes = 8 << 10 })
	c.start(1, 2, 3)
	c.settled()
	c.openLoad()
	c.load(256<<10, 8<<10)
	sick := c.leader(1)
	id := sick.cfg.NodeID
	c.stop(id)
	c.start(id) // nothing is cached
	sick = c.nodes[id]
	path, at := walEntry(t, groupDir(c.dataDir(id), 1), 10)
	flip(t, path, at)
	log := sick.Group(1).Log()
	var bad error
	for i := uint64(1); i < 20 && bad == nil; i++ {
		_, bad = log.Entry(i)
	}
	if !errors.Is(bad, errDamaged) || log.Gone(bad) {
		t.Fatalf("a damaged entry reads as %v", bad)
	}
	select {
	case <-sick.Failed():
	case <-c.ctx().Done():
		t.Fatal("the node goes on")
	}
	if err := sick.Err(); !strings.Contains(err.Error(), "readmit") {
		t.Errorf("no next step: %v", err)
	}
	if err := sick.Group(1).stores.stable.Set([]byte("k"), []byte("v")); err == nil {
		t.Error("the node could still store a vote")
	}
	delete(c.nodes, id)
	c.load(64<<10, 8<<10)
	if err := sick.Close(); err != nil {
		t.Error(err)
	}
}

// brokenSnaps fails to write a snapshot on demand.
type brokenSnaps struct {
	raft.SnapshotStore
	fail *atomic.Pointer[error]
}

type brokenSink struct {
	raft.SnapshotSink
	fail *atomic.Pointer[error]
}

func (s *brokenSnaps) Create(v raft.SnapshotVersion, i, term uint64, c raft.Configuration, ci uint64, tr raft.Transport) (raft.SnapshotSink, error) {
	k, err := s.SnapshotStore.Create(v, i, term, c, ci, tr)
	return &brokenSink{k, s.fail}, err
}

func (k *brokenSink) Write(p []byte) (int, error) {
	if err := k.fail.Load(); err != nil {
		return 0, *err
	}
	return k.SnapshotSink.Write(p)
}

type brokenStable struct {
	raft.StableStore
	fail *atomic.Pointer[error]
}

func (s *brokenStable) Set(k, v []byte) error {
	if err := s.fail.Load(); err != nil {
		return *err
	}
	return s.StableStore.Set(k, v)
}

func (s *brokenStable) SetUint64(k []byte, v uint64) error {
	if err := s.fail.Load(); err != nil {
		return *err
	}
	return s.StableStore.SetUint64(k, v)
}

// A disk that is full or fails, whatever is written to it, ends the node with
// the cause and the next step, and the others go on.
func TestBrokenDiskEndsTheNode(t *testing.T) {
	for _, tc := range []struct {
		what   string
		err    error
		advice string
	}{
		{"log", syscall.ENOSPC, adviceFull},
		{"log", syscall.EIO, adviceDisk},
		{"snapshot", syscall.ENOSPC, adviceFull},
		{"snapshot", syscall.EIO, adviceDisk},
		{"vote", syscall.ENOSPC, adviceFull},
	} {
		t.Run(fmt.Sprintf("%s/%v", tc.what, tc.err), func(t *testing.T) {
			t.Parallel()
			testBrokenDisk(t, tc.what, tc.err, tc.advice)
		})
	}
}

func testBrokenDisk(t *testing.T, what string, cause error, advice string) {
	var mu sync.Mutex
	fail := make(map[int32]*atomic.Pointer[error])
	logs := make(map[int32]*brokenStore)
	c := newTestCluster(t, 3, smallLogs(StoreWAL))
	for id := range c.peers {
		n := New(c.config(id))
		bad := new(atomic.Pointer[error])
		fail[id] = bad
		n.breakers = breakers{
			log: func(group uint32, inner raft.LogStore) raft.LogStore {
				s := &brokenStore{LogStore: inner}
				if group == 1 {
					mu.Lock()
					logs[id] = s
					mu.Unlock()
				}
				return s
			},
			snaps: func(_ uint32, inner raft.SnapshotStore) raft.SnapshotStore {
				return &brokenSnaps{inner, bad}
			},
			stable: func(_ uint32, inner raft.StableStore) raft.StableStore { return &brokenStable{inner, bad} },
		}
		if what == "snapshot" {
			n.breakers.stable = nil
		}
		if err := errors.Join(n.Init(), n.Open()); err != nil {
			t.Fatal(err)
		}
		c.nodes[id] = n
	}
	c.settled()
	c.openLoad()
	sick := c.leader(1)
	id := sick.cfg.NodeID
	switch what {
	case "log":
		mu.Lock()
		logs[id].fail.Store(&cause)
		mu.Unlock()
		sick.Group(1).Propose(fsm.AppendCommand(loadTP, loadBatch(100)), func(_ fsm.Result, err error) {
			if err == nil {
				t.Error("acknowledged, though it was not written")
			}
		})
	case "snapshot":
		fail[id].Store(&cause)
		for range 100 {
			sick.Group(1).Propose(fsm.AppendCommand(loadTP, loadBatch(8<<10)), func(fsm.Result, error) {})
		}
	case "vote":
		fail[id].Store(&cause)
		// Another node takes over with a new term, which this one must store.
		to := id%3 + 1
		if err := sick.Group(1).Transfer(c.ctx(), to, "a test wants it"); err != nil {
			t.Log("transfer:", err)
		}
	}
	select {
	case <-sick.Failed():
	case <-c.ctx().Done():
		t.Fatal("the node goes on")
	}
	if err := sick.Err(); !errors.Is(err, cause) || !strings.Contains(err.Error(), advice) {
		t.Errorf("the error does not name cause and next step: %v", err)
	}
	delete(c.nodes, id)
	c.load(64<<10, 8<<10) // the others elect and go on
	if err := sick.Close(); err != nil {
		t.Error(err)
	}
}

// putSnapshot makes a snapshot in a group's directory.
func putSnapshot(t *testing.T, s *stores, snap snapshot) {
	t.Helper()
	_, inmem := raft.NewInmemTransport("a")
	k, err := s.snaps.Create(1, snap.index, 1, raft.Configuration{}, 1, inmem)
	if err != nil {
		t.Fatal(err)
	}
	state := fsm.NewGroup(1)
	state.Index = snap.index
	snap.head, snap.tail = state.Encode(), fsm.NewGroup(1).Encode()
	if _, err = k.Write(snap.encode()); err == nil {
		err = k.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What log and snapshots say of each other at a start.
func TestLogAndSnapshotsMakeAWhole(t *testing.T) {
	for _, tc := range []struct {
		name        string
		snap        snapshotHead
		cutTo       uint64 // the log is cut in the store itself
		first, last uint64 // 0 and 0: empty
		damaged     bool
	}{
		{"own snapshot inside the log", snapshotHead{40, 20, "me"}, 10, 11, 50, false},
		{"own snapshot at the end", snapshotHead{50, 20, "me"}, 0, 1, 50, false},
		{"own snapshot beyond the log", snapshotHead{60, 20, "me"}, 0, 0, 0, true},
		{"log begins after the snapshot", snapshotHead{20, 20, "me"}, 30, 0, 0, true},
		// The crash came between the snapshot and the cut.
		{"leader's snapshot beyond the log", snapshotHead{60, 20, "you"}, 0, 0, 0, false},
		{"leader's snapshot inside the log", snapshotHead{40, 20, "you"}, 0, 1, 50, false},
	} {
		for _, kind := range []string{StoreWAL, StoreBoltDB} {
			t.Run(kind+"/"+tc.name, func(t *testing.T) {
				cfg := crashed(t, kind, true)
				s, err := openStores(cfg)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.openSnapshots("me", cfg.logger, nil); err != nil {
					t.Fatal(err)
				}
				putSnapshot(t, s, snapshot{snapshotHead: tc.snap})
				if tc.cutTo > 0 {
					if err := s.disk.LogStore.DeleteRange(1, tc.cutTo); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.close(); err != nil {
					t.Fatal(err)
				}
				for round := range 2 { // what was repaired stays so
					if s, err = openStores(cfg); err != nil {
						t.Fatal(err)
					}
					if err = s.openSnapshots("me", cfg.logger, nil); err == nil {
						err = s.check("me")
					}
					if tc.damaged != errors.Is(err, errDamaged) || !tc.damaged && err != nil {
						t.Fatalf("round %d: %v", round, err)
					}
					first, last := s.disk.sizes.span()
					if !tc.damaged && (first != tc.first || last != tc.last) {
						t.Errorf("round %d: the log is %d to %d, want %d to %d", round, first, last, tc.first, tc.last)
					}
					if err := s.close(); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}
