package cluster

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/proxy"
)

// GroupBroker is the local broker's side of consumer groups, as this room needs
// it. Any goroutine; each call may take as long as its context.
type GroupBroker interface {
	// OccupiedGroups returns the groups that have members.
	OccupiedGroups(ctx context.Context) ([]string, error)
	// EvictMembers removes every member of groups and returns how many there
	// were. They hear of it when they next ask for something, and join anew.
	// It is an error if the broker cannot say yet who is in a group.
	EvictMembers(ctx context.Context, groups []string) (int, error)
	// CommitOffsets commits for a group without members; broker.ErrGroupOccupied
	// if it has any. Partitions that the broker does not have are counted.
	CommitOffsets(ctx context.Context, group string, offsets []broker.TopicOffset) (missing int, err error)
}

const (
	// touchEvery is how often a coordinator says which of its groups have
	// members.
	touchEvery = 10 * time.Minute
	// quietAfter is how long a group counts as one with members after it was
	// last seen with any. Two coordinators that follow each other do not touch
	// it at the same minutes, and a broker may be away when it would be: the
	// last word may be older than twice touchEvery. Offsets are kept for so
	// much longer.
	quietAfter = 3 * touchEvery
	// expireEvery is how often the catalog's leader lets offsets expire.
	expireEvery = time.Minute
	// defaultOffsetsRetention is Kafka's offsets.retention.minutes.
	defaultOffsetsRetention = 7 * 24 * time.Hour
	// evictTimeout bounds one attempt to take slots over.
	evictTimeout = 30 * time.Second
)

// offices is which coordinator slots this node has taken over, and under which
// epoch: its broker holds no member from before.
type offices struct {
	mu    sync.Mutex
	taken [fsm.CoordinatorSlots]int64
}

func (o *offices) take(slot int, epoch int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.taken[slot] = epoch
}

// held returns by slot the epoch under which this node coordinates, 0 if it
// does not, or not yet.
func (o *offices) held(slots []fsm.CoordinatorSlot, self int32) []int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]int64, len(slots))
	for i, s := range slots {
		if s.Node == self && o.taken[i] == s.Epoch {
			out[i] = s.Epoch
		}
	}
	return out
}

// coordinatorLoop takes over the slots that the catalog gives to this node. Its
// broker may know their groups from an earlier time as coordinator, with
// members that have joined elsewhere since: what they still have of that time,
// a member id and a generation, must be worth nothing.
func (c *Cluster) coordinatorLoop(ctx context.Context) {
	retry := time.NewTimer(0)
	defer retry.Stop()
	warned := false
	for {
		_, changed := c.node.Catalog().CatalogChanged().Changed()
		broker := c.cfg.BrokerChanged()
		err := c.takeOffices(ctx)
		if err != nil {
			if !warned && ctx.Err() == nil {
				c.log.Warn("cannot coordinate consumer groups yet", "error", err, "next", "tried again until the broker answers")
			}
			retry.Reset(time.Second)
		}
		warned = err != nil
		select {
		case <-changed:
		case <-broker:
		case <-retry.C:
		case <-ctx.Done():
			return
		}
	}
}

// takeOffices takes over what is assigned to this node and not taken yet.
func (c *Cluster) takeOffices(ctx context.Context) error {
	slots := c.readLevel().slots
	held := c.offices.held(slots, c.cfg.Self)
	due := make(map[int]int64)
	for i, s := range slots {
		if s.Node == c.cfg.Self && held[i] == 0 {
			due[i] = s.Epoch
		}
	}
	if len(due) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, evictTimeout)
	defer cancel()
	if b := c.cfg.GroupBroker; b != nil {
		if err := c.evict(ctx, b, func(group string) bool { return due[proxy.GroupSlot(group, len(slots))] != 0 }); err != nil {
			return err
		}
	}
	for slot, epoch := range due {
		c.offices.take(slot, epoch)
	}
	c.poke()
	return nil
}

// evict empties the groups that are taken over, and that the broker lists or the
// catalog has offsets of: a broker that has just come up does not list what it
// has not read yet.
func (c *Cluster) evict(ctx context.Context, b GroupBroker, due func(group string) bool) error {
	groups, err := b.OccupiedGroups(ctx)
	if err != nil {
		return err
	}
	c.node.Catalog().Read(func(g *fsm.Group) {
		for name := range g.Catalog.Consumers {
			groups = append(groups, name)
		}
	})
	groups = slices.DeleteFunc(groups, func(group string) bool { return !due(group) })
	slices.Sort(groups)
	evicted, err := b.EvictMembers(ctx, slices.Compact(groups))
	if evicted > 0 {
		c.log.Info("removed members from before this node coordinated their groups", "members", evicted)
	}
	return err
}

