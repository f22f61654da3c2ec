package proxy

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
)

// fakeGroups keeps what groups commit, by the names that fakeCluster's view has
// for the topics, in the order in which it is committed.
type fakeGroups struct {
	groupsMu *sync.Mutex
	state    *fakeGroupsState
}

type fakeGroupsState struct {
	epoch     int64
	committed map[string]map[TopicPartition]CommittedOffset
	commits   []OffsetCommit
	err       error                // of every question
	hold      func(release func()) // takes every commit
	noting    map[string]int       // how many note what a group commits
	meanwhile map[string]bool      // whether it has
}

func newFakeGroups() fakeGroups {
	return fakeGroups{new(sync.Mutex), &fakeGroupsState{epoch: 1, committed: make(map[string]map[TopicPartition]CommittedOffset),
		noting: make(map[string]int), meanwhile: make(map[string]bool)}}
}

// edit changes what the groups are; the epoch is seen with the next view.
func (g fakeGroups) edit(f func(s *fakeGroupsState)) {
	g.groupsMu.Lock()
	defer g.groupsMu.Unlock()
	f(g.state)
}

func (g fakeGroups) epochNow() int64 {
	g.groupsMu.Lock()
	defer g.groupsMu.Unlock()
	return g.state.epoch
}

func (c *fakeCluster) topicName(id uint64) string {
	for name, t := range c.View().Topics {
		if t.ID == id {
			return name
		}
	}
	return ""
}

func (c *fakeCluster) CommitOffsets(commit OffsetCommit, done func([]int16)) {
	apply := func() {
		codes := make([]int16, len(commit.Offsets))
		names := make([]string, len(commit.Offsets))
		for i, o := range commit.Offsets {
			names[i] = c.topicName(o.Topic)
		}
		c.fakeGroups.edit(func(s *fakeGroupsState) {
			s.commits = append(s.commits, commit)
			s.meanwhile[commit.Group] = s.noting[commit.Group] > 0
			for i, o := range commit.Offsets {
				if commit.Epoch != s.epoch {
					codes[i] = kerr.NotCoordinator.Code
					continue
				}
				if s.committed[commit.Group] == nil {
					s.committed[commit.Group] = make(map[TopicPartition]CommittedOffset)
				}
				s.committed[commit.Group][TopicPartition{o.Topic, o.Partition}] = CommittedOffset{names[i], o.Partition, o.Offset, o.Metadata}
			}
		})
		done(codes)
	}
	var hold func(func())
	c.fakeGroups.edit(func(s *fakeGroupsState) { hold = s.hold })
	if hold != nil {
		hold(apply)
		return
	}
	apply()
}

func (c *fakeCluster) Committed(_ context.Context, groups []string) (map[string][]CommittedOffset, error) {
	out := make(map[string][]CommittedOffset)
	var err error
	c.fakeGroups.edit(func(s *fakeGroupsState) {
		err = s.err
		for _, name := range groups {
			for _, o := range s.committed[name] {
				out[name] = append(out[name], o)
			}
		}
	})
	for _, offsets := range out {
		slices.SortFunc(offsets, func(a, b CommittedOffset) int {
			return cmp.Or(strings.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
		})
	}
	return out, err
}

func (c *fakeCluster) CommittedGroups(context.Context) ([]string, error) {
	var names []string
	var err error
	c.fakeGroups.edit(func(s *fakeGroupsState) {
		err = s.err
		for name := range s.committed {
			names = append(names, name)
		}
	})
	slices.Sort(names)
	return names, err
}

func (c *fakeCluster) NoteCommits(group string) func() {
	c.fakeGroups.edit(func(s *fakeGroupsState) { s.noting[group]++ })
	return func() {
		c.fakeGroups.edit(func(s *fakeGroupsState) {
			if s.noting[group]--; s.noting[group] == 0 {
				delete(s.noting, group)
				delete(s.meanwhile, group)
			}
		})
	}
}

func (c *fakeCluster) DeleteGroup(_ context.Context, group string, epoch int64) error {
	err := error(nil)
	c.fakeGroups.edit(func(s *fakeGroupsState) {
		switch {
		case s.err != nil:
			err = s.err
		case s.epoch != epoch, s.meanwhile[group]:
			err = &KafkaError{Code: kerr.NotCoordinator.Code}
		case s.committed[group] == nil:
			err = &KafkaError{Code: kerr.GroupIDNotFound.Code}
		}
		if err == nil {
			delete(s.committed, group)
		}
	})
	return err
}

func (c *fakeCluster) DeleteOffsets(_ context.Context, group string, epoch int64, partitions []TopicPartition) error {
	err := error(nil)
	c.fakeGroups.edit(func(s *fakeGroupsState) {
		switch {
		case s.err != nil:
			err = s.err
		case s.epoch != epoch, s.meanwhile[group]:
			err = &KafkaError{Code: kerr.NotCoordinator.Code}
		case s.committed[group] == nil:
			err = &KafkaError{Code: kerr.GroupIDNotFound.Code}
		}
		if err == nil {
			for _, tp := range partitions {
				delete(s.committed[group], tp)
			}
		}
	})
	return err
}
