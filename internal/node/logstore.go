package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"lockstep/internal/failpoint"
)

// errDamaged is wrapped by every error that says that the log on disk is not
// what was written.
var errDamaged = errors.New("the raft log is damaged")

// guardedLog is a group's log on disk, behind the guard.
//
// It seals every entry with a checksum of its own, because neither store finds
// a flipped bit: raft-wal looks at the checksums of the newest batch only, and
// bbolt has none for data. The seal stands in Extensions, the field that
// raft.Log has for middleware; above this store nobody sees it.
//
// It deletes no entry that the node still needs, whatever Raft asks for.
type guardedLog struct {
	raft.LogStore
	g      *guard
	log    hclog.Logger
	marks  logMarks
	rules  cutRules
	sizes  logSizes
	closed atomic.Bool // before the store is
	grown  func()      // told after the log became longer or shorter; nil if nobody asks

	// replaced is the index of a leader's snapshot that was installed and
	// that the log was not emptied for yet, 0 if none. Raft's next cut does.
	replaced atomic.Uint64
}

// cutRules say what of a log may be deleted.
type cutRules struct {
	covered func() uint64 // the newest snapshot's index
	floor   func() uint64 // nothing after it is deleted: the log of what is not on the broker's disk
	retain  int64         // bytes that are kept for followers that lag
}

// logMarks are what the stable store remembers of the log, so that a log that
// is gone, or has lost its end, is missed.
type logMarks struct {
	stable raft.StableStore

	mu      sync.Mutex // guards what follows; Raft appends and compacts side by side
	began   bool       // the log has entries
	touched bool       // written to since it was opened
	gaps    atomic.Pointer[[]gap]
}

// touch takes back what the last close said of the log's end.
func (m *logMarks) touch() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.touched || m.stable == nil {
		return nil
	}
	if err := m.stable.SetUint64([]byte(logEndKey), 0); err != nil {
		return err
	}
	m.touched = true
	return nil
}

func (m *logMarks) begin() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.began || m.stable == nil {
		return nil
	}
	if err := m.stable.Set([]byte(logBeganKey), []byte{1}); err != nil {
		return err
	}
	m.began = true
	return nil
}

