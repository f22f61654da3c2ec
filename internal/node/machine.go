package node

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"lockstep/fsm"
	"lockstep/internal/failpoint"
	"lockstep/internal/watch"
)

// machine is a group's head: the state machine that Raft applies to. It hands
// nothing to the broker and never waits: the applier reads the log itself.
type machine struct {
	group   uint32
	fatal   func(error)
	stopped <-chan struct{}

	applied watch.Index // index of the last entry with commands that was applied
	shape   watch.Index // Shape of the group, for who caches the set of partitions
	catalog watch.Index // Version of the catalog
	rebased watch.Index // counts the snapshots of leaders that were installed

	mu    sync.RWMutex // guards state
	state *fsm.Group

	logs raft.LogStore // set before Raft starts
}

func newMachine(group uint32, fatal func(error), stopped <-chan struct{}) *machine {
	return &machine{group: group, state: fsm.NewGroup(group), fatal: fatal, stopped: stopped}
}

// Apply implements raft.FSM. It is called from Raft's FSM goroutine only. An
// entry that this build cannot read stops the node: Apply does not return
// before it does, so that nothing after the entry is applied.
func (m *machine) Apply(l *raft.Log) any {
	failpoint.Hit(failpoint.ApplyBefore)
	m.mu.Lock()
	results, err := m.state.Apply(l.Index, l.Data)
	shape := m.state.Shape
	var version uint64
	if c := m.state.Catalog; c != nil {
		version = c.Version
	}
	m.mu.Unlock()
	if err != nil {
		m.fatal(err)
		<-m.stopped
		return nil
	}
	m.applied.Set(l.Index)
	m.shape.Set(shape)
	m.catalog.Set(version)
	failpoint.Hit(failpoint.ApplyAfter)
	return results
}

// errNoSnapshots: the log is kept whole until a snapshot can carry what the
// applier needs to begin in the middle.
var errNoSnapshots = errors.New("snapshots are not taken: the raft log is kept whole")

// Snapshot implements raft.FSM. Raft is configured never to ask.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) { return nil, errNoSnapshots }

// Restore implements raft.FSM. No node ever sends a snapshot.
func (m *machine) Restore(r io.ReadCloser) error {
	return errors.Join(errNoSnapshots, r.Close())
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

// Base implements the applier's Log: the log is kept whole, so it is read from
// its beginning.
func (m *machine) Base() (*fsm.Group, error) { return fsm.NewGroup(m.group), nil }

// Trust implements the applier's Log.
func (m *machine) Trust(uint64, []byte) {}

// Gone implements the applier's Log.
func (m *machine) Gone(error) bool { return false }

// Bytes implements the applier's Log.
func (m *machine) Bytes() (held, limit int64) { return 0, 0 }

// read calls f with the state, which f must not keep or change.
func (m *machine) read(f func(*fsm.Group)) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	f(m.state)
}
