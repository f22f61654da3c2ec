package cluster

import (
	"context"
	"errors"
	"maps"

	"lockstep/fsm"
	"lockstep/proxy"
)

// AlterTopicConfig implements proxy.Cluster. A change that was made of settings
// that somebody changed meanwhile is made again of the new ones.
func (c *Cluster) AlterTopicConfig(ctx context.Context, name string, change func(map[string]string) (map[string]string, error)) error {
	for {
		_, news := c.node.Catalog().CatalogChanged().Changed()
		t := c.catalogTopic(name)
		if t == nil {
			return &proxy.KafkaError{Code: codeUnknownTopic, Message: "no such topic"}
		}
		config := make(map[string]string, len(t.Config))
		maps.Copy(config, t.Config)
		config, err := change(config)
		if err != nil {
			return err
		}
		if maps.Equal(config, t.Config) {
			return c.untilConfigured(ctx, t.ID, t.Revision)
		}
		_, err = c.submit(ctx, fsm.CatalogGroup, fsm.KindAlterTopicConfig,
			fsm.AlterTopicConfig{Topic: t.ID, Revision: t.Revision, Config: config})
		var ke *proxy.KafkaError
		switch {
		case err == nil:
			return c.untilConfigured(ctx, t.ID, t.Revision+1)
		case !errors.As(err, &ke) || ke.Code != fsm.CodeStaleRevision:
			return err
		}
		select {
		case <-news: // this node did not know of the change that came before
		case <-ctx.Done():
			return &proxy.KafkaError{Code: codeTimedOut, Message: "others change the topic's settings all the time"}
		case <-c.ctx.Done():
			return errClosing
		}
	}
}

// catalogTopic returns the topic of a name, nil if there is none.
func (c *Cluster) catalogTopic(name string) (t *fsm.CatalogTopic) {
	c.node.Catalog().Read(func(g *fsm.Group) {
		if t = g.Catalog.TopicByName(name); t != nil && t.State == fsm.TopicDeleting {
			t = nil
		}
	})
	return t
}

// untilConfigured waits until the groups have a topic's settings and clients of
// this node are served by them.
func (c *Cluster) untilConfigured(ctx context.Context, id, revision uint64) error {
	return c.untilTopic(ctx, id, func(s *snapshot) (done bool) {
		c.node.Catalog().Read(func(g *fsm.Group) {
			t := g.Catalog.Topics[id]
			done = t != nil && t.Configured >= revision && s.topics.from.version >= g.Catalog.Version
		})
		return done
	})
}
