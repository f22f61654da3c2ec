//go:build e2e

package e2e

import (
	"context"
	"sync"
	"testing"
	"time"
)

// plainProducer sends each record once, acks=all and not idempotent, over a
// connection of its own: there is no client between that could send it again.
// So each record stands in the log at most once, and once if it was
// acknowledged.
type plainProducer struct {
	name    string
	cluster *cluster
	h       *history
	stopCh  chan struct{}
	senders sync.WaitGroup
}

// startPlainProducer sends one record after the other to each partition.
func startPlainProducer(t *testing.T, c *cluster, topic string, partitions int32, name string) *plainProducer {
	t.Helper()
	p := &plainProducer{name: name, cluster: c, h: newHistory(topic), stopCh: make(chan struct{})}
	for partition := range partitions {
		p.senders.Go(func() { p.send(partition, partitions) })
	}
	t.Cleanup(p.stop)
	return p
}

// send runs until stopCh closes. After an error it looks for the leader and
// goes on with the next record.
func (p *plainProducer) send(partition, partitions int32) {
	ticker := time.NewTicker(40 * time.Millisecond)
	defer ticker.Stop()
	var leader int
	for {
		select {
		case <-p.stopCh:
			return
		case <-ticker.C:
		}
		if leader == 0 {
			leader = p.lookUp(partition, partitions)
			continue
		}
		counter := p.h.sent(p.name, partition)
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		b := batch{producerID: -1, epoch: -1, sequence: -1, values: []string{payload(p.name, counter, partition)}}
		base, code, err := rawProduce(ctx, p.cluster.node(leader).kafkaAddr(), p.h.topic, partition, b)
		cancel()
		if err == nil && code == 0 {
			p.h.ack(p.name, counter, base, time.Now())
		} else {
			leader = 0
		}
	}
}

// lookUp asks one proxy after the other who leads; 0 if none knows. What a node
// listens on never changes, so this is safe beside the test's own goroutine.
func (p *plainProducer) lookUp(partition, partitions int32) int {
	for _, n := range p.cluster.nodes {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		leaders, err := partitionLeaders(ctx, n, p.h.topic, partitions)
		cancel()
		if err == nil {
			return leaders[partition]
		}
	}
	return 0
}

// stop ends the senders; it may be called twice.
func (p *plainProducer) stop() {
	select {
	case <-p.stopCh:
	default:
		close(p.stopCh)
	}
	p.senders.Wait()
}

// check is the history's check without the order of records: one whose sender
// gave up may be committed after the one that was sent next.
func (p *plainProducer) check(dumps map[int]dump, partitions int32) findings {
	all := p.h.check(dumps, partitions)
	delete(all.byKind, "order")
	kept := all.lines[:0]
	for _, l := range all.lines {
		if len(l) < 6 || l[:6] != "order:" {
			kept = append(kept, l)
		}
	}
	all.lines = kept
	return all
}
