package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"runtime/debug"

	"github.com/hashicorp/raft"
)

// check compares what is on disk with what a member must have: a store that
// was lost or damaged must not vote as if it were new.
func (s *stores) check(incarnation string) error {
	v, err := s.stable.Get([]byte(incarnationKey))
	if err != nil || string(v) != incarnation {
		return fmt.Errorf("term and vote in %s are missing or not this node's: the directory is damaged; empty data_dir and readmit the node", s.dir)
	}
	last, err := s.disk.LastIndex()
	if err != nil {
		return fmt.Errorf("read the last index in %s: %w", s.dir, err)
	}
	if last == 0 && s.has(logBeganKey) {
		return fmt.Errorf("the raft log in %s is gone (was raft.log_store changed?): restore it, or empty data_dir and readmit the node", s.dir)
	}
	if err := s.examine(last); err != nil {
		return fmt.Errorf("the raft log in %s: %w; %s", s.dir, err, adviceLost)
	}
	return nil
}

// examine reads the whole log once: what is in it must be what was written,
// and with the newest usable snapshot it must make a whole.
func (s *stores) examine(last uint64) (err error) {
	end, cut := s.mark(logEndKey), s.mark(logCutKey)
	if last < end {
		return fmt.Errorf("it ends at entry %d, and ended at %d when this node stopped: %w", last, end, errDamaged)
	}
	first, err := s.disk.FirstIndex()
	if err != nil {
		return fmt.Errorf("read the first index: %w", err)
	}
	if err := s.disk.scan(first, last); err != nil {
		return err
	}
	if s.snaps == nil {
		return nil
	}
	switch snap := s.snaps.last(); {
	case snap.index < cut:
		return fmt.Errorf("it was removed up to the snapshot at %d, which is gone: %w", cut, errDamaged)
	case last == 0 && snap.index > cut && snap.incarnation != s.snaps.incarnation:
		return s.disk.neverHad(cut, snap.index) // the process ended before that was written down
	case last == 0:
		return nil
	case first > snap.index+1:
		return fmt.Errorf("it begins at entry %d, and the newest snapshot that can be read ends at %d: %w", first, snap.index, errDamaged)
	case last < snap.index && snap.incarnation == s.snaps.incarnation:
		return fmt.Errorf("it ends at entry %d, and a snapshot was taken at %d: %w", last, snap.index, errDamaged)
	case last < snap.index || first <= snap.index && s.otherTerm(snap):
		// A leader's snapshot was installed, and the process ended before
		// the log that it stands for was removed.
		s.disk.replaced.Store(snap.index)
		return s.disk.empty(snap.index, first, last)
	}
	return nil
}

// otherTerm says whether the log has another entry where a snapshot ends than
// the one that the snapshot ends with.
func (s *stores) otherTerm(snap kept) bool {
	var l raft.Log
	return s.disk.read(snap.index, &l) == nil && l.Term != snap.term
}

// scan reads the entries from first to last, one after the other.
func (s *guardedLog) scan(first, last uint64) error {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for i := max(first, 1); i <= last; i++ {
		var l raft.Log
		if err := s.read(i, &l); err != nil {
			return fmt.Errorf("entry %d of %d to %d: %w: %w", i, first, last, err, errDamaged)
		}
		s.sizes.add(i, len(l.Data))
	}
	return nil
}

// mark returns a number that the stable store holds of the log.
func (s *stores) mark(key string) uint64 {
	v, err := s.stable.GetUint64([]byte(key))
	if err != nil {
		return 0 // not found: never set
	}
	return v
}

// has says whether a key of ours is in the stable store.
func (s *stores) has(key string) bool {
	v, err := s.stable.Get([]byte(key))
	return err == nil && len(v) > 0
}

// noteEnd writes down where the log ends, if all that was written to it is on
// disk.
func (s *stores) noteEnd() error {
	s.disk.marks.mu.Lock()
	defer s.disk.marks.mu.Unlock()
	if s.guard.failed() || !s.disk.marks.touched {
		return nil
	}
	last, err := s.disk.LastIndex()
	if err == nil {
		err = s.disk.marks.stable.SetUint64([]byte(logEndKey), last)
	}
	if err != nil {
		return fmt.Errorf("note the end of the raft log: %w", err)
	}
	s.disk.marks.touched = false
	return nil
}

// The frames of a raft-wal segment (v0.4.0): eight bytes of header with the
// type, and the length of what follows or, in a commit, the CRC-32C of
// everything since the commit before; then the data, filled up to eight.
const (
	walFileHeader  = 32
	walFrameHeader = 8
	walFrameEntry  = 1
	walFrameIndex  = 2
	walFrameCommit = 3
	walSector      = 512
)

var errTornInTheMiddle = errors.New("committed entries follow damaged ones")

// walBatch follows the frames from at to the next commit and returns where it
// stands. It is not ok if the frames make no sense before.
func walBatch(raw []byte, at int) (commit int, ok bool) {
	for at+walFrameHeader <= len(raw) {
		switch raw[at] {
		case walFrameEntry, walFrameIndex:
			n := int64(binary.LittleEndian.Uint32(raw[at+4:]))
			next := int64(at) + walFrameHeader + (n+7)/8*8
			if next > int64(len(raw)) {
				return 0, false
			}
			at = int(next)
		case walFrameCommit:
			return at, true
		default:
			return 0, false
		}
	}
	return 0, false
}

func walSound(raw []byte, from, commit int) bool {
	return crc32.Checksum(raw[from:commit], castagnoli) == binary.LittleEndian.Uint32(raw[commit+4:])
}

// tornOnly looks at a segment that raft-wal found to end early. A crash leaves
// at most the last batch of it incomplete, which nobody was told of. raft-wal
// takes any damage for that, and would drop what follows.
func tornOnly(raw []byte) error {
	from, at := 0, walFileHeader
	for {
		commit, ok := walBatch(raw, at)
		if !ok {
			break
		}
		if !walSound(raw, from, commit) {
			if written(raw, max(from, walFileHeader), commit) {
				return fmt.Errorf("bytes %d to %d: %w", from, commit, errDamaged)
			}
			break
		}
		from = commit + walFrameHeader
		at = from
	}
	// Does a whole batch follow, between two commits?
	for i := from; i+walFrameHeader <= len(raw); i += 8 {
		if binary.LittleEndian.Uint32(raw[i:]) != walFrameCommit {
			continue
		}
		begin := i + walFrameHeader
		if commit, ok := walBatch(raw, begin); ok && commit > begin && walSound(raw, begin, commit) {
			return fmt.Errorf("byte %d: %w: %w", from, errTornInTheMiddle, errDamaged)
		}
	}
	return nil
}

// written says whether every sector of a batch was written: the file was
// zeros before. What is all there, and yet not what its checksum says, was
// complete once.
func written(raw []byte, from, to int) bool {
	for s := from; s < to; s = (s/walSector + 1) * walSector {
		blank := true
		for _, b := range raw[s:min(to, (s/walSector+1)*walSector)] {
			if b != 0 {
				blank = false
				break
			}
		}
		if blank {
			return false
		}
	}
	return true
}
