package broker

import (
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/internal/failpoint"
)

// Produce versions: v3 is the first with v2 batches; v12 means KIP-890 and v13
// topic ids, which differ per broker.
const (
	minProduceVersion = 3
	maxProduceVersion = 11
)

// produceTimeout is the request's own timeout; with one replica the broker
// never waits for it.
const produceTimeout = 30 * time.Second

// Append is one batch for one partition.
type Append struct {
	Topic     string
	Partition int32
	// Head and Body, one after the other, are exactly one v2 record batch,
	// already stamped. Body is written from where it lies: it must not be
	// changed until the callback was called.
	Head [batchHeader]byte
	Body []byte
}

// Result is the outcome of one Append. Err is nil when the broker answered;
// then Code 0 means appended (or recognised as a repeat) at BaseOffset, any
// other Code is the broker's refusal. With Err, errors.Is tells ErrNotSent
// (not executed) from ErrConnLost (unknown).
type Result struct {
	BaseOffset int64
	Code       int16
	Message    string // the broker's words with a Code, may be empty
	Err        error
}

type topicPartition struct {
	topic     string
	partition int32
}

// pending is one queued or unanswered append.
type pending struct {
	tp   topicPartition
	head [batchHeader]byte
	body []byte
	done func(Result)
}

// size is the batch's, in bytes.
func (p *pending) size() int { return len(p.head) + len(p.body) }

// request is one Produce request, or a keep-alive if batch is empty. Owned by
// the session's mu until it was answered, then by the reader goroutine.
type request struct {
	corr    int32
	written bool // the connection was given bytes of it: its outcome is open
	sentAt  time.Time
	batch   []pending
}

// Session is one append connection. Append may be called from any goroutine.
//
// Per partition, batches are written in the order of the Append calls, and
// callbacks are called in that order, one at a time for the whole session, on
// the session's reader goroutine. A callback must not block: every partition
// on the connection waits for it. It may call Append.
type Session struct {
	cfg            *Config
	conn           *conn
	produceVersion int16
	slots          chan struct{} // one token per unanswered request
	wake           chan struct{} // capacity 1: something was queued
	lost           chan struct{} // closed by fail
	drained        chan struct{} // closed when every callback was called after fail
	frame          produceFrame  // the writer goroutine's

	mu       sync.Mutex
	queues   map[topicPartition]*fifo // partitions with queued appends
	turn     []*fifo                  // the same, in the order they are served
	inflight []*request               // unanswered, oldest first; the last may be unwritten
	cause    error                    // set once, by fail
	late     []pending                // queued after the loss
	draining bool                     // after the loss: a goroutine is still to look at late
}

// fifo is the queue of one partition.
type fifo struct {
	tp    topicPartition
	items []pending
}

func newSession(cfg *Config, c *conn) (*Session, error) {
	version, err := c.versions.pick(kmsg.Produce, minProduceVersion, maxProduceVersion)
	if err != nil {
		return nil, err
	}
	return &Session{
		cfg:            cfg,
		conn:           c,
		produceVersion: version,
		slots:          make(chan struct{}, cfg.MaxInFlightRequests),
		wake:           make(chan struct{}, 1),
		lost:           make(chan struct{}),
		drained:        make(chan struct{}),
		queues:         make(map[topicPartition]*fifo),
	}, nil
}

// Append queues one batch without blocking and calls done exactly once. On a
// session that is lost already, done is called with ErrNotSent, later and from
// another goroutine.
func (s *Session) Append(a Append, done func(Result)) {
	p := pending{
		tp:   topicPartition{a.Topic, a.Partition},
		head: a.Head,
		body: a.Body,
		done: done,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		s.late = append(s.late, p)
		// The goroutine that reports the loss takes these too, so that they
		// come after what was queued before them.
		if !s.draining {
			s.draining = true
			go s.drainLate()
		}
		return
	}
	q := s.queues[p.tp]
	if q == nil {
		q = &fifo{tp: p.tp}
		s.queues[p.tp] = q
		s.turn = append(s.turn, q)
	}
	q.items = append(q.items, p)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Done is closed when the connection is lost and everything outstanding had
// its callback.
func (s *Session) Done() <-chan struct{} { return s.drained }

// Err says why the session was lost; nil while it is alive.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

func (s *Session) alive() bool { return !isClosed(s.lost) }

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// fail ends the session; the first cause counts. Any goroutine may call it.
func (s *Session) fail(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return
	}
	s.cause = cause
	s.draining = true // by the reader goroutine
	close(s.lost)
	s.conn.close()
}

