package node

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"lockstep/internal/watch"
)

// warnAgain lies at least between two warnings that a log is over its limit: at
// the limit it may go to and fro several times a second.
const warnAgain = time.Minute

// keeper keeps a group's log bounded: it asks Raft for a snapshot whenever
// enough was applied, or enough of the log could be cut, since the last one,
// and holds new proposals up while the log of what the broker is not trusted
// with is over its limit. Raft itself would count entries, whatever their
// size, and look only every few minutes.
type keeper struct {
	log      hclog.Logger
	every    int64 // bytes between two snapshots
	retain   int64
	limit    int64
	machine  *machine
	snaps    *snapshotStore
	disk     *guardedLog
	applied  atomic.Int64  // bytes since the last snapshot
	due      chan struct{} // capacity 1
	measured sync.Mutex    // held while full is set; guards what was warned of
	warned   bool
	warnedAt time.Time
	full     watch.Value[bool]
	incoming atomic.Uint64 // index of a leader's snapshot that is on disk and not restored yet
}

func newKeeper(log hclog.Logger, every, retain, limit int64) *keeper {
	return &keeper{log: log, every: every, retain: retain, limit: limit, due: make(chan struct{}, 1)}
}

// attach connects the stores and the state machine; before Raft starts.
func (k *keeper) attach(m *machine, s *stores) {
	k.machine, k.snaps, k.disk = m, s.snaps, s.disk
	m.logs, m.incarnation = s.logs, s.snaps.incarnation
	m.disk.Store(s.disk)
	m.news = k.heard
	m.fresh = func() uint64 { return k.incoming.Swap(0) }
	s.snaps.installed = k.incoming.Store
	s.disk.grown = k.measure
}

// heard is told what was applied, or that the tail moved. It never waits.
func (k *keeper) heard(bytes int) {
	if bytes == 0 {
		k.measure()
	}
	if k.applied.Add(int64(bytes)) < k.every && (bytes > 0 || k.idle() < k.every) {
		return
	}
	select {
	case k.due <- struct{}{}:
	default:
	}
}

// idle is how much of the log a snapshot with today's tail would let go.
func (k *keeper) idle() int64 {
	total := k.disk.sizes.total()
	return total - max(k.disk.sizes.after(k.machine.moved.Get()), k.retain)
}

// measure opens and closes the way for proposals.
func (k *keeper) measure() {
	k.measured.Lock()
	defer k.measured.Unlock()
	held, limit := k.machine.Bytes()
	was := k.full.Get()
	// Not to and fro at the limit.
	if full := held > limit || was && held > limit-limit/8; full != was {
		if now := time.Now(); full && now.Sub(k.warnedAt) >= warnAgain {
			k.warned, k.warnedAt = true, now
			k.log.Warn("the raft log is over its limit: new records wait until the broker has what is committed on its disk",
				"held", held, "limit", limit, "tail", k.machine.moved.Get())
		} else if !full && k.warned {
			k.warned = false
			k.log.Info("the raft log is below its limit again", "held", held, "limit", limit)
		}
		k.full.Set(full)
	}
}

// run takes snapshots until the context ends.
func (k *keeper) run(ctx context.Context, r *raft.Raft) {
	failing := false
	for {
		select {
		case <-k.due:
		case <-ctx.Done():
			return
		}
		k.applied.Store(0)
		err := r.Snapshot().Error()
		switch {
		case err == nil:
			failing = false
		case errors.Is(err, raft.ErrNothingNewToSnapshot), errors.Is(err, raft.ErrRaftShutdown), failing:
		default:
			failing = true
			k.log.Warn("cannot take a snapshot; tried again with the next one that is due", "error", err)
		}
	}
}

// Room returns when the group's log may grow, or the context's error. A
// leader lets nothing new in before: what is committed must stay in the log
// until the broker has it on its disk, and the log must end somewhere. Any
// goroutine may call it.
func (g *Group) Room(ctx context.Context) error {
	for {
		full, changed := g.keeper.full.Changed()
		if !full {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// RoomChanged says whether the log is over its limit, and returns a channel
// that is closed when that changes.
func (g *Group) RoomChanged() (full bool, changed <-chan struct{}) { return g.keeper.full.Changed() }
