package apply

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/internal/failpoint"
)

// topics makes the broker's topics what the log says they are: created when
// the first partition is opened, extended, deleted when the topic is closed.
// Everything about one name is done by one goroutine at a time, so that a
// topic that is created again under its old name never meets the old one.
type topics struct {
	ctx    context.Context
	broker Broker
	store  *bindings
	log    hclog.Logger
	wg     sync.WaitGroup

	mu    sync.Mutex // guards what follows
	bound map[uint64]binding
	want  map[uint64]*fsm.Open // what the log opened, newest settings
	names map[string]*nameOwner
	uses  map[uint64]*use

	settled     map[uint64]settled // which settings the broker has
	configuring map[uint64]bool    // topics whose new settings are on their way to it
	presented   map[uint64]int32   // partitions of topics that the broker was, or is being, given
}

// nameOwner serialises what is done about one name.
type nameOwner struct {
	busy   chan struct{} // capacity 1: holds a token while somebody works
	newest uint64        // the newest topic that ever had the name
}

func newTopics(ctx context.Context, b Broker, store *bindings, log hclog.Logger) (*topics, error) {
	bound, err := store.all()
	if err != nil {
		return nil, err
	}
	t := &topics{ctx: ctx, broker: b, store: store, log: log, bound: bound, uses: make(map[uint64]*use),
		want: make(map[uint64]*fsm.Open), names: make(map[string]*nameOwner),
		settled: make(map[uint64]settled), configuring: make(map[uint64]bool), presented: make(map[uint64]int32)}
	for id, v := range bound {
		t.owner(v.Name, id)
	}
	return t, nil
}

func (t *topics) close() error {
	t.wg.Wait()
	return t.store.close()
}

// owner returns the owner of a name and notes that topic id has or had it.
// t.mu is held (or nobody else knows t yet).
func (t *topics) owner(name string, id uint64) *nameOwner {
	o := t.names[name]
	if o == nil {
		o = &nameOwner{busy: make(chan struct{}, 1)}
		t.names[name] = o
	}
	o.newest = max(o.newest, id)
	return o
}

// declare notes that the log opened partitions of a topic, or changed its
// settings. Called by feeders.
func (t *topics) declare(o *fsm.Open) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.want[o.Topic]
	t.want[o.Topic] = newest(old, o)
	t.owner(o.Name, o.Topic)
	if old != nil && old.Revision < o.Revision {
		t.reconfigure(o.Topic)
	}
}

// remove deletes the broker's topic of a topic that the log closed. It returns
// at once, and reports whether there is something to do; that is done when the
// broker can be reached, then done is called, from another goroutine. A node
// that stops before finds the close in the log again. Called by feeders.
func (t *topics) remove(c *fsm.Close, done func()) bool {
	t.mu.Lock()
	delete(t.want, c.Topic)
	b, ok := t.bound[c.Topic]
	t.mu.Unlock()
	if ok && b.Gone {
		return false
	}
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		backoff := minBackoff
		for t.ctx.Err() == nil {
			err := t.delete(t.ctx, c.Name, c.Topic)
			if err == nil {
				done()
				return
			}
			t.log.Debug("cannot delete a topic on the broker yet", "topic", c.Name, "error", err)
			if pause(t.ctx, backoff) {
				backoff = min(2*backoff, maxBackoff)
			}
		}
	}()
	return true
}

// sweep deletes the topics that are bound and that the catalog says are over:
// their closes may lie in entries that this node has passed over, after it was
// given a leader's snapshot. Called by the catalog group's feeder.
func (t *topics) sweep(over func(topic uint64) bool) {
	t.mu.Lock()
	var gone []*fsm.Close
	for id, b := range t.bound {
		if !b.Gone && over(id) {
			gone = append(gone, &fsm.Close{Topic: id, Name: b.Name})
		}
	}
	t.mu.Unlock()
	for _, c := range gone {
		t.remove(c, func() {})
	}
}

