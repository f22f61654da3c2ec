package fsm

import (
	"fmt"
	"slices"
)

// CoordinatorSlots is the number of slots that consumer groups hash to (Kafka:
// offsets.topic.num.partitions).
const CoordinatorSlots = 50

// MaxPartitions is the most partitions that a topic may have: a number in one
// entry must not take memory on every node beyond measure.
const MaxPartitions = 10_000

// CodeStaleLevel is the code of an Open or Close that was read from an older
// catalog than its group has seen. No client ever sees it.
const CodeStaleLevel = -1000

// Kafka error codes of the catalog.
const (
	codeInvalidRequest    = 42
	codeTopicExists       = 36
	codeInvalidPartitions = 37
)

// TopicState is where a topic is in its life.
type TopicState string

// A topic is Opening until every group has its partitions, Live then, and
// Deleting until every group has closed them.
const (
	TopicOpening  TopicState = "opening"
	TopicLive     TopicState = "live"
	TopicDeleting TopicState = "deleting"
)

// CatalogTopic is a topic as the catalog has it.
type CatalogTopic struct {
	ID     uint64            `json:"id"`
	Name   string            `json:"name"`
	State  TopicState        `json:"state"`
	Groups []uint32          `json:"groups"` // by partition: the group that holds it
	Opened int32             `json:"opened"` // partitions that clients may see
	Config map[string]string `json:"config,omitempty"`

	Revision   uint64 `json:"revision,omitempty"`   // counts the changes of Config
	Configured uint64 `json:"configured,omitempty"` // the revision that every group has

	Adopted *Adopted `json:"adopted,omitempty"` // what brokers held before it came into the catalog
}

// CatalogNode is a member as the catalog has it.
type CatalogNode struct {
	ID          int32             `json:"id"`
	Incarnation string            `json:"incarnation"`
	Rack        string            `json:"rack,omitempty"`
	Listeners   map[string]string `json:"listeners"` // advertised host:port by listener name
	Admin       string            `json:"admin,omitempty"`
	Raft        string            `json:"raft,omitempty"`

	State  NodeState `json:"state,omitempty"`
	Later  bool      `json:"later,omitempty"`  // came after the cluster began: see RaftServer
	Former string    `json:"former,omitempty"` // the incarnation before, which is shut out
	Again  bool      `json:"again,omitempty"`  // awaited again once it has left
	Since  uint64    `json:"since,omitempty"`  // index of the last change of State
}

// CoordinatorSlot says which node coordinates the groups of a slot, and how
// often that has changed: a commit validated under an older epoch is stale.
type CoordinatorSlot struct {
	Node  int32 `json:"node"`
	Epoch int64 `json:"epoch"`
}

// Catalog is the cluster-wide part of group 0. Topics and nodes in it are
// never modified in place: readers may keep the pointers they copied. Consumer
// groups are.
type Catalog struct {
	Version        uint64 // index of the last change, for readers' caches
	Nodes          map[int32]*CatalogNode
	Topics         map[uint64]*CatalogTopic
	byName         map[string]uint64
	nextTopic      uint64
	nextProducer   int64
	Coordinators   []CoordinatorSlot // empty until first assigned
	coordinatorGen int64
	turns          [CoordinatorSlots]int64   // by slot, the last one of its coordinator
	Consumers      map[string]*ConsumerGroup // groups that have committed something; modified in place
	Rebuilds       map[uint64]int32          // node that may destroy its copy of a topic, by topic; replaced, never modified
	Access         *Access                   // never nil; modified in place
	Places         map[uint32]*Placement     // nodes that hold a group, by group; nil: every node holds every group; replaced, never modified
	reserved       map[uint64]string         // ids of topics that are about to be adopted, and their names
}

func newCatalog() *Catalog {
	return &Catalog{
		Nodes:        make(map[int32]*CatalogNode),
		Topics:       make(map[uint64]*CatalogTopic),
		byName:       make(map[string]uint64),
		nextTopic:    1,
		nextProducer: ClientProducerBase,
		Consumers:    make(map[string]*ConsumerGroup),
		Rebuilds:     make(map[uint64]int32),
		Access:       newAccess(),
		reserved:     make(map[uint64]string),
	}
}

// CreateTopic asks for a topic. Partitions are spread over the cluster's
// groups, each topic beginning at another one.
type CreateTopic struct {
	Name       string            `json:"name"`
	Partitions int32             `json:"partitions"`
	Groups     uint32            `json:"groups"` // number of groups of the cluster
	Config     map[string]string `json:"config,omitempty"`
}

// TopicOpened says that the groups have a topic's first Partitions partitions.
type TopicOpened struct {
	Topic      uint64 `json:"topic"`
	Partitions int32  `json:"partitions"`
}

