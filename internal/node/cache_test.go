package node

import (
	"errors"
	"testing"

	"github.com/hashicorp/raft"
)

// countingStore counts the reads that reach the store, and fails writes on
// demand.
type countingStore struct {
	*raft.InmemStore
	reads int
	fail  error
}

func (s *countingStore) GetLog(i uint64, l *raft.Log) error {
	s.reads++
	return s.InmemStore.GetLog(i, l)
}

func (s *countingStore) StoreLogs(ls []*raft.Log) error {
	if s.fail != nil {
		return s.fail
	}
	return s.InmemStore.StoreLogs(ls)
}

func entries(from, to uint64, term uint64, size int) []*raft.Log {
	var out []*raft.Log
	for i := from; i <= to; i++ {
		out = append(out, &raft.Log{Index: i, Term: term, Data: make([]byte, size)})
	}
	return out
}

func TestCacheHoldsTheNewestByBytes(t *testing.T) {
	s := &countingStore{InmemStore: raft.NewInmemStore()}
	c := newCachedLog(s, 1000)
	if err := c.StoreLogs(entries(1, 50, 1, 100)); err != nil {
		t.Fatal(err)
	}
	if c.bytes > 1000 {
		t.Fatalf("%d bytes are held, 1000 are allowed", c.bytes)
	}
	var l raft.Log
	for i := uint64(1); i <= 50; i++ {
		if err := c.GetLog(i, &l); err != nil || l.Index != i {
			t.Fatalf("entry %d: got %d, %v", i, l.Index, err)
		}
	}
	if s.reads != 40 {
		t.Errorf("%d reads reached the store, want the 40 oldest", s.reads)
	}
}

func TestCacheForgetsWhatIsCutOff(t *testing.T) {
	s := &countingStore{InmemStore: raft.NewInmemStore()}
	c := newCachedLog(s, 1<<20)
	if err := c.StoreLogs(entries(1, 10, 1, 10)); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteRange(6, 10); err != nil {
		t.Fatal(err)
	}
	var l raft.Log
	if err := c.GetLog(7, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("a deleted entry is answered: %+v, %v", l, err)
	}
	if err := c.StoreLogs(entries(6, 8, 2, 10)); err != nil {
		t.Fatal(err)
	}
	if err := c.GetLog(7, &l); err != nil || l.Term != 2 {
		t.Fatalf("got term %d, %v; want the entry written anew", l.Term, err)
	}
	if err := c.GetLog(3, &l); err != nil || l.Term != 1 {
		t.Fatalf("got term %d, %v; want the old entry", l.Term, err)
	}
}

func TestCacheHoldsNothingThatWasNotStored(t *testing.T) {
	s := &countingStore{InmemStore: raft.NewInmemStore(), fail: errors.New("disk full")}
	c := newCachedLog(s, 1<<20)
	if err := c.StoreLogs(entries(1, 3, 1, 10)); err == nil {
		t.Fatal("the store's error is swallowed")
	}
	var l raft.Log
	if err := c.GetLog(2, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("an entry that was never stored is answered: %v", err)
	}
}

// A cut at the beginning leaves the newest entries where they are.
func TestCacheOutlivesACutAtTheBeginning(t *testing.T) {
	s := &countingStore{InmemStore: raft.NewInmemStore()}
	c := newCachedLog(s, 1<<20)
	if err := c.StoreLogs(entries(1, 10, 1, 10)); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteRange(1, 4); err != nil {
		t.Fatal(err)
	}
	var l raft.Log
	if err := c.GetLog(4, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("a deleted entry is answered: %v", err)
	}
	s.reads = 0
	for i := uint64(5); i <= 10; i++ {
		if err := c.GetLog(i, &l); err != nil || l.Index != i {
			t.Errorf("entry %d: got %d, %v", i, l.Index, err)
		}
	}
	if s.reads != 0 || c.bytes != 60 {
		t.Errorf("%d reads reached the store, %d bytes are counted", s.reads, c.bytes)
	}
	if err := c.DeleteRange(5, 10); err != nil {
		t.Fatal(err)
	}
	if c.bytes != 0 || len(c.logs) != 0 {
		t.Errorf("%d entries are left of an empty log", len(c.logs))
	}
}