// readLoop matches answers to requests until the connection is lost, then
// reports the loss to everyone waiting.
func (s *Session) readLoop() {
	for s.alive() {
		body, err := readFrame(s.conn.br, s.cfg.MaxResponseBytes)
		if err == nil {
			err = s.answer(body)
		}
		if err != nil {
			s.fail(err)
		}
	}
	s.drain()
}

// answer handles one response frame on the reader goroutine.
func (s *Session) answer(body []byte) error {
	r, err := s.pop(correlation(body))
	if err != nil {
		return err
	}
	<-s.slots
	if len(r.batch) == 0 {
		return nil
	}
	failpoint.Hit(failpoint.AppendAnswered)
	resp := kmsg.NewPtrProduceResponse()
	resp.Version = s.produceVersion
	err = decodeResponse(body, resp)
	if err == nil {
		err = r.deliver(resp)
	} else {
		r.abandon(err)
	}
	return err
}

// pop takes the oldest request off, which must be the one answered, and moves
// the read deadline to the next.
func (s *Session) pop(corr int32) (*request, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.inflight) == 0 || s.inflight[0].corr != corr || !s.inflight[0].written {
		return nil, fmt.Errorf("%w: answer with correlation id %d was not asked for", ErrMalformed, corr)
	}
	r := s.inflight[0]
	s.inflight[0] = nil
	s.inflight = s.inflight[1:]
	return r, s.armLocked()
}

// armLocked sets the read deadline by the oldest unanswered request; without
// one the reader waits for ever. Call with mu held.
func (s *Session) armLocked() error {
	var deadline time.Time
	if len(s.inflight) > 0 && s.inflight[0].written {
		deadline = s.inflight[0].sentAt.Add(s.cfg.RequestTimeout)
	}
	return s.conn.nc.SetReadDeadline(deadline)
}

// deliver calls the callbacks of an answered request. A partition missing in
// the answer has an unknown outcome, and the broker is not to be trusted with
// the rest of the connection.
func (r *request) deliver(resp *kmsg.ProduceResponse) error {
	results := make(map[topicPartition]Result, len(r.batch))
	for i := range resp.Topics {
		t := &resp.Topics[i]
		for j := range t.Partitions {
			p := &t.Partitions[j]
			results[topicPartition{t.Topic, p.Partition}] = Result{
				BaseOffset: p.BaseOffset,
				Code:       p.ErrorCode,
				Message:    produceMessage(p),
			}
		}
	}
	var missing error
	for _, p := range r.batch {
		res, ok := results[p.tp]
		if !ok {
			missing = fmt.Errorf("%w: no Produce answer for %s/%d", ErrMalformed, p.tp.topic, p.tp.partition)
			res = Result{Err: fmt.Errorf("%w: %w", ErrConnLost, missing)}
		}
		p.done(res)
	}
	return missing
}

func produceMessage(p *kmsg.ProduceResponseTopicPartition) string {
	if p.ErrorMessage != nil {
		return *p.ErrorMessage
	}
	for _, r := range p.ErrorRecords {
		if r.ErrorMessage != nil {
			return *r.ErrorMessage
		}
	}
	return ""
}

// abandon reports an unknown outcome to everyone in the request.
func (r *request) abandon(cause error) {
	for _, p := range r.batch {
		p.done(Result{Err: fmt.Errorf("%w: %w", ErrConnLost, cause)})
	}
}

// drain reports the loss on the reader goroutine: what was written has an
// unknown outcome, the rest was not sent. The writer looks at cause before it
// marks a request written, so none becomes written any more.
func (s *Session) drain() {
	s.mu.Lock()
	cause := s.cause
	inflight, turn := s.inflight, s.turn
	s.inflight, s.turn, s.queues = nil, nil, nil
	s.mu.Unlock()

	for _, r := range inflight {
		if r.written {
			r.abandon(cause)
			continue
		}
		for _, p := range r.batch {
			p.done(notSent(cause))
		}
	}
	for _, q := range turn {
		for _, p := range q.items {
			p.done(notSent(cause))
		}
	}
	s.drainLate()
	close(s.drained)
}

// drainLate reports to those who queued after the loss, in their order.
func (s *Session) drainLate() {
	for {
		s.mu.Lock()
		late, cause := s.late, s.cause
		s.late = nil
		if len(late) == 0 {
			s.draining = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for _, p := range late {
			p.done(notSent(cause))
		}
	}
}

func notSent(cause error) Result {
	return Result{Err: fmt.Errorf("%w: %w", ErrNotSent, cause)}
}
