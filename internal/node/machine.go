package node

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"lockstep/fsm"
	"lockstep/internal/failpoint"
	"lockstep/internal/watch"
)

// machine is a group's head: the state machine that Raft applies to, and the
// keeper of the tail that the applier trusts its broker with. It hands nothing
// to the broker and never waits: the applier reads the log itself.
type machine struct {
	group   uint32
	fatal   func(error)
	stopped <-chan struct{}

	applied watch.Index // index of the last entry with commands that was applied
	shape   watch.Index // Shape of the group, for who caches the set of partitions
	catalog watch.Index // Version of the catalog
	rebased watch.Index // counts the snapshots of leaders that were installed
	moved   watch.Index // index of the tail
	fates   fates       // of entries whose proposer lost its office

	mu    sync.RWMutex // guards state
	state *fsm.Group

	tailMu    sync.Mutex // guards what follows
	tailIndex uint64
	tail      []byte // encoded; nil is the state of an empty log. Never changed.

	// Set before Raft starts.
	log         hclog.Logger
	incarnation string
	logs        raft.LogStore // as the applier reads it
	disk        atomic.Pointer[guardedLog]
	limit       int64         // how much log may lie after the tail
	news        func(int)     // told how much was applied, or 0 when the tail moved; never waits
	fresh       func() uint64 // index of a leader's snapshot that is being installed; taken once
}

func newMachine(group uint32, fatal func(error), stopped <-chan struct{}) *machine {
	return &machine{group: group, state: fsm.NewGroup(group), fatal: fatal, stopped: stopped, log: hclog.NewNullLogger(),
		news: func(int) {}, fresh: func() uint64 { return 0 }}
}

// Apply implements raft.FSM. It is called from Raft's FSM goroutine only. An
// entry that this build cannot read stops the node: Apply does not return
// before it does, so that nothing after the entry is applied.
func (m *machine) Apply(l *raft.Log) any {
	failpoint.Hit(failpoint.ApplyBefore)
	m.mu.Lock()
	results, err := m.state.Apply(l.Index, l.Data)
	m.mu.Unlock()
	if err != nil {
		m.fatal(err)
		<-m.stopped
		return nil
	}
	m.fates.applied(applied{l.Index, l.Term, results})
	m.announce(l.Index)
	m.news(len(l.Data) + entryOverhead)
	failpoint.Hit(failpoint.ApplyAfter)
	return results
}

// announce tells who watches of the state at index. Only Raft's FSM goroutine,
// which alone changes the state, calls it.
func (m *machine) announce(index uint64) {
	shape := m.state.Shape
	var version uint64
	if c := m.state.Catalog; c != nil {
		version = c.Version
	}
	m.applied.Set(index)
	m.shape.Set(shape)
	m.catalog.Set(version)
}

// Snapshot implements raft.FSM.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	m.mu.RLock()
	index, head := m.state.Index, m.state.Encode()
	m.mu.RUnlock()
	tailIndex, tail := m.trusted()
	if tail == nil {
		tail = fsm.NewGroup(m.group).Encode()
	}
	return &frozen{snapshot{snapshotHead{index, tailIndex, m.incarnation}, head, tail}}, nil
}

func (m *machine) trusted() (uint64, []byte) {
	m.tailMu.Lock()
	defer m.tailMu.Unlock()
	return m.tailIndex, m.tail
}

// check says whether both states can be read.
func (s *snapshot) check() error {
	for _, raw := range [][]byte{s.head, s.tail} {
		if _, err := fsm.DecodeGroup(raw); err != nil {
			if errors.Is(err, fsm.ErrUnknownState) {
				return fmt.Errorf("%w: %w", errSnapshotVersion, err)
			}
			return fmt.Errorf("%w: %w", errBadSnapshot, err)
		}
	}
	return nil
}

