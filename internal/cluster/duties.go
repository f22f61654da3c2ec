package cluster

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"lockstep/fsm"
	"lockstep/proxy"
)

// The catalog's leader brings the groups to what the catalog says. It works
// from the level (what is, and what should be), never from an event, so that a
// leader that dies anywhere in between leaves nothing undone for the next.

const (
	// dutyEvery is the pause before something that did not work is tried again.
	dutyEvery = 250 * time.Millisecond
	// dutyWorkers topics are opened or closed at once.
	dutyWorkers = 32
	// submitTimeout bounds one step.
	submitTimeout = 5 * time.Second
	// coordinatorGrace is how long a coordinator may be away before its
	// groups move.
	coordinatorGrace = 2 * time.Second
)

func (c *Cluster) dutyLoop(ctx context.Context) {
	t := time.NewTicker(dutyEvery)
	defer t.Stop()
	tending := &tending{topics: make(map[uint64]struct{}), ended: make(chan struct{}, 1)}
	defer tending.wg.Wait()
	absent := make(map[int32]time.Time) // since when a node is not fit to coordinate
	dead := newReaper(c.cfg.ReapAfter)
	for {
		g := c.node.Catalog()
		_, changed := g.CatalogChanged().Changed()
		_, office := g.Leading.Changed()
		if g.Leading.Get() != nil {
			c.tendTopics(ctx, tending)
			c.tendCoordinators(ctx, absent)
			c.tendMembers(ctx)
			c.reap(ctx, dead)
		} else {
			clear(absent) // nothing is known of the time in between
			dead.forget()
		}
		select {
		case <-changed:
		case <-office:
		case <-tending.ended:
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// tending is which topics are being opened or closed just now. One that a
// group without a leader holds up does not hold up the others.
type tending struct {
	wg    sync.WaitGroup
	ended chan struct{} // one is through; capacity 1

	mu     sync.Mutex // guards what follows
	topics map[uint64]struct{}
}

// begin takes a topic on; false if it is in work or there are too many.
func (t *tending) begin(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, busy := t.topics[id]; busy || len(t.topics) >= dutyWorkers {
		return false
	}
	t.topics[id] = struct{}{}
	return true
}

func (t *tending) end(id uint64, ok bool) {
	t.mu.Lock()
	delete(t.topics, id)
	t.mu.Unlock()
	if ok {
		signal(t.ended) // there may be more to do; what failed waits for the ticker
	}
}

// level is the catalog at one moment.
type level struct {
	version uint64
	topics  []*fsm.CatalogTopic // that are not as they should be
	slots   []fsm.CoordinatorSlot
}

func (c *Cluster) readLevel() level {
	var l level
	c.node.Catalog().Read(func(g *fsm.Group) {
		// The applied index, not the catalog's version: a level is newer
		// than another if it was read from a longer log.
		l.version = g.Index
		l.slots = g.Catalog.Coordinators
		for _, t := range g.Catalog.Topics {
			if t.State != fsm.TopicLive || t.Configured < t.Revision {
				l.topics = append(l.topics, t)
			}
		}
	})
	slices.SortFunc(l.topics, func(a, b *fsm.CatalogTopic) int { return int(int64(a.ID) - int64(b.ID)) })
	return l
}

func (c *Cluster) tendTopics(ctx context.Context, work *tending) {
	l := c.readLevel()
	for _, t := range l.topics {
		if !work.begin(t.ID) {
			continue
		}
		work.wg.Go(func() {
			err := c.tendTopic(ctx, l.version, t)
			var ke *proxy.KafkaError
			stale := errors.As(err, &ke) && ke.Code == fsm.CodeStaleLevel
			work.end(t.ID, err == nil || stale)
			if err != nil && ctx.Err() == nil {
				c.log.Debug("a topic is not yet as the catalog wants it", "topic", t.Name, "state", t.State, "error", err)
			}
		})
	}
}

func (c *Cluster) tendTopic(ctx context.Context, version uint64, t *fsm.CatalogTopic) error {
	if t.State == fsm.TopicDeleting {
		return c.closeTopic(ctx, version, t)
	}
	if t.State == fsm.TopicOpening {
		if err := c.openTopic(ctx, version, t); err != nil {
			return err
		}
	}
	if t.Configured < t.Revision {
		return c.configureTopic(ctx, version, t)
	}
	return nil
}

// openTopic opens a topic's partitions in their groups, then says so.
func (c *Cluster) openTopic(ctx context.Context, version uint64, t *fsm.CatalogTopic) error {
	byGroup := make(map[uint32][]int32)
	for n := int(t.Opened); n < len(t.Groups); n++ {
		byGroup[t.Groups[n]] = append(byGroup[t.Groups[n]], int32(n))
	}
	err := c.inGroups(ctx, slices.Collect(maps.Keys(byGroup)), func(group uint32) (fsm.Kind, any) {
		kind := fsm.KindOpen
		if t.Adopted != nil {
			kind = fsm.KindOpenAdopted
		}
		return kind, fsm.Open{Level: version, Topic: t.ID, Name: t.Name, Total: int32(len(t.Groups)),
			Partitions: byGroup[group], Config: t.Config, Revision: t.Revision, Adopted: t.Adopted}
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	_, err = c.submit(ctx, fsm.CatalogGroup, fsm.KindTopicOpened, fsm.TopicOpened{Topic: t.ID, Partitions: int32(len(t.Groups))})
	return err
}

// configureTopic brings a topic's settings to every group that has it, then
// says so.
func (c *Cluster) configureTopic(ctx context.Context, version uint64, t *fsm.CatalogTopic) error {
	groups := slices.Compact(slices.Sorted(slices.Values(t.Groups)))
	err := c.inGroups(ctx, groups, func(uint32) (fsm.Kind, any) {
		return fsm.KindConfig, fsm.Config{Level: version, Topic: t.ID, Name: t.Name, Revision: t.Revision, Config: t.Config}
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	_, err = c.submit(ctx, fsm.CatalogGroup, fsm.KindTopicConfigured, fsm.TopicConfigured{Topic: t.ID, Revision: t.Revision})
	return err
}

// closeTopic closes a topic in every group that may have it, then frees its name.
func (c *Cluster) closeTopic(ctx context.Context, version uint64, t *fsm.CatalogTopic) error {
	groups := slices.Compact(slices.Sorted(slices.Values(t.Groups)))
	err := c.inGroups(ctx, groups, func(uint32) (fsm.Kind, any) {
		return fsm.KindClose, fsm.Close{Level: version, Topic: t.ID, Name: t.Name}
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	_, err = c.submit(ctx, fsm.CatalogGroup, fsm.KindTopicClosed, fsm.TopicClosed{Topic: t.ID})
	return err
}

// inGroups proposes one command to each group and returns the first error.
func (c *Cluster) inGroups(ctx context.Context, groups []uint32, cmd func(uint32) (fsm.Kind, any)) error {
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	errs := make(chan error, len(groups))
	for _, g := range groups {
		go func() {
			kind, body := cmd(g)
			_, err := c.submit(ctx, g, kind, body)
			errs <- err
		}()
	}
	var first error
	for range groups {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// tendCoordinators gives slots without a coordinator to the nodes that are fit
// and have the fewest.
func (c *Cluster) tendCoordinators(ctx context.Context, absent map[int32]time.Time) {
	news, _ := c.roster.fresh()
	load := make(map[int32]int) // of the fit
	members := c.staying(c.node.Catalog().Voters())
	for _, id := range members {
		if a := news[id]; a != nil && a.Broker.Up && !a.Stopping && a.Problem == "" {
			load[id] = 0
			delete(absent, id)
		} else if _, ok := absent[id]; !ok {
			absent[id] = time.Now()
		}
	}
	if len(load) == 0 {
		return
	}
	slots := c.readLevel().slots
	if len(slots) == 0 {
		slots = make([]fsm.CoordinatorSlot, fsm.CoordinatorSlots)
	}
	var move []int
	for i, s := range slots {
		if _, fit := load[s.Node]; fit {
			load[s.Node]++
		} else if since, ok := absent[s.Node]; s.Node == 0 || !slices.Contains(members, s.Node) || !ok || time.Since(since) > coordinatorGrace {
			move = append(move, i)
		}
	}
	if len(move) == 0 {
		return
	}
	if 2*len(load) <= len(members) {
		return // a minority cannot know better
	}
	var cmd fsm.AssignCoordinators
	fit := slices.Sorted(maps.Keys(load))
	for _, i := range move {
		to := slices.MinFunc(fit, func(a, b int32) int { return load[a] - load[b] })
		load[to]++
		cmd.Slots = append(cmd.Slots, fsm.SlotAssignment{Slot: i, Node: to, Epoch: slots[i].Epoch})
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	if _, err := c.submit(ctx, fsm.CatalogGroup, fsm.KindAssignCoordinators, cmd); err != nil {
		c.log.Debug("cannot assign coordinators yet", "error", err)
		return
	}
	c.log.Info("assigned group coordinators", "slots", len(move), "nodes", fit)
}
