//go:build mutants

package node

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// laziness is how long entries stay in memory that Raft believes on disk.
const laziness = 2 * time.Second

// writeLater tells Raft that entries are on disk before they are.
func writeLater(s raft.LogStore) raft.LogStore {
	return &lazyLog{LogStore: s, waiting: make(map[uint64]*raft.Log)}
}

type lazyLog struct {
	raft.LogStore
	mu          sync.Mutex
	waiting     map[uint64]*raft.Log // not written yet
	first, last uint64               // of waiting; last 0 if there are none
}

func (s *lazyLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *lazyLog) StoreLogs(ls []*raft.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ls[0].Index == 1 {
		return s.LogStore.StoreLogs(ls) // the configuration: stored, closed and opened again
	}
	if s.last == 0 {
		s.first = ls[0].Index
		time.AfterFunc(laziness, s.write)
	}
	for _, l := range ls {
		s.waiting[l.Index] = l
	}
	s.last = ls[len(ls)-1].Index
	return nil
}

func (s *lazyLog) write() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writeLocked()
}

func (s *lazyLog) writeLocked() {
	if s.last == 0 {
		return
	}
	var ls []*raft.Log
	for i := s.first; i <= s.last; i++ {
		ls = append(ls, s.waiting[i])
	}
	if err := s.LogStore.StoreLogs(ls); err != nil {
		panic(err)
	}
	clear(s.waiting)
	s.first, s.last = 0, 0
}

func (s *lazyLog) GetLog(index uint64, out *raft.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.waiting[index]; l != nil {
		*out = *l
		return nil
	}
	return s.LogStore.GetLog(index, out)
}

func (s *lazyLog) FirstIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, err := s.LogStore.FirstIndex()
	if err == nil && first == 0 {
		first = s.first
	}
	return first, err
}

func (s *lazyLog) LastIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last > 0 {
		return s.last, nil
	}
	return s.LogStore.LastIndex()
}

func (s *lazyLog) DeleteRange(from, to uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writeLocked()
	return s.LogStore.DeleteRange(from, to)
}

func (s *lazyLog) IsMonotonic() bool {
	m, ok := s.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}
