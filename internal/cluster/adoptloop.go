package cluster

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"
)

const (
	adoptEvery = 5 * time.Second
	// adoptAgain is how long a topic that could not be adopted is left alone.
	adoptAgain = time.Minute
)

// adoptLoop says once what the local broker holds from before, and, where that
// is wanted, has the catalog's leader adopt what needs no choice.
func (c *Cluster) adoptLoop(ctx context.Context) {
	t := time.NewTicker(cmp.Or(c.cfg.adoptEvery, adoptEvery))
	defer t.Stop()
	said := false
	auto := &autoAdopt{c: c, left: make(map[string]time.Time)}
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if !said && c.cfg.Broker().Up {
			said = c.sayForeign(ctx)
		}
		switch {
		case !c.cfg.AutoAdopt:
		case c.node.Catalog().Leading.Get() == nil:
			auto.before = nil // nothing is known of the time in between
		default:
			auto.look(ctx)
		}
	}
}

// sayForeign logs what the local broker holds that is not Lockstep's; it reports
// whether the broker could be asked.
func (c *Cluster) sayForeign(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, foreignTimeout)
	defer cancel()
	topics, err := c.cfg.Foreign.Foreign(ctx)
	if err != nil {
		return false
	}
	var names []string
	for i := range topics {
		if t := &topics[i]; !t.Empty() && c.catalogTopic(t.Name) == nil {
			names = append(names, t.Name)
		}
	}
	if len(names) > 0 {
		c.log.Warn("the broker holds topics that are not lockstep's: clients do not see them until they are adopted; `lockstep adopt` lists them",
			"topics", len(names), "first", names[0])
	}
	return true
}

// autoAdopt adopts topics without being asked. It belongs to adoptLoop's
// goroutine.
type autoAdopt struct {
	c      *Cluster
	before map[string]ForeignTopic // what the last look found
	left   map[string]time.Time    // topics that could not be adopted: when to try again
}

// look adopts the topics that one broker alone has, or several with the same
// records, if every broker was asked and nothing was written to them since the
// last look: somebody who still writes past Lockstep would have the copy
// quarantined.
func (a *autoAdopt) look(ctx context.Context) {
	r, err := a.c.Foreign(ctx)
	if err != nil || len(r.Silent) > 0 {
		a.before = nil
		return
	}
	before := a.before
	a.before = make(map[string]ForeignTopic, len(r.Topics))
	for _, t := range r.Topics {
		a.before[t.Name] = t
		if ctx.Err() != nil || t.State != CopySingle && t.State != CopySame || !t.still(before[t.Name]) || time.Now().Before(a.left[t.Name]) {
			continue
		}
		if _, err := a.c.Adopt(ctx, AdoptOrder{Topic: t.Name}); err != nil && ctx.Err() == nil {
			a.left[t.Name] = time.Now().Add(adoptAgain)
			a.c.log.Warn("a topic that brokers hold was not adopted", "topic", t.Name, "error", err)
		}
	}
	maps.DeleteFunc(a.left, func(name string, _ time.Time) bool { _, there := a.before[name]; return !there })
}

// still says whether the copies are what they were.
func (t *ForeignTopic) still(before ForeignTopic) bool {
	return slices.EqualFunc(t.Copies, before.Copies, func(x, y ForeignCopy) bool {
		return x.Node == y.Node && x.topic.UUID == y.topic.UUID && slices.Equal(x.topic.Partitions, y.topic.Partitions)
	})
}
