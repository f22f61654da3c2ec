package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/internal/watch"
	"lockstep/proxy"
)

// fakeGroupBroker is a broker with groups that have members.
type fakeGroupBroker struct {
	mu       sync.Mutex
	occupied []string
	err      error
	evicted  []string
	asked    watch.Index
	told     map[string][]broker.TopicOffset
}

func (b *fakeGroupBroker) CommitOffsets(_ context.Context, group string, offsets []broker.TopicOffset) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	if b.told == nil {
		b.told = make(map[string][]broker.TopicOffset)
	}
	b.told[group] = offsets
	return 0, nil
}

func (b *fakeGroupBroker) OccupiedGroups(context.Context) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked.Set(b.asked.Get() + 1)
	return slices.Clone(b.occupied), nil
}

func (b *fakeGroupBroker) EvictMembers(_ context.Context, groups []string) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	b.evicted = append(b.evicted, groups...)
	b.occupied = slices.DeleteFunc(b.occupied, func(g string) bool { return slices.Contains(groups, g) })
	return len(groups), nil
}

// coordinatorOf waits until a node, and not the one excepted, says of itself
// that it coordinates the group, and returns it with its epoch.
func (r *rig) coordinatorOf(group string, except int32) (*member, int64) {
	r.t.Helper()
	var id int32
	for _, m := range r.members {
		r.sees(m, "a coordinator", func(s *snapshot) bool {
			id = s.view.Coordinator(group)
			return id > 0 && id != except
		})
		break
	}
	m := r.members[id]
	r.sees(m, "itself as the coordinator", func(s *snapshot) bool { return s.view.CoordinatorEpoch(group) != 0 })
	return m, m.cluster.View().CoordinatorEpoch(group)
}

func commitOf(group string, epoch int64, topic *proxy.Topic, offset int64) proxy.OffsetCommit {
	return proxy.OffsetCommit{Group: group, Epoch: epoch, Member: true, RetentionMs: -1,
		Offsets: []proxy.OffsetToCommit{{Topic: topic.ID, Partition: 0, Offset: offset, Metadata: "m"}}}
}

func (r *rig) commit(m *member, c proxy.OffsetCommit) int16 {
	r.t.Helper()
	done := make(chan []int16, 1)
	m.cluster.CommitOffsets(c, func(codes []int16) { done <- codes })
	select {
	case codes := <-done:
		return codes[0]
	case <-r.ctx().Done():
		r.t.Fatal("a commit was never answered")
		return 0
	}
}

// committed is what a member reads of a group.
func (r *rig) committed(m *member, group string) string {
	r.t.Helper()
	got, err := m.cluster.Committed(r.ctx(), []string{group})
	if err != nil {
		r.t.Fatalf("node %d: %v", m.id, err)
	}
	return fmt.Sprint(got[group])
}

// TestCommitsOutliveTheirCoordinator, are read from every node as soon as they
// are acknowledged, and what was validated before the group moved is refused.
func TestCommitsOutliveTheirCoordinator(t *testing.T) {
	r := running(t, nil)
	topic := r.create(r.members[1], "orders", 1)
	const group = "g"
	first, epoch := r.coordinatorOf(group, 0)
	for offset := range int64(5) {
		if code := r.commit(first, commitOf(group, epoch, topic, offset)); code != 0 {
			t.Fatalf("commit %d: code %d", offset, code)
		}
		for _, m := range r.members {
			if got, want := r.committed(m, group), fmt.Sprintf("[{orders 0 %d m}]", offset); got != want {
				t.Fatalf("node %d reads %s, want %s", m.id, got, want)
			}
		}
	}
	if names, err := first.cluster.CommittedGroups(r.ctx()); err != nil || !slices.Equal(names, []string{group}) {
		t.Errorf("groups: %v, %v", names, err)
	}
	r.stop(first.id)
	second, later := r.coordinatorOf(group, first.id)
	if got := r.committed(second, group); got != "[{orders 0 4 m}]" {
		t.Errorf("the next coordinator reads %s", got)
	}
	if code := r.commit(second, commitOf(group, later, topic, 9)); code != 0 {
		t.Fatalf("the next coordinator's commit: code %d", code)
	}
	// What the first one had validated, as if it had been paused since.
	if code := r.commit(second, commitOf(group, epoch, topic, 5)); code != 16 {
		t.Errorf("the commit of the epoch before: code %d", code)
	}
	var refused *proxy.KafkaError
	if err := second.cluster.DeleteGroup(r.ctx(), group, epoch); !errors.As(err, &refused) || refused.Code != 16 {
		t.Errorf("a delete of the epoch before: %v", err)
	}
	if got := r.committed(second, group); got != "[{orders 0 9 m}]" {
		t.Errorf("it reads %s", got)
	}
	if err := second.cluster.DeleteOffsets(r.ctx(), group, later, []proxy.TopicPartition{{Topic: topic.ID, Partition: 0}}); err != nil {
		t.Error(err)
	}
	if got := r.committed(second, group); got != "[]" {
		t.Errorf("after the delete it reads %s", got)
	}
}

