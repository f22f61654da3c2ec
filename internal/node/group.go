package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"lockstep/fsm"
	"lockstep/internal/watch"
	"lockstep/transport"
)

// applyQueueTimeout bounds how long an entry may wait to be taken up by Raft.
const applyQueueTimeout = 5 * time.Second

// Group is one Raft group on this node.
type Group struct {
	ID      uint32
	n       *Node
	log     hclog.Logger
	machine *machine
	keeper  *keeper
	disk    diskUse
	batcher *batcher

	// Leading is nil unless this node leads the group and is caught up.
	Leading watch.Value[*Leadership]
	// Leader is the node that this node believes to lead, 0 if none.
	Leader watch.Value[int32]
	words  leaderWords

	wg   sync.WaitGroup
	down chan struct{} // closed by stop when Raft is down

	mu     sync.Mutex // guards what follows; set by start
	raft   *raft.Raft
	trans  *transport.GroupTransport
	stores *stores
	barred bool // this node failed: it leads no more
	note   transferNote
}

func newGroup(n *Node, id uint32) *Group {
	g := &Group{ID: id, n: n, log: n.log.Named(fmt.Sprintf("raft.g%d", id)), down: make(chan struct{}),
		machine: newMachine(id, n.fail, n.ctx.Done())}
	g.keeper = newKeeper(g.log, n.cfg.Retention.SnapshotBytes, g.share(n.cfg.Retention.LogRetainBytes), g.share(n.cfg.Retention.LogLimitBytes))
	g.machine.log, g.machine.limit = g.log, g.keeper.limit
	g.batcher = newBatcher(n.cfg.EntryBytes, n.cfg.MaxInFlightEntries, g.dispatch)
	g.batcher.fates = &g.machine.fates
	g.batcher.hold = g.holdRecords
	g.batcher.waited = func(d time.Duration) { n.queued.Observe(d.Seconds()) }
	return g
}

// dispatch gives an entry to Raft and says in which term, 0 if that is not
// sure: Raft's main loop, which alone changes the term, takes an entry from the
// unbuffered channel and puts it into the log at one go, and terms only grow.
func (g *Group) dispatch(data []byte) (raft.ApplyFuture, uint64) {
	r := g.Raft()
	term := r.CurrentTerm()
	future := r.Apply(data, applyQueueTimeout)
	if r.CurrentTerm() != term {
		term = 0
	}
	return future, term
}

// holdRecords holds new records up while the log is over its limit, on a
// leader: elsewhere Raft turns them away, and who waits goes to the leader.
func (g *Group) holdRecords() (held bool, room, office <-chan struct{}) {
	full, room := g.keeper.full.Changed()
	leads, office := g.Leading.Changed()
	return full && leads != nil, room, office
}

// Raft returns the running instance, nil before the node is a member.
func (g *Group) Raft() *raft.Raft {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.raft
}

// Log returns the group's log for the applier. It may be read once Applied
// has grown.
func (g *Group) Log() *machine { return g.machine }

// Read calls f with the group's state machine, which f must neither keep nor
// change. Any goroutine may call it.
func (g *Group) Read(f func(*fsm.Group)) { g.machine.read(f) }

// CatalogChanged grows when the catalog changes (group 0).
func (g *Group) CatalogChanged() *watch.Index { return &g.machine.catalog }

// ShapeChanged grows when partitions are opened or closed.
func (g *Group) ShapeChanged() *watch.Index { return &g.machine.shape }

// Propose queues a command on this node's instance; see batcher.propose. Only
// a leader's proposals succeed.
func (g *Group) Propose(cmd fsm.Command, done func(fsm.Result, error)) {
	if g.Leading.Get() == nil {
		go done(fsm.Result{}, ErrNotLeader)
		return
	}
	g.batcher.propose(cmd, defaultPatience, done)
}

