package node

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

func numbered(from, to, term uint64) []*raft.Log {
	var out []*raft.Log
	for i := from; i <= to; i++ {
		out = append(out, &raft.Log{Index: i, Term: term, Data: fmt.Appendf(nil, "%d-%d-%s", term, i, bytes.Repeat([]byte{'x'}, 2000))})
	}
	return out
}

// After a failover Raft cuts the end of a log off and writes it anew. Whatever
// was cut, all that counts must be readable after the next start.
func TestLogIsReadableAfterItsTailWasCut(t *testing.T) {
	for _, kind := range []string{StoreWAL, StoreBoltDB} {
		for _, cut := range []uint64{2, 40, 99, 100} {
			t.Run(fmt.Sprintf("%s/from %d", kind, cut), func(t *testing.T) { testTailCut(t, kind, cut) })
		}
	}
}

func testTailCut(t *testing.T, kind string, cut uint64) {
	// Segments of 64 KiB hold some thirty entries: the cut falls into the
	// newest, an older one, and right behind their borders.
	cfg := storeConfig{dir: t.TempDir(), kind: kind, segmentBytes: 64 << 10, timeout: time.Minute,
		logger: hclog.NewNullLogger(), fatal: func(err error) { t.Errorf("fatal: %v", err) }}
	open := func() *stores {
		t.Helper()
		s, err := openStores(cfg)
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		return s
	}
	s := open()
	for from := uint64(1); from <= 100; from += 10 {
		if err := s.logs.StoreLogs(numbered(from, from+9, 1)); err != nil {
			t.Fatal(err)
		}
	}
	want := make(map[uint64]uint64) // term by index
	for i := uint64(1); i <= 100; i++ {
		want[i] = 1
	}
	last := uint64(100)
	for round := range uint64(3) {
		term := round + 2
		if err := s.logs.DeleteRange(cut, last); err != nil {
			t.Fatal(err)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		s = open()
		last = cut + 20
		if err := s.logs.StoreLogs(numbered(cut, last, term)); err != nil {
			t.Fatal(err)
		}
		for i := cut; i <= 100 || i <= last; i++ {
			delete(want, i)
			if i <= last {
				want[i] = term
			}
		}
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	if got, err := s.logs.LastIndex(); err != nil || got != last {
		t.Fatalf("last index %d, %v; want %d", got, err, last)
	}
	for i := uint64(1); i <= last; i++ {
		var l raft.Log
		if err := s.logs.GetLog(i, &l); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		if w := numbered(i, i, want[i])[0]; l.Index != i || l.Term != want[i] || !bytes.Equal(l.Data, w.Data) {
			t.Fatalf("entry %d has index %d, term %d; want term %d", i, l.Index, l.Term, want[i])
		}
	}
	var l raft.Log
	if err := s.logs.GetLog(last+1, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("entry %d, which was cut off: %v", last+1, err)
	}
}

// Raft sends a snapshot to a follower when the entries that it lacks are not
// there any more, and not when the store has not yet removed them.
func TestCutBeginningIsNotRead(t *testing.T) {
	for _, kind := range []string{StoreWAL, StoreBoltDB} {
		t.Run(kind, func(t *testing.T) {
			s, err := openStores(storeConfig{dir: t.TempDir(), kind: kind, segmentBytes: 1 << 20, timeout: time.Minute,
				logger: hclog.NewNullLogger(), fatal: func(err error) { t.Errorf("fatal: %v", err) }})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := s.close(); err != nil {
					t.Error(err)
				}
			}()
			s.disk.rules = cutRules{covered: func() uint64 { return 50 }, floor: func() uint64 { return 40 }}
			if err := s.logs.StoreLogs(numbered(1, 60, 1)); err != nil {
				t.Fatal(err)
			}
			if err := s.logs.DeleteRange(1, 40); err != nil {
				t.Fatal(err)
			}
			var l raft.Log
			for _, index := range []uint64{1, 40} {
				if err := s.logs.GetLog(index, &l); !errors.Is(err, raft.ErrLogNotFound) {
					t.Errorf("entry %d: %v, want %v", index, err, raft.ErrLogNotFound)
				}
			}
			if err := s.logs.GetLog(41, &l); err != nil || l.Index != 41 {
				t.Errorf("entry 41: %v", err)
			}
		})
	}
}
