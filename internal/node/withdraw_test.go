package node

import (
	"errors"
	"sync/atomic"
	"testing"

	"lockstep/fsm"
)

// A leader that lets nothing in gathers nothing that nobody waits for any more.
func TestWithdrawnIsForgotten(t *testing.T) {
	t.Parallel()
	held := new(atomic.Bool)
	held.Store(true)
	room := make(chan struct{})
	r := newHeldBatcherRig(t, 1000, 2, func() (bool, <-chan struct{}, <-chan struct{}) { return held.Load(), room, nil })
	answers := make(chan error, 100)
	propose := func(body string) (withdraw func()) {
		return r.b.propose(fsm.Command{Kind: fsm.KindAppend, Body: []byte(body)}, testWait, func(_ fsm.Result, err error) { answers <- err })
	}
	keep := propose("kept")
	var withdraw []func()
	for range 50 {
		withdraw = append(withdraw, propose("nobody waits for this"))
	}
	for _, f := range withdraw {
		f()
		f() // once is enough
	}
	for range withdraw {
		if err := <-answers; !errors.Is(err, ErrNotLeader) {
			t.Fatalf("answered %v, want ErrNotLeader: it was surely not appended", err)
		}
	}
	r.b.mu.Lock()
	places, bytes := len(r.b.queue), r.b.bytes
	r.b.mu.Unlock()
	if want := (fsm.Command{Kind: fsm.KindAppend, Body: []byte("kept")}).Size(); bytes != want || places > 3 {
		t.Errorf("%d places and %d bytes are queued, want %d bytes", places, bytes, want)
	}

	// There is room: what is left goes, and is not to be withdrawn any more.
	held.Store(false)
	close(room)
	f := r.entry()
	keep()
	if len(f.cmds) != 1 || string(f.cmds[0].Body) != "kept" {
		t.Errorf("the entry has %d commands", len(f.cmds))
	}
	select {
	case err := <-answers:
		t.Errorf("what is under way was answered: %v", err)
	default:
	}
}
