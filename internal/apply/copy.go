package apply

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/kafkawire"
)

// Peers are the other nodes, as a copy needs them. Methods may be called from
// any goroutine.
type Peers interface {
	// Complete names the nodes that hold all of a partition, best first.
	Complete(tp fsm.TP) []int32
	// Call sends a request to a node's HeardCopy and returns its answer.
	Call(ctx context.Context, node int32, method uint8, payload []byte) ([]byte, error)
}

// CopyBroker is the local broker, as a copy needs it besides appending.
// Methods may be called from any goroutine.
type CopyBroker interface {
	LogEnd(ctx context.Context, topic string, partition int32) (start, end int64, err error)
	Range(ctx context.Context, topic string, partition int32, from, to int64, maxBytes int32) (batches []byte, start int64, err error)
	DeleteRecords(ctx context.Context, topic string, partition int32, offset int64) (start int64, err error)
}

// CopyConfig says where lacking parts of the local broker's logs come from.
type CopyConfig struct {
	Peers          Peers
	Broker         CopyBroker
	Method         uint8 // that the nodes' HeardCopy is registered under
	BytesPerSecond int64 // of all copies to this node together; no limit if 0
}

const (
	copyingLanes  = 4 // copy at once; others wait, first come first served
	answersAtOnce = 2 // requests of others; the broker is read one request at a time

	// heldBytes may wait for the checkpoint that proves them. Checkpoints of a
	// large partition are further apart than that: then batches are appended
	// before they are proved, and a copy that turns out wrong is quarantined.
	heldBytes = 4 << 20

	copyCallTimeout = 30 * time.Second
)

// copier fills the local broker's logs from peers' brokers.
type copier struct {
	a         *Applier
	cfg       CopyConfig
	log       hclog.Logger
	bucket    *bucket
	turns     chan struct{} // tokens of the lanes that copy
	answering chan struct{} // tokens of the requests being answered

	mu     sync.Mutex // guards what follows
	runs   map[fsm.TP]*copyRun
	starts map[fsm.TP]int64 // log starts that were copied, while this process lives
	total  int64            // bytes that came from peers
	moved  meter            // the same
	passed meter            // offsets that were filled
}

// CopyFrom sets up copying. It is called before Open, at most once.
func (a *Applier) CopyFrom(cfg CopyConfig) {
	a.copier = &copier{a: a, cfg: cfg, log: a.log.Named("copy"), bucket: newBucket(cfg.BytesPerSecond),
		turns: make(chan struct{}, copyingLanes), answering: make(chan struct{}, answersAtOnce),
		runs: make(map[fsm.TP]*copyRun), starts: make(map[fsm.TP]int64)}
}

var _ source = (*copier)(nil)

// fill implements source. Peers that fail, or that are behind, or whose log is
// not what was committed are left for others, for as long as ctx lives.
func (c *copier) fill(ctx context.Context, l *lane, from int64, last kafkawire.Batch, want *fsm.Partition, push func(item) error) error {
	if last != nil && lastOffset(last)+1 != from {
		last = nil // a batch made here, which nobody gave its place yet
	}
	r := &copyRun{c: c, l: l, want: want, push: push, last: last}
	r.begin(from)
	defer r.over()
	if err := r.anchor(ctx, from); err != nil {
		return err
	}
	backoff := minCopyPause
	for r.at.pos < want.NextOffset {
		before := r.at.pos
		hitch, err := r.round(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case r.at.pos >= want.NextOffset:
			return nil
		case r.at.pos > before:
			backoff = minCopyPause
		}
		r.showPeer(-1, hitch)
		l.setHitch(hitch)
		if !pause(ctx, backoff) {
			return context.Cause(ctx)
		}
		backoff = min(2*backoff, maxCopyPause)
	}
	return nil
}

const (
	minCopyPause = 100 * time.Millisecond
	maxCopyPause = 5 * time.Second
)

// errAgainst says that a peer's log is not the local broker's, and that nobody
// can tell which of them is right.
var errAgainst = errors.New("the peer's log is not what the local broker holds")

// wrong is why a peer's log is not what was committed.
type wrong struct{ reason string }

func (w *wrong) Error() string { return w.reason }

func wrongf(format string, args ...any) error { return &wrong{fmt.Sprintf(format, args...)} }

// round asks each complete peer once, until one has brought everything. It
// returns what hinders the copy if none has, and an error that ends it.
func (r *copyRun) round(ctx context.Context) (hitch string, err error) {
	hitch = "no other node says that it holds all of the partition"
	asked, against := 0, 0
	for _, node := range r.c.cfg.Peers.Complete(r.l.tp) {
		if ctx.Err() != nil || r.at.pos >= r.want.NextOffset {
			return "", nil
		}
		before := r.at.pos
		err := r.turn(ctx, node)
		var d *distrust
		var w *wrong
		var pushed *pushError
		switch {
		case err == nil:
			return "", nil
		case errors.As(err, &pushed):
			return "", pushed.err
		case errors.As(err, &d):
			return "", err
		case ctx.Err() != nil:
			return "", nil
		case errors.As(err, &w):
			r.c.log.Warn("a peer's broker does not hold what was committed: copying from another one",
				"topic", r.l.name, "partition", r.l.tp.Partition, "node", node, "reason", w.reason)
		case errors.Is(err, errAgainst):
			against++
		}
		asked++
		hitch = fmt.Sprintf("node %d: %v", node, err)
		if r.at.pos > before {
			against = -1 // it was the peer's log that went on
		}
	}
	if asked > 0 && against == asked {
		return "", distrustf("no other node's broker holds what this one holds below offset %d", r.at.pos)
	}
	return hitch, nil
}

// pushError keeps an error of push apart from those of peers.
type pushError struct{ err error }

func (e *pushError) Error() string { return e.err.Error() }

// turn copies from one node, when it is this lane's turn.
func (r *copyRun) turn(ctx context.Context, node int32) error {
	select {
	case r.c.turns <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-r.c.turns }()
	r.showPeer(node, "")
	r.l.setHitch("")
	if err := r.compareLast(ctx, node); err != nil {
		return err
	}
	s := &stretch{r: r, node: node, at: r.at, ask: r.at.pos}
	return s.run(ctx)
}

// ask asks a node for batches from an offset on, and waits for the bytes to be
// within the rate.
func (r *copyRun) ask(ctx context.Context, node int32, from int64, most int32) (copyAnswer, error) {
	call, cancel := context.WithTimeout(ctx, copyCallTimeout)
	raw, err := r.c.cfg.Peers.Call(call, node, r.c.cfg.Method, copyRequest{tp: r.l.tp, from: from, max: most}.encode())
	cancel()
	if err != nil {
		return copyAnswer{}, fmt.Errorf("ask for the log from offset %d: %w", from, err)
	}
	r.showBytes(len(raw))
	answer, err := decodeCopyAnswer(raw)
	if err != nil {
		return copyAnswer{}, err
	}
	if err := r.c.bucket.take(ctx, int64(len(raw))); err != nil {
		return copyAnswer{}, err
	}
	switch answer.status {
	case copyOK:
	case copyBelowStart:
		if answer.start <= from {
			return copyAnswer{}, fmt.Errorf("%w: offset %d is not below the log start %d", errCopyMessage, from, answer.start)
		}
	default:
		return copyAnswer{}, fmt.Errorf("the partition is %s", answer.status)
	}
	return answer, nil
}
