package node

import (
	"context"
	"time"

	"github.com/hashicorp/raft"

	"lockstep/fsm"
	"lockstep/internal/mutant"
)

// Leadership is what a leader knows once its first barrier in the term is
// applied: it then has everything that was ever committed.
type Leadership struct {
	Term  uint64
	Since time.Time
	// Required is, by partition, the offset up to which the broker must have
	// the log before clients may be told of this leader: everything that was
	// committed before this term. A partition that is missing was opened
	// later. It is never changed.
	Required map[fsm.TP]int64
}

// abdicate makes the group lead nothing on this node any more. Raft may not
// notice by itself: its main loop may hang in a write.
func (g *Group) abdicate() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.barred = true
	g.setLeading(nil)
}

// watchLeading follows Raft's own word on whether this node leads. Raft blocks
// if nobody listens, so the barrier is waited for elsewhere.
func (g *Group) watchLeading(ctx context.Context, notify <-chan bool) {
	var cancel context.CancelFunc = func() {}
	defer func() { cancel() }()
	for {
		select {
		case leads := <-notify:
			g.mu.Lock() // takeOffice looks at its context under the lock
			cancel()
			g.setLeading(nil)
			g.mu.Unlock()
			if !leads {
				continue
			}
			var term context.Context
			term, cancel = context.WithCancel(ctx)
			g.run(func() { g.takeOffice(term) })
		case <-ctx.Done():
			g.mu.Lock()
			cancel()
			g.setLeading(nil)
			g.mu.Unlock()
			for { // Raft goes on notifying until it is down
				select {
				case <-notify:
				case <-g.down:
					return
				}
			}
		}
	}
}

func (g *Group) setLeading(l *Leadership) {
	if old := g.Leading.Get(); l == nil && (old == nil || mutant.On(mutant.ServeWhenDeposed)) {
		return
	}
	g.Leading.Set(l)
}

// takeOffice waits until everything committed in earlier terms is applied
// here (Raft section 8: the no-op of the new term), then announces.
func (g *Group) takeOffice(ctx context.Context) {
	r := g.Raft()
	since, term := time.Now(), r.CurrentTerm()
	applied := make(chan error, 1)
	go func() { applied <- r.Barrier(0).Error() }()
	select {
	case err := <-applied:
		if err != nil {
			g.log.Debug("lost leadership before the barrier", "error", err)
			return
		}
	case <-ctx.Done():
		return
	}
	l := &Leadership{Term: term, Since: since, Required: make(map[fsm.TP]int64)}
	g.machine.read(func(s *fsm.Group) {
		for tp, p := range s.Partitions {
			l.Required[tp] = p.NextOffset
		}
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	// Still the same term: the barrier was this one's. Raft's word on a loss
	// may be on its way when another term has begun already.
	if ctx.Err() == nil && !g.barred && r.State() == raft.Leader && r.CurrentTerm() == term {
		g.setLeading(l)
	}
}
