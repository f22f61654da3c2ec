package cluster

import (
	"context"
	"sync"
	"time"

	"lockstep/fsm"
	"lockstep/proxy"
)

// Kafka error codes of offset commits.
const (
	codeCoordinatorAway = 15 // COORDINATOR_NOT_AVAILABLE: clients look again and repeat
	codeCommitTooLarge  = 28 // INVALID_COMMIT_OFFSET_SIZE
)

const (
	// commitBytes is how much is committed together at most, unless a single
	// request is larger.
	commitBytes = 128 << 10
	// commitTimeout bounds the wait for a leader and for the verdict.
	commitTimeout = 5 * time.Second
)

// committer takes the accepted commits of all consumer groups to the catalog,
// those that wait together, one batch after the other: two commits of a group
// must not overtake each other on the way to the catalog's leader.
type committer struct {
	wake chan struct{} // capacity 1

	mu     sync.Mutex // guards what follows
	queue  []*committing
	closed bool
	turn   int64                    // the last one given out
	noted  map[string]*notedCommits // by group
}

// committing is one commit on its way. Without partitions it only waits its turn.
type committing struct {
	commit fsm.OffsetCommit
	size   int
	done   func(codes []int16)
}

func (c *committing) answer(code int16) {
	codes := make([]int16, len(c.commit.Offsets))
	for i := range codes {
		codes[i] = code
	}
	c.done(codes)
}

// add queues a commit, or answers it if the node is closing.
func (q *committer) add(c *committing) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		go c.answer(codeCoordinatorAway)
		return
	}
	q.queue = append(q.queue, c)
	q.note(&c.commit)
	q.mu.Unlock()
	signal(q.wake)
}

// next takes what is to go together off the queue.
func (q *committer) next() []*committing {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, size := 0, 0
	for n < len(q.queue) && (n == 0 || size+q.queue[n].size <= commitBytes) {
		size += q.queue[n].size
		n++
	}
	batch := q.queue[:n:n]
	q.queue = q.queue[n:]
	if len(q.queue) == 0 {
		q.queue = nil
	}
	return batch
}

// CommitOffsets implements proxy.ConsumerGroups.
func (c *Cluster) CommitOffsets(commit proxy.OffsetCommit, done func(codes []int16)) {
	waiting := &committing{done: done, size: len(commit.Group) + 32, commit: fsm.OffsetCommit{
		Group: commit.Group, Slot: proxy.GroupSlot(commit.Group, fsm.CoordinatorSlots), Epoch: commit.Epoch,
		Member: commit.Member, RetentionMs: commit.RetentionMs}}
	for _, o := range commit.Offsets {
		waiting.commit.Offsets = append(waiting.commit.Offsets, fsm.OffsetToCommit{
			TP: fsm.TP{Topic: o.Topic, Partition: o.Partition}, Offset: o.Offset, Metadata: o.Metadata})
		waiting.size += len(o.Metadata) + 24
	}
	if waiting.size > c.cfg.MaxBatchBytes {
		go waiting.answer(codeCommitTooLarge)
		return
	}
	c.commits.add(waiting)
}

// commitLoop proposes until the cluster closes, then answers what is left.
func (c *Cluster) commitLoop(ctx context.Context) {
	for {
		for batch := c.commits.next(); len(batch) > 0; batch = c.commits.next() {
			c.commit(ctx, batch)
		}
		select {
		case <-c.commits.wake:
		case <-ctx.Done():
			c.commits.mu.Lock()
			c.commits.closed = true
			left := c.commits.queue
			c.commits.queue = nil
			c.commits.mu.Unlock()
			for _, w := range left {
				w.answer(codeCoordinatorAway)
			}
			return
		}
	}
}

// commit proposes a batch and answers it. A verdict that stays unknown is told
// as a coordinator that is not available: the client commits again.
func (c *Cluster) commit(ctx context.Context, batch []*committing) {
	commits := make([]fsm.OffsetCommit, 0, len(batch))
	turn := c.nextTurn()
	for _, w := range batch {
		if len(w.commit.Offsets) > 0 {
			w.commit.Turn = turn
			commits = append(commits, w.commit)
		}
	}
	var codes []int16
	var err error
	if len(commits) > 0 {
		ctx, cancel := context.WithTimeout(ctx, commitTimeout)
		defer cancel()
		var r fsm.Result
		r, err = c.node.Submit(ctx, fsm.CatalogGroup, fsm.CommitCommand(commits))
		codes = r.Codes
	}
	if err != nil {
		c.log.Debug("offsets were not committed", "commits", len(commits), "error", err)
	}
	for _, w := range batch {
		n := len(w.commit.Offsets)
		switch {
		case err != nil:
			w.answer(codeCoordinatorAway)
		case len(codes) < n: // all are committed
			w.answer(0)
		default:
			w.done(codes[:n:n])
			codes = codes[n:]
		}
	}
}

// nextTurn returns a turn later than all that this node has had as coordinator,
// as far as it knows: an earlier process of it counted from its own clock.
func (c *Cluster) nextTurn() int64 {
	last := c.lastTurn()
	c.commits.mu.Lock()
	defer c.commits.mu.Unlock()
	return c.commits.nextTurn(last)
}

func (c *Cluster) lastTurn() (last int64) {
	c.node.Catalog().Read(func(g *fsm.Group) { last = g.Catalog.LastTurn() })
	return last
}

// nextTurn returns a turn later than last and all before. The caller holds q.mu.
func (q *committer) nextTurn(last int64) int64 {
	if q.turn == 0 {
		q.turn = time.Now().UnixNano()
	}
	q.turn = max(q.turn, last) + 1
	return q.turn
}

// settled waits until every commit that was proposed before is answered.
func (c *Cluster) settled(ctx context.Context) error {
	through := make(chan struct{})
	c.commits.add(&committing{done: func([]int16) { close(through) }})
	select {
	case <-through:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
