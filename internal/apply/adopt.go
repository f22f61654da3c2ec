package apply

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"

	"lockstep/fsm"
	"lockstep/internal/broker"
)

// An adopted topic is on some brokers before the catalog has it. What is found
// when its first lane looks for it, on each node's broker:
//
//	no such topic, or an empty one     made anew, and copied from a holder
//	a holder's, with the ends adopted  bound as it is; nothing in it is touched
//	a holder's, with other ends        quarantined: somebody wrote behind the proxy
//	one that the operator gave up      deleted, made anew and copied
//	any other with records             kept aside: quarantined, and not touched until an
//	                                   operator has it rebuilt by force
//
// A crash before the binding is stored leaves the topic as it was, or with our
// settings, or (given up) not there or empty: all of that is in the table.

// asCommitted gives batches of the local broker's log the form in which they are
// compared: others wrote what is below the offset of the adoption.
func (l *lane) asCommitted(raw []byte) []byte {
	if l.adopted == 0 {
		return raw
	}
	return fsm.AsCommitted(l.tp.Topic, l.adopted, raw)
}

// takeAdopted deals with a topic on the broker that is not bound and that has
// the name of one that was adopted. It reports whether that is settled. The name
// is locked.
func (t *topics) takeAdopted(ctx context.Context, id uint64, want *fsm.Open, info broker.TopicInfo) (bool, error) {
	if want.Adopted == nil {
		return false, nil
	}
	uuid := hex.EncodeToString(info.UUID[:])
	switch {
	case slices.Contains(want.Adopted.Holders, uuid):
		return true, t.bindHeld(ctx, id, want, info)
	case slices.Contains(want.Adopted.Discard, uuid):
		t.log.Warn("deleting the broker's own topic of that name: the operator gave it up for another broker's", "topic", want.Name, "topic-id", id)
		if err := t.broker.DeleteTopic(ctx, want.Name); err != nil {
			return true, fmt.Errorf("delete the topic that was given up: %w", err)
		}
		return true, t.create(ctx, id, want)
	}
	return false, nil
}

// bindHeld binds a topic that the broker held before, with everything in it.
func (t *topics) bindHeld(ctx context.Context, id uint64, want *fsm.Open, info broker.TopicInfo) error {
	if n := len(want.Adopted.Partitions); int(info.Partitions) < n {
		return CauseForeign.distrust("the broker's topic %q has %d partitions, %d were adopted", want.Name, info.Partitions, n)
	}
	for n := range want.Adopted.Partitions {
		_, end, err := t.broker.LogEnd(ctx, want.Name, int32(n))
		if err != nil {
			return fmt.Errorf("read the log end offset: %w", err)
		}
		if was := want.AdoptedEnd(int32(n)); end != was {
			return CauseForeign.distrust("the broker's topic %q, partition %d, ends at offset %d, but was adopted with %d: something wrote to the broker past lockstep while it was adopted; delete the topic through lockstep, which leaves this copy alone, and adopt it again",
				want.Name, n, end, was)
		}
	}
	if err := t.extend(ctx, info, want); err != nil {
		return err
	}
	if _, err := t.broker.EnsureTopicConfig(ctx, want.Name, want.Config); err != nil {
		return fmt.Errorf("set the topic's configuration: %w", err)
	}
	if err := t.put(id, binding{Name: want.Name, UUID: info.UUID}); err != nil {
		return err
	}
	t.settle(want)
	t.catchUp(id, want.Revision)
	t.log.Info("adopted the broker's topic as it is", "topic", want.Name, "topic-id", id, "partitions", info.Partitions)
	return nil
}

// keptAside is what an operator reads of a broker's own copy of an adopted topic.
const keptAside = "the broker keeps a copy of its own of topic %q aside, with other records than the one that was adopted: nothing in it is touched; `lockstep rebuild %s --force` at this node deletes it and copies the adopted one"
