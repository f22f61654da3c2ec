package kafkawire

import (
	"encoding/binary"
	"fmt"
)

// FetchRequest is what a Fetch asked for, apart from its partitions, before it
// was patched.
type FetchRequest struct {
	MaxWaitMs, MinBytes, MaxBytes int32
	IsolationLevel                int8 // 1 is read_committed
	// SessionID and SessionEpoch are the client's (KIP-227); 0 and -1 where
	// the version has none. A client that names a session which we never gave
	// out is to be answered with error 70.
	SessionID, SessionEpoch int32
	// Forgotten is the number of partitions the client drops from its session.
	Forgotten int
	Rack      []byte // aliases the body; nil before version 11
	// Tagged is set when tagged fields were seen. They go to the broker as
	// they are; none of them matters to it in these versions.
	Tagged bool
}

// FetchPartition is one partition of a Fetch request. Topic aliases the body.
type FetchPartition struct {
	Topic       []byte
	Partition   int32
	FetchOffset int64
	MaxBytes    int32
}

// The smallest encodings in bytes of a topic and a partition of a Fetch, over
// all versions served; they bound array lengths only.
const (
	leastFetchTopic           = 3  // compact name, array, tags
	leastFetchPartition       = 16 // index, offset, max bytes
	leastForgottenTopic       = 3
	leastFetchRespTopic       = 3
	leastFetchRespPart        = 30 // fixed part, two empty lengths at least
	leastAbortedTxn           = 16
	fetchMin, fetchMax        = 4, 12
	sessionlessEpoch    int32 = -1
)

// PatchFetchRequest rewrites the body of a Fetch request (versions 4 to 12) in
// place, without changing its length, so that the local broker can serve it
// for us: no session (id 0, epoch -1), and neither the client's idea of the
// leader epoch nor of the last fetched epoch (-1), because the epochs of the
// brokers are unrelated. It calls visit, if not nil, for each partition in the
// request's order; an error of visit ends the walk and is returned.
//
// It returns ErrUnsupportedVersion, ErrMalformed, or ErrFollowerFetch when the
// request claims to come from a replica. After an error the body may be half
// rewritten and must not be sent.
func PatchFetchRequest(version int16, body []byte, visit func(FetchPartition) error) (FetchRequest, error) {
	if version < fetchMin || version > fetchMax {
		return FetchRequest{}, fmt.Errorf("patch fetch request: %w: %d", ErrUnsupportedVersion, version)
	}
	w := fetchRequestWalk{reader: reader{buf: body}, version: version, flexible: version >= 12}
	req, err := w.walk(visit)
	if err != nil {
		return req, fmt.Errorf("patch fetch request: %w", err)
	}
	return req, nil
}

type fetchRequestWalk struct {
	reader
	version  int16
	flexible bool
	tagged   bool // a tagged field was seen
}

func (w *fetchRequestWalk) skipTags() {
	if w.tags(w.flexible) > 0 {
		w.tagged = true
	}
}

// replaceInt32 reads a field and writes v in its place.
func (w *fetchRequestWalk) replaceInt32(v int32) int32 {
	b := w.span(4)
	if b == nil {
		return 0
	}
	was := int32(binary.BigEndian.Uint32(b))
	binary.BigEndian.PutUint32(b, uint32(v))
	return was
}

func (w *fetchRequestWalk) walk(visit func(FetchPartition) error) (FetchRequest, error) {
	req := FetchRequest{SessionEpoch: sessionlessEpoch}
	if replica := w.int32(); replica != -1 && w.err == nil {
		return req, fmt.Errorf("%w: %d", ErrFollowerFetch, replica)
	}
	req.MaxWaitMs, req.MinBytes, req.MaxBytes = w.int32(), w.int32(), w.int32()
	req.IsolationLevel = w.int8()
	if w.version >= 7 {
		req.SessionID = w.replaceInt32(0)
		req.SessionEpoch = w.replaceInt32(sessionlessEpoch)
	}
	for range w.array(w.flexible, leastFetchTopic) {
		topic := w.string(w.flexible)
		for range w.array(w.flexible, leastFetchPartition) {
			p := w.partition(topic)
			if w.err != nil {
				return req, w.err
			}
			if visit == nil {
				continue
			}
			if err := visit(p); err != nil {
				return req, err
			}
		}
		w.skipTags()
	}
	if w.version >= 7 {
		req.Forgotten = w.forgotten()
	}
	if w.version >= 11 {
		req.Rack = w.string(w.flexible)
	}
	w.skipTags()
	req.Tagged = w.tagged
	return req, w.end()
}

func (w *fetchRequestWalk) partition(topic []byte) FetchPartition {
	p := FetchPartition{Topic: topic, Partition: w.int32()}
	if w.version >= 9 {
		w.replaceInt32(-1) // current leader epoch
	}
	p.FetchOffset = w.int64()
	if w.version >= 12 {
		w.replaceInt32(-1) // last fetched epoch
	}
	if w.version >= 5 {
		w.int64() // log start offset, of followers only
	}
	p.MaxBytes = w.int32()
	w.skipTags()
	return p
}

// forgotten walks the partitions that leave the session. They stay in the
// request: without a session the broker does not look at them.
func (w *fetchRequestWalk) forgotten() (n int) {
	for range w.array(w.flexible, leastForgottenTopic) {
		w.string(w.flexible)
		partitions := w.array(w.flexible, 4)
		w.span(4 * partitions)
		n += partitions
		w.skipTags()
		if w.err != nil {
			return 0
		}
	}
	return n
}
