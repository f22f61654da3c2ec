package cluster

import (
	"context"

	"lockstep/fsm"
	"lockstep/proxy"
)

// TopicHere implements proxy.Cluster. The topic is made on the broker as a
// whole, so its first partition stands for it.
func (c *Cluster) TopicHere(ctx context.Context, topic *proxy.Topic) {
	here := make(chan struct{})
	c.applier.WhenVisible(fsm.TP{Topic: topic.ID}, 0, func(error) { close(here) })
	select {
	case <-here:
	case <-ctx.Done():
	case <-c.ctx.Done():
	}
}
