package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lockstep/internal/apply"
)

// placedComplete is othersComplete where no two nodes need hold the same
// partitions: each partition that this node holds must be complete on a
// majority of the others that vote in its group, or on one of them if forced.
func (c *Cluster) placedComplete(ctx context.Context, d apply.Damage, force bool) error {
	ends, err := c.ends(d.Topic)
	if err != nil {
		return err
	}
	on := make(map[int32][]int32)          // other nodes by partition
	ask := make(map[int32]map[int32]int64) // ends by node and partition
	for partition, end := range ends {
		g := c.groupOf(d.Topic, partition)
		if g == nil || c.Away(g) {
			continue
		}
		on[partition] = nil
		for _, id := range g.Voters() {
			if id == c.cfg.Self {
				continue
			}
			on[partition] = append(on[partition], id)
			if ask[id] == nil {
				ask[id] = make(map[int32]int64)
			}
			ask[id][partition] = end
		}
	}
	answers := make(chan copyProof, len(ask))
	for id, ends := range ask {
		go func() { answers <- c.askProof(ctx, id, d.Topic, ends) }()
	}
	complete := make(map[int32]bool)
	var reasons []error
	for range ask {
		if a := <-answers; a.err != nil {
			reasons = append(reasons, fmt.Errorf("node %d: %w", a.node, a.err))
		} else {
			complete[a.node] = true
		}
	}
	for partition, others := range on {
		have, need := 0, len(others)/2+1
		if force {
			need = 1
		}
		for _, id := range others {
			if complete[id] {
				have++
			}
		}
		if have < need {
			err := errors.Join(reasons...)
			c.rebuilds.set(d.Topic, d.Name, StageVerifying, fmt.Sprintf("partition %d: %d of %d other copies are complete, %d are needed: %v", partition, have, len(others), need, err))
			return fmt.Errorf("partition %d: %d of %d other copies are complete, %d are needed: %w", partition, have, len(others), need, err)
		}
	}
	return nil
}

// heldDamage drops what concerns partitions that this node does not hold: what
// its broker has of them is kept as it is.
func (c *Cluster) heldDamage(all []apply.Damage) []apply.Damage {
	if len(c.places()) == 0 {
		return all
	}
	return slices.DeleteFunc(all, func(d apply.Damage) bool {
		return !d.Begun && !slices.ContainsFunc(d.Partitions, func(p apply.PartitionStatus) bool {
			g := c.groupOf(p.TopicID, p.Partition)
			return g == nil || !c.Away(g)
		})
	})
}
