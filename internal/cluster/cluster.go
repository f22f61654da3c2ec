// Package cluster is what a node knows of the whole: who is there, who leads,
// what clients may be told. It also does the duties that come with leading:
// the catalog's leader opens and closes topics in the groups, every leader
// hands over when another node is better placed.
package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/internal/node"
	"lockstep/internal/watch"
)

// Applier is the way to the local broker, as this room needs it.
type Applier interface {
	Ready(tp fsm.TP, required int64) bool
	WhenVisible(tp fsm.TP, end int64, fn func(error))
	WhenBatchVisible(tp fsm.TP, end int64, at fsm.Place, fn func(error))
	WhenStarted(tp fsm.TP, offset int64, fn func(error))
	Conclude(group uint32, applied uint64)
	Status(group uint32) apply.GroupStatus
	Changes() *watch.Index

	Damaged() []apply.Damage
	Verified(ctx context.Context, topic uint64) []apply.PartitionProof
	Rebuild(ctx context.Context, topic uint64, force bool) error

	Refusals() []apply.Refusal
	QuarantineRefused(b apply.Batch, reason string) bool
	Stands(b apply.Batch, pledge int32) string
	Unpledge(tp fsm.TP, to int32)
}

// Config of a Cluster.
type Config struct {
	Self      int32
	ClusterID string
	Version   string
	Groups    uint32

	MaxBatchBytes int // a larger batch is refused before it is proposed

	// Broker reports on the local broker; any goroutine.
	Broker func() BrokerReport
	// BrokerChanged returns a channel that is closed at the next change.
	BrokerChanged func() <-chan struct{}

	// Recovery reports on logs, copies and what was found wrong; nil: nothing
	// is said. It is called four times a second, from one goroutine.
	Recovery func() RecoveryReport

	// AutoRebuild makes topics with quarantined partitions anew without an
	// order (recovery.rebuild: auto).
	AutoRebuild bool

	// ReplicationFactor is on how many nodes a rebalance places each group.
	ReplicationFactor int

	// ReapAfter is raft.reap_after: a member that nobody has heard of for so
	// long is taken out; 0: never.
	ReapAfter time.Duration

	// Lease is raft.leader_lease_timeout: if this process stood still for
	// half of it, what it leads is confirmed before it is served (default 400ms).
	Lease time.Duration

	// Foreign reads what the local broker holds that is not Lockstep's; nil:
	// nothing can be adopted.
	Foreign ForeignTopics
	// AutoAdopt has topics that need no choice adopted without an order
	// (topics.adopt: auto).
	AutoAdopt bool

	// GroupBroker is the local broker's consumer groups; nil: it has none.
	GroupBroker GroupBroker
	// OffsetsRetention is how long a group's offsets are kept after its last
	// commit and its last member, on the replicated clock; 0: seven days.
	OffsetsRetention time.Duration

	// AccessApplied is the revision of the catalog's ACLs and quotas that the
	// local broker has; nil: nobody waits for it.
	AccessApplied *watch.Index

	UnreachableAfter time.Duration // a leader hands over when its broker is away for longer
	RebalanceDelay   time.Duration // a leader returns home when its home was well for so long

	Logger hclog.Logger

	clock func() time.Time // time.Now, except in tests that suspend the process or set its clock wrong
	quiet time.Duration    // quietAfter, except in tests that do not wait for it

	adoptEvery time.Duration // adoptEvery, except in tests
}

// Cluster implements what the proxy asks of the node.
type Cluster struct {
	cfg     Config
	log     hclog.Logger
	node    *node.Node
	applier Applier
	roster  roster

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	boot      string        // names this process in its announcements
	began     time.Time     // when it did
	announced atomic.Uint64 // announcements made

	stopping  atomic.Bool
	changed   chan struct{}          // something to announce; capacity 1
	dirty     chan struct{}          // something to show; capacity 1
	mail      map[int32]*mailbox     // by peer; owned by announce
	committed []commitMarks          // by group; owned by announce
	view      watch.Value[*snapshot] // what clients are told, and how to route it
	caught    catalogMark            // owned by build
	shown     *shownTopics           // owned by build
	readiness readiness
	ids       producerIDs
	visible   visibility
	stages    stages
	rebuilds  rebuilds
	refusals  refusals
	awake     awake
	commits   committer
	reads     *barrier
	leads     map[uint32]*barrier // by group; fixed after Open
	offices   offices
	settles   settlements
}

