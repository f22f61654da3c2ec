package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hashicorp/raft"

	"lockstep/internal/failpoint"
)

// A snapshot carries two states of a group. The head is what Raft needs: the
// state machine at the snapshot's index. The tail is what the applier needs:
// the same machine at the last entry that this node's broker is trusted to
// hold, from which it reads the log on. Both are manifests: their size depends
// on partitions and producers, not on data.
//
//	magic "LKSN" | version 1 | raft index 8 | tail index 8
//	| incarnation length 1 | incarnation
//	| head length 8 | head | tail length 8 | tail | CRC-32C of all before 4
//
// Integers are big-endian. The incarnation is that of the node that took the
// snapshot: the tail is about that node's broker and no other's.
const (
	snapshotMagic    = "LKSN"
	snapshotVersion  = 1
	snapshotFixed    = 4 + 1 + 8 + 8 + 1
	maxIncarnation   = 255
	maxSnapshotBytes = 1 << 30
)

// Errors of a snapshot's bytes.
var (
	errBadSnapshot     = errors.New("the snapshot is damaged")
	errSnapshotVersion = errors.New("the snapshot was written by another version of lockstep")
)

// snapshotHead is the part of a snapshot that tells what it is.
type snapshotHead struct {
	index, tailIndex uint64
	incarnation      string
}

// base is the index from which the log must be kept for a node to use the
// snapshot. Another node's tail is nothing to it.
func (h snapshotHead) base(incarnation string) uint64 {
	if h.incarnation == incarnation {
		return h.tailIndex
	}
	return h.index
}

type snapshot struct {
	snapshotHead
	head, tail []byte
}

func (s *snapshot) encode() []byte {
	out := make([]byte, 0, snapshotFixed+len(s.incarnation)+16+len(s.head)+len(s.tail)+4)
	out = append(out, snapshotMagic...)
	out = append(out, snapshotVersion)
	out = binary.BigEndian.AppendUint64(out, s.index)
	out = binary.BigEndian.AppendUint64(out, s.tailIndex)
	out = append(out, byte(len(s.incarnation)))
	out = append(out, s.incarnation...)
	out = binary.BigEndian.AppendUint64(out, uint64(len(s.head)))
	out = append(out, s.head...)
	out = binary.BigEndian.AppendUint64(out, uint64(len(s.tail)))
	out = append(out, s.tail...)
	return binary.BigEndian.AppendUint32(out, crc32.Checksum(out, castagnoli))
}

// parseSnapshotHead reads the beginning of a snapshot and returns what follows.
func parseSnapshotHead(b []byte) (snapshotHead, []byte, error) {
	var h snapshotHead
	if len(b) < snapshotFixed || string(b[:4]) != snapshotMagic {
		return h, nil, fmt.Errorf("no header: %w", errBadSnapshot)
	}
	if b[4] != snapshotVersion {
		return h, nil, fmt.Errorf("version %d: %w", b[4], errSnapshotVersion)
	}
	h.index, h.tailIndex = binary.BigEndian.Uint64(b[5:]), binary.BigEndian.Uint64(b[13:])
	n := int(b[21])
	if len(b) < snapshotFixed+n {
		return h, nil, fmt.Errorf("short header: %w", errBadSnapshot)
	}
	h.incarnation = string(b[snapshotFixed : snapshotFixed+n])
	return h, b[snapshotFixed+n:], nil
}

// decodeSnapshot reads a whole snapshot. The states alias b.
func decodeSnapshot(b []byte) (*snapshot, error) {
	h, rest, err := parseSnapshotHead(b)
	if err != nil {
		return nil, err
	}
	if len(rest) < 4 || crc32.Checksum(b[:len(b)-4], castagnoli) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return nil, fmt.Errorf("checksum: %w", errBadSnapshot)
	}
	s := &snapshot{snapshotHead: h}
	rest = rest[:len(rest)-4]
	for _, part := range []*[]byte{&s.head, &s.tail} {
		if len(rest) < 8 || binary.BigEndian.Uint64(rest) > uint64(len(rest)-8) {
			return nil, fmt.Errorf("short state: %w", errBadSnapshot)
		}
		n := binary.BigEndian.Uint64(rest)
		*part, rest = rest[8:8+n:8+n], rest[8+n:]
	}
	if len(rest) != 0 || s.tailIndex > s.index {
		return nil, fmt.Errorf("contents: %w", errBadSnapshot)
	}
	return s, nil
}

func readSnapshot(r io.Reader) (*snapshot, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxSnapshotBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read a snapshot: %w", err)
	}
	if len(raw) > maxSnapshotBytes {
		return nil, fmt.Errorf("more than %d bytes: %w", maxSnapshotBytes, errBadSnapshot)
	}
	return decodeSnapshot(raw)
}

// frozen is a snapshot on its way to disk. It implements raft.FSMSnapshot.
type frozen struct{ snapshot }

// Persist writes the snapshot. Raft knows its index only here.
func (f *frozen) Persist(to raft.SnapshotSink) error {
	if s, ok := to.(*snapshotSink); ok {
		f.index = max(f.index, s.index)
		s.taken = true
	}
	raw := f.encode()
	if len(raw) > maxSnapshotBytes {
		return errors.Join(fmt.Errorf("the group's state takes %d bytes, a snapshot at most %d: delete topics", len(raw), maxSnapshotBytes), to.Cancel())
	}
	failpoint.Hit(failpoint.SnapshotBefore)
	if _, err := to.Write(raw); err != nil {
		return errors.Join(err, to.Cancel())
	}
	err := to.Close()
	failpoint.Hit(failpoint.SnapshotAfter)
	return err
}

// Release implements raft.FSMSnapshot.
func (f *frozen) Release() {}
