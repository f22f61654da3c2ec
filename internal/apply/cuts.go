package apply

import (
	"fmt"
	"slices"
	"sync"

	"lockstep/fsm"
)

// cut took everything from Offset on, of what stands before it, out of the log.
type cut struct {
	Index  uint64 `json:"index"`
	Offset int64  `json:"offset"`
	Nth    int    `json:"nth,omitempty"` // of the entry's commands

	Hash  uint64 `json:"hash,omitempty"`  // of the log below Offset
	Known bool   `json:"known,omitempty"` // Hash is: builds of before did not write it down
}

// keptCuts of a partition are remembered, the newest: more than there can be
// while a client waits. That the base is behind a cut is no reason to forget it:
// a restart may find an older one.
const keptCuts = 1024

func (c cut) place() fsm.Place { return fsm.Place{Index: c.Index, Nth: c.Nth} }

// withCut adds a cut to others, or takes it for what is known of it already; it
// reports whether that is news.
func withCut(all []cut, c cut) (out []cut, news bool) {
	i := slices.IndexFunc(all, func(o cut) bool { return o.place() == c.place() })
	switch {
	case i < 0:
		out = append(slices.Clone(all), c)
		return out[max(0, len(out)-keptCuts):], true
	case all[i] == c:
		return all, false
	}
	out = slices.Clone(all)
	out[i] = c
	return out, true
}

// leftOf returns what cuts after index leave of the state that a partition had
// there: a base may hold what was cut since, and nobody's broker has that.
func leftOf(p *fsm.Partition, index uint64, cuts []cut) *fsm.Partition {
	var least *cut
	for i := range cuts {
		if c := &cuts[i]; c.Index > index && c.Offset < p.NextOffset && (least == nil || c.Offset < least.Offset) {
			least = c
		}
	}
	if least == nil || !least.Known { // then the feeder comes to it, and says more
		return p
	}
	return p.Left(least.Offset, least.Hash)
}

var cutsBucket = []byte("cuts")

// cuts remembers, through a restart, what was cut out of the log after the
// base. The refused batch is read again then, before its cut is: a broker that
// would take it by now must not be given it.
type cuts struct {
	store *bindings

	mu sync.Mutex // guards what follows, and orders the writes
	by map[fsm.TP][]cut
}

func newCuts(store *bindings) (*cuts, error) {
	by, err := notesOf[[]cut](store, cutsBucket)
	if err != nil {
		return nil, fmt.Errorf("read the cuts: %w", err)
	}
	return &cuts{store: store, by: by}, nil
}

// of returns the cuts of a partition.
func (c *cuts) of(tp fsm.TP) []cut {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.by[tp])
}

// add remembers a cut.
func (c *cuts) add(tp fsm.TP, v cut) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	all, news := withCut(c.by[tp], v)
	if !news {
		return nil
	}
	if err := c.store.note(cutsBucket, tp, all); err != nil {
		return fmt.Errorf("write the cuts of partition %s: %w", tp, err)
	}
	c.by[tp] = all
	return nil
}

// drop forgets a partition that is closed.
func (c *cuts) drop(tp fsm.TP) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.by[tp]) == 0 {
		return nil
	}
	if err := c.store.forget(cutsBucket, []fsm.TP{tp}); err != nil {
		return fmt.Errorf("forget the cuts of partition %s: %w", tp, err)
	}
	delete(c.by, tp)
	return nil
}
