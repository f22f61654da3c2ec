package fsm

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
)

// The encoding of a group's whole state. Numbers are uvarints, strings and
// documents have their length before them:
//
//	4 bytes   "LSG" and the format version (3; 4 if groups have places)
//	group, index, clock (ms), level, shape, recovery number
//	count     topics, by id: the newest Open as JSON
//	count     partitions, by topic and number: see appendTo in statepartition.go
//	byte      1 if the catalog follows (group 0): JSON, then what consumer groups
//	          have committed: see offsetscodec.go (not in version 1), then
//	          ACLs and quotas: see accesscodec.go (from version 3 on)
//	4 bytes   CRC-32C of everything before, little-endian
//
// One state has one encoding. It holds no record: its size depends on the
// number of partitions, checkpoints and producers.

// StateVersion is the newest format version of states that this build knows.
// It writes the version before where groups have no places.
const StateVersion = 4

// oldestStateVersion is the format version that this build can still read.
const oldestStateVersion = 1

// offsetsStateVersion is the first that holds committed offsets.
const offsetsStateVersion = 2

// accessStateVersion is the first that holds ACLs and quotas.
const accessStateVersion = 3

// placesStateVersion is the first whose catalog may say which nodes hold a
// group.
const placesStateVersion = 4

const stateMagic = "LSG"

