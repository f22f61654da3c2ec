package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"lockstep/fsm"
	"lockstep/internal/node"
	"lockstep/transport"
)

// methodReadIndex asks the catalog's leader how far a reader must have followed
// it to see everything that was acknowledged.
const methodReadIndex = methodAnnounce + 8

// readIndexTimeout bounds one round of the barrier.
const readIndexTimeout = 5 * time.Second

// errNoReadIndex is returned when no leader could be asked.
var errNoReadIndex = errors.New("the catalog has no leader that can be reached")

// barrier lets readers wait for a question to a majority that was asked after
// they came (ReadIndex, Raft section 6.4). Who comes during a round waits for
// the next: one question serves them all.
type barrier struct {
	wake chan struct{} // capacity 1

	mu      sync.Mutex // guards waiting
	waiting []chan error
}

func newBarrier() *barrier { return &barrier{wake: make(chan struct{}, 1)} }

// wait returns what became of a round that began after the call.
func (b *barrier) wait(ctx context.Context, closing <-chan struct{}) error {
	ch := make(chan error, 1)
	b.mu.Lock()
	b.waiting = append(b.waiting, ch)
	b.mu.Unlock()
	signal(b.wake)
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-closing:
		return errClosing
	}
}

// run makes rounds until the context ends.
func (b *barrier) run(ctx context.Context, round func(context.Context) error) {
	for {
		select {
		case <-b.wake:
		case <-ctx.Done():
			return
		}
		b.mu.Lock()
		asked := b.waiting
		b.waiting = nil
		b.mu.Unlock()
		if len(asked) == 0 {
			continue
		}
		err := round(ctx)
		for _, ch := range asked {
			ch <- err
		}
	}
}

// catalogUpToDate returns when this node's catalog is as new as any that an
// acknowledgement before the call was made from.
func (c *Cluster) catalogUpToDate(ctx context.Context) error {
	return c.reads.wait(ctx, c.ctx.Done())
}

// followCatalog is one round.
func (c *Cluster) followCatalog(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readIndexTimeout)
	defer cancel()
	g := c.node.Catalog()
	for {
		leader, otherLeader := g.Leader.Changed()
		leading, tookOffice := g.Leading.Changed()
		index, err := c.readIndex(ctx, g, leader, leading)
		if err == nil {
			_, err = g.Log().Applied().Wait(ctx, index)
			return err
		}
		again := time.NewTimer(dutyEvery)
		select {
		case <-otherLeader:
		case <-tookOffice:
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return errors.Join(errNoReadIndex, err)
		}
		again.Stop()
	}
}

// readIndex asks whoever leads the catalog.
func (c *Cluster) readIndex(ctx context.Context, g *node.Group, leader int32, leading *node.Leadership) (uint64, error) {
	switch {
	case leading != nil:
		return c.confirmedIndex(ctx, g)
	case leader == 0 || leader == c.cfg.Self:
		return 0, errNoReadIndex
	}
	// A leader that hangs is not waited for until the round is over.
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	answer, err := c.node.Call(ctx, leader, methodReadIndex, nil)
	if err != nil {
		return 0, err
	}
	if len(answer) != 8 {
		return 0, errNoReadIndex
	}
	return binary.BigEndian.Uint64(answer), nil
}

// confirmedIndex is the last entry that this node has applied, if it then still
// leads: every acknowledgement before was made from an entry up to there. After
// a suspension Raft may take answers from before it for a confirmation.
func (c *Cluster) confirmedIndex(ctx context.Context, g *node.Group) (uint64, error) {
	if g.Leading.Get() == nil {
		return 0, node.ErrNotLeader
	}
	var index uint64
	g.Read(func(s *fsm.Group) { index = s.Index })
	if err := c.confirmLeader(ctx, g); err != nil {
		return 0, err
	}
	return index, nil
}

// heardReadIndex answers methodReadIndex.
func (c *Cluster) heardReadIndex(ctx context.Context, _ transport.Hello, _ []byte) ([]byte, error) {
	index, err := c.confirmedIndex(ctx, c.node.Catalog())
	if err != nil {
		return nil, err
	}
	return binary.BigEndian.AppendUint64(nil, index), nil
}
