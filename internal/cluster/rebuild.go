package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/internal/failpoint"
	"lockstep/proxy"
)

// A quarantined partition comes back by a rebuild: its topic is deleted on this
// node's broker and copied again from the others'. The catalog's lease lets one
// node at a time do that to a topic, and this node begins only when a majority
// of the others has read its own copy through and found it complete. If they
// have not, nothing is touched: the partition stays quarantined, and if no
// majority is left to wait for, an operator decides.

const (
	methodStands   = methodAnnounce + 2 // what stands at an offset; see refusals.go
	methodVerified = methodAnnounce + 3

	rebuildEvery = 500 * time.Millisecond
	// rebuildTimeout bounds one try, with the others' reading of their copies.
	// What they read is not lost: they go on with it at the next try.
	rebuildTimeout = 10 * time.Minute

	minRebuildPause = time.Second
	maxRebuildPause = 30 * time.Second
)

// The stages of a rebuild, as status shows them.
const (
	StageOrder     = "waits for an order"
	StageLease     = "waits for the lease"
	StageVerifying = "waits for the others' copies to be verified"
	StageFrozen    = "frozen"
	StageRemaking  = "topic is being made anew"
	StageCopying   = "copying"
)

// ErrNoDamage is returned when a topic is to be rebuilt that has no quarantined
// partition on this node.
var ErrNoDamage = errors.New("the topic has no quarantined partition on this node")

// RebuildStatus is how far the rebuild of a topic on this node is.
type RebuildStatus struct {
	Topic   string    `json:"topic"`
	TopicID uint64    `json:"topic_id"`
	Stage   string    `json:"stage"`
	Reason  string    `json:"reason,omitempty"`
	Since   time.Time `json:"since"`
}

// rebuilds is what is to be made anew on this node.
type rebuilds struct {
	wake chan struct{} // capacity 1

	mu     sync.Mutex      // guards what follows
	orders map[uint64]bool // topics that an operator wants rebuilt; true: by force
	stages map[uint64]RebuildStatus
}

func newRebuilds() rebuilds {
	return rebuilds{wake: make(chan struct{}, 1), orders: make(map[uint64]bool), stages: make(map[uint64]RebuildStatus)}
}

// set notes a stage; it reports whether that is news.
func (r *rebuilds) set(topic uint64, name, stage, reason string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.stages[topic]
	if old.Stage == stage && old.Reason == reason {
		return false
	}
	since := time.Now()
	if old.Stage == stage {
		since = old.Since
	}
	r.stages[topic] = RebuildStatus{Topic: name, TopicID: topic, Stage: stage, Reason: reason, Since: since}
	return old.Stage != stage
}

// verifying notes that the others are asked, unless what they said last holds
// until they say something else.
func (r *rebuilds) verifying(topic uint64, name string) {
	r.mu.Lock()
	frozen := r.stages[topic].Stage == StageFrozen
	r.mu.Unlock()
	if !frozen {
		r.set(topic, name, StageVerifying, "")
	}
}

func (r *rebuilds) forget(topic uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.stages, topic)
	delete(r.orders, topic)
}

func (r *rebuilds) order(topic uint64) (force, ordered bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	force, ordered = r.orders[topic]
	return force, ordered
}

// Rebuilds reports on the topics that are made anew on this node, or should be.
// Any goroutine.
func (c *Cluster) Rebuilds() []RebuildStatus {
	c.rebuilds.mu.Lock()
	defer c.rebuilds.mu.Unlock()
	out := slices.Collect(maps.Values(c.rebuilds.stages))
	slices.SortFunc(out, func(a, b RebuildStatus) int { return int(int64(a.TopicID) - int64(b.TopicID)) })
	return out
}

// Rebuild orders that a topic with quarantined partitions is made anew on this
// node, whether or not that happens by itself here. It returns at once; Rebuilds
// says how it goes. force is content with a single other node whose copy is
// complete, and lets a topic with records go that Lockstep did not make. Any
// goroutine.
func (c *Cluster) Rebuild(topic string, force bool) error {
	for _, d := range c.applier.Damaged() {
		if d.Name != topic {
			continue
		}
		c.rebuilds.mu.Lock()
		c.rebuilds.orders[d.Topic] = force
		c.rebuilds.mu.Unlock()
		signal(c.rebuilds.wake)
		return nil
	}
	return fmt.Errorf("rebuild topic %s: %w", topic, ErrNoDamage)
}