// Restore implements raft.FSM. Raft calls it before it starts, with what is on
// disk, and when a leader sent its snapshot. Another node's tail says nothing
// about this node's broker: the base is then the head, and what the broker
// lacks below it must come from a peer's.
func (m *machine) Restore(r io.ReadCloser) error {
	snap, err := readSnapshot(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	head, err := fsm.DecodeGroup(snap.head)
	if err != nil {
		return fmt.Errorf("restore the head: %w", err)
	}
	if head.ID != m.group {
		return fmt.Errorf("restore group %d: the snapshot is of group %d: %w", m.group, head.ID, errBadSnapshot)
	}
	installed := m.fresh()
	if installed != 0 {
		if err := m.replaceLog(installed); err != nil {
			return err
		}
	}
	index, tail := snap.tailIndex, snap.tail
	switch {
	case snap.incarnation != m.incarnation || installed != 0:
		index, tail = snap.index, snap.head
	case !m.reaches(index, snap.index):
		m.log.Warn("the raft log does not reach back to what the broker is trusted with: it is compared with its peers", "tail", index, "snapshot", snap.index)
		index, tail = snap.index, snap.head
	default:
		if _, err := fsm.DecodeGroup(tail); err != nil {
			return fmt.Errorf("restore the tail: %w", err)
		}
	}
	m.mu.Lock()
	m.state = head
	m.mu.Unlock()
	m.tailMu.Lock()
	m.tailIndex, m.tail = index, tail
	m.tailMu.Unlock()
	m.moved.Set(index)
	if installed != 0 {
		m.rebased.Set(m.rebased.Get() + 1)
	}
	m.fates.restored(snap.index)
	m.announce(snap.index)
	m.news(0)
	return nil
}

// reaches says whether the log holds what lies between a tail and the head of
// the same snapshot.
func (m *machine) reaches(tail, head uint64) bool {
	disk := m.disk.Load()
	if tail == head || disk == nil {
		return true
	}
	first, err := disk.FirstIndex()
	return err == nil && first != 0 && first <= tail+1
}

// replaceLog lets Raft remove the log that a leader's snapshot stands for. Where
// there is none, there is nothing to remove, and Raft asks for nothing.
func (m *machine) replaceLog(index uint64) error {
	disk := m.disk.Load()
	switch last, err := disk.LastIndex(); {
	case err != nil:
		return fmt.Errorf("read the last index of the log that a snapshot replaces: %w", err)
	case last == 0:
		return disk.neverHad(m.applied.Get(), index)
	}
	disk.replaced.Store(index)
	return nil
}

// Entry implements the applier's Log. Any goroutine may call it.
func (m *machine) Entry(index uint64) ([]byte, error) {
	var l raft.Log
	if err := m.logs.GetLog(index, &l); err != nil {
		return nil, fmt.Errorf("read the raft log: %w", err)
	}
	if l.Type != raft.LogCommand {
		return nil, nil
	}
	return l.Data, nil
}

// Applied implements the applier's Log.
func (m *machine) Applied() *watch.Index { return &m.applied }

// Rebased implements the applier's Log.
func (m *machine) Rebased() *watch.Index { return &m.rebased }

// Base implements the applier's Log. Its Index is the tail's, which may lie
// above the last entry with commands.
func (m *machine) Base() (*fsm.Group, error) {
	index, raw := m.trusted()
	if raw == nil {
		return fsm.NewGroup(m.group), nil
	}
	g, err := fsm.DecodeGroup(raw)
	if err != nil {
		return nil, fmt.Errorf("read the base: %w", err)
	}
	g.Index = max(g.Index, index)
	return g, nil
}

// Trust implements the applier's Log. It becomes durable with the next
// snapshot. state must not be changed afterwards.
func (m *machine) Trust(index uint64, state []byte) {
	m.tailMu.Lock()
	if index <= m.tailIndex {
		m.tailMu.Unlock()
		return // a leader's snapshot went past it
	}
	m.tailIndex, m.tail = index, state
	m.tailMu.Unlock()
	m.moved.Set(index)
	m.news(0)
}

// Gone implements the applier's Log.
func (m *machine) Gone(err error) bool { return errors.Is(err, raft.ErrLogNotFound) }

// Bytes implements the applier's Log.
func (m *machine) Bytes() (held, limit int64) {
	disk := m.disk.Load()
	if disk == nil {
		return 0, m.limit
	}
	return disk.sizes.after(m.moved.Get()), m.limit
}

// read calls f with the state, which f must not keep or change.
func (m *machine) read(f func(*fsm.Group)) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	f(m.state)
}
