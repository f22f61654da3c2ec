package node

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	snapshotsKept = 2
	snapshotsDir  = "snapshots" // inside the group's; Raft's file store chose the name
)

// kept is a snapshot on disk that can be used.
type kept struct {
	snapshotHead
	term uint64
	id   string
	size int64
	at   time.Time
}

// snapshotStore is the group's snapshots on disk, behind the guard. It knows
// from which index each of them needs the log.
type snapshotStore struct {
	raft.SnapshotStore
	dir         string
	incarnation string
	g           *guard
	log         hclog.Logger
	installed   func(index uint64) // told when a leader's snapshot is on disk, before it is restored

	naming sync.Mutex // held while a snapshot gets its name
	named  time.Time  // when the newest did

	mu     sync.Mutex // guards what follows
	kept   []kept     // newest first
	newest uint64     // index of the newest, usable or not
}

// openSnapshots opens what is on disk. A snapshot that is damaged is set aside,
// so that it does not take the place of a good one.
func openSnapshots(dir, incarnation string, g *guard, log hclog.Logger, wrap func(raft.SnapshotStore) raft.SnapshotStore) (*snapshotStore, error) {
	if err := clearUnfinished(filepath.Join(dir, snapshotsDir)); err != nil {
		return nil, fmt.Errorf("clear unfinished snapshots: %w", err)
	}
	inner, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, log)
	if err != nil {
		return nil, fmt.Errorf("open the snapshots in %s: %w", dir, err)
	}
	s := &snapshotStore{SnapshotStore: inner, dir: filepath.Join(dir, snapshotsDir), incarnation: incarnation, g: g, log: log,
		installed: func(uint64) {}}
	if wrap != nil {
		s.SnapshotStore = wrap(inner)
	}
	metas, err := s.List()
	if err != nil {
		return nil, fmt.Errorf("list the snapshots in %s: %w", dir, err)
	}
	for _, m := range metas {
		s.newest = max(s.newest, m.Index)
		k, err := s.inspect(m)
		switch {
		case errors.Is(err, errSnapshotVersion):
			return nil, fmt.Errorf("open the snapshot %s in %s: %w", m.ID, dir, err)
		case unreadable(err):
			return nil, fmt.Errorf("open the snapshot %s in %s: %w; %s", m.ID, dir, err, adviceDisk)
		case err != nil:
			aside := filepath.Join(dir, "damaged-"+m.ID)
			log.Warn("a damaged snapshot is set aside", "id", m.ID, "index", m.Index, "moved-to", aside, "error", err)
			if err := os.Rename(filepath.Join(s.dir, m.ID), aside); err != nil {
				return nil, fmt.Errorf("set a damaged snapshot aside: %w", err)
			}
		default:
			s.kept = append(s.kept, k)
		}
	}
	return s, nil
}

// unreadable says whether an error is the disk's, and not what was read.
func unreadable(err error) bool {
	var path *fs.PathError
	return errors.As(err, &path) && !errors.Is(err, fs.ErrNotExist)
}

// clearUnfinished removes what a crash left of a snapshot that was being
// written.
func clearUnfinished(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// inspect reads a whole snapshot.
func (s *snapshotStore) inspect(m *raft.SnapshotMeta) (kept, error) {
	_, r, err := s.Open(m.ID)
	if err != nil {
		return kept{}, err
	}
	snap, err := readSnapshot(r)
	if err == nil {
		err = snap.check()
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return kept{}, err
	}
	at := time.Now()
	if info, err := os.Stat(filepath.Join(s.dir, m.ID)); err == nil {
		at = info.ModTime()
	}
	return kept{snapshotHead: snap.snapshotHead, term: m.Term, id: m.ID, size: m.Size, at: at}, nil
}

// last returns the newest snapshot, the zero value if there is none.
func (s *snapshotStore) last() kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) == 0 {
		return kept{}
	}
	return s.kept[0]
}

// covered is the index up to which some snapshot stands for the log.
func (s *snapshotStore) covered() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest
}

// floor is the highest index that no snapshot on disk needs the log for. Until
// two are there it is 0: if one turns out to be damaged, the other one and the
// log must do.
func (s *snapshotStore) floor() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) < snapshotsKept {
		return 0
	}
	low := s.kept[0].base(s.incarnation)
	for _, k := range s.kept[1:] {
		low = min(low, k.base(s.incarnation))
	}
	return low
}

// Create implements raft.SnapshotStore.
func (s *snapshotStore) Create(v raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	s.naming.Lock()
	defer s.naming.Unlock()
	// The file store names a snapshot by term, index and millisecond. This
	// node's own and a leader's of the same index may come together.
	<-time.After(time.Until(s.named.Truncate(time.Millisecond).Add(2 * time.Millisecond)))
	defer func() { s.named = time.Now() }()
	var inner raft.SnapshotSink
	err := s.g.write("write a snapshot", func() error {
		var err error
		inner, err = s.SnapshotStore.Create(v, index, term, conf, confIndex, trans)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &snapshotSink{SnapshotSink: inner, store: s, index: index, term: term}, nil
}

// snapshotSink is a snapshot that is being written.
type snapshotSink struct {
	raft.SnapshotSink
	store *snapshotStore
	index uint64
	term  uint64
	taken bool // by this node; else it comes from the leader
	size  int64
	begin []byte // the first bytes, which hold the header
	done  bool
}

const sinkBegin = snapshotFixed + maxIncarnation

// Write implements io.Writer.
func (k *snapshotSink) Write(p []byte) (n int, err error) {
	if room := sinkBegin - len(k.begin); room > 0 {
		k.begin = append(k.begin, p[:min(room, len(p))]...)
	}
	err = k.store.g.write("write a snapshot", func() error {
		var err error
		n, err = k.SnapshotSink.Write(p)
		return err
	})
	k.size += int64(n)
	return n, err
}

// Close makes the snapshot durable.
func (k *snapshotSink) Close() error {
	if k.done {
		return nil
	}
	k.done = true
	if err := k.store.g.write("write a snapshot", k.SnapshotSink.Close); err != nil {
		return err
	}
	k.store.add(k)
	if !k.taken {
		k.store.installed(k.index)
	}
	return nil
}

// add takes up a snapshot that is on disk, in the place of the oldest.
func (s *snapshotStore) add(k *snapshotSink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest = max(s.newest, k.index)
	h, _, err := parseSnapshotHead(k.begin)
	if err != nil {
		return // a leader sent it; Raft will find out when it restores it
	}
	h.index = k.index
	s.kept = append([]kept{{snapshotHead: h, term: k.term, id: k.ID(), size: k.size, at: time.Now()}}, s.kept...)
	slices.SortStableFunc(s.kept, func(a, b kept) int { return cmp.Compare(b.index, a.index) })
	s.kept = s.kept[:min(len(s.kept), snapshotsKept)]
}
