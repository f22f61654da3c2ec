package verify

import (
	"fmt"

	"lockstep/fsm"
)

// survivor is a record of a compacted log.
type survivor struct {
	offset int64
	hash   uint64
}

// reading is a compacted log, read along with the others' record by record.
type reading struct {
	*log
	records []survivor // of the line that was read last, from the next one on
	more    bool       // the next line is of the same batch
	batches int64
}

// survivors compares the records that compaction left: wherever two brokers
// still have one, they must have the same. Each compacts at its own time, and a
// copy of a compacted log has other batches than the log, so nothing else can
// be compared.
func (p *Partition) survivors(logs []*log) error {
	p.bound(logs)
	var all []*reading
	for _, l := range logs {
		r := &reading{log: l}
		if err := r.seek(p, p.Start); err != nil {
			return err
		}
		all = append(all, r)
	}
	var chain uint64
	for p.differences == 0 {
		at := lowestRecord(all, p.End)
		if at == nil {
			break
		}
		chain = fsm.ChainHash(chain, at.offset, 0, uint32(at.hash^at.hash>>32))
		for _, r := range all {
			if r.has(at.offset) && r.records[0].hash != at.hash {
				p.differ(at.offset, "%s", describeRecords(all, at.offset))
				break
			}
		}
		p.reached(at.offset + 1)
		for _, r := range all {
			if err := r.seek(p, at.offset+1); err != nil {
				return err
			}
		}
	}
	p.Digest = fmt.Sprintf("%016x", chain)
	for _, r := range all {
		p.Batches = max(p.Batches, r.batches)
	}
	return nil
}

// has says whether the next record is the one at an offset.
func (r *reading) has(offset int64) bool { return len(r.records) > 0 && r.records[0].offset == offset }

// seek goes on to the next record at or above an offset.
func (r *reading) seek(p *Partition, from int64) error {
	for {
		for len(r.records) > 0 && r.records[0].offset < from {
			r.records = r.records[1:]
		}
		if len(r.records) > 0 {
			return nil
		}
		if err := r.line(p); err != nil || r.cur == nil {
			return err
		}
		err := r.cur.EachRecord(func(offset int64, hash uint64) {
			r.records = append(r.records, survivor{offset, hash})
		})
		if err != nil {
			return fmt.Errorf("node %d at offset %d: %w", r.node, r.cur.Base, err)
		}
	}
}

// line reads the next line of the digest: a batch, or more of one.
func (r *reading) line(p *Partition) error {
	if r.more {
		r.next = r.cur.Base
	}
	if err := r.step(p); err != nil || r.cur == nil {
		return err
	}
	if r.more = r.cur.More; !r.more {
		r.batches++
	}
	return nil
}

// lowestRecord is the record that comes next in any log, nil after the overlap.
func lowestRecord(all []*reading, end int64) *survivor {
	var at *survivor
	for _, r := range all {
		if len(r.records) > 0 && r.records[0].offset < end && (at == nil || r.records[0].offset < at.offset) {
			s := r.records[0]
			at = &s
		}
	}
	return at
}

// describeRecords says what each log has at an offset.
func describeRecords(all []*reading, offset int64) string {
	out := ""
	for i, r := range all {
		if i > 0 {
			out += "; "
		}
		if r.has(offset) {
			out += fmt.Sprintf("node %d has a record with hash %016x", r.node, r.records[0].hash)
		} else {
			out += fmt.Sprintf("node %d has none", r.node)
		}
	}
	return out
}
