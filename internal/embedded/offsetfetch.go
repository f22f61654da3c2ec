package embedded

import (
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// kfake answers OffsetFetch of an unknown group with GROUP_ID_NOT_FOUND where
// Kafka says "nothing committed" (offset -1, no error); clients that fetch
// before they ever commit break on it. The answer here goes through a kept
// kfake control, which remembers the last request of every connection for
// ever: a small leak per connection that a demo can bear.
//
// A control answers a request as a whole, so a request for several groups is
// only answered here when all of them are unknown.

// allUnknown runs on kfake's own goroutine.
func allUnknown(cluster *kfake.Cluster, req *kmsg.OffsetFetchRequest) bool {
	if req.Version <= 7 {
		return cluster.GroupInfo(req.Group) == nil
	}
	for _, g := range req.Groups {
		if cluster.GroupInfo(g.Group) != nil {
			return false
		}
	}
	return true
}

// nothingCommitted answers offset -1 for everything asked. A null list of
// topics asks for what is committed: an empty list.
func nothingCommitted(req *kmsg.OffsetFetchRequest) *kmsg.OffsetFetchResponse {
	resp := req.ResponseKind().(*kmsg.OffsetFetchResponse)
	for _, t := range req.Topics { // up to v7
		rt := kmsg.NewOffsetFetchResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetFetchResponseTopicPartition()
			rp.Partition, rp.Offset, rp.LeaderEpoch = p, -1, -1
			rp.Metadata = kmsg.StringPtr("")
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	for _, g := range req.Groups { // from v8
		rg := kmsg.NewOffsetFetchResponseGroup()
		rg.Group = g.Group
		for _, t := range g.Topics {
			rt := kmsg.NewOffsetFetchResponseGroupTopic()
			rt.Topic, rt.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				rp := kmsg.NewOffsetFetchResponseGroupTopicPartition()
				rp.Partition, rp.Offset, rp.LeaderEpoch = p, -1, -1
				rp.Metadata = kmsg.StringPtr("")
				rt.Partitions = append(rt.Partitions, rp)
			}
			rg.Topics = append(rg.Topics, rt)
		}
		resp.Groups = append(resp.Groups, rg)
	}
	return resp
}