// Errors of the state's codec.
var (
	// ErrCorruptState is returned when the bytes are not a state, or not whole.
	ErrCorruptState = errors.New("corrupt group state")
	// ErrUnknownState is returned when a state was written by a build that
	// knows more than this one.
	ErrUnknownState = errors.New("group state has a format that this build does not know: upgrade this node")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode returns the group's whole state; DecodeGroup is the inverse. The same
// state gives the same bytes on every node. It only reads: others may read the
// group meanwhile. Do not encode what Only returned: that it follows one
// partition is not in the encoding.
func (g *Group) Encode() []byte {
	b := make([]byte, 0, g.encodedSize())
	b = append(b, stateMagic...)
	b = append(b, g.stateVersion())
	b = binary.AppendUvarint(b, uint64(g.ID))
	b = binary.AppendUvarint(b, g.Index)
	b = binary.AppendUvarint(b, uint64(g.ClockMs))
	b = binary.AppendUvarint(b, g.Level)
	b = binary.AppendUvarint(b, g.Shape)
	b = binary.AppendUvarint(b, uint64(g.Recovery))
	b = binary.AppendUvarint(b, uint64(len(g.Topics)))
	for _, id := range slices.Sorted(maps.Keys(g.Topics)) {
		b = appendBytes(b, mustJSON(g.Topics[id]))
	}
	b = binary.AppendUvarint(b, uint64(len(g.Partitions)))
	for _, tp := range slices.SortedFunc(maps.Keys(g.Partitions), compareTP) {
		b = g.Partitions[tp].appendTo(b, g.ClockMs)
	}
	if g.Catalog == nil {
		b = append(b, 0)
	} else {
		b = appendBytes(append(b, 1), mustJSON(g.Catalog.state()))
		b = g.Catalog.appendConsumers(b)
		b = g.Catalog.Access.appendTo(b)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// stateVersion is the oldest that says everything about the group: builds from
// before places read what has none.
func (g *Group) stateVersion() byte {
	if g.Catalog != nil && len(g.Catalog.Places) > 0 {
		return placesStateVersion
	}
	return accessStateVersion
}

// encodedSize is a guess that spares Encode most of its copying.
func (g *Group) encodedSize() int {
	n := 256
	if g.Catalog != nil {
		n += 100 * (len(g.Catalog.Access.ACLs) + len(g.Catalog.Access.Quotas))
		for _, c := range g.Catalog.Consumers {
			n += 64 + 48*len(c.Offsets)
		}
	}
	for _, p := range g.Partitions {
		n += 128 + 16*len(p.Checkpoints) + 48*len(p.producers)
	}
	return n
}

func compareTP(a, b TP) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
}

// DecodeGroup builds the group that Encode wrote. It keeps nothing of data.
// Any error means that the state is of no use; ErrUnknownState, that a newer
// build can read it.
func DecodeGroup(data []byte) (*Group, error) {
	g, err := decodeGroup(data)
	if err != nil {
		return nil, fmt.Errorf("decode group state of %d bytes: %w", len(data), err)
	}
	return g, nil
}

func decodeGroup(data []byte) (*Group, error) {
	head := len(stateMagic) + 1
	if len(data) < head+4 || string(data[:head-1]) != stateMagic {
		return nil, fmt.Errorf("no state: %w", ErrCorruptState)
	}
	version := data[head-1]
	if version < oldestStateVersion || version > StateVersion {
		return nil, fmt.Errorf("format version %d: %w", version, ErrUnknownState)
	}
	end := len(data) - 4
	if binary.LittleEndian.Uint32(data[end:]) != crc32.Checksum(data[:end], castagnoli) {
		return nil, fmt.Errorf("checksum: %w", ErrCorruptState)
	}
	r := &stateReader{rest: data[head:end]}
	g := NewGroup(uint32(r.number("group", 1<<32-1)))
	g.Index = r.number("index", 1<<64-1)
	g.ClockMs = r.int62("clock")
	g.Level = r.number("level", 1<<64-1)
	g.Shape = r.number("shape", 1<<64-1)
	g.Recovery = int16(r.number("recovery number", 1<<15-1))
	g.decodeTopics(r)
	g.decodePartitions(r)
	g.decodeCatalog(r, version)
	if len(r.rest) > 0 {
		r.fail("%d bytes follow the state", len(r.rest))
	}
	if r.err != nil {
		return nil, r.err
	}
	return g, nil
}

func (g *Group) decodeTopics(r *stateReader) {
	last := uint64(0)
	for i := range r.count("topics", 1) {
		o := new(Open)
		r.document("topic", o)
		if r.err != nil {
			return
		}
		if i > 0 && o.Topic <= last {
			r.fail("topic %d stands after topic %d", o.Topic, last)
			return
		}
		last = o.Topic
		g.Topics[last] = o
	}
}

func (g *Group) decodePartitions(r *stateReader) {
	var last *Partition
	held := make(map[uint64]struct{})
	for range r.count("partitions", minPartitionSize) {
		p := r.partition(g.ClockMs)
		switch {
		case r.err != nil:
			return
		case last != nil && compareTP(last.TP, p.TP) >= 0:
			r.fail("partition %s stands after %s", p.TP, last.TP)
			return
		case g.Topics[p.TP.Topic] == nil:
			r.fail("partition %s is of no open topic", p.TP)
			return
		}
		last = p
		held[p.TP.Topic] = struct{}{}
		g.Partitions[p.TP] = p
	}
	if len(held) != len(g.Topics) {
		r.fail("%d open topics, but partitions of %d", len(g.Topics), len(held))
	}
}

func (g *Group) decodeCatalog(r *stateReader, version byte) {
	switch has := r.number("catalog", 1) == 1; {
	case r.err != nil:
	case has != (g.Catalog != nil):
		r.fail("group %d and a catalog: %t", g.ID, has)
	case has:
		s := new(catalogState)
		r.document("catalog", s)
		if r.err == nil {
			g.Catalog = s.catalog(r)
		}
		if r.err == nil && version >= offsetsStateVersion {
			r.consumers(g.Catalog, g.ClockMs)
		}
		if r.err == nil && version >= accessStateVersion {
			g.Catalog.Access = r.access()
		}
	}
}

// catalogState is the catalog as it is encoded: lists instead of maps, so that
// a key cannot differ from what it stands for.
type catalogState struct {
	Version        uint64            `json:"version"`
	Nodes          []CatalogNode     `json:"nodes"`
	Topics         []CatalogTopic    `json:"topics"`
	NextTopic      uint64            `json:"next_topic"`
	NextProducer   int64             `json:"next_producer"`
	Coordinators   []CoordinatorSlot `json:"coordinators"`
	CoordinatorGen int64             `json:"coordinator_gen"`
	Turns          map[int]int64     `json:"turns,omitempty"`
	Rebuilds       []TakeRebuild     `json:"rebuilds"`
	Reserved       map[uint64]string `json:"reserved,omitempty"`
	Places         []Placement       `json:"places,omitempty"` // from version 4 on
}

func (c *Catalog) state() *catalogState {
	s := &catalogState{Version: c.Version, NextTopic: c.nextTopic, NextProducer: c.nextProducer,
		Coordinators: c.Coordinators, CoordinatorGen: c.coordinatorGen, Turns: make(map[int]int64), Reserved: c.reserved, Places: c.placesState()}
	for slot, turn := range c.turns {
		if turn != 0 {
			s.Turns[slot] = turn
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.Nodes)) {
		s.Nodes = append(s.Nodes, *c.Nodes[id])
	}
	for _, id := range slices.Sorted(maps.Keys(c.Topics)) {
		s.Topics = append(s.Topics, *c.Topics[id])
	}
	for _, id := range slices.Sorted(maps.Keys(c.Rebuilds)) {
		s.Rebuilds = append(s.Rebuilds, TakeRebuild{Topic: id, Node: c.Rebuilds[id]})
	}
	return s
}

func (s *catalogState) catalog(r *stateReader) *Catalog {
	c := newCatalog()
	c.Version, c.nextTopic, c.nextProducer = s.Version, s.NextTopic, s.NextProducer
	c.Coordinators, c.coordinatorGen = s.Coordinators, s.CoordinatorGen
	for slot, turn := range s.Turns {
		if slot < 0 || slot >= CoordinatorSlots || turn <= 0 {
			r.fail("turn %d of coordinator slot %d", turn, slot)
			continue
		}
		c.turns[slot] = turn
	}
	for i := range s.Nodes {
		c.Nodes[s.Nodes[i].ID] = &s.Nodes[i]
	}
	for i := range s.Topics {
		t := &s.Topics[i]
		if t.ID >= c.nextTopic {
			r.fail("topic %d, but the next one is %d", t.ID, c.nextTopic)
		}
		c.Topics[t.ID], c.byName[t.Name] = t, t.ID
	}
	for _, l := range s.Rebuilds {
		c.Rebuilds[l.Topic] = l.Node
	}
	c.decodePlaces(r, s.Places)
	for id, name := range s.Reserved {
		if id >= c.nextTopic || c.Topics[id] != nil {
			r.fail("topic id %d is reserved", id)
		}
		c.reserved[id] = name
	}
	// What does not stand where it belongs, or twice, comes out in another
	// order, or once.
	if !bytes.Equal(mustJSON(c.state()), mustJSON(s)) || len(c.byName) != len(c.Topics) {
		r.fail("the catalog is not in order")
	}
	if n := len(c.Coordinators); n != 0 && n != CoordinatorSlots {
		r.fail("%d coordinator slots", n)
	}
	return c
}

func appendBytes(b, v []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// mustJSON encodes what holds strings, numbers and lists and maps of them only.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("fsm: %T cannot be encoded: %v", v, err))
	}
	return b
}
