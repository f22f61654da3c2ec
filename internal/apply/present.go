package apply

import (
	"context"
	"errors"

	"lockstep/fsm"
)

// present gives the broker the topics of a catalog whose groups have places,
// also those of which this node holds nothing: consumers commit offsets at
// coordinators whose brokers must know the topic, and describe topics anywhere.
// What is not held here stays empty. Called by the catalog group's feeder.
func (t *topics) present(c *fsm.Catalog) {
	if len(c.Places) == 0 {
		return
	}
	var todo []*fsm.Open
	for _, ct := range c.Topics {
		if ct.State == fsm.TopicDeleting || ct.Opened == 0 {
			continue
		}
		o := &fsm.Open{Topic: ct.ID, Name: ct.Name, Total: int32(len(ct.Groups)), Config: ct.Config, Revision: ct.Revision, Adopted: ct.Adopted}
		t.declare(o)
		t.mu.Lock()
		if t.presented[o.Topic] < o.Total {
			t.presented[o.Topic] = o.Total
			todo = append(todo, o)
		}
		t.mu.Unlock()
	}
	if len(todo) == 0 {
		return
	}
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		for _, o := range todo {
			t.presentOne(o)
		}
	}()
}

// presentOne tries until the broker has the topic, or must not have it.
func (t *topics) presentOne(o *fsm.Open) {
	for backoff := minBackoff; t.ctx.Err() == nil; backoff = min(2*backoff, maxBackoff) {
		err := t.broker.WaitUp(t.ctx)
		var l *lease
		if err == nil {
			l, err = t.ensure(t.ctx, fsm.TP{Topic: o.Topic})
		}
		var d *distrust
		switch {
		case err == nil:
			l.release()
			return
		case errors.Is(err, ErrClosed), errors.Is(err, context.Canceled):
			return
		case errors.As(err, &d):
			t.log.Warn("the broker has another topic of that name: consumers that are coordinated here cannot commit offsets of it", "topic", o.Name, "reason", d.Error())
			return
		}
		t.log.Debug("cannot make a topic on the broker yet", "topic", o.Name, "error", err)
		pause(t.ctx, backoff)
	}
}
