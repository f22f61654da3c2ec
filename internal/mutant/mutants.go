// Package mutant names the mistakes that a test may build into the product, to
// see that the harness would find them.
//
// In a normal build On is false, and the compiler drops the mistake. A build
// with the tag mutants makes the one mistake that LOCKSTEP_TEST_MUTANT names.
package mutant

// Mutant is the name of a mistake.
type Mutant string

const (
	// AckBeforeCommit answers a producer as soon as its batch is proposed.
	AckBeforeCommit Mutant = "ack-before-commit"
	// SkipEndOffsetCheck appends without looking at what the broker has.
	SkipEndOffsetCheck Mutant = "skip-end-offset-check"
	// IgnoreBaseOffset takes a batch for well placed wherever the broker put it.
	IgnoreBaseOffset Mutant = "ignore-base-offset"
	// DropFsync tells Raft that entries are on disk two seconds before they
	// are. A killed process loses what was not written; its page cache it
	// would keep, so leaving out the fsync alone would show nothing.
	DropFsync Mutant = "drop-fsync"
	// CompactTooEarly trusts the broker with what it has not flushed, so that
	// the log is cut behind it.
	CompactTooEarly Mutant = "compact-too-early"
	// ServeWhenDeposed goes on as the leader that one was.
	ServeWhenDeposed Mutant = "serve-when-deposed"
	// TimeoutIsFailure tells a client that a batch whose outcome is unknown
	// was refused.
	TimeoutIsFailure Mutant = "timeout-is-failure"
	// StartOverOnEmptyBroker goes on with new batches on a broker that lost
	// its log.
	StartOverOnEmptyBroker Mutant = "start-over-on-empty-broker"
)

// List returns every mutant.
func List() []Mutant {
	return []Mutant{AckBeforeCommit, SkipEndOffsetCheck, IgnoreBaseOffset, DropFsync, CompactTooEarly,
		ServeWhenDeposed, TimeoutIsFailure, StartOverOnEmptyBroker}
}