// empty notes that the log, which ended at last, is emptied on purpose: a snapshot
// stands for everything up to index. That nothing of it can be gone by now comes
// first, then what was never there: else a start from an older snapshot could
// bring that in.
func (m *logMarks) empty(index, last uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.began = false
	if m.stable == nil {
		return nil
	}
	if err := m.stable.SetUint64([]byte(logCutKey), index); err != nil {
		return err
	}
	return errors.Join(m.addGap(gap{last, index}), m.stable.Set([]byte(logBeganKey), []byte{}))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const sealLen = 4

func sealOf(l *raft.Log, extensions []byte) uint32 {
	var head [17]byte
	binary.BigEndian.PutUint64(head[:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	sum := crc32.Checksum(head[:], castagnoli)
	sum = crc32.Update(sum, castagnoli, l.Data)
	return crc32.Update(sum, castagnoli, extensions)
}

// sealed returns copies of the entries with their seals: Raft goes on using
// the ones it gave.
func sealed(ls []*raft.Log) []*raft.Log {
	copies, out := make([]raft.Log, len(ls)), make([]*raft.Log, len(ls))
	for i, l := range ls {
		ext := make([]byte, 0, len(l.Extensions)+sealLen)
		ext = append(ext, l.Extensions...)
		copies[i] = *l
		copies[i].Extensions = binary.BigEndian.AppendUint32(ext, sealOf(l, l.Extensions))
		out[i] = &copies[i]
	}
	return out
}

func unseal(index uint64, l *raft.Log) error {
	n := len(l.Extensions) - sealLen
	if n < 0 || l.Index != index || sealOf(l, l.Extensions[:n]) != binary.BigEndian.Uint32(l.Extensions[n:]) {
		return fmt.Errorf("entry %d is not what was written: %w", index, errDamaged)
	}
	if l.Extensions = l.Extensions[:n]; n == 0 {
		l.Extensions = nil
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (s *guardedLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (s *guardedLog) StoreLogs(ls []*raft.Log) error {
	err := s.g.write("write the raft log", func() error {
		if err := s.marks.touch(); err != nil {
			return err
		}
		failpoint.Hit(failpoint.StoreBefore)
		if err := s.LogStore.StoreLogs(sealed(ls)); err != nil {
			return err
		}
		failpoint.Hit(failpoint.StoreAfter)
		return s.marks.begin()
	})
	if err != nil {
		return err
	}
	for _, l := range ls {
		s.sizes.add(l.Index, len(l.Data))
	}
	s.tell()
	return nil
}

func (s *guardedLog) tell() {
	if s.grown != nil {
		s.grown()
	}
}

// GetLog implements raft.LogStore. An entry that cannot be read, though it
// should be there, is the end of this node: it must not vote on such a log.
func (s *guardedLog) GetLog(index uint64, l *raft.Log) error {
	err := s.read(index, l)
	if err == nil || errors.Is(err, raft.ErrLogNotFound) || s.closed.Load() {
		return err
	}
	err = fmt.Errorf("read the raft log: %w; %s", err, adviceLost)
	s.g.latch(err)
	return err
}

// read reads and unseals one entry. bbolt panics at a page that makes no
// sense.
func (s *guardedLog) read(index uint64, l *raft.Log) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("entry %d: %v: %w", index, p, errDamaged)
		}
	}()
	if err := s.LogStore.GetLog(index, l); err != nil {
		return err
	}
	return unseal(index, l)
}

// DeleteRange implements raft.LogStore. Raft cuts a log for three reasons:
// its end, because a leader has other entries there; its beginning, because a
// snapshot stands for it; all of it, because a leader's snapshot was
// installed. Only the second is up to us.
func (s *guardedLog) DeleteRange(from, to uint64) error {
	first, err := s.FirstIndex()
	if err != nil {
		return err
	}
	last, err := s.LastIndex()
	if err != nil {
		return err
	}
	if from > s.covered() { // no snapshot reaches it: it was never committed
		return s.cut(from, to, func() { s.sizes.cutFrom(from) })
	}
	if index := s.replaced.Load(); index != 0 && from <= first && to >= last {
		return s.empty(index, from, to)
	}
	if allowed := s.mayGo(); to > allowed {
		s.log.Debug("raft log is kept", "asked-to", to, "cut-to", allowed, "first", first)
		to = allowed
	}
	if to < from || to < first {
		return nil
	}
	failpoint.Hit(failpoint.LogCutBefore)
	err = s.cut(from, to, func() { s.sizes.cutTo(to) })
	failpoint.Hit(failpoint.LogCutAfter)
	return err
}

func (s *guardedLog) covered() uint64 {
	if s.rules.covered == nil {
		return 0
	}
	return s.rules.covered()
}

// mayGo is the highest index that may be deleted.
func (s *guardedLog) mayGo() uint64 {
	if s.rules.floor == nil {
		return 0
	}
	return min(s.rules.floor(), s.sizes.keeping(s.rules.retain))
}

func (s *guardedLog) cut(from, to uint64, account func()) error {
	err := s.g.write("cut the raft log", func() error {
		if err := s.marks.touch(); err != nil {
			return err
		}
		return s.LogStore.DeleteRange(from, to)
	})
	if err != nil {
		return err
	}
	account()
	s.tell()
	return nil
}

// empty removes the whole log, for which a leader's snapshot stands. What the
// broker lacks of it must be copied from a peer.
func (s *guardedLog) empty(index, from, to uint64) error {
	err := s.g.write("empty the raft log", func() error {
		failpoint.Hit(failpoint.InstallBefore)
		if err := errors.Join(s.marks.touch(), s.marks.empty(index, to)); err != nil {
			return err
		}
		failpoint.Hit(failpoint.InstallMarked)
		err := s.LogStore.DeleteRange(from, to)
		failpoint.Hit(failpoint.InstallAfter)
		return err
	})
	if err != nil {
		return err
	}
	s.replaced.Store(0)
	s.sizes.cutTo(to)
	s.log.Warn("raft log replaced by the leader's snapshot", "from", from, "to", to, "snapshot-index", index)
	s.tell()
	return nil
}

// IsMonotonic implements raft.MonotonicLogStore. raft-wal cannot have gaps;
// with the other store Raft would keep entries from before the gap that an
// installed snapshot makes, and no start could tell that from damage.
func (s *guardedLog) IsMonotonic() bool { return true }

// raftLog is the log as Raft sees it. Raft panics at an entry that cannot be
// read, and takes the process with it before the node has told the cause and
// closed its doors. The goroutine of Raft that asked ends instead.
type raftLog struct {
	*cachedLog
	g *guard
}

// GetLog implements raft.LogStore.
func (s raftLog) GetLog(index uint64, l *raft.Log) error {
	err := s.cachedLog.GetLog(index, l)
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) && s.g.failed() {
		runtime.Goexit()
	}
	return err
}
