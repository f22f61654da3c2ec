package node

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"lockstep/fsm"
)

// storedMachine is a state machine over a log of entries 1 to last in memory.
func storedMachine(t *testing.T, incarnation string, last uint64) *machine {
	t.Helper()
	m := newMachine(1, func(err error) { t.Errorf("fatal: %v", err) }, nil)
	m.incarnation = incarnation
	disk := &guardedLog{LogStore: raft.NewInmemStore(), g: &guard{limit: testWait, fatal: func(error) {}}, log: hclog.NewNullLogger()}
	if last > 0 {
		if err := disk.StoreLogs(entries(1, last, 1, 10)); err != nil {
			t.Fatal(err)
		}
	}
	m.logs = disk
	m.disk.Store(disk)
	return m
}

func stateAt(index uint64) []byte {
	g := fsm.NewGroup(1)
	g.Index, g.ClockMs = index, int64(index)
	return g.Encode()
}

func (m *machine) restore(t *testing.T, s snapshot) error {
	t.Helper()
	return m.Restore(io.NopCloser(bytes.NewReader(s.encode())))
}

func wantBase(t *testing.T, m *machine, index uint64, clock int64) {
	t.Helper()
	base, err := m.Base()
	if err != nil {
		t.Fatal(err)
	}
	if base.Index != index || base.ClockMs != clock || m.moved.Get() != index {
		t.Errorf("the base is at %d with clock %d, told %d; want %d and %d", base.Index, base.ClockMs, m.moved.Get(), index, clock)
	}
}

// A node's own tail is its base; another's is not, nor is one that the log does
// not reach.
func TestRestoreFindsTheBase(t *testing.T) {
	own := snapshot{snapshotHead{index: 90, tailIndex: 40, incarnation: "me"}, stateAt(88), stateAt(39)}
	t.Run("own", func(t *testing.T) {
		m := storedMachine(t, "me", 100)
		if err := m.restore(t, own); err != nil {
			t.Fatal(err)
		}
		wantBase(t, m, 40, 39) // entry 40 held no command
		if m.Applied().Get() != 90 || m.Rebased().Get() != 0 {
			t.Errorf("applied %d, rebased %d", m.Applied().Get(), m.Rebased().Get())
		}
		m.read(func(s *fsm.Group) {
			if s.Index != 88 || s.ClockMs != 88 {
				t.Errorf("the head is at %d", s.Index)
			}
		})
		m.Trust(30, stateAt(30)) // from before: ignored
		wantBase(t, m, 40, 39)
		m.Trust(50, stateAt(50))
		wantBase(t, m, 50, 50)
		frozen, err := m.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		var sink memorySink
		if err := frozen.Persist(&sink); err != nil {
			t.Fatal(err)
		}
		got, err := decodeSnapshot(sink.Bytes())
		if err != nil || got.tailIndex != 50 || got.incarnation != "me" || !bytes.Equal(got.tail, stateAt(50)) || !bytes.Equal(got.head, stateAt(88)) {
			t.Errorf("the next snapshot is %+v, %v", got, err)
		}
	})
	t.Run("another's", func(t *testing.T) {
		m := storedMachine(t, "you", 100)
		if err := m.restore(t, own); err != nil {
			t.Fatal(err)
		}
		wantBase(t, m, 90, 88)
	})
	t.Run("own, and the log does not reach", func(t *testing.T) {
		m := storedMachine(t, "me", 0)
		if err := m.restore(t, own); err != nil {
			t.Fatal(err)
		}
		wantBase(t, m, 90, 88)
	})
	t.Run("installed", func(t *testing.T) {
		m := storedMachine(t, "me", 20)
		m.fresh = func() uint64 { return 90 }
		if err := m.restore(t, own); err != nil { // its own, come back from a leader
			t.Fatal(err)
		}
		wantBase(t, m, 90, 88)
		if m.Rebased().Get() != 1 || m.disk.Load().replaced.Load() != 90 {
			t.Error("nobody is told that the log is replaced")
		}
	})
	t.Run("another group's", func(t *testing.T) {
		m := storedMachine(t, "me", 100)
		m.group = 2
		if err := m.restore(t, own); !errors.Is(err, errBadSnapshot) {
			t.Errorf("taken: %v", err)
		}
	})
}

type memorySink struct{ bytes.Buffer }

func (*memorySink) ID() string    { return "memory" }
func (*memorySink) Cancel() error { return nil }
func (*memorySink) Close() error  { return nil }

// Until two snapshots are there nothing is cut: one of them may turn out to be
// damaged. After that the older one's base counts.
func TestFloorIsTheOlderSnapshots(t *testing.T) {
	cfg := crashed(t, StoreWAL, true)
	s, err := openStores(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.openSnapshots("me", cfg.logger, nil); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		snap  snapshotHead
		floor uint64
	}{
		{snapshotHead{10, 5, "me"}, 0},
		{snapshotHead{20, 15, "me"}, 5},
		{snapshotHead{30, 15, "me"}, 15},
		{snapshotHead{40, 16, "you"}, 15},
		{snapshotHead{50, 42, "me"}, 40},
	} {
		putSnapshot(t, s, 1, snapshot{snapshotHead: step.snap})
		if got := s.snaps.floor(); got != step.floor {
			t.Errorf("with %+v the floor is %d, want %d", step.snap, got, step.floor)
		}
	}
}

// failingSnaps cannot be read.
type failingSnaps struct {
	raft.SnapshotStore
	err error
}

func (s failingSnaps) Open(string) (*raft.SnapshotMeta, io.ReadCloser, error) { return nil, nil, s.err }

// A snapshot that the disk does not give is no reason to go on without it; what
// is damaged, or half written, is put out of the way.
func TestSnapshotsThatCannotBeUsed(t *testing.T) {
	cfg := crashed(t, StoreWAL, true)
	s, err := openStores(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.openSnapshots("me", cfg.logger, nil); err != nil {
		t.Fatal(err)
	}
	putSnapshot(t, s, 1, snapshot{snapshotHead: snapshotHead{10, 5, "me"}})
	putSnapshot(t, s, 1, snapshot{snapshotHead: snapshotHead{20, 5, "me"}})
	newest := s.snaps.last().id
	wrap := func(inner raft.SnapshotStore) raft.SnapshotStore {
		return failingSnaps{inner, &fs.PathError{Op: "read", Path: "state.bin", Err: syscall.EIO}}
	}
	if err := s.openSnapshots("me", cfg.logger, wrap); !errors.Is(err, syscall.EIO) {
		t.Fatalf("a disk that does not read: %v", err)
	}
	dir := filepath.Join(cfg.dir, snapshotsDir)
	if err := os.Mkdir(filepath.Join(dir, "1-30-1.tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(dir, newest, "state.bin"), 30)
	if err := s.openSnapshots("me", cfg.logger, nil); err != nil {
		t.Fatal(err)
	}
	if got := s.snaps.last().index; got != 10 {
		t.Errorf("the newest snapshot is at %d, want 10", got)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("in the directory: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(cfg.dir, "damaged-"+newest)); err != nil {
		t.Error(err)
	}
}
