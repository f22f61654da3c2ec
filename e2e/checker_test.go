//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// findings collects what a check found wrong, a few of each kind.
type findings struct {
	byKind map[string]int
	lines  []string
}

func (f *findings) add(kind, format string, args ...any) {
	if f.byKind == nil {
		f.byKind = map[string]int{}
	}
	f.byKind[kind]++
	if f.byKind[kind] <= 5 {
		f.lines = append(f.lines, kind+": "+fmt.Sprintf(format, args...))
	}
}

// check holds what each broker stores against what the producers and the
// consumer saw. Kinds of finding:
//
//	lost        an acknowledged record is not at its offset
//	duplicate   a payload stands at two offsets of one broker
//	foreign     a value that no producer sent, or in another partition
//	gap         offsets do not count 0, 1, 2, ...
//	different   two brokers hold different records
//	order       a producer's records stand in another order than it sent them
//	real-time   a record got an offset below one acknowledged before it was sent
//	consumer    the consumer saw a gap, a repeat or another value than stored
func (h *history) check(dumps map[int]dump, partitions int32) findings {
	h.mu.Lock()
	defer h.mu.Unlock()
	var f findings
	sentAt := map[string]int32{}
	for producer, ops := range h.ops {
		for counter, o := range ops {
			sentAt[payload(producer, counter, o.partition)] = o.partition
			if o.state == opAcked && o.offset <= o.floor {
				f.add("real-time", "%s record %d got offset %d/%d, when %d had been acknowledged before", producer, counter, o.partition, o.offset, o.floor)
			}
		}
	}
	ids := make([]int, 0, len(dumps))
	for id := range dumps {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		name := fmt.Sprintf("broker of node %d", id)
		h.checkAcks(&f, name, dumps[id])
		checkStored(&f, name, dumps[id], sentAt)
		if err := sameDump(dumps[ids[0]], dumps[id], partitions); err != nil {
			f.add("different", "brokers of node %d and %d: %v", ids[0], id, err)
		}
	}
	if len(ids) > 0 {
		h.checkConsumer(&f, dumps[ids[0]])
	}
	return f
}

func (h *history) checkAcks(f *findings, name string, d dump) {
	for producer, ops := range h.ops {
		for counter, o := range ops {
			if o.state != opAcked {
				continue
			}
			records := d[o.partition]
			want := payload(producer, counter, o.partition)
			i, found := slices.BinarySearchFunc(records, o.offset, func(s stored, off int64) int { return int(s.offset - off) })
			if !found {
				f.add("lost", "%s: %s record %d, acknowledged at %d/%d, is not there", name, producer, counter, o.partition, o.offset)
			} else if records[i].value != want {
				f.add("lost", "%s: at %d/%d stands %.40q, acknowledged was %.40q", name, o.partition, o.offset, records[i].value, want)
			}
		}
	}
}

func checkStored(f *findings, name string, d dump, sentAt map[string]int32) {
	seen := map[string]int64{}
	for p, records := range d {
		lastCounter := map[string]int{}
		for i, r := range records {
			if r.offset != int64(i) {
				f.add("gap", "%s: record number %d of partition %d has offset %d", name, i, p, r.offset)
			}
			if at, ok := sentAt[r.value]; !ok || at != p {
				f.add("foreign", "%s: at %d/%d stands %.60q, which no producer sent there", name, p, r.offset, r.value)
				continue
			}
			if first, again := seen[r.value]; again {
				f.add("duplicate", "%s: %.40q stands at %d and at %d of partition %d", name, r.value, first, r.offset, p)
				continue
			}
			seen[r.value] = r.offset
			producer, rest, _ := strings.Cut(r.value, "/")
			var counter int
			if _, err := fmt.Sscanf(rest, "%d/", &counter); err != nil {
				f.add("foreign", "%s: at %d/%d stands %.60q", name, p, r.offset, r.value)
				continue
			}
			if last, ok := lastCounter[producer]; ok && counter < last {
				f.add("order", "%s: in partition %d %s record %d stands behind %d", name, p, producer, counter, last)
			}
			lastCounter[producer] = counter
		}
	}
}

func (h *history) checkConsumer(f *findings, d dump) {
	for p, seen := range h.consumed {
		for i, s := range seen {
			if s.offset != int64(i) {
				f.add("consumer", "record number %d of partition %d came with offset %d", i, p, s.offset)
				break
			}
			if i >= len(d[p]) || d[p][i] != s {
				f.add("consumer", "at %d/%d it was given %.40q, which the broker does not hold there", p, s.offset, s.value)
				break
			}
		}
	}
}

// report fails the test with everything found.
func (f findings) report(t *testing.T) {
	t.Helper()
	for _, l := range f.lines {
		t.Error(l)
	}
	if len(f.byKind) > 0 {
		t.Errorf("findings by kind: %v", f.byKind)
	}
}

