// Package failpoint names the places between a client's request and its
// answer, and of every durable step behind them, at which a test may kill the
// process.
//
// A product file calls Hit with the name of a place. In a normal build Hit is
// empty and inlined: nothing of it is left. A build with the tag failpoints
// looks at the file that LOCKSTEP_TEST_FAILPOINT_FILE names, so that a test can
// arm a place in a process that runs.
package failpoint

// Point is the name of a place.
type Point string

// The places on the way of a record, in the order in which it passes them. A
// name that ends in "before" stands in front of the step, one that ends in
// "after" behind it.
const (
	ProduceReceived Point = "produce-received" // a Produce request was decoded
	ProduceChecked  Point = "produce-checked"  // its batches passed, none was proposed
	ProposeBefore   Point = "propose-before"   // an entry is made, Raft does not have it
	ProposeAfter    Point = "propose-after"    // Raft has the entry
	StoreBefore     Point = "store-before"     // before entries are written and fsynced
	StoreAfter      Point = "store-after"      // they are on disk, nobody was told
	ApplyBefore     Point = "apply-before"     // committed; the state machine has not seen it
	ApplyAfter      Point = "apply-after"      // the verdict is there
	VerdictAfter    Point = "verdict-after"    // the proposer heard it, and waits for its broker
	DealBefore      Point = "deal-before"      // the applier is about to read an entry
	DealAfter       Point = "deal-after"       // the lanes have its batches
	AppendBefore    Point = "append-before"    // before batches are sent to the broker
	AppendAfter     Point = "append-after"     // they were sent
	AppendAnswered  Point = "append-answered"  // the broker's answer came and was not noted
	AppendNoted     Point = "append-noted"     // it was noted, who waits was told
	AnswerBefore    Point = "answer-before"    // before the client's answer is queued
	AnswerAfter     Point = "answer-after"     // it is queued
	AnswerWritten   Point = "answer-written"   // it was written to the client's connection
)

// The places of what happens beside the way of a record.
const (
	VoteBefore        Point = "vote-before" // before a term or vote is written
	VoteAfter         Point = "vote-after"
	AttachBefore      Point = "attach-before" // before the broker's log end is read
	AttachAfter       Point = "attach-after"  // it was read, nothing was sent
	TopicCreateBefore Point = "topic-create-before"
	TopicCreateAfter  Point = "topic-create-after" // the broker has the topic, it is not bound
	TopicBindAfter    Point = "topic-bind-after"
	TopicDeleteBefore Point = "topic-delete-before"
	TopicDeleteAfter  Point = "topic-delete-after" // the topic is gone, its binding is not
	FlushBefore       Point = "flush-before"       // before the broker's log directories are flushed
	FlushAfter        Point = "flush-after"        // they are, and nothing follows from it yet
	TrustBefore       Point = "trust-before"       // before the tail moves
	TrustAfter        Point = "trust-after"
	SnapshotBefore    Point = "snapshot-before" // a snapshot is begun and empty
	SnapshotAfter     Point = "snapshot-after"  // it is durable
	LogCutBefore      Point = "log-cut-before"  // before the log is cut behind a snapshot
	LogCutAfter       Point = "log-cut-after"
	InstallBefore     Point = "install-before" // a leader's snapshot is in, the log before it is still there
	InstallMarked     Point = "install-marked" // it is noted that the log may be gone
	InstallAfter      Point = "install-after"  // it is gone
	CopyBefore        Point = "copy-before"    // a copy from a peer's broker is about to begin, or to go on
	CopyPushed        Point = "copy-pushed"    // a batch of it is on its way to the broker
	CopyAfter         Point = "copy-after"     // all of it is
	CopyServed        Point = "copy-served"    // a peer is about to be given a piece
	LeaseTaken        Point = "lease-taken"    // nobody else may delete its copy of the topic; the others' are not looked at yet
	LeaseBack         Point = "lease-back"     // before it is given back
	RebuildBefore     Point = "rebuild-before" // this node may delete its wrong copy, and has not begun
	RebuildMarked     Point = "rebuild-marked" // it is noted that the copy may be gone
	RebuildDeleted    Point = "rebuild-deleted"
	RebuildMade       Point = "rebuild-made"  // an empty topic is there, and bound
	RebuildAfter      Point = "rebuild-after" // the quarantine is forgotten, nothing is copied yet
)

// When says what makes a process pass a place.
type When string

const (
	WhenProducing  When = "producing"  // any load
	WhenElecting   When = "electing"   // a leader is lost
	WhenAttaching  When = "attaching"  // the broker's connection is lost and made again
	WhenCreating   When = "creating"   // a topic is created
	WhenDeleting   When = "deleting"   // a topic is deleted
	WhenInstalling When = "installing" // a node comes back that the log no longer reaches
	WhenCopying    When = "copying"    // a broker comes back without what the log no longer holds
	WhenServing    When = "serving"    // the same happens to another node
	WhenRebuilding When = "rebuilding" // a broker holds what nobody committed
)

// Place is a point and the nodes on which it is passed.
type Place struct {
	Point    Point `json:"point"`
	When     When  `json:"when"`
	Leader   bool  `json:"leader"`
	Follower bool  `json:"follower"`
}

// List returns every place. A test holds each of them to being reached.
func List() []Place {
	on := func(w When, leader, follower bool, points ...Point) []Place {
		var out []Place
		for _, p := range points {
			out = append(out, Place{Point: p, When: w, Leader: leader, Follower: follower})
		}
		return out
	}
	var out []Place
	out = append(out, on(WhenProducing, true, false, ProduceReceived, ProduceChecked, ProposeBefore, ProposeAfter)...)
	out = append(out, on(WhenProducing, true, true, StoreBefore, StoreAfter, ApplyBefore, ApplyAfter)...)
	out = append(out, on(WhenProducing, true, false, VerdictAfter)...)
	out = append(out, on(WhenProducing, true, true, DealBefore, DealAfter, AppendBefore, AppendAfter, AppendAnswered, AppendNoted)...)
	out = append(out, on(WhenProducing, true, false, AnswerBefore, AnswerAfter, AnswerWritten)...)
	out = append(out, on(WhenElecting, false, true, VoteBefore, VoteAfter)...)
	out = append(out, on(WhenAttaching, true, true, AttachBefore, AttachAfter)...)
	out = append(out, on(WhenCreating, true, true, TopicCreateBefore, TopicCreateAfter, TopicBindAfter)...)
	out = append(out, on(WhenDeleting, true, true, TopicDeleteBefore, TopicDeleteAfter)...)
	out = append(out, on(WhenProducing, true, true, FlushBefore, FlushAfter, TrustBefore, TrustAfter,
		SnapshotBefore, SnapshotAfter, LogCutBefore, LogCutAfter)...)
	out = append(out, on(WhenInstalling, false, true, InstallBefore, InstallMarked, InstallAfter)...)
	out = append(out, on(WhenCopying, false, true, CopyBefore, CopyPushed, CopyAfter)...)
	out = append(out, on(WhenServing, false, true, CopyServed)...)
	out = append(out, on(WhenRebuilding, false, true, LeaseTaken, LeaseBack, RebuildBefore, RebuildMarked, RebuildDeleted, RebuildMade, RebuildAfter)...)
	return out
}
