package cluster

import (
	"context"

	"lockstep/fsm"
	"lockstep/proxy"
)

// codeNotCoordinator is Kafka's NOT_COORDINATOR: clients look for the
// coordinator and repeat.
const codeNotCoordinator = 16

// notedCommits is what a group has committed since somebody thought of deleting
// something of it.
type notedCommits struct {
	by         int // how many want to know
	partitions map[fsm.TP]bool
}

// note is told of a commit before it is queued. The caller holds q.mu.
func (q *committer) note(commit *fsm.OffsetCommit) {
	noted := q.noted[commit.Group]
	if noted == nil {
		return
	}
	for i := range commit.Offsets {
		noted.partitions[commit.Offsets[i].TP] = true
	}
}

// committedMeanwhile says whether one of the partitions, or any if none is
// named, was committed since it is noted. The caller holds q.mu.
func (q *committer) committedMeanwhile(group string, partitions []fsm.TP) bool {
	noted := q.noted[group]
	if noted == nil {
		return false
	}
	for _, tp := range partitions {
		if noted.partitions[tp] {
			return true
		}
	}
	return partitions == nil && len(noted.partitions) > 0
}

// NoteCommits implements proxy.ConsumerGroups.
func (c *Cluster) NoteCommits(group string) (done func()) {
	q := &c.commits
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.noted == nil {
		q.noted = make(map[string]*notedCommits)
	}
	noted := q.noted[group]
	if noted == nil {
		noted = &notedCommits{partitions: make(map[fsm.TP]bool)}
		q.noted[group] = noted
	}
	noted.by++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if noted.by--; noted.by == 0 {
			delete(q.noted, group)
		}
	}
}

// deletionTurn waits for the commits that came before, and returns the turn of a
// deletion. A commit that comes later has a later turn, so the deletion is
// refused if it is overtaken, and one that came since it is noted is spared.
func (c *Cluster) deletionTurn(ctx context.Context, group string, partitions []fsm.TP) (int64, error) {
	if err := c.settled(ctx); err != nil {
		return 0, err
	}
	q := &c.commits
	last := c.lastTurn()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.committedMeanwhile(group, partitions) {
		return 0, &proxy.KafkaError{Code: codeNotCoordinator, Message: "the group has committed meanwhile"}
	}
	return q.nextTurn(last), nil
}

// DeleteGroup implements proxy.ConsumerGroups.
func (c *Cluster) DeleteGroup(ctx context.Context, group string, epoch int64) error {
	turn, err := c.deletionTurn(ctx, group, nil)
	if err != nil {
		return err
	}
	_, err = c.submit(ctx, fsm.CatalogGroup, fsm.KindDeleteGroup,
		fsm.DeleteGroup{Group: []byte(group), Slot: proxy.GroupSlot(group, fsm.CoordinatorSlots), Epoch: epoch, Turn: turn})
	return err
}

// DeleteOffsets implements proxy.ConsumerGroups.
func (c *Cluster) DeleteOffsets(ctx context.Context, group string, epoch int64, partitions []proxy.TopicPartition) error {
	a := fsm.DeleteOffsets{Group: []byte(group), Slot: proxy.GroupSlot(group, fsm.CoordinatorSlots), Epoch: epoch,
		Partitions: make([]fsm.TP, 0, len(partitions))}
	for _, tp := range partitions {
		a.Partitions = append(a.Partitions, fsm.TP{Topic: tp.Topic, Partition: tp.Partition})
	}
	var err error
	if a.Turn, err = c.deletionTurn(ctx, group, a.Partitions); err != nil {
		return err
	}
	_, err = c.submit(ctx, fsm.CatalogGroup, fsm.KindDeleteOffsets, a)
	return err
}
