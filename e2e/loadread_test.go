//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"lockstep/e2e/check"
)

// assigned starts a consumer with every partition assigned by hand from offset
// 0, that knows the cluster by one node.
func (l *load) assigned(name string, via *node) {
	l.t.Helper()
	starts := map[string]map[int32]kgo.Offset{}
	l.seen[name] = map[string]map[int32]int64{}
	for _, topic := range l.topics {
		starts[topic.name], l.seen[name][topic.name] = map[int32]kgo.Offset{}, map[int32]int64{}
		for p := range topic.partitions {
			starts[topic.name][p] = kgo.NewOffset().At(0)
			l.log.Add(check.Event{Kind: check.Assign, By: name, Topic: topic.name, Partition: p})
		}
	}
	cl, err := kgo.NewClient(append(clientOpts([]string{via.kafkaAddr()}), kgo.ClientID(name), kgo.ConsumePartitions(starts),
		// An offset that is out of range is a finding, never a reason to jump.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.MetadataMaxAge(2*time.Second), kgo.FetchMaxWait(500*time.Millisecond))...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.readerClients = append(l.readerClients, cl)
	l.reading.Go(func() { l.read(cl, name, false) })
}

// group starts a member of a consumer group on all topics.
func (l *load) group(name, group string, via *node) {
	l.t.Helper()
	var names []string
	for _, topic := range l.topics {
		names = append(names, topic.name)
	}
	cl, err := kgo.NewClient(append(clientOpts([]string{via.kafkaAddr()}), kgo.ClientID(name), kgo.ConsumerGroup(group), kgo.ConsumeTopics(names...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.BlockRebalanceOnPoll(), kgo.SessionTimeout(10*time.Second),
		kgo.MetadataMaxAge(2*time.Second), kgo.FetchMaxWait(500*time.Millisecond), kgo.AutoCommitInterval(time.Second),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, got map[string][]int32) {
			for topic, ps := range got {
				for _, p := range ps {
					l.log.Add(check.Event{Kind: check.Assign, By: name, Topic: topic, Partition: p, Offset: -1})
				}
			}
		}))...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.readerClients = append(l.readerClients, cl)
	l.reading.Go(func() { l.read(cl, name, true) })
}

func (l *load) read(cl *kgo.Client, name string, group bool) {
	for {
		fetches := cl.PollFetches(l.readers)
		if l.readers.Err() != nil {
			return
		}
		fetches.EachError(func(topic string, p int32, err error) {
			// A group's coordinator may be gone; an assigned reader has no excuse.
			if !group {
				l.fatal("consumer %s, %s/%d: %v", name, topic, p, err)
			}
		})
		fetches.EachRecord(func(r *kgo.Record) {
			e := check.Record(check.Poll, r.Topic, r.Partition, r.Offset, string(r.Value))
			e.By = name
			l.log.Add(e)
		})
		if group {
			cl.AllowRebalance()
			continue
		}
		l.mu.Lock()
		fetches.EachRecord(func(r *kgo.Record) { l.seen[name][r.Topic][r.Partition] = r.Offset + 1 })
		l.wakeLocked()
		l.mu.Unlock()
	}
}

// askEnds asks one node for end offsets, over and over: whatever is answered
// must be up to date.
func (l *load) askEnds(n *node, every time.Duration) {
	by := endsReader(n)
	l.reading.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for i := 0; ; i++ {
			select {
			case <-l.readers.Done():
				return
			case <-ticker.C:
			}
			topic := l.topics[i%len(l.topics)]
			p := int32(i/len(l.topics)) % topic.partitions
			l.askEnd(by, n, topic.name, p)
		}
	})
}

// endsReader is who asks a node for end offsets.
func endsReader(n *node) string { return fmt.Sprintf("ends-%d", n.id) }

// askEnd asks once and reports whether it was answered.
func (l *load) askEnd(by string, n *node, topic string, p int32) bool {
	l.log.Add(check.Event{Kind: check.Ask, By: by, Topic: topic, Partition: p})
	ctx, cancel := context.WithTimeout(l.readers, time.Second)
	defer cancel()
	end, err := endOffset(ctx, n.kafkaAddr(), topic, p)
	if err == nil {
		l.log.Add(check.Event{Kind: check.End, By: by, Topic: topic, Partition: p, Offset: end})
		// A node shows ends only of partitions that it leads, and whoever leads
		// has all that was ever shown: no restart may take one back.
		l.log.Add(check.Event{Kind: check.Watch, By: by, Topic: topic, Partition: p, Offset: end})
	}
	return err == nil
}

// watchLeaders writes a row whenever a group has another leader or term.
func (l *load) watchLeaders(every time.Duration) {
	l.reading.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			heard := make(chan *status, len(l.c.nodes))
			for _, n := range l.c.nodes {
				go func() {
					ctx, cancel := context.WithTimeout(l.readers, time.Second)
					defer cancel()
					s, err := n.status(ctx)
					if err != nil {
						s = nil
					}
					heard <- s
				}()
			}
			for range l.c.nodes {
				l.noteLeaders(<-heard)
			}
			select {
			case <-l.readers.Done():
				return
			case <-ticker.C:
			}
		}
	})
}

func (l *load) noteLeaders(s *status) {
	if s == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range s.Groups {
		if old := l.leaders[g.Group]; g.Leader > 0 && g.Term > old.term {
			l.leaders[g.Group] = groupLeader{g.Leader, g.Term}
			l.log.Add(check.Event{Kind: check.Leader, Node: g.Leader, Seq: g.Group, Text: fmt.Sprintf("term %d", g.Term)})
		}
	}
}
