package check

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

func nodeName(node int) string { return fmt.Sprintf("the broker of node %d", node) }

func compareTP(a, b tp) int {
	return cmp.Or(strings.Compare(a.topic, b.topic), cmp.Compare(a.partition, b.partition))
}

// finishPart holds each broker's copy to itself and to the first one's.
func (c *Checker) finishPart(k tp, p *part) {
	nodes := slices.Sorted(maps.Keys(p.held))
	for _, n := range nodes {
		h := p.held[n]
		if h.end < 0 {
			c.r.doubt("%s/%d was not read to its end from %s", k.topic, k.partition, nodeName(n))
		}
		c.finishHeld(k, n, h)
		if n != nodes[0] {
			c.compare(k, nodes[0], p.held[nodes[0]], n, h)
		}
	}
}

func (c *Checker) finishHeld(k tp, node int, h *held) {
	count := make(map[ref]int)
	lastSeq := make(map[string]int)
	for i, off := range h.offsets {
		r := h.refs[i]
		if i > 0 && off != h.offsets[i-1]+1 {
			c.r.add("gap", "%s: in %s/%d offset %d follows %d", nodeName(node), k.topic, k.partition, off, h.offsets[i-1])
		}
		o := c.op(r)
		if o == nil {
			continue // foreign, and said so
		}
		count[r]++
		switch limit := c.mayStand(r, o); {
		case o.state == refused:
			c.r.add("failed-visible", "%s: %s record %d was refused and stands at %d of %s/%d", nodeName(node), r.producer, r.seq, off, k.topic, k.partition)
		case count[r] > limit:
			c.r.add("duplicate", "%s: %s record %d stands at %d of %s/%d, for the %d. time, sent %d times", nodeName(node), r.producer, r.seq, off, k.topic, k.partition, count[r], o.sends)
			continue
		}
		if !c.producers[r.producer].idempotent {
			continue
		}
		if last, ok := lastSeq[r.producer]; ok && r.seq < last {
			c.r.add("order", "%s: in %s/%d %s record %d stands at %d, behind record %d", nodeName(node), k.topic, k.partition, r.producer, r.seq, off, last)
		}
		lastSeq[r.producer] = r.seq
	}
	if n := len(h.offsets); h.end >= 0 && n > 0 && h.offsets[n-1]+1 != h.end {
		c.r.add("gap", "%s: %s/%d ends at %d, its last record stands at %d", nodeName(node), k.topic, k.partition, h.end, h.offsets[n-1])
	}
}

func (c *Checker) op(r ref) *op {
	if p := c.producers[r.producer]; p != nil {
		return p.ops[r.seq]
	}
	return nil
}

// mayStand is how often a record may be in the log.
func (c *Checker) mayStand(r ref, o *op) int {
	if c.producers[r.producer].idempotent {
		return 1
	}
	return o.sends
}

// compare finds the first difference of two brokers' copies.
func (c *Checker) compare(k tp, na int, a *held, nb int, b *held) {
	for i := range min(len(a.offsets), len(b.offsets)) {
		if a.offsets[i] != b.offsets[i] || a.refs[i] != b.refs[i] {
			c.r.add("different", "%s/%d: node %d has %s record %d at %d where node %d has %s record %d at %d", k.topic, k.partition,
				na, a.refs[i].producer, a.refs[i].seq, a.offsets[i], nb, b.refs[i].producer, b.refs[i].seq, b.offsets[i])
			return
		}
	}
	if len(a.offsets) != len(b.offsets) || a.end != b.end {
		c.r.add("different", "%s/%d: node %d holds %d records up to %d, node %d %d up to %d", k.topic, k.partition,
			na, len(a.offsets), a.end, nb, len(b.offsets), b.end)
	}
}

// finishAcks looks for every acknowledged record on every broker, and counts.
func (c *Checker) finishAcks() {
	for _, name := range slices.Sorted(maps.Keys(c.producers)) {
		p := c.producers[name]
		for _, seq := range slices.Sorted(maps.Keys(p.ops)) {
			o := p.ops[seq]
			c.r.Counts.Sent++
			switch o.state {
			case refused:
				c.r.Counts.Refused++
			case open:
				c.r.Counts.Open++
			case acked:
				c.r.Counts.Acked++
				c.finishAck(ref{name, seq}, o)
			}
		}
	}
	if n := c.r.Counts.Acked; n < c.need.Acked {
		c.r.doubt("%d records were acknowledged, too few to mean anything (want %d)", n, c.need.Acked)
	}
	if c.infos < c.need.Info {
		c.r.doubt("the outcome of %d records was left open, want %d: nothing went wrong at the right moment", c.infos, c.need.Info)
	}
}

func (c *Checker) finishAck(r ref, o *op) {
	held := c.part(o.tp).held
	for _, n := range slices.Sorted(maps.Keys(held)) {
		h := held[n]
		i, found := slices.BinarySearch(h.offsets, o.offset)
		switch {
		case !found:
			c.r.add("lost", "%s: %s record %d, acknowledged at %d of %s/%d, is not there", nodeName(n), r.producer, r.seq, o.offset, o.tp.topic, o.tp.partition)
		case h.refs[i] != r:
			c.r.add("lost", "%s: at %d of %s/%d stands %s record %d, acknowledged was %s record %d", nodeName(n), o.offset, o.tp.topic, o.tp.partition, h.refs[i].producer, h.refs[i].seq, r.producer, r.seq)
		}
	}
}

// finishSession looks whether what a consumer passed over is there.
func (c *Checker) finishSession(by string, k tp, s *session) {
	held := c.parts[k].held
	for _, gap := range s.skips {
		for _, n := range slices.Sorted(maps.Keys(held)) {
			if i, _ := slices.BinarySearch(held[n].offsets, gap.from); i < len(held[n].offsets) && held[n].offsets[i] < gap.to {
				c.r.add("skipped", "%s was given offset %d of %s/%d after %d, and %d is there", by, gap.to, k.topic, k.partition, gap.from-1, held[n].offsets[i])
				break
			}
		}
	}
}

// electionWithin bounds how long after a fault's end a change of leader counts
// as its doing.
const electionWithin = 15 * time.Second

func (c *Checker) finishFaults() {
	c.r.Counts.LeaderChanges = len(c.leaders)
	c.r.Counts.Faults = make(map[string]int)
	leading, changed := 0, 0
	for _, n := range slices.Sorted(maps.Keys(c.faults)) {
		f := c.faults[n]
		c.r.Counts.Faults[f.kind]++
		if !f.landed {
			c.r.doubt("fault %d (%s) never landed", n, f.kind)
		}
		if !f.leading {
			continue
		}
		leading++
		if slices.ContainsFunc(c.leaders, func(at time.Duration) bool { return at >= f.at && at <= f.at+f.lasts+electionWithin }) {
			changed++
		}
	}
	if leading > 0 && changed < leading {
		c.r.doubt("%d faults hit a leader, and after %d of them no leader changed", leading, leading-changed)
	}
}
