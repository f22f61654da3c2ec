package node

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/hashicorp/raft"

	"lockstep/fsm"
)

func (s *stores) gaps() []gap { return s.disk.marks.known() }

// installed puts a leader's snapshot on a log's disk, before it is restored.
func (s *stores) installed(t *testing.T, index uint64) {
	t.Helper()
	sink, err := s.snaps.Create(raft.SnapshotVersionMax, index, 1, raft.Configuration{}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	state := fsm.NewGroup(1).Encode()
	snap := snapshot{snapshotHead{index: index, tailIndex: index, incarnation: "leader"}, state, state}
	if _, err := sink.Write(snap.encode()); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
}

// What a leader's snapshot took the place of is remembered, wherever the process
// ends, and with an empty log too.
func TestGapsAreRemembered(t *testing.T) {
	bothStores(t, func(t *testing.T, kind string) {
		cfg := crashed(t, kind, true) // entries 1 to 50
		open := func(want ...gap) *stores {
			t.Helper()
			s, err := openStores(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.openSnapshots("me", cfg.logger, nil); err != nil {
				t.Fatal(err)
			}
			if err := s.check("me"); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(s.gaps(), want) {
				t.Fatalf("gaps %v, want %v", s.gaps(), want)
			}
			return s
		}
		closed := func(s *stores) {
			t.Helper()
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
		}
		s := open()
		s.installed(t, 90)
		closed(s) // before the log was removed
		s = open(gap{50, 90})
		s.installed(t, 120) // on an empty log
		closed(s)           // before that was written down
		s = open(gap{50, 120})
		if err := s.logs.StoreLogs(numbered(121, 130, 1)); err != nil {
			t.Fatal(err)
		}
		s.installed(t, 125) // within the log: nothing is missing
		closed(s)
		s = open(gap{50, 120})
		s.installed(t, 200)
		s.disk.replaced.Store(200)
		early := newMachine(1, nil, nil)
		early.disk.Store(s.disk)
		if got := early.Missing(); got != 200 { // the applier goes on from the snapshot already
			t.Errorf("before the old log is removed, entries up to %d are missing", got)
		}
		if err := s.disk.DeleteRange(121, 130); err != nil {
			t.Fatal(err)
		}
		closed(s)
		s = open(gap{50, 120}, gap{130, 200})
		m := newMachine(1, nil, nil)
		m.disk.Store(s.disk)
		m.announce(200)
		if err := m.replaceLog(300); err != nil { // on an empty log
			t.Fatal(err)
		}
		for index, want := range map[uint64]bool{50: false, 51: true, 120: true, 121: false, 130: false, 131: true, 300: true, 301: false} {
			if m.Never(index) != want {
				t.Errorf("entry %d was never here: %t", index, !want)
			}
		}
		closed(s)
	})
}

func TestDamagedGaps(t *testing.T) {
	numbers := func(ns ...uint64) (raw []byte) {
		for _, n := range ns {
			raw = binary.BigEndian.AppendUint64(raw, n)
		}
		return raw
	}
	for _, raw := range [][]byte{{1}, numbers(1), numbers(5, 5), numbers(6, 5), numbers(1, 5, 4, 8), numbers(1, 5, 5, 8)} {
		if g, err := decodeGaps(raw); !errors.Is(err, errGaps) {
			t.Errorf("%x: %v, %v", raw, g, err)
		}
	}
	if g, err := decodeGaps(numbers(0, 5, 7, 9)); err != nil || !slices.Equal(g, []gap{{0, 5}, {7, 9}}) {
		t.Errorf("%v, %v", g, err)
	}
}