// TestCheckerFindsPlantedFaults holds the checker itself to histories with one
// fault each, and to a clean one.
func TestCheckerFindsPlantedFaults(t *testing.T) {
	val := func(c int) string { return payload("p1", c, 0) }
	faults := map[string]struct {
		kind string // empty: clean
		do   func(h *history, d dump) dump
	}{
		"clean": {"", func(_ *history, d dump) dump { return d }},
		"an unacknowledged record is missing": {"", func(h *history, d dump) dump {
			h.sent("p1", 0)
			return d
		}},
		"an unacknowledged record is there": {"", func(h *history, d dump) dump {
			h.sent("p1", 0)
			d[0] = append(d[0], stored{4, val(4)})
			return d
		}},
		"the last record is missing": {"lost", func(_ *history, d dump) dump {
			d[0] = d[0][:3]
			return d
		}},
		"two records are swapped": {"lost", func(_ *history, d dump) dump {
			d[0][1].value, d[0][2].value = d[0][2].value, d[0][1].value
			return d
		}},
		"a record stands twice": {"duplicate", func(_ *history, d dump) dump {
			d[0] = append(d[0], stored{4, val(3)})
			return d
		}},
		"a record from nowhere": {"foreign", func(_ *history, d dump) dump {
			d[0] = append(d[0], stored{4, "old"})
			return d
		}},
		"a record in another partition": {"foreign", func(_ *history, d dump) dump {
			d[1] = append(d[1], stored{0, val(3)})
			return d
		}},
		"offsets skip one": {"gap", func(h *history, d dump) dump {
			h.sent("p1", 0)
			d[0] = append(d[0], stored{5, val(4)})
			return d
		}},
		"an unacknowledged record stands out of order": {"order", func(h *history, d dump) dump {
			h.sent("p1", 0)
			h.sent("p1", 0)
			d[0] = append(d[0], stored{4, val(5)}, stored{5, val(4)})
			return d
		}},
		"an offset below one acknowledged before": {"real-time", func(h *history, d dump) dump {
			h.ops["p1"][3].floor = 3
			return d
		}},
		"the consumer saw a record twice": {"consumer", func(h *history, d dump) dump {
			h.consumed[0] = append(h.consumed[0], h.consumed[0][3])
			return d
		}},
		"the consumer skipped a record": {"consumer", func(h *history, d dump) dump {
			h.consumed[0] = append(h.consumed[0][:1], h.consumed[0][2:]...)
			return d
		}},
		"the consumer was given another value": {"consumer", func(h *history, d dump) dump {
			h.consumed[0][1].value = "other"
			return d
		}},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			h, clean, bad := newHistory("x"), dump{}, dump{}
			for i := range 4 {
				h.ack("p1", h.sent("p1", 0), int64(i), time.Now())
				s := stored{int64(i), val(i)}
				clean[0], bad[0] = append(clean[0], s), append(bad[0], s)
				h.consume(0, s)
			}
			bad = fault.do(h, bad)
			f := h.check(map[int]dump{1: bad}, 2)
			if fault.kind == "" && len(f.byKind) > 0 {
				t.Errorf("clean history, found %v", f.lines)
			}
			if fault.kind != "" && f.byKind[fault.kind] == 0 {
				t.Errorf("want a finding of kind %q, found %v", fault.kind, f.lines)
			}
			// The same fault on one broker of three is a difference.
			same := sameDump(clean, bad, 2) == nil
			f = h.check(map[int]dump{1: clean, 2: bad, 3: clean}, 2)
			if found := f.byKind["different"] > 0; found == same {
				t.Errorf("brokers differ: %t, found %v", !same, f.lines)
			}
		})
	}
}

// TestLongestGap measures pauses that begin before, in and after the window.
func TestLongestGap(t *testing.T) {
	h, start := newHistory("x"), time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for i, ms := range []int{0, 10, 400, 410, 900, 2000} {
		h.ack("p1", h.sent("p1", 0), int64(i), at(ms))
	}
	h.ack("p1", h.sent("p1", 1), 0, at(200))
	for _, c := range []struct{ from, until, want int }{{5, 405, 390}, {50, 405, 390}, {405, 800, 490}, {405, 1500, 1100}, {0, 9, 10}} {
		if got := h.longestGap([]int32{0}, at(c.from), at(c.until)); got != time.Duration(c.want)*time.Millisecond {
			t.Errorf("longest gap from %d to %d ms: %s, want %d ms", c.from, c.until, got, c.want)
		}
	}
	if got := h.longestGap([]int32{0, 1}, at(5), at(405)); got != 200*time.Millisecond {
		t.Errorf("longest gap of both partitions: %s, want 200 ms", got)
	}
	if got := h.worstGap([]int32{0, 1}, at(5), at(405)); got != 390*time.Millisecond {
		t.Errorf("worst gap of one partition: %s, want 390 ms", got)
	}
}