// retry is when a topic is tried again.
type retry struct {
	at    time.Time
	pause time.Duration
}

// tried is the outcome of one try.
type tried struct {
	d   apply.Damage
	err error
}

// rebuildLoop rebuilds one topic after the other. A try may take long, because
// the others read their copies: leases are given back meanwhile.
func (c *Cluster) rebuildLoop(ctx context.Context) {
	t := time.NewTicker(rebuildEvery)
	defer t.Stop()
	retries := make(map[uint64]retry)
	done := make(chan tried, 1)
	trying := false
	for {
		select {
		case <-t.C:
		case <-c.rebuilds.wake:
			clear(retries)
		case end := <-done:
			trying = false
			c.noteTry(end, retries)
		case <-ctx.Done():
			return
		}
		damaged := c.heldDamage(c.applier.Damaged())
		c.endRebuilds(ctx, damaged)
		for _, d := range damaged {
			force, due := c.rebuildDue(d, retries)
			if !due || trying || ctx.Err() != nil {
				continue
			}
			trying = true
			c.run(func() {
				try, cancel := context.WithTimeout(ctx, rebuildTimeout)
				defer cancel()
				done <- tried{d, c.rebuild(try, d, force)}
			})
		}
	}
}

// leases are the topics whose lease this node has.
func (c *Cluster) leases() map[uint64]*fsm.CatalogTopic {
	out := make(map[uint64]*fsm.CatalogTopic)
	c.node.Catalog().Read(func(g *fsm.Group) {
		for id, node := range g.Catalog.Rebuilds {
			if node == c.cfg.Self {
				out[id] = g.Catalog.Topics[id]
			}
		}
	})
	return out
}

// endRebuilds gives the leases back of topics that are whole again, and forgets
// what is not damaged any more.
func (c *Cluster) endRebuilds(ctx context.Context, damaged []apply.Damage) {
	still := make(map[uint64]bool)
	for _, d := range damaged {
		still[d.Topic] = true
	}
	leases := c.leases()
	for _, s := range c.Rebuilds() {
		if _, mine := leases[s.TopicID]; !mine && !still[s.TopicID] {
			c.rebuilds.forget(s.TopicID)
		}
	}
	for id, t := range leases {
		if t == nil || still[id] {
			continue
		}
		if lacks := c.lacks(t); lacks > 0 {
			c.rebuilds.set(id, t.Name, StageCopying, fmt.Sprintf("%d of %d partitions are not complete yet", lacks, t.Opened))
			continue
		}
		if c.endLease(ctx, id) {
			c.log.Info("the topic is complete again on this node's broker: gave its lease back", "topic", t.Name)
			c.rebuilds.forget(id)
		}
	}
}

// lacks counts a topic's partitions that this node's broker does not serve.
func (c *Cluster) lacks(t *fsm.CatalogTopic) int {
	n := 0
	for p := range t.Opened {
		if !c.applier.Ready(fsm.TP{Topic: t.ID, Partition: p}, 0) {
			n++
		}
	}
	return n
}

func (c *Cluster) endLease(ctx context.Context, topic uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	failpoint.Hit(failpoint.LeaseBack)
	_, err := c.submit(ctx, fsm.CatalogGroup, fsm.KindEndRebuild, fsm.EndRebuild{Topic: topic, Node: c.cfg.Self})
	return err == nil
}

// rebuildDue says whether a damaged topic is to be tried now.
func (c *Cluster) rebuildDue(d apply.Damage, retries map[uint64]retry) (force, due bool) {
	force, ordered := c.rebuilds.order(d.Topic)
	if !c.cfg.AutoRebuild && !ordered && !d.Begun {
		if c.rebuilds.set(d.Topic, d.Name, StageOrder, "recovery.rebuild is manual") {
			c.log.Warn("a topic with quarantined partitions waits for an order to rebuild it", "topic", d.Name, "quarantined", len(d.Partitions))
		}
		return false, false
	}
	return force, !time.Now().Before(retries[d.Topic].at)
}

