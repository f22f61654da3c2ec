package transport

import (
	"errors"
	"net"
	"sync"
	"time"
)

// strangerEvery is how often input from strangers is worth a log line.
const strangerEvery = 10 * time.Second

// quietKey names one relation with a peer that can be in trouble by itself.
type quietKey struct {
	node     int32
	kind     streamKind
	group    uint32
	incoming bool
}

// quiet decides what is worth a log line. Peers reconnect many times a second,
// so a trouble is told when it begins, changes or ends, not at every attempt.
type quiet struct {
	mu       sync.Mutex
	last     map[quietKey]string
	strange  time.Time // when a stranger was last told of
	withheld int       // strangers not told of since
}

func newQuiet() *quiet { return &quiet{last: make(map[quietKey]string)} }

// trouble notes a reason and says whether it is new for this key.
func (q *quiet) trouble(key quietKey, reason string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if last, ok := q.last[key]; ok && last == reason {
		return false
	}
	q.last[key] = reason
	return true
}

// fine notes that all is well and says whether it was not before.
func (q *quiet) fine(key quietKey) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, was := q.last[key]
	delete(q.last, key)
	return was
}

// stranger says whether to log this one, and how many were passed over.
func (q *quiet) stranger(now time.Time) (bool, int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.strange.IsZero() && now.Sub(q.strange) < strangerEvery {
		q.withheld++
		return false, 0
	}
	n := q.withheld
	q.strange, q.withheld = now, 0
	return true, n
}

// reasonOf is the part of an error that is the same at every attempt: without
// the local port of a connection.
func reasonOf(err error) string {
	var refused *RefusedError
	if errors.As(err, &refused) {
		return refused.Reason
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}
