package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/transport"
)

// Leaving: every broker has all records, but what consumer groups have committed
// is in the catalog, and each broker knows of it only what it accepted itself.
// Before the proxies are stopped for good the brokers are told the rest.

// methodLeave has another node tell its broker.
const methodLeave = methodAnnounce + 41

// leaveTimeout bounds it all.
const leaveTimeout = 5 * time.Minute

// LeaveReport is what became of the committed offsets on one node's broker.
type LeaveReport struct {
	Groups  int `json:"groups"`  // consumer groups whose offsets the broker has now
	Offsets int `json:"offsets"` // partitions, all groups together
	// Missing counts partitions that the broker does not have.
	Missing int `json:"missing,omitempty"`
	// Occupied are groups with members on that broker: they commit still.
	Occupied []string `json:"occupied,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// Leave gives the brokers of all nodes the offsets that consumer groups have
// committed, as the catalog has them when it is called. It may be called again.
// Any goroutine.
func (c *Cluster) Leave(ctx context.Context) map[int32]LeaveReport {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	out := make(map[int32]LeaveReport)
	news, _ := c.roster.fresh()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range c.node.Peers() {
		wg.Go(func() {
			r := LeaveReport{Error: "the node is not heard of: start it"}
			switch {
			case id == c.cfg.Self:
				r = c.leaveHere(ctx)
			case news[id] != nil:
				r = c.leaveAt(ctx, id)
			}
			mu.Lock()
			defer mu.Unlock()
			out[id] = r
		})
	}
	wg.Wait()
	return out
}

func (c *Cluster) leaveAt(ctx context.Context, id int32) (r LeaveReport) {
	raw, err := c.node.Call(ctx, id, methodLeave, nil)
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err != nil {
		return LeaveReport{Error: err.Error()}
	}
	return r
}

// heardLeave answers methodLeave.
func (c *Cluster) heardLeave(ctx context.Context, _ transport.Hello, _ []byte) ([]byte, error) {
	return json.Marshal(c.leaveHere(ctx))
}

func (c *Cluster) leaveHere(ctx context.Context) LeaveReport {
	r, err := c.tellBroker(ctx)
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// tellBroker commits to the local broker what the catalog has. A group with
// members there is left alone: what they commit next would be overwritten.
func (c *Cluster) tellBroker(ctx context.Context) (r LeaveReport, err error) {
	b := c.cfg.GroupBroker
	if b == nil {
		return r, errors.New("the broker has no consumer groups")
	}
	if err := c.catalogUpToDate(ctx); err != nil {
		return r, fmt.Errorf("read the catalog: %w", err)
	}
	occupied, err := b.OccupiedGroups(ctx)
	if err != nil {
		return r, fmt.Errorf("ask the broker which groups have members: %w", err)
	}
	all := c.committedOffsets()
	for _, group := range slices.Sorted(maps.Keys(all)) {
		if slices.Contains(occupied, group) {
			r.Occupied = append(r.Occupied, group)
			continue
		}
		missing, err := b.CommitOffsets(ctx, group, all[group])
		switch {
		case errors.Is(err, broker.ErrGroupOccupied):
			r.Occupied = append(r.Occupied, group)
			continue
		case err != nil:
			return r, err
		}
		r.Groups, r.Missing, r.Offsets = r.Groups+1, r.Missing+missing, r.Offsets+len(all[group])-missing
	}
	c.log.Info("gave the broker the offsets that consumer groups have committed", "groups", r.Groups, "offsets", r.Offsets, "groups-with-members", len(r.Occupied))
	return r, nil
}

// committedOffsets is what the catalog has, by group, by topic and partition.
func (c *Cluster) committedOffsets() map[string][]broker.TopicOffset {
	out := make(map[string][]broker.TopicOffset)
	c.node.Catalog().Read(func(g *fsm.Group) {
		for name, group := range g.Catalog.Consumers {
			for tp, o := range group.Offsets {
				if t := g.Catalog.Topics[tp.Topic]; t != nil && t.State != fsm.TopicDeleting {
					out[name] = append(out[name], broker.TopicOffset{Topic: t.Name, Partition: tp.Partition, Offset: o.Offset, Metadata: o.Metadata})
				}
			}
		}
	})
	for _, offsets := range out {
		slices.SortFunc(offsets, func(a, b broker.TopicOffset) int {
			if a.Topic != b.Topic {
				return strings.Compare(a.Topic, b.Topic)
			}
			return int(a.Partition - b.Partition)
		})
	}
	return out
}
