package node

import (
	"fmt"
	"path/filepath"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// walFiler opens the segments of a raft-wal. raft-wal 0.4.0 seals a segment
// whose tail Raft cut off, which is ordinary after a failover, without writing
// the index that a sealed segment is read by; the next start cannot read it.
// Such a segment is read as a tail is: by scanning its frames. What lies above
// the cut is still in the file and does not count.
type walFiler struct {
	types.SegmentFiler
	dir string
}

// RecoverTail implements types.SegmentFiler. Only what a crash can do to a
// tail is repaired.
func (f walFiler) RecoverTail(info types.SegmentInfo) (types.SegmentWriter, error) {
	w, err := f.SegmentFiler.RecoverTail(info)
	if err != nil {
		return nil, err
	}
	name := segment.FileName(info)
	if err := viewFile(filepath.Join(f.dir, name), tornOnly); err != nil {
		return nil, fmt.Errorf("segment %s after entry %d: %w; %s", name, w.LastIndex(), err, adviceLost)
	}
	return w, nil
}

// Open implements types.SegmentFiler.
func (f walFiler) Open(info types.SegmentInfo) (types.SegmentReader, error) {
	if info.IndexStart != 0 {
		return f.SegmentFiler.Open(info)
	}
	tail, err := f.SegmentFiler.RecoverTail(info)
	if err != nil {
		return nil, err
	}
	return cutSegment{tail, info.MaxIndex}, nil
}

// cutSegment is a segment of which only the entries up to max count.
type cutSegment struct {
	types.SegmentReader
	max uint64
}

// GetLog implements types.SegmentReader.
func (s cutSegment) GetLog(index uint64) (*types.PooledBuffer, error) {
	if index > s.max {
		return nil, types.ErrNotFound
	}
	return s.SegmentReader.GetLog(index)
}

// walLog hides what was cut off at the beginning: raft-wal 0.4.0 still gives
// entries of the newest segment that lie before its first index. Raft would
// send them to a follower that is to be sent a snapshot.
type walLog struct{ *wal.WAL }

// GetLog implements raft.LogStore.
func (w walLog) GetLog(index uint64, l *raft.Log) error {
	first, err := w.FirstIndex()
	if err != nil {
		return err
	}
	if index < first {
		return raft.ErrLogNotFound
	}
	return w.WAL.GetLog(index, l)
}
