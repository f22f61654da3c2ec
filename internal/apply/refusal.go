package apply

import (
	"errors"
	"fmt"
)

// distrust is the error that quarantines a partition on this node.
type distrust struct{ reason string }

func (d *distrust) Error() string { return d.reason }

func distrustf(format string, args ...any) error { return &distrust{fmt.Sprintf(format, args...)} }

var (
	// errAgain asks for another attach.
	errAgain = errors.New("attach again")
	// errLost is a lost connection: the broker may come back without what it
	// had not flushed.
	errLost = errors.New("connection to the broker lost")
)

// refusal is an error code that the broker answered to an append.
type refusal struct {
	code    int16
	message string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("the broker refused an append with error %d %s", r.code, r.message)
}

// maxUnexplained times in a row, over about four seconds, the broker may fail
// with UNKNOWN_SERVER_ERROR at one batch before that is a refusal for good: it
// is Kafka's answer to compressed records that cannot be decompressed, and to
// any other exception.
const maxUnexplained = 10

// permanent refusals say something about the batch or the topic's settings,
// not about the moment.
func (r *refusal) permanent() bool {
	switch r.code {
	case 2, 10, 17, 18, 32, 43, 76, 87: // corrupt, too large, invalid topic, list too large, timestamp, format, codec, invalid record
		return true
	}
	return false
}

// unexplained refusals say nothing: the batch or the moment may be at fault.
func (r *refusal) unexplained() bool { return r.code == codeUnknownServerError }

const codeUnknownServerError = -1 // UNKNOWN_SERVER_ERROR

func (r *refusal) sequence() bool { return r.code == 45 || r.code == 46 || r.code == 47 }

// mystery is how often in a row the broker failed at one batch without a reason.
type mystery struct {
	index uint64
	base  int64
	times int
}

// forGood says whether the broker's refusal of an item is one for good.
func (p *pipe) forGood(ref *refusal, it *item) bool {
	if !ref.unexplained() {
		p.mystery = mystery{}
		return ref.permanent()
	}
	if m := &p.mystery; m.times == 0 || m.index != it.index || m.base != it.base {
		*m = mystery{index: it.index, base: it.base}
	}
	p.mystery.times++
	return p.mystery.times >= maxUnexplained
}
