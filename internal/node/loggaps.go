package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// A gap is what this node's log never held: the entries after one up to another,
// whose place a leader's snapshot took when the log had not come so far. What was
// in them was never committed, acknowledged or applied by this node, in the life of
// any of its processes. Gaps are written down before the old log is removed.
type gap struct{ after, upTo uint64 }

// maxGaps are remembered, the newest: old entries are asked for no more.
const maxGaps = 64

var errGaps = errors.New("the record of what the log never held is damaged")

// loadGaps reads what is on disk.
func (m *logMarks) loadGaps() error {
	raw, err := m.stable.Get([]byte(logGapsKey))
	if err != nil { // not found: there never was one
		raw = nil
	}
	gaps, err := decodeGaps(raw)
	if err != nil {
		return err
	}
	m.gaps.Store(&gaps)
	return nil
}

func decodeGaps(raw []byte) ([]gap, error) {
	if len(raw)%16 != 0 {
		return nil, fmt.Errorf("%d bytes: %w", len(raw), errGaps)
	}
	var out []gap
	for ; len(raw) > 0; raw = raw[16:] {
		g := gap{binary.BigEndian.Uint64(raw), binary.BigEndian.Uint64(raw[8:])}
		if g.after >= g.upTo || len(out) > 0 && g.after <= out[len(out)-1].upTo {
			return nil, fmt.Errorf("entries after %d up to %d: %w", g.after, g.upTo, errGaps)
		}
		out = append(out, g)
	}
	return out, nil
}

// addGap adds the newest gap; one that goes on where the last one ends is part of
// it, and so is what is told again. mu is held.
func (m *logMarks) addGap(g gap) error {
	gaps := slices.Clone(m.known())
	if n := len(gaps); n > 0 && g.after <= gaps[n-1].upTo {
		g.after = gaps[n-1].after
		g.upTo = max(g.upTo, gaps[n-1].upTo)
		gaps = gaps[:n-1]
	}
	if g.after >= g.upTo {
		return nil
	}
	gaps = append(gaps, g)
	gaps = gaps[max(0, len(gaps)-maxGaps):]
	var raw []byte
	for _, g := range gaps {
		raw = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(raw, g.after), g.upTo)
	}
	if err := m.stable.Set([]byte(logGapsKey), raw); err != nil {
		return fmt.Errorf("write down what the log never held: %w", err)
	}
	m.gaps.Store(&gaps)
	return nil
}

func (m *logMarks) known() []gap {
	if p := m.gaps.Load(); p != nil {
		return *p
	}
	return nil
}

// neverHad writes down that a leader's snapshot at upTo stands for what follows an
// entry, where the log is empty.
func (s *guardedLog) neverHad(after, upTo uint64) error {
	return s.g.write("write down what the log never held", func() error { return s.marks.empty(upTo, after) })
}

// Never implements the applier's Log.
func (m *machine) Never(index uint64) bool {
	disk := m.disk.Load()
	return disk != nil && slices.ContainsFunc(disk.marks.known(), func(g gap) bool { return g.after < index && index <= g.upTo })
}

// Missing implements the applier's Log.
func (m *machine) Missing() uint64 {
	disk := m.disk.Load()
	if disk == nil {
		return 0
	}
	missing := disk.replaced.Load() // the gap is written down when Raft removes the old log, which may be later
	if gaps := disk.marks.known(); len(gaps) > 0 {
		missing = max(missing, gaps[len(gaps)-1].upTo)
	}
	return missing
}
