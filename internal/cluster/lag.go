package cluster

import (
	"math"
	"slices"
	"sort"
	"time"
)

// maxCommitMarks of a group are kept, the further back the fewer: enough to tell
// any age to a tenth or so.
const maxCommitMarks = 256

// commitMark says that a group's entries up to applied were known to be committed.
type commitMark struct {
	at      time.Time // on the monotonic clock
	applied uint64
}

// commitMarks remember when this node came to know what was committed in a
// group, so that an entry which its broker lacks has an age. They are set by who
// announces, some times a second: what is produced pays nothing for it. Nothing
// is known of the time before the process started, and the age of what was
// committed then counts from the start. It belongs to one goroutine.
type commitMarks struct{ marks []commitMark }

// note sets a mark if there is anything new.
func (m *commitMarks) note(now time.Time, applied uint64) {
	if k := len(m.marks); applied == 0 || k > 0 && m.marks[k-1].applied >= applied {
		return
	}
	if len(m.marks) == maxCommitMarks {
		m.thin(now)
	}
	m.marks = append(m.marks, commitMark{now, applied})
}

// thin removes the mark that will be missed least: the age that the next one
// stands for differs least from its own, in proportion. The first one stays.
func (m *commitMarks) thin(now time.Time) {
	least, at := math.Inf(1), 1
	for i := 1; i < len(m.marks)-1; i++ {
		if gap := float64(m.marks[i+1].at.Sub(m.marks[i-1].at)) / float64(now.Sub(m.marks[i].at)); gap < least {
			least, at = gap, i
		}
	}
	m.marks = slices.Delete(m.marks, at, at+1)
}

// age is for how long at least the oldest committed entry after held has been
// known here, 0 if there is none.
func (m *commitMarks) age(now time.Time, held uint64) time.Duration {
	i := sort.Search(len(m.marks), func(i int) bool { return m.marks[i].applied > held })
	if i == len(m.marks) {
		return 0
	}
	return now.Sub(m.marks[i].at)
}

// lagOf measures how far the broker that holds a group's entries up to held is
// behind what was applied.
func (c *Cluster) lagOf(group uint32, held, applied uint64) (seconds float64) {
	if n := int(group) + 1; len(c.committed) < n {
		c.committed = slices.Grow(c.committed, n-len(c.committed))[:n]
	}
	m, now := &c.committed[group], time.Now()
	m.note(now, applied)
	return m.age(now, held).Seconds()
}
