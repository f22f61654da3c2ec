package node

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// brokenStore fails or hangs on demand. Set its fields before use.
type brokenStore struct {
	raft.LogStore
	raft.StableStore
	fail atomic.Pointer[error]
	hang chan struct{} // writes wait for it if set
	hung atomic.Bool
}

func (s *brokenStore) trouble() error {
	if s.hung.Load() {
		<-s.hang
	}
	if err := s.fail.Load(); err != nil {
		return *err
	}
	return nil
}

func (s *brokenStore) StoreLogs(ls []*raft.Log) error {
	if err := s.trouble(); err != nil {
		return err
	}
	return s.LogStore.StoreLogs(ls)
}

func (s *brokenStore) SetUint64(k []byte, v uint64) error {
	if err := s.trouble(); err != nil {
		return err
	}
	return s.StableStore.SetUint64(k, v)
}

func newBrokenStore() *brokenStore {
	mem := raft.NewInmemStore()
	return &brokenStore{LogStore: mem, StableStore: mem, hang: make(chan struct{})}
}

// A write that failed is the last one, and is told once.
func TestGuardLatchesAnError(t *testing.T) {
	var mu sync.Mutex
	var told []error
	g := &guard{limit: time.Minute, fatal: func(err error) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, err)
	}}
	s := newBrokenStore()
	logs := &guardedLog{LogStore: s, g: g, log: hclog.NewNullLogger()}
	stable := &guardedStable{s, g}
	if err := logs.StoreLogs(entries(1, 1, 1, 10)); err != nil {
		t.Fatal(err)
	}
	eio := errors.New("input/output error")
	s.fail.Store(&eio)
	if err := logs.StoreLogs(entries(2, 2, 1, 10)); !errors.Is(err, eio) {
		t.Fatalf("the error is lost: %v", err)
	}
	s.fail.Store(nil) // the disk says that it is well again: fsyncgate
	if err := logs.StoreLogs(entries(2, 2, 1, 10)); !errors.Is(err, eio) {
		t.Fatalf("a write after a failed one: %v", err)
	}
	if err := logs.DeleteRange(1, 1); !errors.Is(err, eio) {
		t.Fatalf("a cut after a failed write: %v", err)
	}
	if err := stable.Set([]byte("k"), []byte("v")); !errors.Is(err, eio) {
		t.Fatalf("a vote after a failed write: %v", err)
	}
	if last, err := s.LastIndex(); err != nil || last != 1 {
		t.Errorf("last index is %d, %v: something was written after the failure", last, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(told) != 1 || !errors.Is(told[0], eio) {
		t.Errorf("told %v, want the error once", told)
	}
}

// Raft panics when its term cannot be stored; the guard ends its goroutine.
func TestGuardKeepsRaftFromPanicking(t *testing.T) {
	g := &guard{limit: time.Minute, fatal: func(error) {}}
	s := newBrokenStore()
	eio := errors.New("input/output error")
	s.fail.Store(&eio)
	returned := make(chan bool, 1)
	go func() {
		back := false
		defer func() { returned <- back }()
		_ = (&guardedStable{s, g}).SetUint64([]byte("CurrentTerm"), 7)
		back = true
	}()
	if <-returned {
		t.Fatal("a term that was not stored is told as stored, or raft panics")
	}
}

// A write that hangs is told while it hangs.
func TestGuardTellsOfAHangingWrite(t *testing.T) {
	told := make(chan error, 2)
	g := &guard{limit: 10 * time.Millisecond, fatal: func(err error) { told <- err }}
	s := newBrokenStore()
	s.hung.Store(true)
	done := make(chan error, 1)
	logs := &guardedLog{LogStore: s, g: g, log: hclog.NewNullLogger()}
	go func() { done <- logs.StoreLogs(entries(1, 1, 1, 10)) }()
	select {
	case err := <-told:
		if !strings.Contains(err.Error(), "hangs") {
			t.Errorf("told %v", err)
		}
	case <-time.After(testWait):
		t.Fatal("nobody was told")
	}
	close(s.hang)
	t.Logf("the hanging write ended with %v", <-done)
	if err := logs.StoreLogs(entries(2, 2, 1, 10)); err == nil {
		t.Error("a write after one that hung is let through")
	}
}
