package node

import (
	"errors"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"lockstep/internal/watch"
)

// LogStatus is what a group's log and snapshots are, and what they take. The
// numbers are read one after the other, while the log goes on.
type LogStatus struct {
	FirstIndex uint64 `json:"first_index"` // 0: the log is empty
	LastIndex  uint64 `json:"last_index"`
	LogBytes   int64  `json:"log_bytes"` // entries that can be read, without what the store adds

	TailIndex  uint64 `json:"tail_index"`  // the local broker is trusted up to here
	HeldBytes  int64  `json:"held_bytes"`  // entries after the tail
	LimitBytes int64  `json:"limit_bytes"` // above which nothing new is let in
	Throttled  bool   `json:"throttled"`

	SnapshotIndex uint64    `json:"snapshot_index"` // 0: none was taken
	SnapshotTail  uint64    `json:"snapshot_tail"`  // the tail that the snapshot carries
	SnapshotBytes int64     `json:"snapshot_bytes"`
	SnapshotTime  time.Time `json:"snapshot_time"`

	// DiskBytes is what the group's directory takes, seen at most diskFresh
	// ago.
	DiskBytes int64 `json:"disk_bytes"`
}

// diskFresh is how old the size of a directory may be.
const diskFresh = 3 * time.Second

// diskUse is the size of a directory. The zero value is ready.
type diskUse struct {
	mu    sync.Mutex // guards what follows
	bytes int64
	at    time.Time
}

// of returns how much a directory takes on disk. What disappears meanwhile
// does not count.
func (u *diskUse) of(dir string) int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.at.IsZero() && time.Since(u.at) < diskFresh {
		return u.bytes
	}
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += st.Blocks * 512 // what is allocated: the WAL's files are larger than what is in them
		} else {
			sum += info.Size()
		}
		return nil
	})
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		u.bytes, u.at = sum, time.Now()
	}
	return u.bytes
}

// LogStatus reports on the group's log and snapshots; the zero value before
// the node is a member. Any goroutine may call it.
func (g *Group) LogStatus() LogStatus {
	g.mu.Lock()
	s := g.stores
	g.mu.Unlock()
	if s == nil {
		return LogStatus{}
	}
	st := LogStatus{LogBytes: s.disk.sizes.total(), TailIndex: g.TailIndex(), Throttled: g.keeper.full.Get(),
		DiskBytes: g.disk.of(s.dir)}
	st.HeldBytes, st.LimitBytes = g.machine.Bytes()
	st.FirstIndex, st.LastIndex = s.disk.sizes.span()
	if k := s.snaps.last(); k.index > 0 {
		st.SnapshotIndex, st.SnapshotTail, st.SnapshotBytes, st.SnapshotTime = k.index, k.base(s.snaps.incarnation), k.size, k.at
	}
	return st
}

// LogBytes is how much of the log that is kept lies after one index and up to
// another; 0 before the node is a member. Any goroutine may call it.
func (g *Group) LogBytes(after, to uint64) int64 {
	disk := g.machine.disk.Load()
	if disk == nil {
		return 0
	}
	return disk.sizes.between(after, to)
}

// TailIndex is the index up to which the local broker is trusted to hold
// everything through a power cut. Any goroutine may call it.
func (g *Group) TailIndex() uint64 { return g.machine.moved.Get() }

// TailMoved grows when the tail moves.
func (g *Group) TailMoved() *watch.Index { return &g.machine.moved }
