package fsm

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// A Raft entry holds one or more commands, so that many Produce requests share
// one fsync:
//
//	byte 0     format version (1)
//	uvarint    milliseconds of the leader's monotonic clock since its last entry
//	then, until the end, one command after the other:
//	byte       kind
//	uvarint    length of the body
//	body
//
// A kind or version that this build does not know is an error, never skipped:
// two nodes that skip different entries are two different state machines.

// EntryVersion is the format version of the entries that this build writes.
const EntryVersion = 1

// MaxElapsedMs caps the step of the clock that one entry may make, so that a
// leader with a broken clock expires nothing (design-review, finding 18).
const MaxElapsedMs = 60_000

// Kind says what a command does.
type Kind byte

// The commands. Numbers are part of the log's format and never reused.
const (
	KindAppend   Kind = 1 // append one record batch to a partition
	KindOpen     Kind = 2 // a partition begins to exist in this group
	KindClose    Kind = 3 // a topic's partitions in this group end
	KindLogStart Kind = 4 // a partition's log start offset rises
	KindCut      Kind = 5 // a partition's log ends earlier again
	KindRecover  Kind = 6 // a quorum was lost, and the group goes on

	// The catalog's, in group 0 only.
	KindRegisterNode       Kind = 16
	KindCreateTopic        Kind = 17
	KindTopicOpened        Kind = 18
	KindDeleteTopic        Kind = 19
	KindTopicClosed        Kind = 20
	KindCreatePartitions   Kind = 21
	KindAllocateProducers  Kind = 22
	KindAssignCoordinators Kind = 23
	KindTakeRebuild        Kind = 24
	KindEndRebuild         Kind = 25
	KindAddNode            Kind = 26
	KindRemoveNode         Kind = 27
	KindNodeLeft           Kind = 28
	KindNodeJoined         Kind = 29

	// The catalog's consumer-group offsets.
	KindCommitOffsets Kind = 40
	KindDeleteGroup   Kind = 41
	KindDeleteOffsets Kind = 42
	KindTouchGroups   Kind = 43
	KindExpireOffsets Kind = 44
)

// Errors of the codec. Each means that this node must stop before the entry.
var (
	// ErrCorruptEntry is returned when an entry's bytes do not parse.
	ErrCorruptEntry = errors.New("corrupt raft entry")
	// ErrUnknownCommand is returned when an entry was written by a build that
	// knows more than this one.
	ErrUnknownCommand = errors.New("raft entry holds a command this build does not know: upgrade this node")
)

// TP names a partition by the catalog's topic id: a topic deleted and created
// again is another topic.
type TP struct {
	Topic     uint64
	Partition int32
}

// String formats a TP for logs.
func (tp TP) String() string { return fmt.Sprintf("%d/%d", tp.Topic, tp.Partition) }

// Command is one encoded command, ready to travel in an entry.
type Command struct {
	Kind Kind
	Body []byte
}

// Size is the number of bytes that the command adds to an entry.
func (c Command) Size() int { return 1 + binary.MaxVarintLen32 + len(c.Body) }

// AppendCommand encodes the append of one checked record batch.
func AppendCommand(tp TP, batch []byte) Command {
	body := make([]byte, 0, 2*binary.MaxVarintLen64+len(batch))
	body = binary.AppendUvarint(body, tp.Topic)
	body = binary.AppendUvarint(body, uint64(uint32(tp.Partition)))
	return Command{Kind: KindAppend, Body: append(body, batch...)}
}

// decodeAppend is the inverse of AppendCommand; batch aliases body.
func decodeAppend(body []byte) (tp TP, batch []byte, err error) {
	topic, n := uvarint(body)
	if n <= 0 {
		return tp, nil, fmt.Errorf("append: topic: %w", ErrCorruptEntry)
	}
	body = body[n:]
	part, n := uvarint(body)
	if n <= 0 || part > 1<<31-1 {
		return tp, nil, fmt.Errorf("append: partition: %w", ErrCorruptEntry)
	}
	return TP{Topic: topic, Partition: int32(part)}, body[n:], nil
}

// Control encodes a command whose body is a small JSON document: everything
// but KindAppend. Its argument is one of the exported command structs.
func Control(kind Kind, body any) Command {
	return Command{Kind: kind, Body: mustJSON(body)}
}

// decodeControl reads a JSON body strictly: a field that this build does not
// know would be a verdict that it cannot reach.
func decodeControl(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%T: %w: %w", into, ErrCorruptEntry, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%T: %w: something follows the document", into, ErrCorruptEntry)
	}
	return nil
}

// uvarint is binary.Uvarint for canonical encodings only, so that an entry has
// one form: an encoding with a needless last byte is refused like one cut off.
func uvarint(b []byte) (v uint64, n int) {
	v, n = binary.Uvarint(b)
	if n > 1 && b[n-1] == 0 {
		return 0, 0
	}
	return v, n
}

// EncodeEntry builds one Raft entry of the commands. The result is never
// modified afterwards: Raft, its cache and the state machine share it.
func EncodeEntry(elapsedMs uint32, cmds []Command) []byte {
	size := 1 + binary.MaxVarintLen32
	for _, c := range cmds {
		size += c.Size()
	}
	b := make([]byte, 0, size)
	b = append(b, EntryVersion)
	b = binary.AppendUvarint(b, uint64(elapsedMs))
	for _, c := range cmds {
		b = append(b, byte(c.Kind))
		b = binary.AppendUvarint(b, uint64(len(c.Body)))
		b = append(b, c.Body...)
	}
	return b
}

// DecodeEntry is the inverse of EncodeEntry. Bodies alias data.
func DecodeEntry(data []byte) (elapsedMs uint32, cmds []Command, err error) {
	if len(data) == 0 {
		return 0, nil, fmt.Errorf("empty: %w", ErrCorruptEntry)
	}
	if data[0] != EntryVersion {
		return 0, nil, fmt.Errorf("format version %d: %w", data[0], ErrUnknownCommand)
	}
	rest := data[1:]
	e, n := uvarint(rest)
	if n <= 0 || e > 1<<32-1 {
		return 0, nil, fmt.Errorf("clock step: %w", ErrCorruptEntry)
	}
	rest = rest[n:]
	for len(rest) > 0 {
		kind := Kind(rest[0])
		size, n := uvarint(rest[1:])
		if n <= 0 || size > uint64(len(rest)-1-n) {
			return 0, nil, fmt.Errorf("command %d: %w", len(cmds), ErrCorruptEntry)
		}
		body := rest[1+n : 1+n+int(size) : 1+n+int(size)]
		cmds = append(cmds, Command{Kind: kind, Body: body})
		rest = rest[1+n+int(size):]
	}
	return uint32(e), cmds, nil
}

// Open makes partitions of a topic exist in a group. It is a level, not an
// edge: opening what is open changes nothing.
type Open struct {
	Level      uint64            `json:"level"` // catalog index the proposer read
	Topic      uint64            `json:"topic"`
	Name       string            `json:"name"`
	Total      int32             `json:"total"` // partitions of the topic, over all groups
	Partitions []int32           `json:"partitions"`
	Config     map[string]string `json:"config,omitempty"`
	Revision   uint64            `json:"revision,omitempty"` // of Config
	Adopted    *Adopted          `json:"adopted,omitempty"`  // with KindOpenAdopted
}

// Close ends all partitions of a topic in a group.
type Close struct {
	Level uint64 `json:"level"`
	Topic uint64 `json:"topic"`
	Name  string `json:"name"`
}
