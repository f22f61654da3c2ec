package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"

	"lockstep/fsm"
)

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
