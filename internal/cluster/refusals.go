package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/transport"
)

// A batch that a broker refuses for good stands in its partition's way. If any
// node's broker holds it, the node that is refused is at fault, and quarantines
// its copy. If every member's broker refuses it, and so none has anything from
// there on, the group's leader takes it out of the log again: nothing from there
// on was acknowledged. As long as one member cannot be asked, all wait.

const (
	refusalsEvery = 500 * time.Millisecond
	standsTimeout = 2 * time.Second
)

// standsQuery asks a node whether its broker has a batch. Pledge asks it to
// leave that as it is; Release takes the wish back.
type standsQuery struct {
	apply.Batch
	Pledge  bool `json:"pledge,omitempty"`
	Release bool `json:"release,omitempty"`
}

// refusalLoop settles what becomes of refused batches.
func (c *Cluster) refusalLoop(ctx context.Context) {
	t := time.NewTicker(refusalsEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		for _, r := range c.applier.Refusals() {
			c.settleRefusal(ctx, r)
		}
	}
}

func (c *Cluster) settleRefusal(ctx context.Context, r apply.Refusal) {
	q := standsQuery{Batch: r.Batch()}
	switch holder, all := c.survey(ctx, q); {
	case holder != 0 && r.Unexplained():
		// Its broker may be in a bad state as a whole, and others at the same
		// time: no copy is given up for that. It is tried again meanwhile.
		return
	case holder != 0:
		c.applier.QuarantineRefused(r.Batch(), fmt.Sprintf("offset %d: %s, and the broker of node %d holds it", r.Offset, r.String(), holder))
		return
	case !all:
		return
	}
	g := c.node.Group(r.Group)
	if g == nil || g.Leading.Get() == nil {
		return // the leader finds the same
	}
	q.Pledge = true
	if holder, all := c.survey(ctx, q); holder != 0 || !all {
		q.Pledge, q.Release = false, true
		c.survey(ctx, q)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	_, err := c.submit(ctx, r.Group, fsm.KindCut, fsm.Cut{TP: r.TP, Index: r.Index, Offset: r.Offset, Hash: r.Hash, Sequence: r.Sequence})
	if err != nil {
		c.log.Warn("a batch that every broker refuses could not be cut out yet", "topic", r.Topic, "partition", r.TP.Partition, "offset", r.Offset, "error", err)
		return
	}
	c.log.Warn("every broker refuses a committed batch: it is cut out of the log, and its producer is told so",
		"topic", r.Topic, "partition", r.TP.Partition, "group", r.Group, "offset", r.Offset, "code", r.Code, "message", r.Message)
}

// survey asks all members, this node included. It returns a node that holds the
// batch, 0 if none said so, and whether every one of them refuses it.
func (c *Cluster) survey(ctx context.Context, q standsQuery) (holder int32, all bool) {
	ctx, cancel := context.WithTimeout(ctx, standsTimeout)
	defer cancel()
	payload, err := json.Marshal(q)
	if err != nil {
		return 0, false
	}
	all = c.stands(c.cfg.Self, q) == apply.StandsRefused
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range c.everybody(q.TP) {
		if id == c.cfg.Self {
			continue
		}
		wg.Go(func() {
			var said string
			raw, err := c.node.Call(ctx, id, methodStands, payload)
			if err == nil {
				err = json.Unmarshal(raw, &said)
			}
			mu.Lock()
			defer mu.Unlock()
			all = all && err == nil && said == apply.StandsRefused
			if err == nil && said == apply.StandsHeld {
				holder = id
			}
		})
	}
	wg.Wait()
	return holder, all
}

func (c *Cluster) stands(asks int32, q standsQuery) string {
	if q.Release {
		c.applier.Unpledge(q.TP, asks)
	}
	if !q.Pledge {
		asks = 0
	}
	return c.applier.Stands(q.Batch, asks)
}

// heardStands answers methodStands.
func (c *Cluster) heardStands(_ context.Context, from transport.Hello, payload []byte) ([]byte, error) {
	var q standsQuery
	if err := json.Unmarshal(payload, &q); err != nil {
		return nil, fmt.Errorf("read a question for a batch: %w", err)
	}
	return json.Marshal(c.stands(from.NodeID, q))
}
