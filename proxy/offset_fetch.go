package proxy

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// OffsetFetch 1 to 9 (10 carries topic ids). The coordinator's broker says what
// the client may see; what it shows is taken from the catalog, behind a read
// barrier. From version 8 on a request may name several groups, and those of
// other nodes are answered NOT_COORDINATOR. Committed leader epochs are -1.
// Deviation from Kafka: a coordinator that is not available is answered as
// NOT_COORDINATOR here, for it is the one code after which every client looks
// for another.

func handleOffsetFetch(r *request) error {
	req, err := parse[*kmsg.OffsetFetchRequest](r)
	if err != nil {
		return err
	}
	if r.h.Version >= 8 {
		return fetchOffsetsOfGroups(r, req)
	}
	if code := fetchCode(coordinatorCode(r.c.srv.cluster.View(), req.Group)); code != 0 {
		r.reply(offsetFetchError(r.h.Version, req, code))
		return nil
	}
	ask(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(resp *kmsg.OffsetFetchResponse, held *lease, err error) {
		if err != nil {
			r.reply(offsetFetchError(r.h.Version, req, fetchCode(r.coordinatorFailed(req.Group, err))))
			return
		}
		if unheardOf(&resp.ErrorCode) {
			resp.Topics = nothingOf(req.Topics)
		}
		if resp.ErrorCode != 0 {
			r.replyHolding(resp, held)
			return
		}
		r.apart(func(ctx context.Context) {
			committed, err := r.c.srv.cluster.Committed(ctx, []string{req.Group})
			if err == nil && req.Topics == nil {
				resp.Topics, err = r.allCommitted(req, resp.Topics, committed[req.Group])
			}
			if err != nil {
				held.release()
				r.reply(offsetFetchError(r.h.Version, req, fetchCode(catalogCode(err))))
				return
			}
			showCommitted(resp.Topics, committed[req.Group])
			r.replyHolding(resp, held)
		})
	})
	return nil
}

// unheardOf says whether the broker does not know the group, and clears its
// code: Kafka shows such a group as one that has committed nothing, and so do we.
func unheardOf(code *int16) bool {
	if *code != kerr.GroupIDNotFound.Code {
		return false
	}
	*code = 0
	return true
}

// nothingOf is Kafka's answer about a group that has committed nothing.
func nothingOf(asked []kmsg.OffsetFetchRequestTopic) []kmsg.OffsetFetchResponseTopic {
	out := make([]kmsg.OffsetFetchResponseTopic, len(asked))
	for i, t := range asked {
		out[i] = kmsg.NewOffsetFetchResponseTopic()
		out[i].Topic = t.Topic
		for _, n := range t.Partitions {
			p := kmsg.NewOffsetFetchResponseTopicPartition()
			p.Partition = n
			out[i].Partitions = append(out[i].Partitions, p)
		}
	}
	return out
}

// fetchCode is the code that clients understand in an OffsetFetch.
func fetchCode(code int16) int16 {
	if code == kerr.CoordinatorNotAvailable.Code {
		return kerr.NotCoordinator.Code
	}
	return code
}

