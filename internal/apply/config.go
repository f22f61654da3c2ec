package apply

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lockstep/fsm"
	"lockstep/internal/broker"
)

// configAgain is how long settings that were found on the broker are believed
// to be there still, when a lane attaches again: it may have come back from an
// old backup.
const configAgain = 10 * time.Second

// settled is when the broker was last seen to have a topic's settings, and as
// of which revision.
type settled struct {
	revision uint64
	at       time.Time
}

// newest is a topic as several groups opened it: each hears of more partitions
// and of other settings in its own time.
func newest(old, o *fsm.Open) *fsm.Open {
	if old == nil {
		return o
	}
	merged := *o
	merged.Total = max(old.Total, o.Total)
	if old.Revision > o.Revision {
		merged.Config, merged.Revision = old.Config, old.Revision
	}
	return &merged
}

// configure gives the broker's topic the settings that the log says. The name
// is locked, and the topic is bound. Somebody may have changed them past Lockstep
// since it was made.
func (t *topics) configure(ctx context.Context, want *fsm.Open) error {
	t.mu.Lock()
	s := t.settled[want.Topic]
	t.mu.Unlock()
	if s.revision >= want.Revision && time.Since(s.at) < configAgain {
		return nil
	}
	changed, err := t.broker.EnsureTopicConfig(ctx, want.Name, want.Config)
	if err != nil {
		return fmt.Errorf("set the topic's configuration: %w", err)
	}
	if changed {
		t.log.Info("changed the topic's settings on the broker", "topic", want.Name, "topic-id", want.Topic, "revision", want.Revision)
	}
	t.settle(want)
	return nil
}

// settle notes that the broker has a topic's settings.
func (t *topics) settle(want *fsm.Open) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settled[want.Topic] = settled{want.Revision, time.Now()}
}

// reconfigure brings new settings to a broker whose lanes are at work. It
// returns at once; the broker is tried until it has them. One that the topic is
// not on gets them with the topic. t.mu is held.
func (t *topics) reconfigure(id uint64) {
	if t.configuring[id] {
		return // it will see what is newest
	}
	t.configuring[id] = true
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		backoff := minBackoff
		for t.ctx.Err() == nil {
			err := t.reconfigureOnce(t.ctx, id)
			if t.configured(id, err == nil) {
				return
			}
			if err == nil {
				continue // there are newer ones
			}
			t.log.Debug("cannot change a topic's settings on the broker yet", "topic-id", id, "error", err)
			if pause(t.ctx, backoff) {
				backoff = min(2*backoff, maxBackoff)
			}
		}
	}()
}

// catchUp brings settings to the broker that changed while it made the topic as
// of a revision: whoever heard of them then found no topic to give them to.
func (t *topics) catchUp(id, revision uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if want := t.want[id]; want != nil && want.Revision > revision {
		t.reconfigure(id)
	}
}

// configured says whether nothing is left to do about a topic's settings.
func (t *topics) configured(id uint64, done bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	want := t.want[id]
	b, bound := t.bound[id]
	if want == nil || !bound || b.Gone || done && t.settled[id].revision >= want.Revision {
		delete(t.configuring, id)
		return true
	}
	return false
}

func (t *topics) reconfigureOnce(ctx context.Context, id uint64) error {
	_, bound, want := t.look(id)
	if want == nil || !bound {
		return nil
	}
	if err := t.broker.WaitUp(ctx); err != nil {
		return err
	}
	o, err := t.lock(ctx, want.Name, id)
	if err != nil {
		return err
	}
	defer o.unlock()
	b, bound, want := t.look(id)
	if want == nil || !bound || b.Gone {
		return nil
	}
	info, err := t.broker.Topic(ctx, want.Name)
	switch {
	case errors.Is(err, broker.ErrNoTopic), err == nil && info.UUID != b.UUID:
		t.settle(want) // whoever makes it again gives it these settings
		return nil
	case err != nil:
		return fmt.Errorf("look the topic up: %w", err)
	}
	return t.configure(ctx, want)
}