// lock takes the right to work on a name.
func (t *topics) lock(ctx context.Context, name string, id uint64) (*nameOwner, error) {
	t.mu.Lock()
	o := t.owner(name, id)
	t.mu.Unlock()
	select {
	case o.busy <- struct{}{}:
		return o, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (o *nameOwner) unlock() { <-o.busy }

// look returns what is known of a topic.
func (t *topics) look(id uint64) (b binding, bound bool, want *fsm.Open) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, bound = t.bound[id]
	return b, bound, t.want[id]
}

func (t *topics) put(id uint64, b binding) error {
	if err := t.store.put(id, b); err != nil {
		return fmt.Errorf("store the binding of topic %s: %w", b.Name, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bound[id] = b
	return nil
}

// ensure returns when the broker has the partition, in a topic that is bound
// to the catalog's, with a lease to append to it. ErrClosed: the topic was
// deleted. A distrust: the broker has another topic under that name.
func (t *topics) ensure(ctx context.Context, tp fsm.TP) (*lease, error) {
	_, _, want := t.look(tp.Topic)
	if want == nil {
		return nil, ErrClosed
	}
	o, err := t.lock(ctx, want.Name, tp.Topic)
	if err != nil {
		return nil, err
	}
	defer o.unlock()
	b, bound, want := t.look(tp.Topic)
	if want == nil || b.Gone || t.newest(o) > tp.Topic {
		return nil, ErrClosed // a newer topic of that name exists only because this one was closed everywhere
	}
	if err := t.deleteOlder(ctx, want.Name, tp.Topic); err != nil {
		return nil, err
	}
	info, err := t.broker.Topic(ctx, want.Name)
	switch {
	case errors.Is(err, broker.ErrNoTopic):
		err = t.createAgain(ctx, tp.Topic, bound, want)
	case err != nil:
		err = fmt.Errorf("look the topic up: %w", err)
	case !bound || b.UUID != info.UUID:
		err = t.takeOver(ctx, tp.Topic, want)
	default:
		if err = t.extend(ctx, info, want); err == nil {
			err = t.configure(ctx, want)
		}
	}
	if err != nil {
		return nil, err
	}
	return t.lease(tp.Topic), nil
}

// createAgain makes a topic that the broker has never had, or has no more.
func (t *topics) createAgain(ctx context.Context, id uint64, bound bool, want *fsm.Open) error {
	if bound {
		t.log.Warn("the broker lost a topic: creating it again", "topic", want.Name)
	}
	if err := t.revoke(ctx, id); err != nil {
		return err
	}
	return t.create(ctx, id, want)
}

func (t *topics) newest(o *nameOwner) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return o.newest
}

func (t *topics) extend(ctx context.Context, info broker.TopicInfo, want *fsm.Open) error {
	if info.Partitions >= want.Total {
		return nil
	}
	if err := t.broker.ExtendTopic(ctx, want.Name, want.Total); err != nil {
		return fmt.Errorf("extend the topic to %d partitions: %w", want.Total, err)
	}
	return nil
}

// create makes the topic on the broker, then binds it. A crash in between
// leaves an empty topic, which takeOver replaces.
func (t *topics) create(ctx context.Context, id uint64, want *fsm.Open) error {
	failpoint.Hit(failpoint.TopicCreateBefore)
	info, err := t.broker.CreateTopic(ctx, want.Name, want.Total, want.Config)
	if err != nil {
		return fmt.Errorf("create the topic: %w", err)
	}
	failpoint.Hit(failpoint.TopicCreateAfter)
	if err := t.put(id, binding{Name: want.Name, UUID: info.UUID}); err != nil {
		return err
	}
	failpoint.Hit(failpoint.TopicBindAfter)
	t.settle(want)
	t.catchUp(id, want.Revision)
	t.log.Info("created topic on the broker", "topic", want.Name, "topic-id", id, "partitions", info.Partitions)
	return nil
}

// takeOver deals with a topic on the broker that is not bound: an empty one is
// made anew with our settings; one with records is not ours to touch.
func (t *topics) takeOver(ctx context.Context, id uint64, want *fsm.Open) error {
	if err := t.revoke(ctx, id); err != nil {
		return err
	}
	info, err := t.broker.Topic(ctx, want.Name)
	if err != nil {
		return fmt.Errorf("look the topic up: %w", err)
	}
	if settled, err := t.takeAdopted(ctx, id, want, info); settled || err != nil {
		return err
	}
	for n := range info.Partitions {
		_, end, err := t.broker.LogEnd(ctx, want.Name, n)
		if err != nil {
			return fmt.Errorf("read the log end offset: %w", err)
		}
		if end > 0 && want.Adopted != nil {
			return CauseForeign.distrust(keptAside, want.Name, want.Name)
		}
		if end > 0 {
			return CauseForeign.distrust("the broker already has a topic %q that lockstep did not create, and it holds records: move it away or delete it on that broker, then restart this node", want.Name)
		}
	}
	t.log.Info("replacing an empty topic that lockstep did not create", "topic", want.Name)
	if err := t.broker.DeleteTopic(ctx, want.Name); err != nil {
		return fmt.Errorf("delete the empty topic: %w", err)
	}
	return t.create(ctx, id, want)
}

// deleteOlder finishes off earlier topics of the same name. The name is locked.
func (t *topics) deleteOlder(ctx context.Context, name string, id uint64) error {
	t.mu.Lock()
	var older []uint64
	for o, b := range t.bound {
		if o < id && b.Name == name && !b.Gone {
			older = append(older, o)
		}
	}
	t.mu.Unlock()
	for _, o := range older {
		if err := t.deleteLocked(ctx, name, o); err != nil {
			return err
		}
	}
	return nil
}

// delete removes the topic that id is bound to, if it still is that topic.
func (t *topics) delete(ctx context.Context, name string, id uint64) error {
	o, err := t.lock(ctx, name, id)
	if err != nil {
		return err
	}
	defer o.unlock()
	return t.deleteLocked(ctx, name, id)
}

func (t *topics) deleteLocked(ctx context.Context, name string, id uint64) error {
	b, bound, _ := t.look(id)
	switch {
	case bound && b.Gone:
		return nil
	case !bound: // never made here: it must not be made later, when the log is read again
		return t.put(id, binding{Name: name, Gone: true})
	}
	if err := t.revoke(ctx, id); err != nil {
		return err
	}
	if err := t.broker.WaitUp(ctx); err != nil {
		return err
	}
	info, err := t.broker.Topic(ctx, name)
	missing := errors.Is(err, broker.ErrNoTopic) // or not listed yet: deleting what is not there is no error
	switch {
	case err != nil && !missing:
		return fmt.Errorf("look the topic up: %w", err)
	case missing || info.UUID == b.UUID:
		failpoint.Hit(failpoint.TopicDeleteBefore)
		if err := t.broker.DeleteTopic(ctx, name); err != nil {
			return fmt.Errorf("delete the topic: %w", err)
		}
		failpoint.Hit(failpoint.TopicDeleteAfter)
		t.log.Info("deleted topic on the broker", "topic", name, "topic-id", id)
	}
	b.Gone = true
	return t.put(id, b)
}
