package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"lockstep/fsm"
	"lockstep/internal/admin"
)

// log is one broker's log of a partition, read along with the others'.
type log struct {
	node   int32
	digest *admin.Digest
	cur    *admin.BatchDigest // nil at the end
	next   int64              // offset after cur
}

// step reads the next batch and checks it alone.
func (l *log) step(p *Partition) error {
	b, err := l.digest.Next()
	if errors.Is(err, io.EOF) {
		l.cur = nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("node %d after offset %d: %w", l.node, l.next, err)
	}
	if b.Base < l.next && l.cur != nil || b.Last < b.Base {
		return fmt.Errorf("node %d: batch %d-%d comes after offset %d", l.node, b.Base, b.Last, l.next)
	}
	if !b.OK {
		p.differ(b.Base, "the batch on node %d is damaged: its body does not have the checksum %08x", l.node, b.CRC)
	}
	l.cur, l.next = &b, b.Last+1
	return nil
}

// compare reads a partition's logs side by side over their overlap, up to the
// first difference. It returns an error only when ctx ends.
func (r *run) compare(ctx context.Context, p *Partition) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var logs []*log
	defer func() {
		for _, l := range logs {
			l.digest.Close()
		}
	}()
	unreadable := false
	for _, n := range r.holders(p) {
		open := r.client.Digest
		if p.compacted {
			open = r.client.Survivors
		}
		d, err := open(ctx, n.addr, p.Topic, p.Partition)
		if err != nil {
			p.problem("node %d: %v", n.id, err)
			unreadable = true
			continue
		}
		logs = append(logs, &log{node: n.id, digest: d})
		p.Nodes = append(p.Nodes, n.id)
		p.ends[n.id] = d.End
	}
	if len(logs) > 0 {
		compare := p.overlap
		if p.compacted {
			compare = p.survivors
		}
		if err := compare(logs); err != nil {
			p.problem("%v", err)
			unreadable = true
		}
	}
	for _, n := range slices.Sorted(maps.Keys(p.lateWhy)) {
		p.problem("node %d is behind: %s", n, p.lateWhy[n])
	}
	switch {
	case p.Result == Differs:
	case unreadable:
		p.Result = Unreadable
	case len(p.lateWhy) > 0:
		p.Result = Behind
	default:
		p.Result = Identical
	}
	return context.Cause(ctx)
}

// bound sets the overlap: from the highest start to the lowest end.
func (p *Partition) bound(logs []*log) {
	p.Start, p.End = logs[0].digest.Start, logs[0].digest.End
	for _, l := range logs[1:] {
		p.Start, p.End = max(p.Start, l.digest.Start), min(p.End, l.digest.End)
	}
}

// overlap compares the logs from the highest start to the lowest end.
func (p *Partition) overlap(logs []*log) error {
	p.bound(logs)
	for _, l := range logs {
		// A log that was cut inside a batch (DeleteRecords) still begins
		// with all of it.
		if err := l.step(p); err != nil {
			return err
		}
		for l.cur != nil && l.cur.Last < p.Start {
			if err := l.step(p); err != nil {
				return err
			}
		}
	}
	var chain uint64
	defer func() { p.Digest = fmt.Sprintf("%016x", chain) }()
	for before := p.differences; ; {
		at := lowest(logs, p.End)
		if at == nil {
			break
		}
		here := p.sameBatch(logs, at)
		if p.differences > before {
			return nil
		}
		chain = fsm.ChainHash(chain, at.Base, at.Length, at.CRC)
		p.Batches++
		p.reached(at.Last + 1)
		for _, l := range here {
			if err := l.step(p); err != nil {
				return err
			}
		}
	}
	return p.complete(logs)
}

// lowest is the batch that comes next in any log, nil after the overlap.
func lowest(logs []*log, end int64) *admin.BatchDigest {
	var at *admin.BatchDigest
	for _, l := range logs {
		if l.cur != nil && l.cur.Base < end && (at == nil || l.cur.Base < at.Base) {
			at = l.cur
		}
	}
	return at
}

// sameBatch compares what all logs have at a batch and returns the logs that
// have it.
func (p *Partition) sameBatch(logs []*log, at *admin.BatchDigest) []*log {
	var here []*log
	for _, l := range logs {
		if l.cur != nil && l.cur.Base == at.Base {
			here = append(here, l)
		}
	}
	first := here[0].cur
	if len(here) < len(logs) {
		p.differ(at.Base, "%s", describe(logs))
		return here
	}
	for _, l := range here[1:] {
		if *l.cur != *first && !sameBytes(l.cur, first) {
			p.differ(at.Base, "%s", describe(logs))
			return here
		}
	}
	p.compareMarks(here)
	return here
}

// sameBytes leaves the chain hash out where a log does not begin at 0.
func sameBytes(a, b *admin.BatchDigest) bool {
	x, y := *a, *b
	if x.Hash == "" || y.Hash == "" {
		x.Hash, y.Hash = "", ""
	}
	return x == y
}

// compareMarks compares the chain up to this batch with what the state
// machines say, where one of them ended here.
func (p *Partition) compareMarks(here []*log) {
	m, ok := p.marks[here[0].next]
	if !ok {
		return
	}
	p.met[here[0].next] = true
	for _, l := range here {
		if l.cur.Hash != "" && l.cur.Hash != m.hash {
			p.differ(l.next, "the broker of node %d has the chain hash %s below it, the state machine of node %d says %s",
				l.node, l.cur.Hash, m.node, m.hash)
			return
		}
	}
}

// complete sees that no log ended early, and that wherever a state machine
// ended, a batch does.
func (p *Partition) complete(logs []*log) error {
	for _, l := range logs {
		if l.cur == nil && l.next < p.End && p.Start < p.End { // a log with everything deleted holds no batch
			return fmt.Errorf("the log of node %d ends at %d, though its broker said %d", l.node, l.next, l.digest.End)
		}
	}
	for _, end := range slices.Sorted(maps.Keys(p.marks)) {
		if end > p.Start && end <= p.End && !p.met[end] {
			p.differ(end, "no batch ends there, as the state machine of node %d says", p.marks[end].node)
		}
	}
	return nil
}

// describe says what each log has where they differ.
func describe(logs []*log) string {
	var out []string
	for _, l := range logs {
		if l.cur == nil {
			out = append(out, fmt.Sprintf("node %d has nothing more", l.node))
			continue
		}
		b := l.cur
		out = append(out, fmt.Sprintf("node %d has offsets %d-%d (%d records, %d bytes, crc %08x, chain %s)",
			l.node, b.Base, b.Last, b.Count, b.Length, b.CRC, orDash(b.Hash)))
	}
	return strings.Join(out, "; ")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