// ProposeFor is Propose for who wants to wait as long as patience, after
// leadership was lost, to hear what became of the command. withdraw gives up a
// command that is not yet on its way into the log; see batcher.propose.
func (g *Group) ProposeFor(cmd fsm.Command, patience time.Duration, done func(fsm.Result, error)) (withdraw func()) {
	if g.Leading.Get() == nil {
		go done(fsm.Result{}, ErrNotLeader)
		return func() {}
	}
	return g.batcher.propose(cmd, patience, done)
}

// VerifyLeader asks a majority whether this node still leads (ReadIndex, Raft
// section 6.4, without the log entry).
func (g *Group) VerifyLeader(ctx context.Context) error {
	r := g.Raft()
	if r == nil || g.Leading.Get() == nil {
		return ErrNotLeader
	}
	answered := make(chan error, 1)
	go func() { answered <- r.VerifyLeader().Error() }()
	select {
	case err := <-answered:
		if err != nil {
			return ErrNotLeader
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// confirmBackOff is the pause before a majority is asked again after an answer
// that said nothing (leadership is being handed over).
const confirmBackOff = 20 * time.Millisecond

// Confirm returns nil when a majority has confirmed, after the call, that this
// node leads the group, or when Leading says no more that it does. It commits
// an entry of Raft's own: what answers a heartbeat may have been sent before the
// call, and lain in a socket while this process was suspended.
func (g *Group) Confirm(ctx context.Context) error {
	for {
		r := g.Raft()
		if r == nil {
			return nil
		}
		if r.State() != raft.Leader {
			return g.outOfOffice(ctx)
		}
		answered := make(chan error, 1)
		go func() { answered <- r.Barrier(0).Error() }()
		select {
		case err := <-answered:
			if err == nil {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("confirm the leadership of group %d: %w", g.ID, context.Cause(ctx))
		}
		again := time.NewTimer(confirmBackOff)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return fmt.Errorf("confirm the leadership of group %d: %w", g.ID, context.Cause(ctx))
		}
	}
}

// outOfOffice waits until Leading does not show the office that Raft has left.
func (g *Group) outOfOffice(ctx context.Context) error {
	g.mu.Lock() // who takes office looks at Raft's state and tells it under this lock
	l, changed := g.Leading.Changed()
	g.mu.Unlock()
	if l == nil {
		return nil
	}
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("leave office in group %d: %w", g.ID, context.Cause(ctx))
	}
}

func (g *Group) raftConfig(notify chan<- bool) *raft.Config {
	c := raft.DefaultConfig()
	cfg := g.n.cfg
	c.LocalID = g.n.server()
	c.HeartbeatTimeout, c.ElectionTimeout = cfg.HeartbeatTimeout, cfg.ElectionTimeout
	c.LeaderLeaseTimeout, c.CommitTimeout = cfg.LeaseTimeout, cfg.CommitTimeout
	c.MaxAppendEntries = cfg.MaxAppendEntries
	c.ShutdownOnRemove = false
	c.NotifyCh = notify
	c.Logger = g.log
	c.NoLegacyTelemetry = true
	// Snapshots are asked for by bytes, and the store says what is cut.
	c.SnapshotThreshold = math.MaxUint64
	c.SnapshotInterval = 24 * time.Hour
	c.TrailingLogs = 1
	return c
}

func (g *Group) openStores() (*stores, error) { return g.openStoresWith(g.n.diskFailed) }

// openStoresWith opens the stores; fatal is told when the disk fails.
func (g *Group) openStoresWith(fatal func(error)) (*stores, error) {
	cfg, br := g.n.cfg, g.n.breakers
	c := storeConfig{dir: groupDir(cfg.DataDir, g.ID), kind: cfg.LogStore, segmentBytes: cfg.SegmentBytes,
		timeout: cfg.StoreTimeout, logger: g.log.Named("store"), fatal: fatal, retain: g.share(cfg.Retention.LogRetainBytes)}
	if br.log != nil {
		c.wrap = func(s raft.LogStore) raft.LogStore { return br.log(g.ID, s) }
	}
	if br.stable != nil {
		c.wrapStable = func(s raft.StableStore) raft.StableStore { return br.stable(g.ID, s) }
	}
	return openStores(c)
}

// share is this group's part of what all groups have together.
func (g *Group) share(total int64) int64 { return max(total/int64(g.n.cfg.Groups), 1) }

// prepare makes the stores of a node that has none: with the cluster's first
// configuration if it is among the founders, else empty, for the leader to
// fill. It is safe to do again until the identity says that this is a member.
func (g *Group) prepare(founders *raft.Configuration) error {
	s, err := g.openStores()
	if err != nil {
		return err
	}
	err = s.stable.Set([]byte(incarnationKey), []byte(g.n.identity.Incarnation))
	if err == nil && founders != nil {
		conf := g.raftConfig(nil)
		_, inmem := raft.NewInmemTransport(raft.ServerAddress(g.n.ownAddress()))
		err = raft.BootstrapCluster(conf, s.logs, s.stable, raft.NewDiscardSnapshotStore(), inmem, *founders)
	}
	if err != nil {
		err = fmt.Errorf("prepare group %d: %w", g.ID, err)
	}
	// A power cut must not leave an identity that speaks of stores whose
	// directories were never written.
	dir := groupDir(g.n.cfg.DataDir, g.ID)
	return errors.Join(err, s.close(), syncDir(dir), syncDir(filepath.Dir(dir)), syncDir(g.n.cfg.DataDir))
}

// wipe removes what a start that did not get through left behind. Only called
// before the identity says that this node is a member: nothing in it was ever
// voted on.
func (g *Group) wipe() error {
	if err := os.RemoveAll(groupDir(g.n.cfg.DataDir, g.ID)); err != nil {
		return fmt.Errorf("start group %d over: %w", g.ID, err)
	}
	return nil
}

// start opens what is on disk and joins the group.
func (g *Group) start(ctx context.Context) error {
	s, err := g.openStores()
	if err != nil {
		return err
	}
	if err := g.openWhole(s); err != nil {
		return errors.Join(err, s.close())
	}
	trans, err := g.n.transport.RaftTransport(g.ID, g.log, 0)
	if err != nil {
		return errors.Join(err, s.close())
	}
	g.keeper.attach(g.machine, s)
	notify := make(chan bool, 16)
	r, err := raft.NewRaft(g.raftConfig(notify), g.machine, raftLog{s.logs, s.guard}, s.stable, s.snaps, pipelining{trans})
	if err != nil {
		return errors.Join(fmt.Errorf("start raft group %d: %w", g.ID, err), trans.Close(), s.close())
	}
	g.mu.Lock()
	g.raft, g.trans, g.stores = r, trans, s
	g.mu.Unlock()
	changes := make(chan raft.Observation, 64)
	r.RegisterObserver(raft.NewObserver(changes, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	g.run(func() { g.batcher.run(ctx) })
	g.run(func() { g.watchLeading(ctx, notify) })
	g.run(func() { g.watchLeader(ctx, r, changes) })
	g.run(func() { g.keeper.run(ctx, r) })
	return nil
}

// openWhole opens the snapshots, and checks that what is on disk is all there.
func (g *Group) openWhole(s *stores) error {
	var wrap func(raft.SnapshotStore) raft.SnapshotStore
	if br := g.n.breakers.snaps; br != nil {
		wrap = func(s raft.SnapshotStore) raft.SnapshotStore { return br(g.ID, s) }
	}
	if err := s.openSnapshots(g.n.identity.Incarnation, g.log, wrap); err != nil {
		return err
	}
	return s.check(g.n.identity.Incarnation)
}

func (g *Group) run(f func()) {
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		f()
	}()
}

// stop ends the instance. The node's context has ended before, and nobody
// starts the group any more. Called once.
func (g *Group) stop() error {
	g.mu.Lock()
	r, trans, s := g.raft, g.trans, g.stores
	g.mu.Unlock()
	if r == nil {
		return nil
	}
	down := r.Shutdown()
	err := trans.Close()
	err = errors.Join(err, down.Error())
	close(g.down)
	g.wg.Wait()
	return errors.Join(err, s.close())
}
