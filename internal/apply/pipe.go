package apply

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lockstep/internal/broker"
	"lockstep/kafkawire"
)

// maxInFlight batches of one partition may be unanswered at once: the broker
// recognises a repeat among the last five of a producer, no further back
// (ProducerStateEntry.NUM_BATCHES_TO_RETAIN).
const maxInFlight = 5

// maxSequenceRefusals in a row without progress mean that the broker's idea of
// the applier's sequence will not come right by attaching again.
const maxSequenceRefusals = 5

const (
	minBackoff = 20 * time.Millisecond
	maxBackoff = time.Second
)

// distrust is the error that quarantines a partition on this node.
type distrust struct{ reason string }

func (d *distrust) Error() string { return d.reason }

func distrustf(format string, args ...any) error { return &distrust{fmt.Sprintf(format, args...)} }

// errAgain asks for another attach.
var errAgain = errors.New("attach again")

// refusal is an error code that the broker answered to an append.
type refusal struct {
	code    int16
	message string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("the broker refused an append with error %d %s", r.code, r.message)
}

// permanent refusals say something about the batch or the topic's settings,
// not about the moment.
func (r *refusal) permanent() bool {
	switch r.code {
	case 2, 10, 17, 18, 32, 43, 76, 87: // corrupt, too large, invalid topic, list too large, timestamp, format, codec, invalid record
		return true
	}
	return false
}

func (r *refusal) sequence() bool { return r.code == 45 || r.code == 46 || r.code == 47 }

// pipe is the lane's connection to the broker. It is owned by the lane's
// goroutine.
type pipe struct {
	l        *lane
	pending  []item // not on the broker for sure, oldest first; the first sent of them are on their way
	sent     int
	last     *item // the newest item that is known to stand on the broker
	refusals int   // of the sequence, in a row
}

