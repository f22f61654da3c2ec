package apply

import (
	"cmp"
	"slices"
	"time"
)

// PartitionCopy is one partition on its way from a peer's broker.
type PartitionCopy struct {
	Topic     string    `json:"topic"`
	TopicID   uint64    `json:"topic_id"`
	Partition int32     `json:"partition"`
	Peer      int32     `json:"peer"`  // the node it comes from, -1 while it waits
	From      int64     `json:"from"`  // offset it began at
	At        int64     `json:"at"`    // offset it has got to
	To        int64     `json:"to"`    // offset it ends at
	Bytes     int64     `json:"bytes"` // received
	Started   time.Time `json:"started"`
	Reason    string    `json:"reason,omitempty"` // why it waits
}

// CopyProgress is how far the copies to this node's broker are, together.
type CopyProgress struct {
	Partitions     []PartitionCopy `json:"partitions,omitempty"` // by topic and partition
	Percent        float64         `json:"percent"`              // of the offsets of the copies under way
	BytesPerSecond float64         `json:"bytes_per_second"`     // over the last 10 s
	Left           time.Duration   `json:"left"`                 // at the rate of the last 10 s, -1 if not known
	TotalBytes     int64           `json:"total_bytes"`          // received since the start of the process
}

// CopyProgress reports on the copies to this node's broker. Any goroutine may
// call it after Open.
func (a *Applier) CopyProgress() CopyProgress {
	c, ok := a.copier.(*copier)
	if !ok {
		return CopyProgress{Percent: 100}
	}
	return c.progress(time.Now())
}

func (c *copier) progress(now time.Time) CopyProgress {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := CopyProgress{Percent: 100, BytesPerSecond: c.moved.perSecond(now), TotalBytes: c.total}
	var done, all int64
	for _, r := range c.runs {
		p.Partitions = append(p.Partitions, r.shown)
		done += r.shown.At - r.shown.From
		all += r.shown.To - r.shown.From
	}
	slices.SortFunc(p.Partitions, func(a, b PartitionCopy) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	if all > 0 {
		p.Percent = 100 * float64(done) / float64(all)
	}
	if done < all {
		p.Left = -1
		if rate := c.passed.perSecond(now); rate > 0 {
			p.Left = time.Duration(min(float64(all-done)/rate, 1e9) * float64(time.Second))
		}
	}
	return p
}

// The methods below are called by the goroutine of a run alone; shown is what
// others see of it.

func (r *copyRun) begin(from int64) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.shown = PartitionCopy{Topic: r.l.name, TopicID: r.l.tp.Topic, Partition: r.l.tp.Partition, Peer: -1,
		From: from, At: from, To: r.want.NextOffset, Started: time.Now()}
	r.c.runs[r.l.tp] = r
}

func (r *copyRun) over() {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	if r.c.runs[r.l.tp] == r {
		delete(r.c.runs, r.l.tp)
	}
}

func (r *copyRun) showPeer(node int32, reason string) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.shown.Peer, r.shown.Reason = node, reason
}

func (r *copyRun) showBytes(n int) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.shown.Bytes += int64(n)
	r.c.total += int64(n)
	r.c.moved.add(time.Now(), int64(n))
}

func (r *copyRun) showAt(offset int64) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.c.passed.add(time.Now(), offset-r.shown.At)
	r.shown.At = offset
}
