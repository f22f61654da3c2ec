//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// opState is what the producer knows of one record it sent.
type opState uint8

const (
	opUnknown opState = iota // no answer, or one that leaves the outcome open
	opAcked
)

// op is one record sent.
type op struct {
	partition int32
	sent      time.Time
	state     opState
	offset    int64     // valid when acked
	floor     int64     // highest offset of the partition acked before this was sent, or -1
	acked     time.Time // when the acknowledgement arrived
}

// history is everything that the producers and the consumer of a test saw. Its
// methods may be called from any goroutine.
type history struct {
	mu       sync.Mutex
	topic    string
	ops      map[string][]op       // by producer; the index is the record's counter
	ackTimes map[int32][]time.Time // by partition, in order of arrival
	maxAcked map[int32]int64
	consumed map[int32][]stored
	changed  chan struct{} // closed and replaced at every acknowledgement and read
}

func newHistory(topic string) *history {
	return &history{topic: topic, ops: map[string][]op{}, ackTimes: map[int32][]time.Time{},
		maxAcked: map[int32]int64{}, consumed: map[int32][]stored{}, changed: make(chan struct{})}
}

// payload is unique over all producers of a test.
func payload(producer string, counter int, partition int32) string {
	return fmt.Sprintf("%s/%d/%d/%s", producer, counter, partition, padding)
}

const padding = "................................................................"

// sent notes that a record is about to be sent and returns its counter.
func (h *history) sent(producer string, partition int32) (counter int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	floor, ok := h.maxAcked[partition]
	if !ok {
		floor = -1
	}
	h.ops[producer] = append(h.ops[producer], op{partition: partition, sent: time.Now(), floor: floor})
	return len(h.ops[producer]) - 1
}

// ack notes an acknowledgement.
func (h *history) ack(producer string, counter int, offset int64, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o := &h.ops[producer][counter]
	o.state, o.offset, o.acked = opAcked, offset, at
	h.ackTimes[o.partition] = append(h.ackTimes[o.partition], at)
	if last, ok := h.maxAcked[o.partition]; !ok || offset > last {
		h.maxAcked[o.partition] = offset
	}
	h.wakeLocked()
}

// consume notes a record that the consumer was given.
func (h *history) consume(partition int32, s stored) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.consumed[partition] = append(h.consumed[partition], s)
	h.wakeLocked()
}

// wakeLocked wakes all who wait; h.mu must be held.
func (h *history) wakeLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// waitFor returns when ok, called with h.mu held, is true, or when ctx ends.
func (h *history) waitFor(ctx context.Context, ok func() bool) error {
	for {
		h.mu.Lock()
		done, changed := ok(), h.changed
		h.mu.Unlock()
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

// waitAcks returns when every partition has n acknowledgements that arrived
// after since.
func (h *history) waitAcks(ctx context.Context, partitions int32, since time.Time, n int) error {
	err := h.waitFor(ctx, func() bool {
		for p := range partitions {
			times := h.ackTimes[p]
			if len(times) < n || !times[len(times)-n].After(since) {
				return false
			}
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("wait for %d acknowledgements on each of %d partitions: %w (%s)", n, partitions, err, h.behind(partitions, since))
	}
	return nil
}

func (h *history) behind(partitions int32, since time.Time) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var s []string
	for p := range partitions {
		n := 0
		for _, at := range h.ackTimes[p] {
			if at.After(since) {
				n++
			}
		}
		s = append(s, fmt.Sprintf("%d: %d", p, n))
	}
	return fmt.Sprintf("got by partition %v", s)
}

// counts returns how many records were sent and how many acknowledged.
func (h *history) counts() (sent, acked int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ops := range h.ops {
		sent += len(ops)
		for _, o := range ops {
			if o.state == opAcked {
				acked++
			}
		}
	}
	return sent, acked
}

// acked returns how many records of one producer were acknowledged.
func (h *history) acked(producer string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, o := range h.ops[producer] {
		if o.state == opAcked {
			n++
		}
	}
	return n
}

// ends returns, for each partition, the offset after the highest acknowledged.
func (h *history) ends() map[int32]int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := map[int32]int64{}
	for p, o := range h.maxAcked {
		m[p] = o + 1
	}
	return m
}

// longestGap returns the longest time without an acknowledgement, on any of the
// given partitions taken together, of the pauses that were not over at from and
// had begun before until.
func (h *history) longestGap(partitions []int32, from, until time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []time.Time
	for _, p := range partitions {
		all = append(all, h.ackTimes[p]...)
	}
	slices.SortFunc(all, time.Time.Compare)
	var longest time.Duration
	for i := 1; i < len(all); i++ {
		if all[i].After(from) && all[i-1].Before(until) {
			longest = max(longest, all[i].Sub(all[i-1]))
		}
	}
	return longest
}

// worstGap is longestGap of the one partition that waited longest.
func (h *history) worstGap(partitions []int32, from, until time.Time) time.Duration {
	var worst time.Duration
	for _, p := range partitions {
		worst = max(worst, h.longestGap([]int32{p}, from, until))
	}
	return worst
}
