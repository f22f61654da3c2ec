package proxy

import (
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Metadata 0 to 9 (10 carries topic ids, which are random on every broker).
//
// Everything is made from the View, nothing from the broker. Deviations from
// Kafka: leader epochs are -1, for the brokers' epochs are unrelated; before
// this node has heard from the catalog's leader an unknown topic is answered
// LEADER_NOT_AVAILABLE, which clients retry; a topic just created is shown with its
// leaders when they are there within autoCreateWait. What the client may see is
// the broker's to say: while it does not, topics are LEADER_NOT_AVAILABLE, and the
// client is sent away, unanswered if it knows topics.

func handleMetadata(r *request) error {
	req, err := parse[*kmsg.MetadataRequest](r)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	names, all := metadataNames(r.h.Version, req)
	if all {
		for name := range v.Topics {
			names = append(names, name)
		}
		slices.Sort(names)
	}
	// A list of all topics without those of which the broker does not say whether
	// the client may see them would be a lie about topics that are there.
	unsure := kerr.LeaderNotAvailable.Code
	err = r.learnTopics(r.c.ctx, names)
	silent := r.silence(err)
	switch {
	case silent != nil && (all || r.c.shown || !upstreamFault(silent)):
		// Topics that the client knows keep their leaders in its memory if it is
		// not answered, and it asks another node; told LEADER_NOT_AVAILABLE it
		// would forget them. Who has been told nothing yet must be answered: some
		// clients take that for a broker that is none.
		return r.c.srv.unanswered(r, silent)
	case silent == nil && err != nil:
		unsure = 0
	}
	r.c.shown = r.c.shown || silent == nil && len(names) > 0
	hidden := r.hidden(opDescribe, names, unsure)
	if all && unsure != 0 && slices.ContainsFunc(names, func(name string) bool { return hidden[name] == unsure }) {
		return r.c.srv.unanswered(r, fmt.Errorf("%w: not what the client may do with a topic", errUpstreamGarbage))
	}
	// Before version 4 there was no way to say no.
	created := map[string]error{}
	if !all && v.CatalogReady && r.c.srv.cfg.Topics.AutoCreate && (r.h.Version < 4 || req.AllowAutoTopicCreation) {
		created = r.autoCreate(slices.DeleteFunc(missingTopics(v, names), func(name string) bool { return hidden[name] != 0 }))
		v = r.c.srv.cluster.View()
	}

	resp := kmsg.NewPtrMetadataResponse()
	nodes := liveNodes(v, r.c.listener)
	for _, n := range v.Nodes {
		ep, ok := nodes[n.ID]
		if !ok {
			continue
		}
		b := kmsg.NewMetadataResponseBroker()
		b.NodeID, b.Host, b.Port = n.ID, ep.Host, ep.Port
		if n.Rack != "" {
			b.Rack = kmsg.StringPtr(n.Rack)
		}
		resp.Brokers = append(resp.Brokers, b)
	}
	resp.ClusterID = kmsg.StringPtr(v.ClusterID)
	resp.ControllerID = v.Controller
	if _, ok := nodes[v.Controller]; !ok {
		resp.ControllerID = -1
	}
	resp.AuthorizedOperations = noOperations
	if req.IncludeClusterAuthorizedOperations {
		if resp.AuthorizedOperations, err = r.clusterAccess(r.c.ctx); err != nil {
			return r.c.srv.unanswered(r, err)
		}
	}
	resp.Topics = make([]kmsg.MetadataResponseTopic, 0, len(names))
	for _, name := range names {
		if hidden[name] != 0 {
			if !all {
				resp.Topics = append(resp.Topics, unseenTopic(name, hidden[name]))
			}
			continue
		}
		t := metadataTopic(v, nodes, name, created)
		if req.IncludeTopicAuthorizedOperations && t.ErrorCode != kerr.TopicAuthorizationFailed.Code {
			t.AuthorizedOperations = r.topicOperations(name)
		}
		resp.Topics = append(resp.Topics, t)
	}
	r.replySized(resp, nil, metadataSize(resp))
	if silent != nil {
		return r.sendAway(silent)
	}
	return nil
}

// metadataSize is about how many bytes an answer takes, so that a large one is
// not copied again and again while it grows.
func metadataSize(resp *kmsg.MetadataResponse) int {
	n := 1 << 10
	for i := range resp.Topics {
		t := &resp.Topics[i]
		n += 32 + len(*t.Topic)
		for j := range t.Partitions {
			p := &t.Partitions[j]
			n += 28 + 4*(len(p.Replicas)+len(p.ISR)+len(p.OfflineReplicas))
		}
	}
	return n
}

// autoCreate brings topics into being that the client may create, and returns
// the outcomes.
func (r *request) autoCreate(names []string) map[string]error {
	if len(names) == 0 {
		return nil
	}
	denied := r.mayCreate(r.c.ctx, names)
	created := r.c.srv.auto.ensure(r.c.ctx, slices.DeleteFunc(names, func(name string) bool { return denied[name] != nil }))
	for name, p := range denied {
		created[name] = p
	}
	return created
}

// unseenTopic is what a client is told of a topic that it may not describe, or of
// which the broker does not say whether it may.
func unseenTopic(name string, code int16) kmsg.MetadataResponseTopic {
	mt := kmsg.NewMetadataResponseTopic()
	mt.Topic = kmsg.StringPtr(name)
	mt.AuthorizedOperations = noOperations
	mt.ErrorCode = code
	return mt
}

// metadataNames returns the topics asked for, each once, or that all are.
func metadataNames(version int16, req *kmsg.MetadataRequest) (names []string, all bool) {
	if req.Topics == nil || version == 0 && len(req.Topics) == 0 {
		return nil, true
	}
	seen := make(map[string]bool, len(req.Topics))
	for _, t := range req.Topics {
		name := ""
		if t.Topic != nil {
			name = *t.Topic
		}
		if !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names, false
}

func missingTopics(v *View, names []string) []string {
	var missing []string
	for _, name := range names {
		if v.Topics[name] == nil && topicNameProblem(name) == "" && !isInternalTopic(name) {
			missing = append(missing, name)
		}
	}
	return missing
}

func metadataTopic(v *View, nodes map[int32]Endpoint, name string, created map[string]error) kmsg.MetadataResponseTopic {
	mt := kmsg.NewMetadataResponseTopic()
	mt.Topic = kmsg.StringPtr(name)
	mt.AuthorizedOperations = noOperations
	t := v.Topics[name]
	if t == nil {
		mt.ErrorCode = missingTopicCode(v, name, created)
		return mt
	}
	mt.Partitions = make([]kmsg.MetadataResponseTopicPartition, 0, len(t.Partitions))
	for i, p := range t.Partitions {
		mp := kmsg.NewMetadataResponseTopicPartition()
		mp.Partition, mp.Leader, mp.LeaderEpoch = int32(i), p.Leader, -1
		if _, ok := nodes[p.Leader]; !ok {
			mp.Leader, mp.ErrorCode = -1, kerr.LeaderNotAvailable.Code
		}
		mp.Replicas, mp.ISR = p.Replicas, p.ISR // the view's, which nobody changes
		for _, id := range p.Replicas {
			if !isAlive(v, id) {
				mp.OfflineReplicas = append(mp.OfflineReplicas, id)
			}
		}
		mt.Partitions = append(mt.Partitions, mp)
	}
	return mt
}

func missingTopicCode(v *View, name string, created map[string]error) int16 {
	if topicNameProblem(name) != "" {
		return kerr.InvalidTopicException.Code
	}
	if err, tried := created[name]; tried {
		var ke *KafkaError
		if errors.As(err, &ke) && ke.Code != kerr.TopicAlreadyExists.Code {
			return ke.Code
		}
		return kerr.LeaderNotAvailable.Code
	}
	if !v.CatalogReady {
		return kerr.LeaderNotAvailable.Code
	}
	return kerr.UnknownTopicOrPartition.Code
}

func isAlive(v *View, id int32) bool {
	for _, n := range v.Nodes {
		if n.ID == id {
			return n.Alive || id == v.Self
		}
	}
	return false
}
