package cluster

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/internal/broker"
	"lockstep/proxy"
)

// foreignBroker is what a node's broker holds from before.
type foreignBroker struct {
	mu     sync.Mutex
	topics map[string]apply.ForeignTopic
	hash   map[string]uint64 // of each topic's log
	why    string            // it cannot be adopted
	asked  []uint64          // topic ids of surveys
}

func (b *foreignBroker) put(name string, end int64, hash uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.topics == nil {
		b.topics, b.hash = make(map[string]apply.ForeignTopic), make(map[string]uint64)
	}
	b.topics[name] = apply.ForeignTopic{Name: name, UUID: name + "-" + itoa(int32(hash)), Partitions: []apply.ForeignPartition{{End: end}}}
	b.hash[name] = hash
}

func (b *foreignBroker) Foreign(context.Context) ([]apply.ForeignTopic, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := []apply.ForeignTopic{}
	for _, t := range b.topics {
		out = append(out, t)
	}
	return out, nil
}

func (b *foreignBroker) Named(_ context.Context, name string) (*apply.ForeignTopic, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t, ok := b.topics[name]
	if !ok {
		return nil, broker.ErrNoTopic
	}
	return &t, nil
}

func (b *foreignBroker) Survey(_ context.Context, name string, topic uint64) (*apply.Survey, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, topic)
	t := b.topics[name]
	return &apply.Survey{UUID: t.UUID, Problem: b.why, Config: map[string]string{"retention.ms": "9", "message.timestamp.type": "LogAppendTime"},
		Partitions: []fsm.AdoptedPartition{{End: t.Partitions[0].End, Hash: b.hash[name]}},
		Offsets:    []fsm.AdoptedOffset{{Group: []byte("g"), Offset: 2}}}, nil
}

// foreignRig is three nodes and what their brokers hold.
func foreignRig(t *testing.T) (*rig, map[int32]*foreignBroker) {
	held := map[int32]*foreignBroker{1: {}, 2: {}, 3: {}}
	return running(t, func(c *Config) { c.Foreign = held[c.Self] }), held
}

func TestAdoptTakesTheOnlyCopy(t *testing.T) {
	r, held := foreignRig(t)
	held[2].put("old", 5, 77)
	held[3].put("old", 0, 0) // nothing was ever written to it
	m := r.members[1]
	if f, err := m.cluster.Foreign(r.ctx()); err != nil || len(f.Topics) != 1 || f.Topics[0].State != CopySingle || len(f.Topics[0].Copies) != 2 {
		t.Fatalf("listed: %+v, %v", f, err)
	}
	err := r.members[3].cluster.CreateTopic(r.ctx(), proxy.TopicSpec{Name: "old", Partitions: 1})
	var ke *proxy.KafkaError
	if !errors.As(err, &ke) || ke.Code != codeTopicExists || !strings.Contains(ke.Message, "lockstep adopt old") {
		t.Errorf("create a topic that a broker holds: %v", err)
	}
	got, err := m.cluster.Adopt(r.ctx(), AdoptOrder{Topic: "old"})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Holders) != 1 || got.Holders[0] != 2 || len(got.Copying) != 2 || got.Groups != 1 || len(got.Dropped) != 1 {
		t.Errorf("the result is %+v", got)
	}
	for _, m := range r.members {
		r.sees(m, "the topic led", func(s *snapshot) bool { return leads(s, "old", 0) > 0 })
		r.holds(m, 0, "its state", func(g *fsm.Group) bool {
			top := g.Catalog.TopicByName("old")
			return top != nil && top.Config["retention.ms"] == "9" && len(top.Config) == 1 && top.Adopted.Holders[0] == "old-77" &&
				g.Catalog.Consumers["g"] != nil && g.Catalog.Consumers["g"].Offsets[fsm.TP{Topic: top.ID}].Offset == 2
		})
		r.holds(m, (uint32(got.TopicID)-1)%testGroups, "a partition that begins at offset 5", func(g *fsm.Group) bool {
			p := g.Partitions[fsm.TP{Topic: got.TopicID}]
			return p != nil && p.NextOffset == 5 && p.Hash == 77
		})
	}
	if ids := held[2].asked; len(ids) != 1 || ids[0] != got.TopicID {
		t.Errorf("the source was read for topic ids %v, adopted was %d", ids, got.TopicID)
	}
	if a := r.produce(r.leaderOf((uint32(got.TopicID)-1)%testGroups), m.cluster.View().Topics["old"], 0, batch(-1, 0, "new")); a.Code != 0 || a.BaseOffset != 5 {
		t.Errorf("the next record: %+v", a)
	}
	if _, err := m.cluster.Adopt(r.ctx(), AdoptOrder{Topic: "old"}); err == nil {
		t.Error("adopted twice")
	}
	if f, err := m.cluster.Foreign(r.ctx()); err != nil || f.Topics[0].State != CopyAside {
		t.Errorf("what a broker has left beside an adopted topic: %+v, %v", f, err)
	}
}