// run serves the partition until the lane is stopped.
func (l *lane) run() {
	defer l.cancel(ErrClosed)
	p := &pipe{l: l}
	backoff := minBackoff
	for {
		before := l.acked
		err := p.serve(l.ctx)
		var d *distrust
		switch {
		case l.ctx.Err() != nil || errors.Is(err, ErrClosed):
			l.give(StateClosed, "", ErrClosed)
			return
		case errors.As(err, &d):
			l.f.a.log.Error("partition quarantined on this node: not served until it is rebuilt",
				"topic", l.name, "partition", l.tp.Partition, "group", l.f.id, "reason", d.reason)
			p.pending, p.sent = nil, 0
			l.give(StateQuarantined, d.reason, ErrQuarantined)
			<-l.ctx.Done()
			l.give(StateClosed, "", ErrClosed)
			return
		}
		l.setState(StateAttaching, err.Error())
		if l.acked > before {
			backoff = minBackoff
		}
		l.f.a.log.Debug("attaching again", "topic", l.name, "partition", l.tp.Partition, "reason", err)
		if !pause(l.ctx, backoff) {
			continue
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// pause waits before the broker is tried again; it reports false if the
// context ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// serve attaches once and appends until something goes wrong.
func (p *pipe) serve(ctx context.Context) error {
	l, b := p.l, p.l.f.a.cfg.Broker
	if err := b.WaitUp(ctx); err != nil {
		return err
	}
	if err := l.f.a.topics.ensure(ctx, l.tp); err != nil {
		return err
	}
	sess, err := b.Session(ctx)
	if err != nil {
		return fmt.Errorf("connect to the broker: %w", err)
	}
	start, end, err := b.LogEnd(ctx, l.name, l.tp.Partition)
	if err != nil {
		return fmt.Errorf("read the log end offset: %w", err)
	}
	var last kafkawire.Batch
	if end > start {
		raw, err := b.LastBatch(ctx, l.name, l.tp.Partition, end)
		if err != nil {
			return fmt.Errorf("read the last batch: %w", err)
		}
		if last, _, err = kafkawire.ParseBatch(raw); err != nil {
			return distrustf("the broker's last batch before offset %d is unreadable: %v", end, err)
		}
	}
	at := attachment{end: end, last: last, fresh: l.f.fresh.Get().n}
	return p.flow(ctx, sess, &at)
}

// attachment is what the broker held when the lane attached.
type attachment struct {
	end     int64
	last    kafkawire.Batch // nil if the log is empty or its tail was deleted
	agreed  bool            // the log below end is what was committed
	fresh   uint64          // number of the leader's last mark before
	success bool            // an append succeeded since
}

// begin compares the broker's end with what this process already knew of it.
func (p *pipe) begin(at *attachment) error {
	l := p.l
	acked := l.acked // only this goroutine writes it
	switch {
	case at.end < acked:
		l.f.a.log.Warn("the broker's log is shorter than it was: filling it again from the raft log",
			"topic", l.name, "partition", l.tp.Partition, "log-end-offset", at.end, "was", acked)
		p.pending, p.last = nil, nil
		l.rewind()
		at.agreed = at.end == 0
	case at.end > acked || acked == 0:
		at.agreed = at.end == 0
	case p.last != nil && at.last != nil:
		if diff := p.last.compare(l.tp.Topic, at.last); diff != "" {
			return distrustf("the broker's last batch %s", diff)
		}
		at.agreed = true
	default:
		at.agreed = true // its tail was deleted by retention: nothing to compare
	}
	return nil
}

// flow moves items from the queue to the broker.
func (p *pipe) flow(ctx context.Context, sess Session, at *attachment) error {
	p.sent = 0
	if err := p.begin(at); err != nil {
		return err
	}
	results := make(chan broker.Result, maxInFlight)
	for {
		p.l.startCatchUp()
		if err := p.agree(at); err != nil {
			return err
		}
		if at.agreed {
			p.settle()
			p.send(sess, at, results)
		}
		var marks <-chan struct{}
		if !at.agreed {
			m, changed := p.l.f.fresh.Changed()
			if err := p.tooLong(at, m); err != nil {
				return err
			}
			marks = changed
		}
		select {
		case <-p.l.wake:
		case <-marks:
		case r := <-results:
			if err := p.answered(r, at); err != nil {
				p.drain(ctx, sess, results)
				return err
			}
		case <-sess.Done():
			return fmt.Errorf("connection to the broker lost: %w", errAgain)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// settle marks the lane ready once it agrees with the broker.
func (p *pipe) settle() {
	l := p.l
	if len(p.pending) == 0 {
		l.advance(l.acked, 0, 0)
	}
	l.setState(StateReady, "")
}

// agree passes over items that the broker already has, up to the one that
// stands last in its log, and compares that one.
func (p *pipe) agree(at *attachment) error {
	if at.agreed {
		return nil
	}
	for {
		if len(p.pending) == 0 {
			p.pending = p.l.take()
			if len(p.pending) == 0 {
				return nil
			}
		}
		it := p.pending[0]
		switch {
		case it.end() < at.end:
			p.drop(0)
		case it.end() == at.end:
			if at.last != nil {
				if diff := it.compare(p.l.tp.Topic, at.last); diff != "" {
					return distrustf("the broker's last batch %s", diff)
				}
			}
			p.last = &it
			p.drop(at.end)
			at.agreed = true
			return nil
		case it.base < at.end:
			return distrustf("the broker's log ends at offset %d, inside the committed batch %d+%d", at.end, it.base, it.count)
		default:
			// Items begin above the broker's end: they were taken up
			// when the broker had more. Read again.
			p.pending = nil
			p.l.rewind()
			return nil
		}
	}
}

// drop removes the first pending item, which the broker has. The log is
// trusted up to end.
func (p *pipe) drop(end int64) {
	it := p.pending[0]
	p.pending[0] = item{}
	p.pending = p.pending[1:]
	var oldest uint64
	if len(p.pending) > 0 {
		oldest = p.pending[0].index
	}
	p.l.advance(end, it.size(), oldest)
}

// tooLong decides whether a broker that holds more than this node has seen of
// the log holds more than was committed. That is so if a leader named its
// commit index after the attach, and everything up to it has passed here.
func (p *pipe) tooLong(at *attachment, m mark) error {
	if m.n < at.fresh+2 || len(p.pending) > 0 {
		return nil
	}
	l := p.l
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f.cursor < m.index || !l.live || len(l.queue) > 0 {
		return nil
	}
	end := int64(0)
	if part := l.f.tail.Partitions[l.tp]; part != nil {
		end = part.NextOffset
	}
	if at.end <= end {
		return nil
	}
	return distrustf("the broker's log ends at offset %d, but only %d offsets were ever committed: something else writes to it", at.end, end)
}

// send puts as many items on their way as the broker may have unanswered.
func (p *pipe) send(sess Session, at *attachment, results chan<- broker.Result) {
	allowed := 1
	if at.success {
		allowed = maxInFlight
	}
	for p.sent < allowed {
		if p.sent == len(p.pending) {
			p.pending = append(p.pending, p.l.take()...)
			if p.sent == len(p.pending) {
				return
			}
		}
		it := &p.pending[p.sent]
		p.sent++
		sess.Append(broker.Append{Topic: p.l.name, Partition: p.l.tp.Partition, Batch: it.stamped(p.l.tp.Topic)},
			func(r broker.Result) { results <- r })
	}
}

// answered takes the broker's answer to the oldest item on its way.
func (p *pipe) answered(r broker.Result, at *attachment) error {
	p.sent--
	if r.Err != nil {
		return fmt.Errorf("append: %w", r.Err)
	}
	if r.Code != 0 {
		ref := &refusal{code: r.Code, message: r.Message}
		switch {
		case ref.permanent():
			return distrustf("%v at offset %d: this broker cannot take what the others took", ref, p.pending[0].base)
		case ref.sequence():
			if p.refusals++; p.refusals >= maxSequenceRefusals {
				return distrustf("%v at offset %d, %d times in a row", ref, p.pending[0].base, p.refusals)
			}
		}
		return ref
	}
	it := p.pending[0]
	if r.BaseOffset != it.base {
		return distrustf("the broker put the batch committed at offset %d at offset %d", it.base, r.BaseOffset)
	}
	p.refusals = 0
	at.success = true
	p.last = &it
	p.drop(it.end())
	return nil
}

// drain waits for what is still on its way, so that nothing of it lands
// between the next look at the log end and the next append.
func (p *pipe) drain(ctx context.Context, sess Session, results <-chan broker.Result) {
	for p.sent > 0 {
		select {
		case <-results:
			p.sent--
		case <-sess.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}