// TestCommitsKeepTheirOrder on the way to a leader on another node, in batches,
// and are all answered when the node closes.
func TestCommitsKeepTheirOrder(t *testing.T) {
	r := running(t, nil)
	topic := r.create(r.members[1], "orders", 1)
	leader := r.leaderOf(fsm.CatalogGroup)
	group := ""
	for i := 0; group == ""; i++ {
		if m, _ := r.coordinatorOf(fmt.Sprint("g", i), 0); m.id != leader.id {
			group = fmt.Sprint("g", i)
		}
	}
	m, epoch := r.coordinatorOf(group, 0)
	const count = 5000
	var wg sync.WaitGroup
	var mu sync.Mutex
	bad := 0
	entries := m.node.Catalog().Log().Applied().Get()
	for offset := range int64(count) {
		wg.Add(1)
		m.cluster.CommitOffsets(commitOf(group, epoch, topic, offset), func(codes []int16) {
			defer wg.Done()
			if codes[0] != 0 {
				mu.Lock()
				bad++
				mu.Unlock()
			}
		})
	}
	if got, want := r.committed(m, group), fmt.Sprintf("[{orders 0 %d m}]", count-1); got != want {
		t.Errorf("read %s, want %s: a reader sees what its node has proposed before", got, want)
	}
	wg.Wait()
	if used := m.node.Catalog().Log().Applied().Get() - entries; bad > 0 || used > count/10 {
		t.Errorf("%d of %d commits were refused; they took %d log entries", bad, count, used)
	}
	for offset := range int64(100) {
		wg.Add(1)
		m.cluster.CommitOffsets(commitOf(group, epoch, topic, offset), func([]int16) { wg.Done() })
	}
	r.stop(m.id)
	wg.Wait()
	wg.Add(1)
	m.cluster.CommitOffsets(commitOf(group, epoch, topic, 1), func([]int16) { wg.Done() })
	wg.Wait()
}

// TestMembersOfBeforeAreEvicted before a node coordinates: what the broker still
// holds of an earlier time must not be able to act.
func TestMembersOfBeforeAreEvicted(t *testing.T) {
	const group = "g"
	broker := &fakeGroupBroker{occupied: []string{group, "other"}, err: errors.New("the broker is slow")}
	r := running(t, func(c *Config) { c.GroupBroker = broker })
	var id int32
	r.sees(r.members[1], "a coordinator", func(s *snapshot) bool { id = s.view.Coordinator(group); return id > 0 })
	m := r.members[id]
	tried := broker.asked.Get()
	if _, err := broker.asked.Wait(r.ctx(), tried+2); err != nil {
		t.Fatal(err)
	}
	if epoch := m.cluster.View().CoordinatorEpoch(group); epoch != 0 {
		t.Fatalf("it coordinates under epoch %d, with members from before", epoch)
	}
	broker.mu.Lock()
	broker.err = nil
	broker.mu.Unlock()
	r.coordinatorOf(group, 0)
	broker.mu.Lock()
	defer broker.mu.Unlock()
	if !slices.Contains(broker.evicted, group) {
		t.Errorf("evicted %v", broker.evicted)
	}
}

// TestOffsetsAreTended: groups with members are touched by their coordinator,
// the others end on the replicated clock.
func TestOffsetsAreTended(t *testing.T) {
	broker := &fakeGroupBroker{}
	r := running(t, func(c *Config) {
		c.GroupBroker = broker
		c.OffsetsRetention, c.quiet = time.Nanosecond, time.Millisecond
	})
	topic := r.create(r.members[1], "orders", 1)
	m, epoch := r.coordinatorOf("g", 0)
	c := commitOf("g", epoch, topic, 5)
	c.Member = false
	if code := r.commit(m, c); code != 0 {
		t.Fatalf("code %d", code)
	}
	live := func() (ms int64) {
		if err := m.cluster.catalogUpToDate(r.ctx()); err != nil {
			t.Fatal(err)
		}
		m.node.Catalog().Read(func(g *fsm.Group) { ms = g.Catalog.Consumers["g"].LiveMs })
		return ms
	}
	if live() != 0 {
		t.Fatal("a commit of nobody's says that there are members")
	}
	broker.mu.Lock()
	broker.occupied = []string{"g", "unknown"}
	broker.mu.Unlock()
	for live() == 0 { // the clock may still stand at its beginning
		if err := m.cluster.touchGroups(r.ctx()); err != nil {
			t.Fatal(err)
		}
	}
	leader := r.leaderOf(fsm.CatalogGroup)
	for r.committed(m, "g") != "[]" {
		if err := leader.cluster.expireOffsets(r.ctx()); err != nil {
			t.Fatal(err)
		}
	}
	before := leader.node.Catalog().Log().Applied().Get()
	if err := leader.cluster.expireOffsets(r.ctx()); err != nil || leader.node.Catalog().Log().Applied().Get() != before {
		t.Errorf("an entry for nothing that could expire: %v", err)
	}
}
