package apply

import (
	"fmt"
	"slices"
	"sync"

	"lockstep/fsm"
)

var turnedBucket = []byte("turned-away")

// turnedAway remembers, through a restart, which batch a partition's broker refused
// last. A leader's snapshot may carry the node past that batch before it is cut:
// then nothing else says that the broker never had it. It is forgotten before
// anybody is told that the broker took it after all.
type turnedAway struct {
	store *bindings

	mu sync.Mutex // guards what follows, and orders the writes
	by map[fsm.TP]turned
}

// turned is a batch that was refused, and how.
type turned struct {
	Batch
	As *turnedAs `json:"as,omitempty"` // nil from builds that did not write it down
}

type turnedAs struct {
	Hash     uint64 `json:"hash"` // and Sequence: the partition's before the batch
	Sequence int32  `json:"sequence"`
	Code     int16  `json:"code"`
	Message  string `json:"message,omitempty"`
}

func newTurnedAway(store *bindings) (*turnedAway, error) {
	by, err := notesOf[turned](store, turnedBucket)
	if err != nil {
		return nil, fmt.Errorf("read what the broker refused: %w", err)
	}
	return &turnedAway{store: store, by: by}, nil
}

// of returns what a partition's broker refused last, nil if there is nothing.
func (t *turnedAway) of(tp fsm.TP) *turned {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b, ok := t.by[tp]; ok {
		return &b
	}
	return nil
}

func (t *turnedAway) note(b turned) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.store.note(turnedBucket, b.TP, b); err != nil {
		return fmt.Errorf("write down what the broker refuses: %w", err)
	}
	t.by[b.TP] = b
	return nil
}

// forget takes back what was noted of partitions, in one write.
func (t *turnedAway) forget(tps ...fsm.TP) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := slices.DeleteFunc(slices.Clone(tps), func(tp fsm.TP) bool { _, ok := t.by[tp]; return !ok })
	if err := t.store.forget(turnedBucket, known); err != nil {
		return fmt.Errorf("forget what the broker refused: %w", err)
	}
	for _, tp := range known {
		delete(t.by, tp)
	}
	return nil
}

// tookIt forgets the refusal of what the broker is found to hold below end. Only
// the lane's goroutine calls it, before it says so to anybody: nobody is told if
// that fails.
func (l *lane) tookIt(end int64) error {
	if l.turned == nil || end <= l.turned.Offset { // only this goroutine writes it
		return nil
	}
	if err := l.f.a.turned.forget(l.tp); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turned = nil
	return nil
}

// remembers returns what the broker refused before this process began and lacks
// still, nil if there is nothing. Everybody's log may begin behind that batch by now:
// then nobody is refused it any more, and it is cut because of who remembers. l.mu is
// held.
func (l *lane) remembers() *Refusal {
	t := l.turned
	if t == nil || t.As == nil || slices.ContainsFunc(l.cuts, t.cutBy) || !l.lacks(t.Batch) {
		return nil
	}
	return &Refusal{Group: l.f.id, TP: l.tp, Topic: l.name, Index: t.Index, Offset: t.Offset, Sequence: t.As.Sequence,
		Hash: t.As.Hash, Code: t.As.Code, Message: t.As.Message, Since: l.since}
}

// mayBeCut says whether an item is what the broker refused before this process
// began, and this node has not read on as far as a leader has since: the batch may
// be cut there, and a broker that would take it by now must not be given it. Only
// the lane's goroutine calls it.
func (l *lane) mayBeCut(it *item) bool {
	if !l.unsure || l.turned == nil || it.index != l.turned.Index || it.base != l.turned.Offset {
		return false
	}
	m := l.f.fresh.Get()
	l.unsure = m.n == 0 || l.f.dealt.Get() < m.index
	return l.unsure
}
