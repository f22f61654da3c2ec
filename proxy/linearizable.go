package proxy

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
)

// With LinearizableReads, who is told where a log ends is told of everything
// that was acknowledged before it asked, by any node (ReadIndex, Raft section
// 6.4). Records that are there need no confirmation: none is in a broker's log
// that was not committed.

// confirm gives NOT_LEADER_OR_FOLLOWER to the partitions whose end the client
// is about to be told and whose leadership a majority does not confirm. It is
// called from the connection's reader.
func (f *fetching) confirm() {
	srv := f.r.c.srv
	if !srv.cfg.LinearizableReads {
		return
	}
	ctx, cancel := context.WithTimeout(f.r.c.ctx, endOffsetTimeout)
	defer cancel()
	var atEnd []*fetchPart
	var ask []TopicPartition
	for i := range f.parts {
		p := &f.parts[i]
		if p.code != 0 {
			continue
		}
		if end, err := srv.cluster.EndOffset(ctx, p.topic, p.partition, false); err == nil && p.offset < end {
			continue // it gets records
		}
		atEnd = append(atEnd, p)
		ask = append(ask, TopicPartition{p.topic.ID, p.partition})
	}
	for i, confirmed := range f.r.confirmed(ctx, ask) {
		if !confirmed {
			atEnd[i].code = kerr.NotLeaderForPartition.Code
		}
	}
}

// confirmed asks about partitions, if there are any.
func (r *request) confirmed(ctx context.Context, partitions []TopicPartition) []bool {
	if len(partitions) == 0 {
		return nil
	}
	return r.c.srv.cluster.Confirmed(ctx, partitions)
}
