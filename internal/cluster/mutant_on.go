//go:build mutants

package cluster

import (
	"sync"

	"lockstep/fsm"
	"lockstep/internal/node"
	"lockstep/kafkawire"
	"lockstep/proxy"
)

// promised is where batches were said to stand that nobody had committed.
var promised = struct {
	sync.Mutex
	next map[fsm.TP]int64
}{next: make(map[fsm.TP]int64)}

// ackUncommitted answers with the offset that the batch will have if nothing
// goes wrong.
func (c *Cluster) ackUncommitted(g *node.Group, tp fsm.TP, batch []byte, a *appending) {
	b, _, err := kafkawire.ParseBatch(batch)
	if err != nil || g.Leading.Get() == nil {
		return
	}
	promised.Lock()
	defer promised.Unlock()
	base := promised.next[tp]
	g.Read(func(s *fsm.Group) {
		if p := s.Partitions[tp]; p != nil {
			base = max(base, p.NextOffset)
		}
	})
	promised.next[tp] = base + int64(b.LastOffsetDelta()) + 1
	go a.answer(proxy.AppendResult{BaseOffset: base, LogStartOffset: -1})
}