// DeleteTopic starts the end of a topic.
type DeleteTopic struct {
	Topic uint64 `json:"topic"`
}

// TopicClosed says that every group has closed a topic.
type TopicClosed struct {
	Topic uint64 `json:"topic"`
}

// CreatePartitions raises a topic's number of partitions.
type CreatePartitions struct {
	Topic  uint64 `json:"topic"`
	Total  int32  `json:"total"`
	Groups uint32 `json:"groups"`
}

// RegisterNode enters a node, or brings its addresses up to date. A node that
// is known under another incarnation is refused: it lost its disk.
type RegisterNode struct {
	Node CatalogNode `json:"node"`
}

// AllocateProducers takes a block of producer ids.
type AllocateProducers struct {
	Count int64 `json:"count"`
}

// AssignCoordinators sets the nodes of coordinator slots. Each slot is only
// changed from the epoch that the proposer saw.
type AssignCoordinators struct {
	Slots []SlotAssignment `json:"slots"`
}

// SlotAssignment moves one slot to a node.
type SlotAssignment struct {
	Slot  int   `json:"slot"`
	Node  int32 `json:"node"`
	Epoch int64 `json:"epoch"` // that the proposer saw; 0 for a slot never assigned
}

// catalogArgs returns a new argument struct for a catalog command, nil if the
// kind is not one.
func catalogArgs(k Kind) any {
	switch k {
	case KindRegisterNode:
		return new(RegisterNode)
	case KindCreateTopic:
		return new(CreateTopic)
	case KindTopicOpened:
		return new(TopicOpened)
	case KindDeleteTopic:
		return new(DeleteTopic)
	case KindTopicClosed:
		return new(TopicClosed)
	case KindCreatePartitions:
		return new(CreatePartitions)
	case KindAllocateProducers:
		return new(AllocateProducers)
	case KindAssignCoordinators:
		return new(AssignCoordinators)
	case KindTakeRebuild:
		return new(TakeRebuild)
	case KindEndRebuild:
		return new(EndRebuild)
	case KindAlterTopicConfig:
		return new(AlterTopicConfig)
	case KindTopicConfigured:
		return new(TopicConfigured)
	case KindReserveTopic:
		return new(ReserveTopic)
	case KindAdoptTopic:
		return new(AdoptTopic)
	case KindAddNode:
		return new(AddNode)
	case KindRemoveNode:
		return new(RemoveNode)
	case KindNodeLeft:
		return new(NodeLeft)
	case KindNodeJoined:
		return new(NodeJoined)
	case KindPlaceGroup:
		return new(PlaceGroup)
	case KindKeepNode:
		return new(KeepNode)
	}
	return nil
}

// TopicByName returns the topic of that name, nil if there is none.
func (c *Catalog) TopicByName(name string) *CatalogTopic {
	id, ok := c.byName[name]
	if !ok {
		return nil
	}
	return c.Topics[id]
}

// Over says that a topic was here, and was deleted and closed by every group.
func (c *Catalog) Over(topic uint64) bool {
	return topic < c.nextTopic && c.Topics[topic] == nil
}

func (c *Catalog) apply(index uint64, clockMs int64, args any) Result {
	var r Result
	changed := true
	switch a := args.(type) {
	case *RegisterNode:
		r, changed = c.registerNode(index, &a.Node)
	case *AddNode:
		r, changed = c.addNode(index, a)
	case *RemoveNode:
		r, changed = c.removeNode(index, a)
	case *NodeLeft:
		r, changed = c.nodeLeft(index, a)
	case *NodeJoined:
		r, changed = c.nodeJoined(index, a)
	case *PlaceGroup:
		r, changed = c.placeGroup(index, a)
	case *KeepNode:
		r, changed = c.keepNode(index, a)
	case *CreateTopic:
		r = c.createTopic(a)
	case *TopicOpened:
		r, changed = c.topicOpened(a)
	case *DeleteTopic:
		r, changed = c.deleteTopic(a)
	case *TopicClosed:
		r, changed = c.topicClosed(a)
	case *CreatePartitions:
		r = c.createPartitions(a)
	case *AllocateProducers:
		if a.Count < 1 || a.Count > 1_000_000 {
			return rejected(codeInvalidRequest, "a block has 1 to 1000000 producer ids")
		}
		r.FirstN = c.nextProducer
		c.nextProducer += a.Count
		changed = false
	case *AssignCoordinators:
		changed = c.assignCoordinators(a)
	case *TakeRebuild:
		r, changed = c.takeRebuild(a)
	case *EndRebuild:
		changed = c.endRebuild(a)
	case *AlterTopicConfig:
		r, changed = c.alterTopicConfig(a)
	case *TopicConfigured:
		r, changed = c.topicConfigured(a)
	case *ReserveTopic:
		r, changed = c.reserveTopic(a), false
	case *AdoptTopic:
		r = c.adoptTopic(a, clockMs)
	}
	if changed && r.Verdict == Done {
		c.Version = index
	}
	return r
}

