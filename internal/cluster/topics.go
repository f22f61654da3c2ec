package cluster

import (
	"context"
	"errors"

	"lockstep/fsm"
	"lockstep/internal/node"
	"lockstep/proxy"
)

// submit proposes a control command at the group's leader and turns refusals
// into what a Kafka client understands.
func (c *Cluster) submit(ctx context.Context, group uint32, kind fsm.Kind, body any) (fsm.Result, error) {
	r, err := c.node.Submit(ctx, group, fsm.Control(kind, body))
	switch {
	case errors.Is(err, node.ErrNotLeader):
		return r, &proxy.KafkaError{Code: codeNotController, Message: "the catalog has no leader that can be reached"}
	case errors.Is(err, node.ErrStopped):
		return r, errClosing
	case err != nil:
		return r, &proxy.KafkaError{Code: codeTimedOut, Message: "it is not known whether the change was made"}
	case r.Verdict == fsm.Rejected:
		return r, &proxy.KafkaError{Code: r.Code, Message: r.Message}
	}
	return r, nil
}

// until waits until the view satisfies ok.
func (c *Cluster) until(ctx context.Context, ok func(*snapshot) bool) error {
	for {
		s, changed := c.view.Changed()
		if ok(s) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return &proxy.KafkaError{Code: codeTimedOut, Message: "the change was accepted but is not done in time"}
		case <-c.ctx.Done():
			return errClosing
		}
	}
}

// untilTopic waits until the view satisfies ok, or the topic is deleted. The
// view may still be older than the topic, so it is the catalog that is asked,
// and only once it has the topic.
func (c *Cluster) untilTopic(ctx context.Context, id uint64, ok func(*snapshot) bool) error {
	seen, gone := false, false
	err := c.until(ctx, func(s *snapshot) bool {
		c.node.Catalog().Read(func(g *fsm.Group) {
			t := g.Catalog.Topics[id]
			seen = seen || t != nil
			gone = seen && (t == nil || t.State == fsm.TopicDeleting)
		})
		return gone || ok(s)
	})
	if err == nil && gone {
		return &proxy.KafkaError{Code: codeUnknownTopic, Message: "the topic was deleted meanwhile"}
	}
	return err
}

// shown returns the topic of that id, nil if the view has none.
func (s *snapshot) shown(id uint64, name string) *proxy.Topic {
	if t := s.view.Topics[name]; t != nil && t.ID == id {
		return t
	}
	return nil
}

// CreateTopic implements proxy.Cluster.
func (c *Cluster) CreateTopic(ctx context.Context, spec proxy.TopicSpec) error {
	if err := c.guardName(ctx, spec.Name); err != nil {
		return err
	}
	r, err := c.submit(ctx, fsm.CatalogGroup, fsm.KindCreateTopic, fsm.CreateTopic{
		Name: spec.Name, Partitions: spec.Partitions, Groups: c.cfg.Groups, Config: spec.Config})
	if err != nil {
		return err
	}
	return c.untilTopic(ctx, r.Topic, func(s *snapshot) bool {
		t := s.shown(r.Topic, spec.Name)
		if t == nil || len(t.Partitions) < int(spec.Partitions) {
			return false
		}
		for _, p := range t.Partitions {
			if p.Leader < 0 {
				return false
			}
		}
		return true
	})
}

// DeleteTopic implements proxy.Cluster.
func (c *Cluster) DeleteTopic(ctx context.Context, name string) error {
	id := c.topicID(name)
	if id == 0 {
		return &proxy.KafkaError{Code: codeUnknownTopic, Message: "no such topic"}
	}
	if _, err := c.submit(ctx, fsm.CatalogGroup, fsm.KindDeleteTopic, fsm.DeleteTopic{Topic: id}); err != nil {
		return err
	}
	for {
		// The view hides the topic before its name is free again.
		_, changed := c.node.Catalog().CatalogChanged().Changed()
		if c.topicID(name) != id {
			return c.until(ctx, func(s *snapshot) bool { return s.shown(id, name) == nil })
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return &proxy.KafkaError{Code: codeTimedOut, Message: "the topic is being deleted"}
		case <-c.ctx.Done():
			return errClosing
		}
	}
}

// topicID looks a name up in the catalog, 0 if there is none.
func (c *Cluster) topicID(name string) uint64 {
	var id uint64
	c.node.Catalog().Read(func(g *fsm.Group) {
		if t := g.Catalog.TopicByName(name); t != nil {
			id = t.ID
		}
	})
	return id
}

// CreatePartitions implements proxy.Cluster.
func (c *Cluster) CreatePartitions(ctx context.Context, name string, total int32) error {
	id := c.topicID(name)
	if id == 0 {
		return &proxy.KafkaError{Code: codeUnknownTopic, Message: "no such topic"}
	}
	_, err := c.submit(ctx, fsm.CatalogGroup, fsm.KindCreatePartitions,
		fsm.CreatePartitions{Topic: id, Total: total, Groups: c.cfg.Groups})
	if err != nil {
		return err
	}
	return c.untilTopic(ctx, id, func(s *snapshot) bool {
		t := s.shown(id, name)
		return t != nil && len(t.Partitions) >= int(total)
	})
}
