// Package fsm holds the replicated state machines: what every node computes
// from a group's Raft log, and nothing else. It is pure: no clock, no
// randomness, no input or output, so that the same log gives the same offsets,
// the same verdicts and the same bytes on every node.
package fsm

import (
	"errors"
	"fmt"
	"slices"

	"lockstep/kafkawire"
)

// CatalogGroup is the group that also holds the catalog.
const CatalogGroup uint32 = 0

// Verdict is what became of a command.
type Verdict byte

// The verdicts.
const (
	Done      Verdict = iota // a control command took effect (or was no news)
	Appended                 // the batch stands at BaseOffset
	Duplicate                // the batch already stood at BaseOffset
	Rejected                 // nothing changed; Code says why, in Kafka's words
)

// Result is the outcome of one command, the same on every node.
type Result struct {
	At      Place // of the command
	Kind    Kind
	Verdict Verdict
	Code    int16  // Kafka error code if Rejected
	Message string // for people, if Rejected

	TP         TP              // KindAppend, KindLogStart, KindCut
	Batch      kafkawire.Batch // KindAppend: the batch as committed; aliases the entry
	BaseOffset int64           // Appended, Duplicate; KindLogStart: the log start offset; KindCut: the log end offset
	Count      int32           // Appended, Duplicate: offsets that the batch at BaseOffset takes
	Sequence   int32           // Appended: applier sequence; KindCut: of the next batch
	Epoch      int16           // as Sequence: applier epoch, the recovery number at the entry
	CRC        uint32          // Appended: CRC as stamped with the applier's identity
	Below      uint64          // Appended, and Done of KindCut: Partition.Hash over everything below BaseOffset

	Open   *Open  // KindOpen, KindOpenAdopted; KindConfig: the topic's with its new settings, nil if they are no news
	Opened []TP   // KindOpen, KindOpenAdopted: partitions that were not open before
	Close  *Close // KindClose
	Closed []TP   // KindClose: partitions that were open before

	Topic  uint64 // KindCreateTopic, KindReserveTopic, KindAdoptTopic: the new topic's id
	FirstN int64  // KindAllocateProducers: first id of the block

	Revision uint64 // KindCreateACLs, KindDeleteACLs, KindAlterQuotas: Access.Revision afterwards

	Codes []int16 // KindCommitOffsets: Kafka error code of each partition of each commit; nil if all are 0
}

// Place is where a command stands in a group's log: the Nth, from 0, of the entry
// at Index.
type Place struct {
	Index uint64
	Nth   int
}

// Before says whether p comes before o in the log.
func (p Place) Before(o Place) bool {
	return p.Index < o.Index || p.Index == o.Index && p.Nth < o.Nth
}

// EndOffset is the first offset after the batch (Appended, Duplicate).
func (r *Result) EndOffset() int64 { return r.BaseOffset + int64(r.Count) }

// ErrOutOfOrder is returned when an entry is applied that has been applied, or
// lies before one that has been.
var ErrOutOfOrder = errors.New("raft entry applied out of order")

// Group is the state machine of one Raft group. It is not safe for concurrent
// use: its owner serialises.
type Group struct {
	ID      uint32
	Index   uint64 // the last applied index
	ClockMs int64  // sum of the entries' clock steps
	Level   uint64 // newest catalog index that an Open or Close was read at
	Shape   uint64 // counts changes of the set of partitions, for readers' caches

	// Recovery counts the recoveries from a lost quorum. It is the applier's
	// epoch of everything appended since the last one, so that brokers refuse
	// what an applier from before it still sends.
	Recovery int16

	Partitions map[TP]*Partition
	Topics     map[uint64]*Open // newest Open of each topic with partitions here; values are never modified
	Catalog    *Catalog         // nil except in group 0

	only *TP // if set, Apply looks at this partition alone
}

// NewGroup returns the state machine of an empty log.
func NewGroup(id uint32) *Group {
	g := &Group{ID: id, Partitions: make(map[TP]*Partition), Topics: make(map[uint64]*Open)}
	if id == CatalogGroup {
		g.Catalog = newCatalog()
	}
	return g
}

// Only returns a copy of the state machine that holds and follows a single
// partition: enough to give that partition's entries their verdicts again,
// because no verdict looks at another partition. The catalog's commands are
// passed over.
func (g *Group) Only(tp TP) *Group {
	c := &Group{ID: g.ID, Index: g.Index, ClockMs: g.ClockMs, Level: g.Level, Recovery: g.Recovery,
		Partitions: make(map[TP]*Partition), Topics: make(map[uint64]*Open), only: &tp}
	if p, ok := g.Partitions[tp]; ok {
		c.Partitions[tp] = p.clone()
		c.Topics[tp.Topic] = g.Topics[tp.Topic]
	}
	return c
}

// Apply gives every command of an entry its verdict, in order. An error means
// that this node cannot follow the log any further: it must stop before the
// entry, which has then changed nothing.
func (g *Group) Apply(index uint64, data []byte) ([]Result, error) {
	if index <= g.Index {
		return nil, fmt.Errorf("group %d index %d after %d: %w", g.ID, index, g.Index, ErrOutOfOrder)
	}
	elapsed, cmds, err := DecodeEntry(data)
	if err != nil {
		return nil, fmt.Errorf("group %d index %d: %w", g.ID, index, err)
	}
	decoded := make([]any, len(cmds))
	for i, c := range cmds {
		if decoded[i], err = g.decode(c); err != nil {
			return nil, fmt.Errorf("group %d index %d command %d: %w", g.ID, index, i, err)
		}
	}
	g.Index = index
	g.ClockMs += int64(min(elapsed, MaxElapsedMs))
	results := make([]Result, 0, len(cmds))
	for i, c := range cmds {
		r := g.apply(decoded[i])
		r.At, r.Kind = Place{Index: index, Nth: i}, c.Kind
		results = append(results, r)
	}
	return results, nil
}

