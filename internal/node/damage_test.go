package node

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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

// putSnapshot makes a snapshot in a group's directory.
func putSnapshot(t *testing.T, s *stores, term uint64, snap snapshot) {
	t.Helper()
	_, inmem := raft.NewInmemTransport("a")
	k, err := s.snaps.Create(1, snap.index, term, raft.Configuration{}, 1, inmem)
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
		term        uint64
		snap        snapshotHead
		cutTo       uint64 // the log is cut in the store itself
		first, last uint64 // 0 and 0: empty
		damaged     bool
	}{
		{"own snapshot inside the log", 1, snapshotHead{40, 20, "me"}, 10, 11, 50, false},
		{"own snapshot at the end", 1, snapshotHead{50, 20, "me"}, 0, 1, 50, false},
		{"own snapshot beyond the log", 1, snapshotHead{60, 20, "me"}, 0, 0, 0, true},
		{"log begins after the snapshot", 1, snapshotHead{20, 20, "me"}, 30, 0, 0, true},
		// The crash came between the snapshot and the cut.
		{"leader's snapshot beyond the log", 1, snapshotHead{60, 20, "you"}, 0, 0, 0, false},
		{"leader's snapshot inside a log of another term", 2, snapshotHead{40, 20, "you"}, 0, 0, 0, false},
		{"leader's snapshot inside the log", 1, snapshotHead{40, 20, "you"}, 0, 1, 50, false},
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
				putSnapshot(t, s, tc.term, snapshot{snapshotHead: tc.snap})
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
