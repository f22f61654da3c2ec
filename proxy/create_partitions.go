package proxy

import (
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// CreatePartitions 0 to 3.
//
// The count is raised in the catalog; the answer comes when the groups have
// opened the new partitions. A manual assignment is checked for form only, for
// every node holds every partition.

func handleCreatePartitions(r *request) error {
	req, err := parse[*kmsg.CreatePartitionsRequest](r)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	count := make(map[string]int, len(req.Topics))
	for _, t := range req.Topics {
		count[t.Topic]++
	}
	resp := kmsg.NewPtrCreatePartitionsResponse()
	resp.Topics = make([]kmsg.CreatePartitionsResponseTopic, len(req.Topics))
	ctx, cancel := r.adminContext(req.TimeoutMillis)
	defer cancel()
	names := make([]string, 0, len(req.Topics))
	for _, t := range req.Topics {
		names = append(names, t.Topic)
	}
	denied := r.mayTopics(ctx, opAlter, names, kerr.NotController.Code)
	r.eachTopic(len(req.Topics), func(i int) {
		t := &req.Topics[i]
		rt := kmsg.NewCreatePartitionsResponseTopic()
		rt.Topic = t.Topic
		p := checkNewPartitions(v, t)
		if code := denied[t.Topic]; code == kerr.TopicAuthorizationFailed.Code || code != 0 && p == nil {
			p = &KafkaError{code, deniedMessage(code)}
		}
		if count[t.Topic] > 1 {
			p = problem(kerr.InvalidRequest, "the request names this topic more than once")
		}
		if p == nil && !req.ValidateOnly {
			if err := r.c.srv.cluster.CreatePartitions(ctx, t.Topic, t.Count); err != nil {
				code, msg := errorCode(err)
				p = &KafkaError{code, msg}
			}
		}
		if p != nil {
			rt.ErrorCode, rt.ErrorMessage = p.Code, kmsg.StringPtr(p.Message)
		}
		resp.Topics[i] = rt
	})
	// A name that is asked for twice is answered once, as in Kafka.
	resp.Topics = onceEach(resp.Topics, func(t *kmsg.CreatePartitionsResponseTopic) string { return t.Topic })
	r.reply(resp)
	return nil
}

// checkNewPartitions says what is wrong with raising a topic's count
// (ReplicationControlManager.createPartitions).
func checkNewPartitions(v *View, t *kmsg.CreatePartitionsRequestTopic) *KafkaError {
	topic := v.Topics[t.Topic]
	if topic == nil {
		code, msg := missingTopicAdminCode(v)
		return &KafkaError{code, msg}
	}
	have := int32(len(topic.Partitions))
	switch {
	case t.Count < have:
		return problem(kerr.InvalidPartitions, "the topic has %d partitions; the number cannot be lowered to %d", have, t.Count)
	case t.Count == have:
		return problem(kerr.InvalidPartitions, "the topic already has %d partitions", have)
	case t.Count-have > maxNewPartitions:
		return problem(kerr.PolicyViolation, "one request may create %d partitions", maxNewPartitions)
	}
	if t.Assignment == nil {
		return nil
	}
	if int32(len(t.Assignment)) != t.Count-have {
		return problem(kerr.InvalidReplicaAssignment, "the assignment has %d entries for %d new partitions", len(t.Assignment), t.Count-have)
	}
	for i, a := range t.Assignment {
		if msg := replicasProblem(v, a.Replicas); msg != "" {
			return problem(kerr.InvalidReplicaAssignment, "new partition %d: %s", i, msg)
		}
	}
	return nil
}
