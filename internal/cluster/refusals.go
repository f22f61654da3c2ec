package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/internal/node"
	"lockstep/proxy"
	"lockstep/transport"
)

// A batch that a broker refuses for good stands in its partition's way. If any
// node's broker holds it, the node that is refused is at fault, and quarantines
// its copy. If every member's broker refuses it, or was never given it, and so none
// has anything from there on, the group's leader takes it out of the log again:
// nothing from there on was acknowledged. As long as one member cannot be asked,
// all wait.

const (
	refusalsEvery = 500 * time.Millisecond
	standsTimeout = 2 * time.Second

	// hearsayHolds is how long a leader believes another node's word on what that
	// one's broker refuses: it is told every round.
	hearsayHolds = 5 * time.Second
)

// standsQuery asks a node whether its broker has a batch. Pledge asks it to
// leave that as it is; Release takes the wish back. Refusal says that the asking
// node's broker refuses it: a leader whose own was never given it must know.
type standsQuery struct {
	apply.Batch
	Pledge  bool           `json:"pledge,omitempty"`
	Release bool           `json:"release,omitempty"`
	Refusal *apply.Refusal `json:"refusal,omitempty"`
}

// refusals is what this node has to do with refused batches. Its maps are by
// partition, and hold one batch each: nothing behind it reaches a broker.
type refusals struct {
	mu    sync.Mutex // guards what follows
	heard map[fsm.TP]hearsay
	cuts  map[fsm.TP]apply.Batch // of which this node has proposed a cut, and does not know what became of it
}

type hearsay struct {
	apply.Refusal
	at time.Time
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
		own := c.applier.Refusals()
		for _, r := range own {
			c.settleRefusal(ctx, r, standsQuery{Batch: r.Batch(), Refusal: &r})
		}
		for _, r := range c.refusals.hearsay(own) {
			c.settleRefusal(ctx, r, standsQuery{Batch: r.Batch()}) // what was heard is not passed on
		}
	}
}

// hear takes another node's word.
func (rs *refusals) hear(r apply.Refusal) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.heard == nil {
		rs.heard = make(map[fsm.TP]hearsay)
	}
	rs.heard[r.TP] = hearsay{r, time.Now()}
}

// hearsay is what others said lately, of partitions where this node's own broker
// refuses nothing.
func (rs *refusals) hearsay(own []apply.Refusal) (out []apply.Refusal) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for tp, h := range rs.heard {
		switch {
		case time.Since(h.at) > hearsayHolds:
			delete(rs.heard, tp)
		case !slices.ContainsFunc(own, func(r apply.Refusal) bool { return r.TP == tp }):
			out = append(out, h.Refusal)
		}
	}
	return out
}

// proposed notes that a cut of a batch may be on its way into the log.
func (rs *refusals) proposed(b apply.Batch) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.cuts == nil {
		rs.cuts = make(map[fsm.TP]apply.Batch)
	}
	rs.cuts[b.TP] = b
}

// settled notes what became of it.
func (rs *refusals) settled(b apply.Batch) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.cuts[b.TP] == b {
		delete(rs.cuts, b.TP)
	}
}

// pending says whether a cut of that batch may be on its way.
func (rs *refusals) pending(b apply.Batch) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.cuts[b.TP] == b
}

func (c *Cluster) settleRefusal(ctx context.Context, r apply.Refusal, q standsQuery) {
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
		// A cut that was proposed before, and may yet be committed, still rests
		// on what was pledged then.
		if !c.refusals.pending(q.Batch) {
			q.Pledge, q.Release = false, true
			c.survey(ctx, q)
		}
		return
	}
	if err := c.cutHere(ctx, g, &r); err != nil {
		c.log.Warn("a batch that every broker refuses could not be cut out yet", "topic", r.Topic, "partition", r.TP.Partition, "offset", r.Offset, "error", err)
		return
	}
	c.log.Warn("every broker refuses a committed batch: it is cut out of the log, and its producer is told so",
		"topic", r.Topic, "partition", r.TP.Partition, "group", r.Group, "offset", r.Offset, "code", r.Code, "message", r.Message)
}

// cutHere proposes the cut on this node and no other: what was pledged holds for
// a while only, and a proposal that is passed on may come late.
func (c *Cluster) cutHere(ctx context.Context, g *node.Group, r *apply.Refusal) error {
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	c.refusals.proposed(r.Batch())
	cut := fsm.Control(fsm.KindCut, fsm.Cut{TP: r.TP, Index: r.Index, Offset: r.Offset, Hash: r.Hash, Sequence: r.Sequence})
	done := make(chan error, 1)
	g.Propose(cut, func(res fsm.Result, err error) {
		if err == nil && res.Verdict == fsm.Rejected {
			err = &proxy.KafkaError{Code: res.Code, Message: res.Message}
		}
		if !errors.Is(err, node.ErrUnknownOutcome) {
			c.refusals.settled(r.Batch())
		}
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.Join(node.ErrUnknownOutcome, context.Cause(ctx))
	}
}

// without says whether a node's answer lets the batch be cut.
func without(said string) bool { return said == apply.StandsRefused || said == apply.StandsLacks }

// survey asks all members, this node included. It returns a node that holds the
// batch, 0 if none said so, and whether every one of them refuses or lacks it.
func (c *Cluster) survey(ctx context.Context, q standsQuery) (holder int32, all bool) {
	ctx, cancel := context.WithTimeout(ctx, standsTimeout)
	defer cancel()
	payload, err := json.Marshal(q)
	if err != nil {
		return 0, false
	}
	all = without(c.stands(c.cfg.Self, q))
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
			all = all && err == nil && without(said)
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
	said := c.stands(from.NodeID, q)
	if r := q.Refusal; r != nil && r.Index != 0 && r.Batch() == q.Batch && said == apply.StandsLacks {
		c.refusals.hear(*r)
	}
	return json.Marshal(said)
}
