// Package proxy is the client side of a node: the Kafka listeners, the
// connections, the router and one file per handled API. It knows the cluster
// only through the interfaces of this file; cmd/lockstep plugs the rest of the
// node into them.
package proxy

import (
	"context"
	"fmt"
	"time"
)

// Cluster is what the proxy asks of the rest of the node. Every method may be
// called from any goroutine. Errors that a client should see are *KafkaError;
// any other error is ours (shutdown, bug) and is answered with a retriable code.
type Cluster interface {
	ConsumerGroups
	AccessRules

	// View returns the current picture of the cluster: immutable, never nil,
	// cheap. What it says this node leads is true of now, also right after
	// the process was suspended; a View from Changed may be older.
	View() *View

	// Changed returns a channel that is closed when a View newer than the
	// one returned with it has been published.
	Changed() (*View, <-chan struct{})

	// CreateTopic enters a topic into the catalog and returns when every
	// partition's group has it and View shows it. It is the one path by which
	// topics come to exist (CreateTopics and auto-creation alike).
	CreateTopic(ctx context.Context, spec TopicSpec) error

	// DeleteTopic removes a topic and returns when every group has closed it.
	DeleteTopic(ctx context.Context, name string) error

	// CreatePartitions raises the number of partitions to total and returns
	// when the groups have them.
	CreatePartitions(ctx context.Context, name string, total int32) error

	// AlterTopicConfig changes a topic's settings and returns when every
	// group has the new ones and View shows them. change is given a copy of
	// the settings and returns what they shall be, or a *KafkaError; it is
	// called again if somebody else changed them meanwhile.
	AlterTopicConfig(ctx context.Context, name string, change func(map[string]string) (map[string]string, error)) error

	// DeleteRecords raises a partition's log start offset to offset, -1
	// standing for the end, and returns what it is when this node's broker
	// has deleted what lies below. An offset beyond the end is a *KafkaError
	// of code OFFSET_OUT_OF_RANGE.
	DeleteRecords(ctx context.Context, topic *Topic, partition int32, offset int64) (int64, error)

	// TopicHere returns when this node's broker has the topic, or cannot be
	// waited for, or ctx is over. A topic that View shows may be on its way.
	TopicHere(ctx context.Context, topic *Topic)

	// Confirmed says, for each partition, whether a majority confirmed after
	// the call that this node leads it: its broker's log then has everything
	// that was acknowledged before the call, by whichever node.
	Confirmed(ctx context.Context, partitions []TopicPartition) []bool

	// ReadReplicas returns, for each partition, another node of that rack
	// from whose broker consumers may read it: alive, with a sound copy that
	// was complete a moment ago. 0 if there is none.
	ReadReplicas(rack string, partitions []TopicPartition) []int32

	// Follows says whether this node's broker can serve consumers a
	// partition, whoever leads it: its copy is sound and has everything that
	// it ever had, though maybe not everything that is committed.
	Follows(partition TopicPartition) bool

	// ProducerID returns a producer id that no other call, on any node, ever
	// returns (from 2^40 up, in blocks that the catalog hands out).
	ProducerID(ctx context.Context) (int64, error)

	// EndOffset returns the partition's end as the replicated state machine
	// has it. With verify it first asks a majority whether this node still
	// leads the group (Raft section 6.4, ReadIndex), so that the answer may
	// contradict a client.
	EndOffset(ctx context.Context, topic *Topic, partition int32, verify bool) (int64, error)
}

// Producer commits batches. It may be used from any goroutine.
type Producer interface {
	// Append queues one checked record batch (see kafkawire.CheckProduce) for
	// commit. Batches of one partition appended one after the other from one
	// goroutine are proposed in that order. done is called exactly once, from
	// another goroutine, when the batch is committed and visible on this
	// node's broker, or refused, or at the deadline. The batch's bytes belong
	// to the Producer from this call on and are never modified afterwards.
	// Append itself does not block: the caller bounds the bytes in flight.
	Append(topic *Topic, partition int32, batch []byte, deadline time.Time, done func(AppendResult))
}

// AppendResult is the outcome of one Append.
type AppendResult struct {
	Code           int16  // Kafka error code; 0 means committed, durable and visible
	Message        string // for the client, may be empty
	BaseOffset     int64  // -1 unless Code is 0
	LogStartOffset int64  // -1 if unknown
}

// View is one immutable picture of the cluster, as clients may be told it.
type View struct {
	ClusterID  string
	Self       int32
	Controller int32  // a live node; -1 if none is known
	Nodes      []Node // every member, by ascending id
	Topics     map[string]*Topic

	// Coordinators[GroupSlot(group)] is the node that coordinates the
	// consumer groups of that slot; -1 if none is assigned. It may be empty
	// before the catalog is up.
	Coordinators []int32

	// CoordinatorEpochs[slot] is the epoch under which this node coordinates
	// the groups of a slot, 0 if it does not or is not ready to.
	CoordinatorEpochs []int64

	// CatalogReady is false until this node has heard from the catalog's
	// leader within its lease: until then an unknown topic is not known to
	// be unknown.
	CatalogReady bool
}

// Node is a member as clients see it.
type Node struct {
	ID        int32
	Rack      string
	Alive     bool
	Listeners map[string]Endpoint // advertised, by listener name
}

// Endpoint is a host and port that clients dial.
type Endpoint struct {
	Host string
	Port int32
}

// Topic is a replicated topic. Clients' settings live here (the catalog), not
// in the broker.
type Topic struct {
	ID         uint64
	Name       string
	Config     map[string]string
	Partitions []Partition
}

// Partition is who serves a partition now.
type Partition struct {
	Leader   int32   // -1 if there is none that clients can trust
	Replicas []int32 // members that hold it
	ISR      []int32 // of them, those that are alive and apply
}

// TopicSpec describes a topic to create.
type TopicSpec struct {
	Name       string
	Partitions int32
	Config     map[string]string
}

// Leads says whether this node is the leader that clients can trust of a
// partition: Raft leader of its group, with a broker that holds everything
// committed for the partition.
func (v *View) Leads(t *Topic, partition int32) bool {
	return partition >= 0 && int(partition) < len(t.Partitions) && t.Partitions[partition].Leader == v.Self
}

// Coordinator returns the node that coordinates a consumer group, -1 if none.
func (v *View) Coordinator(group string) int32 {
	if len(v.Coordinators) == 0 {
		return -1
	}
	return v.Coordinators[GroupSlot(group, len(v.Coordinators))]
}

// GroupSlot maps a consumer group to one of n coordinator slots, the way Kafka
// maps groups to partitions of __consumer_offsets: Java's String.hashCode of
// the id modulo n (GroupCoordinatorService.partitionFor), over UTF-16 units.
func GroupSlot(group string, n int) int {
	var h int32
	for _, r := range group {
		if r >= 0x10000 {
			r -= 0x10000
			h = 31*h + int32(0xd800+(r>>10))
			h = 31*h + int32(0xdc00+(r&0x3ff))
			continue
		}
		h = 31*h + int32(r)
	}
	return int(h&0x7fffffff) % n
}

// KafkaError is a failure with the code that clients are to see.
type KafkaError struct {
	Code    int16
	Message string
}

// Error implements error.
func (e *KafkaError) Error() string { return fmt.Sprintf("kafka error %d: %s", e.Code, e.Message) }
