package node

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"lockstep/internal/failpoint"
)

// guard watches every write to a group's stores. A write that fails may have
// damaged what is there (fsyncgate): nothing is written after it. One that
// takes longer than limit would hold up the group without an election, because
// Raft's heartbeats go on. Both are told to fatal, once.
type guard struct {
	limit time.Duration
	fatal func(error)
	err   atomic.Pointer[error]
}

func (g *guard) write(what string, f func() error) error {
	if err := g.err.Load(); err != nil {
		return *err
	}
	done := g.watch(what)
	err := f()
	done()
	if err != nil {
		err = fmt.Errorf("%s: %w; %s", what, err, advice(err))
		g.latch(err)
	}
	return err
}

// limitSteps is in how many steps a write's time is counted.
const limitSteps = 10

// watch counts the time of a write until done. It is counted in steps, each of
// which begins when the one before was seen to be over: a process that was
// suspended (SIGSTOP, a virtual machine that is moved) lost one step by it, and
// the disk is not blamed for the rest.
func (g *guard) watch(what string) (done func()) {
	w := &struct {
		sync.Mutex
		timer *time.Timer
		steps int
		over  bool
	}{}
	w.Lock()
	defer w.Unlock()
	w.timer = time.AfterFunc(g.limit/limitSteps, func() {
		w.Lock()
		w.steps++
		hangs := !w.over && w.steps == limitSteps
		if !w.over && !hangs {
			w.timer.Reset(g.limit / limitSteps)
		}
		w.Unlock()
		if hangs {
			g.latch(fmt.Errorf("%s takes longer than %s: the disk hangs; %s", what, g.limit, adviceDisk))
		}
	})
	return func() {
		w.Lock()
		defer w.Unlock()
		w.over = true
		w.timer.Stop()
	}
}

func (g *guard) latch(err error) {
	if g.err.CompareAndSwap(nil, &err) {
		g.fatal(err)
	}
}

func (g *guard) failed() bool { return g.err.Load() != nil }

// What an operator does next.
const (
	adviceDisk = "look at the disk, then start the node again; if what was written is lost, empty data_dir and readmit the node"
	adviceFull = "make room, then start the node again"
	adviceLost = "this node could vote acknowledged records away: restore data_dir as it was, or empty it and readmit the node"
)

func advice(err error) string {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return adviceFull
	}
	return adviceDisk
}

// guardedStable is a StableStore behind the guard.
type guardedStable struct {
	raft.StableStore
	g *guard
}

func (s *guardedStable) Set(k, v []byte) error {
	return s.g.write("write term or vote", func() error { return s.StableStore.Set(k, v) })
}

// SetUint64 does not return if the write fails: Raft would panic then
// (setCurrentTerm), and take the process with it before the node has told the
// cause and closed its doors. The goroutine of Raft that asked ends instead.
func (s *guardedStable) SetUint64(k []byte, v uint64) error {
	failpoint.Hit(failpoint.VoteBefore)
	err := s.g.write("write term or vote", func() error { return s.StableStore.SetUint64(k, v) })
	failpoint.Hit(failpoint.VoteAfter)
	if err != nil {
		runtime.Goexit()
	}
	return nil
}
