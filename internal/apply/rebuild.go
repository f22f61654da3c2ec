package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/internal/failpoint"
)

// A rebuild destroys a copy: a broker's log has no end that could be cut off,
// so the topic is deleted on this broker and made again, and its lanes copy
// everything from a peer's. That is safe only while the others are complete,
// which is for the caller to see to, under the topic's lease in the catalog.
//
// Where it may stop, and what is found then:
//
//	before the mark       the quarantine; the lease is this node's, or was given back
//	the mark is written   the quarantine and the mark: the old copy may be gone, the rebuild is done again
//	topic deleted         the same, and a binding without a topic: lanes that were never quarantined make it
//	                      again (path wiped); the rebuild deletes that too
//	topic made, bound     the same: an empty topic is deleted and made once more
//	quarantine forgotten  the lanes attach to an empty topic and copy; the lease ends when they have

// ErrNotOurs is returned when the topic on the broker that a rebuild would
// delete was not made by this node, and holds records.
var ErrNotOurs = errors.New("the broker's topic of that name was not made by lockstep")

// Damage is a topic with quarantined partitions on this node.
type Damage struct {
	Topic      uint64
	Name       string
	Partitions []PartitionStatus // quarantined
	Begun      bool              // a rebuild began: the old copy may be gone already
}

// Damaged lists the topics that have quarantined partitions here, or whose
// rebuild was begun and is not over. Any goroutine, after Open.
func (a *Applier) Damaged() []Damage {
	a.mu.RLock()
	by := make(map[uint64]*Damage)
	for tp, l := range a.lanes {
		begun := a.quarantines.rebuilding(tp.Topic)
		trouble := l.quarantineStatus()
		if trouble == nil && !begun {
			continue
		}
		d := by[tp.Topic]
		if d == nil {
			d = &Damage{Topic: tp.Topic, Name: l.name, Begun: begun}
			by[tp.Topic] = d
		}
		if trouble != nil {
			d.Partitions = append(d.Partitions, *trouble)
		}
	}
	a.mu.RUnlock()
	out := make([]Damage, 0, len(by))
	for _, d := range by {
		slices.SortFunc(d.Partitions, func(a, b PartitionStatus) int { return cmp.Compare(a.Partition, b.Partition) })
		out = append(out, *d)
	}
	slices.SortFunc(out, func(a, b Damage) int { return cmp.Compare(a.Topic, b.Topic) })
	return out
}

func (l *lane) quarantineStatus() *PartitionStatus {
	if _, trouble := l.status(); trouble != nil && l.resting() {
		return trouble
	}
	return nil
}

// Rebuild deletes the local broker's copy of a topic and lets its partitions
// copy it from the other nodes' brokers. It returns when the topic is made and
// bound, before anything is copied; after an error it may be called again. The
// caller holds the topic's lease (fsm.TakeRebuild), and has seen that the others'
// copies are complete. force also deletes a topic with records that this node
// did not make.
func (a *Applier) Rebuild(ctx context.Context, topic uint64, force bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer context.AfterFunc(a.ctx, func() { cancel(ErrClosed) })()
	defer cancel(nil)
	_, _, want := a.topics.look(topic)
	if want == nil {
		return ErrNotOpen
	}
	o, err := a.topics.lock(ctx, want.Name, topic)
	if err != nil {
		return err
	}
	defer o.unlock()
	b, bound, want := a.topics.look(topic)
	switch {
	case want == nil || b.Gone || a.topics.newest(o) > topic:
		return ErrNotOpen
	case !a.quarantines.rebuilding(topic) && len(a.quarantines.of(topic)) == 0 &&
		!slices.ContainsFunc(a.lanesOf(topic), (*lane).resting):
		return ErrNotQuarantined
	}
	if err := a.topics.broker.WaitUp(ctx); err != nil {
		return err
	}
	if !force && !a.quarantines.rebuilding(topic) {
		if err := a.topics.ours(ctx, want, b, bound); err != nil {
			return err
		}
	}
	if err := a.awaitRest(ctx, topic); err != nil {
		return err
	}
	if err := a.remake(ctx, want); err != nil {
		return fmt.Errorf("make topic %s anew: %w", want.Name, err)
	}
	for _, l := range a.lanesOf(topic) {
		l.readmit()
	}
	a.log.Info("the topic was made anew on the broker: its partitions copy it from the other nodes' brokers", "topic", want.Name)
	return nil
}

// remake replaces the topic on the broker. The topic's name is locked, and its
// quarantined lanes rest.
func (a *Applier) remake(ctx context.Context, want *fsm.Open) error {
	failpoint.Hit(failpoint.RebuildBefore)
	if err := a.quarantines.beginRebuild(want.Topic); err != nil {
		return err
	}
	failpoint.Hit(failpoint.RebuildMarked)
	a.log.Warn("making a quarantined topic anew: its copy on this broker is deleted", "topic", want.Name,
		"quarantined", len(a.quarantines.of(want.Topic)))
	for _, l := range a.lanesOf(want.Topic) {
		l.rebuilding()
	}
	if err := a.topics.revoke(ctx, want.Topic); err != nil {
		return err
	}
	if err := a.topics.broker.DeleteTopic(ctx, want.Name); err != nil {
		return err
	}
	failpoint.Hit(failpoint.RebuildDeleted)
	if err := a.topics.create(ctx, want.Topic, want); err != nil {
		return err
	}
	failpoint.Hit(failpoint.RebuildMade)
	err := a.quarantines.endRebuild(want.Topic)
	failpoint.Hit(failpoint.RebuildAfter)
	return err
}

// ours says whether the broker's topic may be deleted: it is the one that is
// bound, or holds nothing. The topic's name is locked.
func (t *topics) ours(ctx context.Context, want *fsm.Open, b binding, bound bool) error {
	info, err := t.broker.Topic(ctx, want.Name)
	switch {
	case errors.Is(err, broker.ErrNoTopic):
		return nil
	case err != nil:
		return fmt.Errorf("look the topic up: %w", err)
	case bound && info.UUID == b.UUID:
		return nil
	}
	for n := range info.Partitions {
		start, end, err := t.broker.LogEnd(ctx, want.Name, n)
		if err != nil {
			return fmt.Errorf("read the log end offset: %w", err)
		}
		if end > start {
			return fmt.Errorf("topic %q, partition %d: %w, and it holds records: move it away, or have it deleted by force", want.Name, n, ErrNotOurs)
		}
	}
	return nil
}

// awaitRest returns when every lane of the topic that is to be quarantined is.
// What is found while its topic is made anew would be about the old one.
func (a *Applier) awaitRest(ctx context.Context, topic uint64) error {
	for {
		_, changed := a.changes.Changed()
		restless := 0
		for _, l := range a.lanesOf(topic) {
			_, _, noted := a.quarantines.quarantined(l.tp)
			l.mu.Lock()
			at := l.state == StateQuarantined || l.state == StateRebuilding || l.state == StateClosed
			if !at && (noted || l.doom != "") {
				restless++
			}
			l.mu.Unlock()
		}
		if restless == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// rebuilding shows that a quarantined lane's topic is made anew.
func (l *lane) rebuilding() {
	l.mu.Lock()
	if l.state == StateQuarantined {
		l.state, l.since = StateRebuilding, time.Now()
	}
	l.mu.Unlock()
	l.f.a.bump()
}