func rejected(code int16, format string, args ...any) Result {
	return Result{Verdict: Rejected, Code: code, Message: fmt.Sprintf(format, args...)}
}

func (c *Catalog) createTopic(a *CreateTopic) Result {
	if t := c.TopicByName(a.Name); t != nil {
		if t.State == TopicDeleting {
			return rejected(codeTopicExists, "topic %q is being deleted", a.Name)
		}
		r := rejected(codeTopicExists, "topic %q already exists", a.Name)
		r.Topic = t.ID
		return r
	}
	if a.Name == "" || a.Partitions < 1 || a.Groups < 1 {
		return rejected(codeInvalidPartitions, "a topic needs a name and at least one partition")
	}
	if a.Partitions > MaxPartitions {
		return rejected(codeInvalidPartitions, "a topic has at most %d partitions", MaxPartitions)
	}
	t := &CatalogTopic{ID: c.nextTopic, Name: a.Name, State: TopicOpening, Config: a.Config}
	t.Groups = c.spread(nil, t.ID, a.Partitions, a.Groups)
	c.nextTopic++
	c.unreserve(a.Name)
	c.Topics[t.ID] = t
	c.byName[t.Name] = t.ID
	return Result{Topic: t.ID}
}

// edit replaces a topic by a changed copy.
func (c *Catalog) edit(t *CatalogTopic, f func(*CatalogTopic)) {
	cp := *t
	f(&cp)
	c.Topics[t.ID] = &cp
}

func (c *Catalog) topicOpened(a *TopicOpened) (Result, bool) {
	t := c.Topics[a.Topic]
	if t == nil || t.State == TopicDeleting || a.Partitions <= t.Opened || int(a.Partitions) > len(t.Groups) {
		return Result{}, false
	}
	c.edit(t, func(t *CatalogTopic) {
		t.Opened = a.Partitions
		if int(t.Opened) == len(t.Groups) {
			t.State = TopicLive
		}
	})
	return Result{}, true
}

func (c *Catalog) deleteTopic(a *DeleteTopic) (Result, bool) {
	t := c.Topics[a.Topic]
	if t == nil {
		return rejected(codeUnknownTopic, "no such topic"), false
	}
	if t.State == TopicDeleting {
		return Result{}, false
	}
	c.edit(t, func(t *CatalogTopic) { t.State = TopicDeleting })
	c.forgetTopic(t.ID)
	return Result{}, true
}

func (c *Catalog) topicClosed(a *TopicClosed) (Result, bool) {
	t := c.Topics[a.Topic]
	if t == nil || t.State != TopicDeleting {
		return Result{}, false
	}
	delete(c.Topics, t.ID)
	delete(c.byName, t.Name)
	c.dropRebuild(t.ID)
	return Result{}, true
}

func (c *Catalog) createPartitions(a *CreatePartitions) Result {
	t := c.Topics[a.Topic]
	if t == nil || t.State == TopicDeleting {
		return rejected(codeUnknownTopic, "no such topic")
	}
	if int(a.Total) <= len(t.Groups) {
		return rejected(codeInvalidPartitions, "topic %q has %d partitions, which is not less than %d", t.Name, len(t.Groups), a.Total)
	}
	if a.Total > MaxPartitions {
		return rejected(codeInvalidPartitions, "a topic has at most %d partitions", MaxPartitions)
	}
	if a.Groups < 1 {
		return rejected(codeInvalidRequest, "no groups")
	}
	c.edit(t, func(t *CatalogTopic) {
		t.Groups = c.spread(t.Groups, t.ID, a.Total, a.Groups)
		t.State = TopicOpening
	})
	return Result{}
}

func (c *Catalog) assignCoordinators(a *AssignCoordinators) bool {
	slots := slices.Clone(c.Coordinators)
	if len(slots) == 0 {
		slots = make([]CoordinatorSlot, CoordinatorSlots)
	}
	changed := false
	for _, s := range a.Slots {
		if s.Slot < 0 || s.Slot >= len(slots) || slots[s.Slot].Epoch != s.Epoch {
			continue
		}
		c.coordinatorGen++
		slots[s.Slot] = CoordinatorSlot{Node: s.Node, Epoch: c.coordinatorGen}
		c.turns[s.Slot] = 0 // each coordinator counts from where it likes
		changed = true
	}
	if changed {
		c.Coordinators = slots
	}
	return changed
}
