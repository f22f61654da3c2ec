package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/transport"
)

// copyProof is what a node says of its copy of a topic.
type copyProof struct {
	node   int32
	proofs []apply.PartitionProof
	err    error
}

// othersComplete returns nil when a majority of the other nodes, or one of them
// if forced, has read its copy of the topic up to what is committed here now.
func (c *Cluster) othersComplete(ctx context.Context, d apply.Damage, force bool) error {
	if len(c.places()) > 0 {
		return c.placedComplete(ctx, d, force)
	}
	ends, err := c.ends(d.Topic)
	if err != nil {
		return err
	}
	members := c.node.Catalog().Voters()
	others := len(members) - 1
	need := others/2 + 1
	if force {
		need = 1
	}
	answers := make(chan copyProof, others)
	for _, id := range members {
		if id != c.cfg.Self {
			go func() { answers <- c.askProof(ctx, id, d.Topic, ends) }()
		}
	}
	complete, wrong := 0, 0
	var reasons []error
	for range others {
		a := <-answers
		switch why := a.err; {
		case why == nil:
			complete++
		default:
			reasons = append(reasons, fmt.Errorf("node %d: %w", a.node, why))
			if errors.Is(why, errIncomplete) {
				wrong++
			}
		}
	}
	switch {
	case complete >= need:
		return nil
	case others-wrong < need:
		c.freeze(d, errors.Join(reasons...).Error())
	default:
		c.rebuilds.set(d.Topic, d.Name, StageVerifying, errors.Join(reasons...).Error())
	}
	return fmt.Errorf("%d of %d other copies are complete, %d are needed: %w", complete, others, need, errors.Join(reasons...))
}

// errIncomplete says that a node's copy is not complete, and will not be soon.
var errIncomplete = errors.New("its copy is not complete")

// askProof asks a node until its copy is verified up to the given ends, or it
// says why it is not.
func (c *Cluster) askProof(ctx context.Context, id int32, topic uint64, ends map[int32]int64) copyProof {
	payload, err := json.Marshal(topic)
	for try := 0; err == nil; try++ {
		var raw []byte
		var proofs []apply.PartitionProof
		if raw, err = c.node.Call(ctx, id, methodVerified, payload); err != nil {
			break
		}
		if err = json.Unmarshal(raw, &proofs); err != nil {
			break
		}
		why, final := judge(proofs, ends)
		if why == nil || final || try == 20 {
			return copyProof{node: id, proofs: proofs, err: why}
		}
		select {
		case <-time.After(100 * time.Millisecond): // it has not applied as much as this node
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	return copyProof{node: id, err: err}
}

// judge compares what a node has verified with what is committed. final says
// that asking again at once is no use.
func judge(proofs []apply.PartitionProof, ends map[int32]int64) (why error, final bool) {
	by := make(map[int32]apply.PartitionProof)
	for _, p := range proofs {
		by[p.Partition] = p
	}
	for _, n := range slices.Sorted(maps.Keys(ends)) {
		p, ok := by[n]
		switch {
		case !ok:
			why = fmt.Errorf("partition %d: it does not have it yet", n)
		case !p.Ready:
			return fmt.Errorf("partition %d: %w: %s", n, errIncomplete, p.Reason), true
		case p.Verified < ends[n]:
			why = fmt.Errorf("partition %d: verified up to offset %d of %d", n, p.Verified, ends[n])
		}
	}
	return why, false
}

// ends are the log ends of a topic's partitions, as far as this node knows.
func (c *Cluster) ends(topic uint64) (map[int32]int64, error) {
	var groups []uint32
	c.node.Catalog().Read(func(g *fsm.Group) {
		if t := g.Catalog.Topics[topic]; t != nil && t.State != fsm.TopicDeleting {
			groups = t.Groups[:t.Opened]
		}
	})
	if len(groups) == 0 {
		return nil, errors.New("the catalog does not have the topic")
	}
	ends := make(map[int32]int64)
	for n, group := range groups {
		g := c.node.Group(group)
		if g == nil {
			return nil, fmt.Errorf("there is no group %d", group)
		}
		g.Read(func(s *fsm.Group) {
			ends[int32(n)] = 0
			if p := s.Partitions[fsm.TP{Topic: topic, Partition: int32(n)}]; p != nil {
				ends[int32(n)] = p.NextOffset
			}
		})
	}
	return ends, nil
}

// heardVerified answers methodVerified.
func (c *Cluster) heardVerified(ctx context.Context, _ transport.Hello, payload []byte) ([]byte, error) {
	var topic uint64
	if err := json.Unmarshal(payload, &topic); err != nil {
		return nil, fmt.Errorf("read a request for a proof: %w", err)
	}
	return json.Marshal(c.applier.Verified(ctx, topic))
}
