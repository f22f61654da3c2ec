package cluster

import (
	"context"

	"lockstep/internal/node"
	"lockstep/proxy"
)

// Confirmed implements proxy.Cluster. A leader's broker has everything that was
// acknowledged by it, before it said so, and by the leaders before it, before it
// was announced; so its log is as new as any answer if it still leads.
func (c *Cluster) Confirmed(ctx context.Context, partitions []proxy.TopicPartition) []bool {
	verdicts := make(map[*barrier]chan error)
	asked := make([]chan error, len(partitions))
	for i, p := range partitions {
		g := c.groupOf(p.Topic, p.Partition)
		if g == nil {
			continue
		}
		b := c.leads[g.ID]
		if verdicts[b] == nil {
			verdict := make(chan error, 1)
			verdicts[b] = verdict
			go func() { verdict <- b.wait(ctx, c.ctx.Done()) }()
		}
		asked[i] = verdicts[b]
	}
	confirmed := make(map[chan error]bool, len(verdicts))
	for _, verdict := range verdicts {
		confirmed[verdict] = <-verdict == nil
	}
	out := make([]bool, len(partitions))
	for i, verdict := range asked {
		out[i] = verdict != nil && confirmed[verdict]
	}
	return out
}

// confirmLeader asks a majority whether this node leads a group. After a
// suspension Raft may take answers from before it for a confirmation.
func (c *Cluster) confirmLeader(ctx context.Context, g *node.Group) error {
	ctx, cancel := context.WithTimeout(ctx, readIndexTimeout)
	defer cancel()
	if err := g.VerifyLeader(ctx); err != nil {
		return err
	}
	if !c.awake.believed() {
		return node.ErrNotLeader
	}
	return nil
}