type appendArgs struct {
	tp    TP
	batch kafkawire.Batch
}

// Readable says why this build could not apply a command, nil if it can: what a
// leader cannot read itself it must not commit.
func Readable(c Command) error {
	_, err := new(Group).decode(c)
	return err
}

// decode turns a command into its arguments without touching the state.
func (g *Group) decode(c Command) (any, error) {
	switch c.Kind {
	case KindAppend:
		tp, b, err := decodeAppend(c.Body)
		if err != nil {
			return nil, err
		}
		batch, rest, err := kafkawire.ParseBatch(b)
		if err != nil || len(rest) != 0 {
			return nil, fmt.Errorf("append to %s: batch of %d bytes: %w", tp, len(b), ErrCorruptEntry)
		}
		return appendArgs{tp, batch}, nil
	case KindOpen, KindOpenAdopted:
		v := new(Open)
		return v, decodeControl(c.Body, v)
	case KindClose:
		v := new(Close)
		return v, decodeControl(c.Body, v)
	case KindLogStart:
		v := new(LogStart)
		return v, decodeControl(c.Body, v)
	case KindCut:
		v := new(Cut)
		return v, decodeControl(c.Body, v)
	case KindRecover:
		v := new(Recover)
		return v, decodeControl(c.Body, v)
	case KindConfig:
		v := new(Config)
		return v, decodeControl(c.Body, v)
	}
	if c.Kind == KindCommitOffsets {
		return decodeCommit(c.Body)
	}
	v := catalogArgs(c.Kind)
	if v == nil {
		v = offsetArgs(c.Kind)
	}
	if v == nil {
		v = accessArgs(c.Kind)
	}
	if v == nil {
		return nil, fmt.Errorf("kind %d: %w", c.Kind, ErrUnknownCommand)
	}
	return v, decodeControl(c.Body, v)
}

func (g *Group) apply(args any) Result {
	switch a := args.(type) {
	case appendArgs:
		return g.append(a)
	case *Open:
		return g.open(a)
	case *Close:
		return g.close(a)
	case *LogStart:
		return g.logStart(a)
	case *Cut:
		return g.cut(a)
	case *Recover:
		return g.recover(a)
	case *Config:
		return g.config(a)
	}
	if g.only != nil {
		return Result{}
	}
	if g.Catalog == nil {
		return Result{Verdict: Rejected, Code: codeInvalidRequest, Message: "only group 0 has a catalog"}
	}
	if r, ok := g.Catalog.applyOffsets(args, g.ClockMs); ok {
		return r
	}
	if r, ok := g.Catalog.applyAccess(g.Index, args); ok {
		return r
	}
	return g.Catalog.apply(g.Index, g.ClockMs, args)
}

func (g *Group) append(a appendArgs) Result {
	p, ok := g.Partitions[a.tp]
	if !ok {
		r := g.notOpen(a.tp)
		r.Batch = a.batch
		return r
	}
	return p.append(a.batch, g.ClockMs)
}

// open and close are proposed by the catalog's leader as a level. One that was
// read from an older catalog than one already seen is refused: its proposer
// was deposed or is behind, and reads again.
func (g *Group) open(a *Open) Result {
	r := Result{Open: a}
	if a.Level < g.Level {
		return Result{Verdict: Rejected, Code: CodeStaleLevel, Message: "older than the catalog this group has seen", Open: a}
	}
	if a.Adopted != nil {
		for i := range a.Adopted.Partitions {
			if why := a.Adopted.Partitions[i].problem(); why != "" {
				return rejected(codeInvalidRequest, "partition %d of topic %q: %s", i, a.Name, why)
			}
		}
	}
	g.Level = a.Level
	for _, n := range a.Partitions {
		tp := TP{Topic: a.Topic, Partition: n}
		if g.only != nil && *g.only != tp {
			continue
		}
		if _, ok := g.Partitions[tp]; !ok {
			g.Partitions[tp] = openPartition(a, tp, g.Recovery)
			r.Opened = append(r.Opened, tp)
		}
	}
	if len(r.Opened) > 0 {
		g.Shape++
	}
	if len(r.Opened) > 0 || g.Topics[a.Topic] != nil {
		g.Topics[a.Topic] = a
	}
	return r
}

func (g *Group) close(a *Close) Result {
	r := Result{Close: a}
	if a.Level < g.Level {
		return Result{Verdict: Rejected, Code: CodeStaleLevel, Message: "older than the catalog this group has seen", Close: a}
	}
	g.Level = a.Level
	for tp := range g.Partitions {
		if tp.Topic == a.Topic {
			r.Closed = append(r.Closed, tp)
		}
	}
	slices.SortFunc(r.Closed, func(a, b TP) int { return int(a.Partition) - int(b.Partition) })
	for _, tp := range r.Closed {
		delete(g.Partitions, tp)
	}
	delete(g.Topics, a.Topic)
	if len(r.Closed) > 0 {
		g.Shape++
	}
	return r
}
