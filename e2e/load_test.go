//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"lockstep/e2e/check"
)

// loadTopic is a topic under load.
type loadTopic struct {
	name       string
	partitions int32
}

// load is everything that produces to and reads from a cluster, and what it
// saw. Its goroutines write rows; the test goroutine starts and stops it.
type load struct {
	t      *testing.T
	c      *cluster
	log    *check.Log
	topics []loadTopic

	producing, reading sync.WaitGroup
	stopProducers      chan struct{}
	readers            context.Context
	stopReaders        context.CancelFunc
	clients            []*kgo.Client // of producers
	readerClients      []*kgo.Client
	stopOnce           sync.Once

	mu      sync.Mutex // guards what follows
	ends    map[string]map[int32]int64
	acked   map[string]map[int32]int              // acknowledgements by topic and partition
	seen    map[string]map[string]map[int32]int64 // by assigned consumer: the offset after the last record
	changed chan struct{}                         // closed and replaced at every acknowledgement and read
	found   []string                              // what the harness itself found wrong
	leaders map[int]groupLeader                   // by group, as last heard
}

type groupLeader struct {
	node int
	term uint64
}

func newLoad(t *testing.T, c *cluster, log *check.Log, topics ...loadTopic) *load {
	t.Helper()
	l := &load{t: t, c: c, log: log, topics: topics, stopProducers: make(chan struct{}), ends: map[string]map[int32]int64{},
		acked: map[string]map[int32]int{}, seen: map[string]map[string]map[int32]int64{}, changed: make(chan struct{}), leaders: map[int]groupLeader{}}
	l.readers, l.stopReaders = context.WithCancel(context.Background())
	for i, topic := range topics {
		c.createTopic(c.nodes[i%len(c.nodes)], topic.name, topic.partitions)
		l.ends[topic.name], l.acked[topic.name] = map[int32]int64{}, map[int32]int{}
	}
	t.Cleanup(l.close)
	return l
}

// fatal notes what is wrong whatever the rows say, as a client that was told
// what it must never be told.
func (l *load) fatal(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.found = append(l.found, fmt.Sprintf(format, args...))
}

// report hands what was noted to the checker, which nobody else uses any more.
func (l *load) report(c *check.Checker) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.found {
		c.Reported("%s", f)
	}
}

func (l *load) wakeLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// leads returns the groups that a node was last known to lead.
func (l *load) leads(id int) (groups []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for g, leader := range l.leaders {
		if leader.node == id {
			groups = append(groups, g)
		}
	}
	return groups
}

// waitUntil returns when ok, called with l.mu held, is true, or when ctx ends.
func (l *load) waitUntil(ctx context.Context, ok func() bool) error {
	for {
		l.mu.Lock()
		done, changed := ok(), l.changed
		l.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waitAcks returns when every partition got n more acknowledgements.
func (l *load) waitAcks(ctx context.Context, n int) error {
	l.mu.Lock()
	want := map[string]map[int32]int{}
	for _, topic := range l.topics {
		want[topic.name] = map[int32]int{}
		for p := range topic.partitions {
			want[topic.name][p] = l.acked[topic.name][p] + n
		}
	}
	l.mu.Unlock()
	behind := ""
	err := l.waitUntil(ctx, func() bool {
		for _, topic := range l.topics {
			for p := range topic.partitions {
				if got := l.acked[topic.name][p]; got < want[topic.name][p] {
					behind = fmt.Sprintf("%s/%d has %d, want %d", topic.name, p, got, want[topic.name][p])
					return false
				}
			}
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("wait for %d more acknowledgements on each partition: %s: %w", n, behind, err)
	}
	return nil
}

// finishProducing stops the producers and waits for the last answers.
func (l *load) finishProducing(ctx context.Context) error {
	l.stopOnce.Do(func() { close(l.stopProducers) })
	l.producing.Wait()
	var errs error
	for _, cl := range l.clients {
		errs = errors.Join(errs, cl.Flush(ctx))
	}
	return errs
}

// finishReading returns when every assigned consumer has got to the last
// acknowledged record, or when ctx ends, and stops them.
func (l *load) finishReading(ctx context.Context) {
	_ = l.waitUntil(ctx, func() bool { // who did not get there is a finding of the checker
		for _, seen := range l.seen {
			for topic, ends := range l.ends {
				for p, end := range ends {
					if seen[topic][p] < end {
						return false
					}
				}
			}
		}
		return true
	})
	l.stopReading()
	for name := range l.seen {
		for _, topic := range l.topics {
			for p := range topic.partitions {
				l.log.Add(check.Event{Kind: check.Expect, By: name, Topic: topic.name, Partition: p})
			}
		}
	}
}

func (l *load) stopReading() {
	l.stopReaders()
	for _, cl := range l.readerClients {
		cl.CloseAllowingRebalance()
	}
	l.reading.Wait()
}

// dump writes what stands on the brokers of the given nodes, read directly.
func (l *load) dump(ctx context.Context, nodes []*node) error {
	for _, n := range nodes {
		for _, topic := range l.topics {
			ends := map[int32]int64{}
			for p := range topic.partitions {
				end, err := endOffset(ctx, n.broker.addr(), topic.name, p)
				if err != nil {
					return fmt.Errorf("node %d: %w", n.id, err)
				}
				ends[p] = end
			}
			d, err := readTo(ctx, []string{n.broker.addr()}, topic.name, ends)
			if err != nil {
				return fmt.Errorf("node %d: %w", n.id, err)
			}
			for p := range topic.partitions {
				for _, r := range d[p] {
					e := check.Record(check.Stored, topic.name, p, r.offset, r.value)
					e.Node = n.id
					l.log.Add(e)
				}
				l.log.Add(check.Event{Kind: check.Read, Topic: topic.name, Partition: p, Node: n.id, Offset: ends[p]})
			}
		}
	}
	return nil
}

// brokersHold returns an error unless the given nodes' brokers have every
// acknowledged record, going by their end offsets.
func (l *load) brokersHold(ctx context.Context, nodes []*node) error {
	l.mu.Lock()
	want := map[string]map[int32]int64{}
	for topic, ends := range l.ends {
		want[topic] = map[int32]int64{}
		for p, end := range ends {
			want[topic][p] = end
		}
	}
	l.mu.Unlock()
	for _, n := range nodes {
		for topic, ends := range want {
			for p, end := range ends {
				got, err := endOffset(ctx, n.broker.addr(), topic, p)
				if err != nil {
					return fmt.Errorf("broker of node %d: %w", n.id, err)
				}
				if got < end {
					return fmt.Errorf("broker of node %d ends at %d of %s/%d, acknowledged is up to %d", n.id, got, topic, p, end)
				}
			}
		}
	}
	return nil
}

// close ends everything; it may be called after the others, or instead.
func (l *load) close() {
	l.stopOnce.Do(func() { close(l.stopProducers) })
	for _, cl := range l.clients {
		cl.Close()
	}
	l.producing.Wait()
	l.stopReading()
}
