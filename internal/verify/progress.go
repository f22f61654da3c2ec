package verify

import "fmt"

// countTotal adds up what there is to compare: offsets, as nobody knows the
// bytes before they are read.
func (r *run) countTotal() {
	r.total = 0
	for _, p := range r.parts {
		r.total += p.committed
	}
}

// progress tells that a partition was compared up to an offset.
func (r *run) progress(offset int64, p *Partition) {
	if r.cfg.Progress != nil {
		r.cfg.Progress(r.passed+offset, r.total, fmt.Sprintf("%s/%d", p.Topic, p.Partition))
	}
}

// progressWaiting tells who is waited for.
func (r *run) progressWaiting() {
	if r.cfg.Progress == nil {
		return
	}
	late, one := 0, ""
	for _, p := range r.parts {
		for node, why := range p.lateWhy {
			late++
			one = fmt.Sprintf("node %d, %s/%d: %s", node, p.Topic, p.Partition, why)
		}
	}
	r.cfg.Progress(0, 0, fmt.Sprintf("waiting for %d copies that are behind; %s", late, one))
}