// noteTry notes how a try ended, and when there is another.
func (c *Cluster) noteTry(end tried, retries map[uint64]retry) {
	id := end.d.Topic
	if end.err == nil {
		delete(retries, id)
		c.rebuilds.mu.Lock()
		delete(c.rebuilds.orders, id)
		c.rebuilds.mu.Unlock()
		c.rebuilds.set(id, end.d.Name, StageCopying, "")
		return
	}
	r := retries[id]
	r.pause = min(max(2*r.pause, minRebuildPause), maxRebuildPause)
	r.at = time.Now().Add(r.pause)
	retries[id] = r
	c.log.Debug("a rebuild is not done yet", "topic", end.d.Name, "reason", end.err, "again-in", r.pause)
}

// rebuild takes the lease, sees that the others are complete and makes the
// topic anew. Unless the old copy is gone, the lease goes back if that fails:
// the lease comes first, so that no two nodes take each other's copy for the
// one that stays.
func (c *Cluster) rebuild(ctx context.Context, d apply.Damage, force bool) error {
	take, cancel := context.WithTimeout(ctx, submitTimeout)
	_, err := c.submit(take, fsm.CatalogGroup, fsm.KindTakeRebuild, fsm.TakeRebuild{Topic: d.Topic, Node: c.cfg.Self})
	cancel()
	if err != nil {
		var ke *proxy.KafkaError
		if errors.As(err, &ke) && ke.Code == fsm.CodeBusy {
			c.rebuilds.set(d.Topic, d.Name, StageLease, ke.Message)
			if force {
				return errors.Join(err, c.breakLease(ctx, d))
			}
		}
		return err
	}
	failpoint.Hit(failpoint.LeaseTaken)
	if !d.Begun {
		c.rebuilds.verifying(d.Topic, d.Name)
		if err := c.othersComplete(ctx, d, force); err != nil {
			return errors.Join(err, c.giveBack(ctx, d.Topic))
		}
	}
	c.rebuilds.set(d.Topic, d.Name, StageRemaking, "")
	if err := c.applier.Rebuild(ctx, d.Topic, force); err != nil {
		if errors.Is(err, apply.ErrNotOurs) {
			c.freeze(d, err.Error())
		}
		for _, now := range c.applier.Damaged() {
			if now.Topic == d.Topic && !now.Begun {
				return errors.Join(err, c.giveBack(ctx, d.Topic))
			}
		}
		return err
	}
	return nil
}

// breakLease ends the lease of a node that is not heard of, by an operator's
// order: it may be in the middle of a rebuild, and never come back. The next
// try takes the lease.
func (c *Cluster) breakLease(ctx context.Context, d apply.Damage) error {
	var holder int32
	c.node.Catalog().Read(func(g *fsm.Group) { holder = g.Catalog.Rebuilds[d.Topic] })
	news, _ := c.roster.fresh()
	if holder == 0 || holder == c.cfg.Self || news[holder] != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	if _, err := c.submit(ctx, fsm.CatalogGroup, fsm.KindEndRebuild, fsm.EndRebuild{Topic: d.Topic, Node: holder}); err != nil {
		return err
	}
	c.log.Warn("broke the lease of a node that is not heard of: it has no complete copy of the topic, perhaps", "topic", d.Name, "node", holder)
	return nil
}

func (c *Cluster) giveBack(ctx context.Context, topic uint64) error {
	if !c.endLease(context.WithoutCancel(ctx), topic) {
		return errors.New("the lease could not be given back yet")
	}
	return nil
}

// freeze notes that nothing can be done without an operator.
func (c *Cluster) freeze(d apply.Damage, why string) {
	if c.rebuilds.set(d.Topic, d.Name, StageFrozen, why) {
		c.log.Error("a quarantined topic is left as it is: look at the other nodes' copies (lockstep verify), and rebuild by force if one of them is right",
			"topic", d.Name, "reason", why)
	}
}