// groupsLoop keeps the offsets of groups with members, and lets the others end.
func (c *Cluster) groupsLoop(ctx context.Context) {
	touch, expire := time.NewTicker(touchEvery), time.NewTicker(expireEvery)
	defer touch.Stop()
	defer expire.Stop()
	for {
		var err error
		select {
		case <-touch.C:
			err = c.touchGroups(ctx)
		case <-expire.C:
			err = c.expireOffsets(ctx)
		case <-ctx.Done():
			return
		}
		if err != nil && ctx.Err() == nil {
			c.log.Debug("cannot tend consumer groups now", "error", err)
		}
	}
}

// touchGroups tells the catalog which groups have members on this node's broker.
func (c *Cluster) touchGroups(ctx context.Context) error {
	if c.cfg.GroupBroker == nil || !c.cfg.Broker().Up {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, evictTimeout)
	defer cancel()
	occupied, err := c.cfg.GroupBroker.OccupiedGroups(ctx)
	if err != nil {
		return err
	}
	held := c.offices.held(c.readLevel().slots, c.cfg.Self)
	var a fsm.TouchGroups
	for _, group := range occupied {
		if len(held) > 0 && held[proxy.GroupSlot(group, len(held))] != 0 {
			a.Groups = append(a.Groups, []byte(group))
		}
	}
	for part := range slices.Chunk(a.Groups, 1000) {
		if _, err := c.submit(ctx, fsm.CatalogGroup, fsm.KindTouchGroups, fsm.TouchGroups{Groups: part}); err != nil {
			return err
		}
	}
	return nil
}

// expireOffsets lets the catalog forget, on its leader.
func (c *Cluster) expireOffsets(ctx context.Context) error {
	g := c.node.Catalog()
	if g.Leading.Get() == nil {
		return nil
	}
	some := false
	g.Read(func(s *fsm.Group) { some = len(s.Catalog.Consumers) > 0 })
	if !some {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	retention, quiet := cmp.Or(c.cfg.OffsetsRetention, defaultOffsetsRetention), cmp.Or(c.cfg.quiet, quietAfter)
	_, err := c.submit(ctx, fsm.CatalogGroup, fsm.KindExpireOffsets,
		fsm.ExpireOffsets{RetentionMs: (retention + quiet).Milliseconds(), QuietMs: quiet.Milliseconds()})
	return err
}

// readConsumers calls f with a catalog that has every commit that was
// acknowledged before the call, and every one proposed here. f must neither
// keep nor change it.
func (c *Cluster) readConsumers(ctx context.Context, f func(*fsm.Catalog)) error {
	if err := c.settled(ctx); err != nil {
		return err
	}
	if err := c.catalogUpToDate(ctx); err != nil {
		return err
	}
	c.node.Catalog().Read(func(g *fsm.Group) { f(g.Catalog) })
	return nil
}

// Committed implements proxy.ConsumerGroups.
func (c *Cluster) Committed(ctx context.Context, groups []string) (map[string][]proxy.CommittedOffset, error) {
	out := make(map[string][]proxy.CommittedOffset)
	err := c.readConsumers(ctx, func(cat *fsm.Catalog) {
		for _, name := range groups {
			g := cat.Consumers[name]
			if g == nil {
				continue
			}
			offsets := make([]proxy.CommittedOffset, 0, len(g.Offsets))
			for tp, o := range g.Offsets {
				offsets = append(offsets, proxy.CommittedOffset{Topic: cat.Topics[tp.Topic].Name, Partition: tp.Partition,
					Offset: o.Offset, Metadata: o.Metadata})
			}
			out[name] = offsets
		}
	})
	if err != nil {
		return nil, err
	}
	for _, offsets := range out {
		slices.SortFunc(offsets, func(a, b proxy.CommittedOffset) int {
			return cmp.Or(strings.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
		})
	}
	return out, nil
}

// CommittedGroups implements proxy.ConsumerGroups.
func (c *Cluster) CommittedGroups(ctx context.Context) ([]string, error) {
	var names []string
	err := c.readConsumers(ctx, func(cat *fsm.Catalog) {
		for name := range cat.Consumers {
			names = append(names, name)
		}
	})
	slices.Sort(names)
	return names, err
}