// offsetFetchError is the answer up to version 7. Version 1 has no error of
// the whole, so every partition carries it.
func offsetFetchError(version int16, req *kmsg.OffsetFetchRequest, code int16) *kmsg.OffsetFetchResponse {
	resp := kmsg.NewPtrOffsetFetchResponse()
	resp.ErrorCode = code
	if version >= 2 {
		return resp
	}
	for _, t := range req.Topics {
		rt := kmsg.NewOffsetFetchResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetFetchResponseTopicPartition()
			rp.Partition, rp.Offset, rp.LeaderEpoch, rp.ErrorCode = p, -1, -1, code
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

// showCommitted puts what is committed into the partitions that the broker
// would show.
func showCommitted(topics []kmsg.OffsetFetchResponseTopic, committed []CommittedOffset) {
	at := make(map[topicPartition]*CommittedOffset, len(committed))
	for i := range committed {
		at[topicPartition{committed[i].Topic, committed[i].Partition}] = &committed[i]
	}
	for i := range topics {
		for j := range topics[i].Partitions {
			p := &topics[i].Partitions[j]
			p.Offset, p.LeaderEpoch, p.Metadata = -1, -1, kmsg.StringPtr("")
			if c := at[topicPartition{topics[i].Topic, p.Partition}]; c != nil && p.ErrorCode == 0 {
				p.Offset, p.Metadata = c.Offset, kmsg.StringPtr(c.Metadata)
			}
		}
	}
}

// allCommitted is the answer about all topics of a group: what is committed, as
// far as the client may see the topics. The broker has shown some of them and
// is asked about those that it has no offsets of.
func (r *request) allCommitted(req *kmsg.OffsetFetchRequest, shown []kmsg.OffsetFetchResponseTopic, committed []CommittedOffset) ([]kmsg.OffsetFetchResponseTopic, error) {
	visible := make(map[string]bool)
	for _, t := range shown {
		visible[t.Topic] = true
	}
	var unsure []string
	partitions := make(map[string][]int32)
	for _, c := range committed {
		if _, seen := partitions[c.Topic]; !seen && !visible[c.Topic] {
			unsure = append(unsure, c.Topic)
		}
		partitions[c.Topic] = append(partitions[c.Topic], c.Partition)
	}
	if len(unsure) > 0 {
		if err := r.mayFetch(req, unsure, visible); err != nil {
			return nil, err
		}
	}
	out := []kmsg.OffsetFetchResponseTopic{}
	for topic, numbers := range partitions {
		if !visible[topic] {
			continue
		}
		t := kmsg.NewOffsetFetchResponseTopic()
		t.Topic = topic
		for _, n := range numbers {
			p := kmsg.NewOffsetFetchResponseTopicPartition()
			p.Partition = n
			t.Partitions = append(t.Partitions, p)
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b kmsg.OffsetFetchResponseTopic) int { return strings.Compare(a.Topic, b.Topic) })
	return out, nil
}

// mayFetch asks the broker which topics the client may see, by the same request
// with these topics named. all is the request, about one group if it can name
// several.
func (r *request) mayFetch(all *kmsg.OffsetFetchRequest, topics []string, visible map[string]bool) error {
	req := *all
	req.Topics, req.Groups = nil, nil
	for _, name := range topics {
		t := kmsg.NewOffsetFetchRequestTopic()
		t.Topic, t.Partitions = name, []int32{0}
		req.Topics = append(req.Topics, t)
	}
	if r.h.Version >= 8 {
		g := all.Groups[0]
		g.Topics = nil
		for _, t := range req.Topics {
			gt := kmsg.NewOffsetFetchRequestGroupTopic()
			gt.Topic, gt.Partitions = t.Topic, t.Partitions
			g.Topics = append(g.Topics, gt)
		}
		req.Groups = []kmsg.OffsetFetchRequestGroup{g}
	}
	resp, held, err := askAndWait[*kmsg.OffsetFetchResponse](r, &req)
	if err != nil {
		return err
	}
	defer held.release()
	answered, code := resp.Topics, resp.ErrorCode
	for _, g := range resp.Groups {
		answered, code = plainTopics(g.Topics), g.ErrorCode
	}
	if unheardOf(&code) {
		answered = nothingOf(req.Topics)
	}
	if code != 0 {
		return &KafkaError{Code: code}
	}
	for _, t := range answered {
		visible[t.Topic] = len(t.Partitions) > 0 && t.Partitions[0].ErrorCode == 0
	}
	return nil
}

func fetchOffsetsOfGroups(r *request, req *kmsg.OffsetFetchRequest) error {
	v := r.c.srv.cluster.View()
	resp := kmsg.NewPtrOffsetFetchResponse()
	refuse := func(group string, code int16) {
		g := kmsg.NewOffsetFetchResponseGroup()
		g.Group, g.ErrorCode = group, fetchCode(code)
		resp.Groups = append(resp.Groups, g)
	}
	ours := req.Groups[:0:0]
	for _, g := range req.Groups {
		// Members of KIP-848 groups name themselves, and there are none here.
		g.MemberID, g.MemberEpoch = nil, -1
		if code := coordinatorCode(v, g.Group); code != 0 {
			refuse(g.Group, code)
			continue
		}
		ours = append(ours, g)
	}
	if req.Groups = ours; len(ours) == 0 {
		r.reply(resp)
		return nil
	}
	ask(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(got *kmsg.OffsetFetchResponse, held *lease, err error) {
		if err != nil {
			for _, g := range ours {
				refuse(g.Group, r.coordinatorFailed(g.Group, err))
			}
			r.reply(resp)
			return
		}
		r.apart(func(ctx context.Context) {
			for _, g := range r.committedOfGroups(ctx, req, got.Groups) {
				if g.ErrorCode != 0 {
					refuse(g.Group, g.ErrorCode)
					continue
				}
				resp.Groups = append(resp.Groups, g)
			}
			r.replyHolding(resp, held)
		})
	})
	return nil
}

// committedOfGroups puts what is committed into what the broker has answered.
func (r *request) committedOfGroups(ctx context.Context, req *kmsg.OffsetFetchRequest, got []kmsg.OffsetFetchResponseGroup) []kmsg.OffsetFetchResponseGroup {
	asked := make(map[string]kmsg.OffsetFetchRequestGroup)
	for _, g := range req.Groups {
		asked[g.Group] = g
	}
	committed, err := r.c.srv.cluster.Committed(ctx, slices.Collect(maps.Keys(asked)))
	for i := range got {
		g := &got[i]
		one := asked[g.Group]
		if unheardOf(&g.ErrorCode) {
			g.Topics = groupTopics(nothingOf(askedTopics(one.Topics)))
		}
		if g.ErrorCode != 0 {
			continue
		}
		topics, err := plainTopics(g.Topics), err
		if err == nil && one.Topics == nil {
			alone := *req
			alone.Groups = []kmsg.OffsetFetchRequestGroup{one}
			topics, err = r.allCommitted(&alone, topics, committed[g.Group])
		}
		if err != nil {
			g.Topics, g.ErrorCode = nil, catalogCode(err)
			continue
		}
		showCommitted(topics, committed[g.Group])
		g.Topics = groupTopics(topics)
	}
	return got
}

func askedTopics(in []kmsg.OffsetFetchRequestGroupTopic) []kmsg.OffsetFetchRequestTopic {
	out := make([]kmsg.OffsetFetchRequestTopic, len(in))
	for i, t := range in {
		out[i].Topic, out[i].Partitions = t.Topic, t.Partitions
	}
	return out
}

// plainTopics and groupTopics turn one form of the same answer into the other.
func plainTopics(in []kmsg.OffsetFetchResponseGroupTopic) []kmsg.OffsetFetchResponseTopic {
	out := make([]kmsg.OffsetFetchResponseTopic, len(in))
	for i, t := range in {
		out[i] = kmsg.NewOffsetFetchResponseTopic()
		out[i].Topic = t.Topic
		for _, p := range t.Partitions {
			out[i].Partitions = append(out[i].Partitions, kmsg.OffsetFetchResponseTopicPartition(p))
		}
	}
	return out
}

func groupTopics(in []kmsg.OffsetFetchResponseTopic) []kmsg.OffsetFetchResponseGroupTopic {
	out := make([]kmsg.OffsetFetchResponseGroupTopic, len(in))
	for i, t := range in {
		out[i] = kmsg.NewOffsetFetchResponseGroupTopic()
		out[i].Topic = t.Topic
		for _, p := range t.Partitions {
			out[i].Partitions = append(out[i].Partitions, kmsg.OffsetFetchResponseGroupTopicPartition(p))
		}
	}
	return out
}
