package cluster

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"lockstep/fsm"
	"lockstep/internal/node"
	"lockstep/proxy"
)

// A catalog leader that died between any two steps leaves nothing undone.
func TestDutiesAreTakenUpWhereTheyWereLeft(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	// Nodes without duties, so that the test does the steps.
	nodes := make(map[int32]*node.Node)
	for id := range r.peers {
		nodes[id] = r.newNode(id)
		r.join(id, nodes[id])
		if err := nodes[id].Open(); err != nil {
			t.Fatal(err)
		}
	}
	n := nodes[2]
	create := func(name string, partitions int32) uint64 {
		return r.submit(n, 0, fsm.KindCreateTopic, fsm.CreateTopic{Name: name, Partitions: partitions, Groups: testGroups}).Topic
	}
	level := func() (l uint64) {
		r.members[2].node.Catalog().Read(func(s *fsm.Group) { l = s.Index })
		return l
	}
	open := func(topic uint64, name string, group uint32, partitions ...int32) {
		r.submit(n, group, fsm.KindOpen, fsm.Open{Level: level(), Topic: topic, Name: name, Total: 3, Partitions: partitions})
	}
	group := func(topic uint64, p int32) uint32 { return uint32((topic - 1 + uint64(p)) % testGroups) }

	want := make(map[string]int) // partitions when all is done
	// Created, opened in none, one, all of the groups.
	for opened := range 4 {
		name := fmt.Sprintf("open-%d", opened)
		id := create(name, 3)
		for p := range int32(opened) {
			open(id, name, group(id, p), p)
		}
		want[name] = 3
	}
	// Grown, with the new partitions opened or not.
	for _, grown := range []int32{0, 1} {
		name := fmt.Sprintf("grow-%d", grown)
		id := create(name, 3)
		for p := range int32(3) {
			open(id, name, group(id, p), p)
		}
		r.submit(n, 0, fsm.KindTopicOpened, fsm.TopicOpened{Topic: id, Partitions: 3})
		r.submit(n, 0, fsm.KindCreatePartitions, fsm.CreatePartitions{Topic: id, Total: 5, Groups: testGroups})
		for p := int32(3); p < 3+grown; p++ {
			open(id, name, group(id, p), p)
		}
		want[name] = 5
	}
	// Deleted, closed in none, one, all of the groups; one never opened at all.
	gone := []uint64{create("never-opened", 2)}
	r.submit(n, 0, fsm.KindDeleteTopic, fsm.DeleteTopic{Topic: gone[0]})
	for closed := range 4 {
		name := fmt.Sprintf("close-%d", closed)
		id := create(name, 3)
		for p := range int32(3) {
			open(id, name, group(id, p), p)
		}
		r.submit(n, 0, fsm.KindTopicOpened, fsm.TopicOpened{Topic: id, Partitions: 3})
		r.submit(n, 0, fsm.KindDeleteTopic, fsm.DeleteTopic{Topic: id})
		for p := range int32(closed) {
			r.submit(n, group(id, p), fsm.KindClose, fsm.Close{Level: level(), Topic: id, Name: name})
		}
		gone = append(gone, id)
	}

	for _, m := range r.members {
		m.cluster.Open()
	}
	for _, m := range r.members {
		r.sees(m, "every topic as the catalog wants it", func(s *snapshot) bool {
			got := make(map[string]int)
			for name, topic := range s.view.Topics {
				got[name] = len(topic.Partitions)
			}
			return maps.Equal(got, want)
		})
		for g := range uint32(testGroups) {
			r.holds(m, g, "no partition of a deleted topic", func(s *fsm.Group) bool {
				for tp := range s.Partitions {
					if slices.Contains(gone, tp.Topic) {
						return false
					}
				}
				return true
			})
		}
		r.holds(m, 0, "the names of deleted topics are free", func(s *fsm.Group) bool { return len(s.Catalog.Topics) == len(want) })
	}
}