func TestAdoptLeavesAConflictToTheOperator(t *testing.T) {
	r, held := foreignRig(t)
	m := r.members[1]
	held[1].put("two", 5, 1)
	held[2].put("two", 6, 2)
	held[1].put("three", 5, 1)
	held[2].put("three", 5, 2) // as long, and something else
	held[3].put("three", 5, 3)
	held[1].put("same", 5, 9)
	held[3].put("same", 5, 9)
	for _, name := range []string{"two", "three"} {
		if _, err := m.cluster.Adopt(r.ctx(), AdoptOrder{Topic: name}); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "--from") {
			t.Errorf("%s, without a choice: %v", name, err)
		}
	}
	if got, err := m.cluster.Adopt(r.ctx(), AdoptOrder{Topic: "same"}); err != nil || len(got.Holders) != 2 || len(got.Copying) != 1 {
		t.Errorf("same records: %+v, %v", got, err)
	}
	if got, err := m.cluster.Adopt(r.ctx(), AdoptOrder{Topic: "two", From: 2}); err != nil || len(got.Aside) != 1 || got.Aside[0] != 1 {
		t.Errorf("two copies, one chosen: %+v, %v", got, err)
	}
	if _, err := m.cluster.Adopt(r.ctx(), AdoptOrder{Topic: "three", From: 2}); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "--discard") {
		t.Errorf("one node of three could hold it: %v", err)
	}
	if _, err := m.cluster.Adopt(r.ctx(), AdoptOrder{Topic: "three", From: 2, Discard: []int32{2}}); err == nil {
		t.Error("the source was given up")
	}
	got, err := m.cluster.Adopt(r.ctx(), AdoptOrder{Topic: "three", From: 2, Discard: []int32{3}})
	if err != nil || len(got.Discarded) != 1 || len(got.Aside) != 1 {
		t.Fatalf("one given up, one kept aside: %+v, %v", got, err)
	}
	r.holds(m, 0, "what is given up, and only that", func(g *fsm.Group) bool {
		top := g.Catalog.TopicByName("three")
		return top != nil && len(top.Adopted.Discard) == 1 && top.Adopted.Discard[0] == "three-3" &&
			len(top.Adopted.Holders) == 1 && top.Adopted.Holders[0] == "three-2"
	})
}

// A node that dies right after its entry leaves nothing undone: whoever leads the
// catalog brings the groups to it.
func TestAdoptionIsFinishedByTheCatalogsLeader(t *testing.T) {
	r, _ := foreignRig(t)
	n := r.members[3].node
	id := r.submit(n, fsm.CatalogGroup, fsm.KindReserveTopic, fsm.ReserveTopic{Name: "old"}).Topic
	r.submit(n, fsm.CatalogGroup, fsm.KindAdoptTopic, fsm.AdoptTopic{Topic: id, Name: "old", Groups: testGroups,
		Adopted: &fsm.Adopted{Holders: []string{"x"}, Partitions: []fsm.AdoptedPartition{{End: 3}, {Start: 2, End: 4}}}})
	r.stop(3)
	for _, m := range r.members {
		for p, want := range []int64{3, 4} {
			r.holds(m, uint32(id-1+uint64(p))%testGroups, "a partition that begins where its log ends", func(g *fsm.Group) bool {
				part := g.Partitions[fsm.TP{Topic: id, Partition: int32(p)}]
				return part != nil && part.NextOffset == want
			})
		}
	}
}

func TestAdoptRefusesWhatCannotBeCopied(t *testing.T) {
	r, held := foreignRig(t)
	held[2].put("old", 5, 1)
	held[2].why = "partition 0 has records of a transaction"
	m := r.members[1]
	if _, err := m.cluster.Adopt(r.ctx(), AdoptOrder{Topic: "old"}); !errors.Is(err, ErrNotAdoptable) || !strings.Contains(err.Error(), "transaction") {
		t.Errorf("adopted: %v", err)
	}
	if _, err := m.cluster.Adopt(r.ctx(), AdoptOrder{Topic: "old", From: 3}); !errors.Is(err, ErrNothingForeign) {
		t.Errorf("from a node that has none: %v", err)
	}
	r.stop(2)
	_, err := m.cluster.Adopt(r.ctx(), AdoptOrder{Topic: "old"})
	if !errors.Is(err, ErrNothingForeign) || !strings.Contains(err.Error(), "node 2 could not be asked") {
		t.Errorf("of a node that is away: %v", err)
	}
}

func TestAutoAdoptTakesWhatNeedsNoChoice(t *testing.T) {
	held := map[int32]*foreignBroker{1: {}, 2: {}, 3: {}}
	r := running(t, func(c *Config) {
		c.Foreign, c.AutoAdopt, c.adoptEvery = held[c.Self], true, 50*time.Millisecond
		if c.Self == 3 {
			c.Foreign = &growingBroker{foreignBroker: held[3]}
		}
	})
	held[1].put("one", 5, 1)
	held[1].put("two", 5, 1)
	held[2].put("two", 7, 2)
	m := r.members[2]
	r.sees(m, "the topic without a choice", func(s *snapshot) bool { return leads(s, "one", 0) > 0 })
	// It has been looked at the others as often by now.
	if s := m.cluster.View(); s.Topics["two"] != nil || s.Topics["busy"] != nil {
		t.Error("a topic in conflict, or one that is written to, was adopted")
	}
}

// growingBroker is written to all the time.
type growingBroker struct {
	*foreignBroker
	end atomic.Int64
}

func (b *growingBroker) Foreign(ctx context.Context) ([]apply.ForeignTopic, error) {
	b.put("busy", b.end.Add(1), 1)
	return b.foreignBroker.Foreign(ctx)
}