// New returns a Cluster that does nothing until Open. It registers its peer
// calls, so the node must not be open yet.
func New(cfg Config, n *node.Node, a Applier) *Cluster {
	cfg.ReplicationFactor = cmp.Or(cfg.ReplicationFactor, defaultFactor)
	c := &Cluster{cfg: cfg, log: cfg.Logger.Named("cluster"), node: n, applier: a,
		boot: rand.Text(), began: time.Now(), roster: roster{news: make(map[int32]*Announcement)}, stages: newStages(), ids: newProducerIDs(), rebuilds: newRebuilds(),
		visible: visibility{waiting: make(map[uint32]map[*appending]struct{})},
		commits: committer{wake: make(chan struct{}, 1)}, readiness: readiness{known: make(map[uint32]*groupReadiness)}, reads: newBarrier(), leads: make(map[uint32]*barrier),
		changed: make(chan struct{}, 1), dirty: make(chan struct{}, 1), mail: make(map[int32]*mailbox), settles: settlements{at: make(map[uint32]uint64), marks: make(map[uint32]voteMark)}}
	c.awake.limit, c.awake.now = cmp.Or(cfg.Lease, defaultLease)/2, cfg.clock
	if cfg.clock == nil {
		c.awake.now = time.Now
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.view.Set(c.build())
	n.Handle(methodAnnounce, c.heard)
	n.Handle(methodStands, c.heardStands)
	n.Handle(methodVerified, c.heardVerified)
	n.Handle(methodReadIndex, c.heardReadIndex)
	c.handleAdoption()
	n.Handle(methodTransfer, c.heardTransfer)
	n.Handle(methodReach, c.heardReach)
	n.Handle(methodLeave, c.heardLeave)
	return c
}

// Open starts to announce, to watch and to do the duties.
func (c *Cluster) Open() {
	for _, g := range c.node.Groups() {
		c.run(func() { c.watchGroup(c.ctx, g) })
		b := newBarrier()
		c.leads[g.ID] = b
		c.run(func() { b.run(c.ctx, func(ctx context.Context) error { return c.confirmLeader(ctx, g) }) })
		c.run(func() { c.memberLoop(c.ctx, g) })
	}
	c.awake.begin()
	c.run(func() { c.watchAwake(c.ctx) })
	c.run(func() { c.watchBroker(c.ctx) })
	c.run(func() { c.watchApplier(c.ctx) })
	c.run(func() { c.announce(c.ctx) })
	c.run(func() { c.show(c.ctx) })
	c.run(func() { c.dutyLoop(c.ctx) })
	c.run(func() { c.balanceLoop(c.ctx) })
	c.run(func() { c.rebuildLoop(c.ctx) })
	c.run(func() { c.refusalLoop(c.ctx) })
	if c.cfg.Foreign != nil {
		c.run(func() { c.adoptLoop(c.ctx) })
	}
	c.run(func() { c.commitLoop(c.ctx) })
	c.run(func() { c.reads.run(c.ctx, c.followCatalog) })
	c.run(func() { c.coordinatorLoop(c.ctx) })
	c.run(func() { c.groupsLoop(c.ctx) })
}

// Close stops everything and returns when the goroutines are gone.
func (c *Cluster) Close() error {
	c.cancel()
	c.wg.Wait()
	return nil
}

func (c *Cluster) run(f func()) {
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		f()
	}()
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// tell asks for an announcement at once, poke for a new view.
func (c *Cluster) tell() { signal(c.changed) }
func (c *Cluster) poke() { signal(c.dirty) }

// watchGroup notices changes of leadership and of the set of partitions.
func (c *Cluster) watchGroup(ctx context.Context, g *node.Group) {
	for {
		leading, tookOffice := g.Leading.Changed()
		_, otherLeader := g.Leader.Changed()
		_, shape := g.ShapeChanged().Changed()
		_, catalog := g.CatalogChanged().Changed()
		if leading == nil { // lost before the channel was taken, maybe
			c.releaseStranded(g)
		}
		select {
		case <-tookOffice:
			c.tell()
			if l := g.Leading.Get(); l != nil && l != leading {
				c.whenServable(l)
			}
		case <-otherLeader:
		case <-shape:
			c.tell()
		case <-catalog:
		case <-ctx.Done():
			return
		}
		c.poke()
	}
}

// whenServable announces a partition as soon as the broker has what a new
// leader must have.
func (c *Cluster) whenServable(l *node.Leadership) {
	for tp, end := range l.Required {
		if !c.applier.Ready(tp, end) {
			c.applier.WhenVisible(tp, end, func(error) { c.tell() })
		}
	}
}

// watchBroker looks at the broker's state after every change of it; a change
// in between is not missed, because the channel is taken first.
func (c *Cluster) watchBroker(ctx context.Context) {
	for {
		changed := c.cfg.BrokerChanged()
		c.tell()
		for _, g := range c.node.Groups() {
			if g.Leading.Get() == nil {
				c.releaseStranded(g)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (c *Cluster) watchApplier(ctx context.Context) {
	for {
		_, changed := c.applier.Changes().Changed()
		select {
		case <-changed:
			c.tell()
		case <-ctx.Done():
			return
		}
	}
}

// show builds a new view whenever something it shows may have changed, and
// when an announcement expires.
func (c *Cluster) show(ctx context.Context) {
	expiry := time.NewTimer(lease)
	defer expiry.Stop()
	for {
		begin, settled := time.Now(), c.awake.settled()
		s := c.build()
		if !s.same(c.view.Get()) {
			c.view.Set(s)
		}
		c.awake.lift(settled)
		if !s.expires.IsZero() {
			expiry.Reset(time.Until(s.expires) + time.Millisecond)
		}
		if !rest(ctx, begin) {
			return
		}
		select {
		case <-c.dirty:
		case <-expiry.C:
		case <-ctx.Done():
			return
		}
	}
}

func roleName(s raft.RaftState) string {
	switch s {
	case raft.Leader:
		return "leader"
	case raft.Candidate:
		return "candidate"
	case raft.Follower:
		return "follower"
	default:
		return "down"
	}
}

// errClosing is returned to who asks while the node stops.
var errClosing = errors.New("the node is stopping")