// Topics created and deleted at once from all sides end as one or the other,
// and no group keeps a partition of one that is gone.
func TestCreateAndDeleteAtOnce(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	var wg sync.WaitGroup
	for _, m := range r.members {
		wg.Go(func() {
			for i := range 6 {
				name := fmt.Sprint("t", i%2)
				var err error
				if i%3 == 0 {
					err = m.cluster.DeleteTopic(r.ctx(), name)
				} else {
					err = m.cluster.CreateTopic(r.ctx(), proxy.TopicSpec{Name: name, Partitions: 4})
				}
				var ke *proxy.KafkaError
				if err != nil && !errors.As(err, &ke) {
					t.Errorf("node %d: %v", m.id, err)
				}
				if ke != nil && ke.Code != codeUnknownTopic && ke.Code != 36 {
					t.Errorf("node %d: %v", m.id, err)
				}
			}
		})
	}
	wg.Wait()
	for _, m := range r.members {
		r.holds(m, 0, "every topic is live", func(s *fsm.Group) bool {
			for _, topic := range s.Catalog.Topics {
				if topic.State != fsm.TopicLive {
					return false
				}
			}
			return true
		})
	}
	lead := r.leaderOf(0)
	live := make(map[uint64]bool)
	lead.node.Catalog().Read(func(s *fsm.Group) {
		for id := range s.Catalog.Topics {
			live[id] = true
		}
	})
	for _, m := range r.members {
		for g := range uint32(testGroups) {
			r.holds(m, g, "partitions of live topics only", func(s *fsm.Group) bool {
				for tp := range s.Partitions {
					if !live[tp.Topic] {
						return false
					}
				}
				return true
			})
		}
	}
}

// CreateTopic, CreatePartitions and DeleteTopic return when the groups have
// done it, and say in Kafka's words what is wrong.
func TestTopicsFromEveryNode(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	code := func(err error) int16 {
		var ke *proxy.KafkaError
		if !errors.As(err, &ke) {
			return 0
		}
		return ke.Code
	}
	for id, m := range r.members {
		name := fmt.Sprint("t", id)
		topic := r.create(m, name, 2)
		if topic == nil || len(topic.Partitions) != 2 || topic.Partitions[0].Leader < 1 {
			t.Fatalf("created at node %d: %+v", id, topic)
		}
		if got := code(m.cluster.CreateTopic(r.ctx(), proxy.TopicSpec{Name: name, Partitions: 2})); got != 36 {
			t.Errorf("created twice: code %d", got)
		}
		if err := m.cluster.CreatePartitions(r.ctx(), name, 5); err != nil {
			t.Fatal(err)
		}
		if got := len(m.cluster.View().Topics[name].Partitions); got != 5 {
			t.Errorf("extended to %d partitions", got)
		}
		if got := code(m.cluster.CreatePartitions(r.ctx(), name, 5)); got != 37 {
			t.Errorf("extended to what it has: code %d", got)
		}
		if err := m.cluster.DeleteTopic(r.ctx(), name); err != nil {
			t.Fatal(err)
		}
		if m.cluster.View().Topics[name] != nil {
			t.Error("a deleted topic is shown")
		}
		again := r.create(m, name, 1)
		if again.ID == topic.ID {
			t.Error("a topic created again has the old id")
		}
		if got := code(m.cluster.DeleteTopic(r.ctx(), "none")); got != codeUnknownTopic {
			t.Errorf("deleted what is not there: code %d", got)
		}
	}
}

// Every slot has a coordinator; those of a node that is away for longer than
// the grace move, under a higher epoch, and nothing else does.
func TestCoordinatorsMoveOnlyWhenTheyMust(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	slots := func(m *member) (out []fsm.CoordinatorSlot) {
		m.node.Catalog().Read(func(s *fsm.Group) { out = s.Catalog.Coordinators })
		return out
	}
	for _, m := range r.members {
		r.sees(m, "coordinators", func(s *snapshot) bool {
			return len(s.view.Coordinators) == fsm.CoordinatorSlots && !slices.Contains(s.view.Coordinators, -1)
		})
	}
	// The node with most slots that does not lead the catalog goes.
	lead := r.leaderOf(0)
	before := slots(lead)
	count := make(map[int32]int)
	for _, s := range before {
		count[s.Node]++
	}
	away := int32(1)
	for id := range r.peers {
		if id != lead.id && (away == lead.id || count[id] > count[away]) {
			away = id
		}
	}
	r.members[away].broker.Set(BrokerReport{Up: false, Error: "gone"})
	for _, m := range r.members {
		r.sees(m, "no slot on the node whose broker is gone", func(s *snapshot) bool { return !slices.Contains(s.view.Coordinators, away) })
	}
	after := slots(lead)
	for i := range after {
		moved := before[i].Node == away
		if (after[i] != before[i]) != moved {
			t.Errorf("slot %d: %+v became %+v", i, before[i], after[i])
		}
		if moved && after[i].Epoch <= before[i].Epoch {
			t.Errorf("slot %d moved without a higher epoch", i)
		}
	}
}
