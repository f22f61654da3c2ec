package proxy

import "context"

// ConsumerGroups is what the rest of the node knows of consumer groups: what
// they have committed, for the whole cluster. Who is a member is known to the
// coordinator's broker alone. Every method may be called from any goroutine.
// Errors that a client should see are *KafkaError.
type ConsumerGroups interface {
	// CommitOffsets proposes what this node's broker has accepted. Commits of
	// one goroutine are proposed in their order. done is called exactly once,
	// from another goroutine, with one Kafka error code for each partition; a
	// 0 means committed on a majority. NOT_COORDINATOR means that the group
	// has moved since the commit's epoch, and nothing was changed.
	// CommitOffsets itself does not block: the caller bounds the bytes.
	CommitOffsets(commit OffsetCommit, done func(codes []int16))

	// Committed returns what groups have committed, by group. It sees every
	// commit that was acknowledged anywhere before the call, and every commit
	// that this goroutine has proposed. A group that has committed nothing is
	// missing.
	Committed(ctx context.Context, groups []string) (map[string][]CommittedOffset, error)

	// CommittedGroups returns the names of all groups that have committed
	// something, as up to date as Committed.
	CommittedGroups(ctx context.Context) ([]string, error)

	// NoteCommits notes what a group commits through this node from now on, for
	// the deletions below, until done is called. It is called before the
	// broker is asked whether something may be deleted: a member that joins
	// after the broker's yes may have committed before the deletion is
	// proposed. done is called once, from any goroutine.
	NoteCommits(group string) (done func())

	// DeleteGroup forgets what a group has committed. The epoch is that of
	// the coordinator whose broker has said that nobody is in it. It is
	// NOT_COORDINATOR, upon which clients ask again and the broker judges
	// anew, if the group was noted to have committed meanwhile.
	DeleteGroup(ctx context.Context, group string, epoch int64) error

	// DeleteOffsets forgets what a group has committed for some partitions,
	// unless it was noted to have committed for one of them meanwhile, as
	// DeleteGroup.
	DeleteOffsets(ctx context.Context, group string, epoch int64, partitions []TopicPartition) error
}

// OffsetCommit is a client's OffsetCommit as this node's broker has accepted it.
type OffsetCommit struct {
	Group       string
	Epoch       int64 // View.CoordinatorEpoch before the broker was asked
	Member      bool  // by a member of the group
	RetentionMs int64 // asked for by the client; -1: the default
	Offsets     []OffsetToCommit
}

// OffsetToCommit is one partition of an OffsetCommit.
type OffsetToCommit struct {
	Topic     uint64 // id in the catalog
	Partition int32
	Offset    int64
	Metadata  string
}

// CommittedOffset is what a group has committed for a partition.
type CommittedOffset struct {
	Topic     string
	Partition int32
	Offset    int64
	Metadata  string
}

// TopicPartition names a partition by the catalog's topic id.
type TopicPartition struct {
	Topic     uint64
	Partition int32
}

// CoordinatorEpoch is the epoch under which this node coordinates a group: 0 if
// it does not, or not yet because its broker may still hold members of an
// earlier time.
func (v *View) CoordinatorEpoch(group string) int64 {
	if len(v.CoordinatorEpochs) == 0 || v.Coordinator(group) != v.Self {
		return 0
	}
	return v.CoordinatorEpochs[GroupSlot(group, len(v.CoordinatorEpochs))]
}
