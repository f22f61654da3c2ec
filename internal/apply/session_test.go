package apply

import (
	"sync"

	"lockstep/internal/broker"
)

// faultySession is a Session that may be lost while the real one lives on, so
// that what is under way still executes, as a dead socket's requests do.
type faultySession struct {
	b     *local
	inner *broker.Session
	done  chan struct{}

	mu         sync.Mutex
	lost       bool
	out        []*call       // unanswered, in the order of Append
	late       chan struct{} // closed when the newest late append was handed on
	delivering sync.Mutex    // held while answers are passed on
}

type call struct {
	partition int32
	done      func(broker.Result)
	answer    *broker.Result // set when it is due, nil before
}

func (s *faultySession) isLost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

func (s *faultySession) Done() <-chan struct{} { return s.done }

// watch ends the session with the real one, and goes with it.
func (s *faultySession) watch(wg *sync.WaitGroup) {
	defer wg.Done()
	select {
	case <-s.inner.Done():
		s.lose()
	case <-s.done:
	}
}

func (s *faultySession) Append(a broker.Append, done func(broker.Result)) {
	f := s.b.fateOf(a)
	c := &call{partition: a.Partition, done: done}
	s.mu.Lock()
	if s.lost {
		s.mu.Unlock()
		go done(broker.Result{Err: broker.ErrNotSent})
		return
	}
	s.out = append(s.out, c)
	s.mu.Unlock()
	switch f {
	case lostBefore:
		go s.lose()
	case zombie:
		s.b.mu.Lock()
		s.b.zombies = append(s.b.zombies, a)
		s.b.mu.Unlock()
		go s.lose()
	case failed:
		go s.answer(c, broker.Result{BaseOffset: -1})
	case lostAfter:
		s.inner.Append(a, func(broker.Result) { s.lose() })
	case late:
		s.b.mu.Lock()
		release := s.b.release
		s.b.mu.Unlock()
		s.mu.Lock()
		before, now := s.late, make(chan struct{})
		s.late = now
		s.mu.Unlock()
		go func() {
			defer close(now)
			<-release
			if before != nil {
				<-before
			}
			s.inner.Append(a, func(r broker.Result) { s.answer(c, r) })
		}()
	case held:
		s.b.mu.Lock()
		release := s.b.release
		s.b.mu.Unlock()
		s.inner.Append(a, func(r broker.Result) {
			go func() {
				<-release
				s.answer(c, r)
			}()
		})
	default:
		s.inner.Append(a, func(r broker.Result) {
			switch {
			case f == liar:
				r.BaseOffset++
			case f == silent:
				r.BaseOffset = -1
			}
			s.answer(c, r)
		})
	}
}

// answer passes an answer on, after those of earlier appends to the partition,
// whichever topic's. One whose loss was reported before goes nowhere.
func (s *faultySession) answer(c *call, r broker.Result) {
	s.delivering.Lock()
	defer s.delivering.Unlock()
	s.mu.Lock()
	c.answer = &r
	blocked := make(map[int32]bool)
	var due, rest []*call
	for _, o := range s.out {
		if o.answer == nil || blocked[o.partition] {
			blocked[o.partition] = true
			rest = append(rest, o)
		} else {
			due = append(due, o)
		}
	}
	s.out = rest
	s.mu.Unlock()
	for _, o := range due {
		o.done(*o.answer)
	}
}

func (s *faultySession) lose() {
	s.mu.Lock()
	if s.lost {
		s.mu.Unlock()
		return
	}
	s.lost = true
	out := s.out
	s.out = nil
	s.mu.Unlock()
	for _, c := range out {
		c.done(broker.Result{Err: broker.ErrConnLost})
	}
	close(s.done)
}
