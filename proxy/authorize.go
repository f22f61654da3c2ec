package proxy

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// What is replicated is done with the node's own rights, so the broker is asked
// first what the client may do: by a Metadata request on the client's own
// connection, where the broker's authorizer judges the client's principal
// (KIP-430). The answer is kept for accessFor, per connection: a right that is
// taken away ends within that time.

// accessFor is how long the broker's word on a topic is good.
const accessFor = 5 * time.Second

// accessWait is how long the broker may take to say it: Metadata waits for that.
const accessWait = 5 * time.Second

// maxAccess bounds the topics that a connection remembers.
const maxAccess = 1024

// Operations as bits of Kafka's authorized operations: one by its ACL code.
const (
	opWrite    = 1 << 4
	opDelete   = 1 << 6
	opAlter    = 1 << 7
	opDescribe = 1 << 8
)

// access is what a client may do with a topic.
type access struct {
	ops   int32
	code  int16 // in place of ops: what the broker answered
	until time.Time
}

// mayTopics returns, for each topic that the client may not do op with, the
// error it is to be told: TOPIC_AUTHORIZATION_FAILED, or unsure where the
// broker does not say. It is called from the connection's reader.
func (r *request) mayTopics(ctx context.Context, op int32, topics []string, unsure int16) map[string]int16 {
	if !r.brokerAuthorizes() || len(topics) == 0 {
		return nil
	}
	now := time.Now()
	var missing []string
	for _, name := range topics {
		if a, ok := r.c.access[name]; !ok || now.After(a.until) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		r.learnAccess(ctx, missing, now.Add(accessFor))
	}
	denied := make(map[string]int16)
	for _, name := range topics {
		a, ok := r.c.access[name]
		switch {
		case !ok || a.code != 0 && a.code != kerr.TopicAuthorizationFailed.Code:
			if unsure != 0 {
				denied[name] = unsure
			}
			delete(r.c.access, name) // asked again next time
		case a.code != 0 || a.ops&op == 0:
			denied[name] = kerr.TopicAuthorizationFailed.Code
		}
	}
	return denied
}

// topicOperations is what the client may do with a topic, in Kafka's bits.
func (r *request) topicOperations(name string) int32 {
	if a, ok := r.c.access[name]; ok && a.code == 0 {
		return a.ops
	}
	return topicOperations
}

// mayCreate returns why the client may not create topics of those names, for
// each that it may not. The broker judges a request that only validates: it
// looks at the cluster's rights and at the topic's (and at create.topic.policy).
func (r *request) mayCreate(ctx context.Context, topics []string) map[string]*KafkaError {
	if !r.brokerAuthorizes() || len(topics) == 0 {
		return nil
	}
	req := kmsg.NewPtrCreateTopicsRequest()
	req.SetVersion(2)
	req.TimeoutMillis, req.ValidateOnly = int32(r.c.srv.cfg.Limits.UpstreamTimeout/time.Millisecond), true
	denied := make(map[string]*KafkaError)
	for _, name := range topics {
		if denied[name] != nil {
			continue // once each
		}
		denied[name] = unjudged
		t := kmsg.NewCreateTopicsRequestTopic()
		t.Topic, t.NumPartitions, t.ReplicationFactor = name, 1, 1
		req.Topics = append(req.Topics, t)
	}
	ctx, cancel := context.WithTimeout(ctx, min(r.c.srv.cfg.Limits.UpstreamTimeout, accessWait))
	defer cancel()
	resp, err := query[*kmsg.CreateTopicsResponse](ctx, r, req)
	if err != nil {
		r.noteUpstream(err)
		return denied
	}
	for _, t := range resp.Topics {
		switch t.ErrorCode {
		case kerr.TopicAuthorizationFailed.Code, kerr.ClusterAuthorizationFailed.Code, kerr.PolicyViolation.Code:
			denied[t.Topic] = answeredProblem(t.ErrorCode, t.ErrorMessage)
		default:
			if afterRights[t.ErrorCode] {
				delete(denied, t.Topic) // it may; what else is wrong is for us to say
			}
		}
	}
	return denied
}

// afterRights are the answers to CreateTopics that a broker gives only when it
// has looked at the client's rights (ControllerApis.createTopics and
// ReplicationControlManager; AutoTopicCreationManager). Others, such as
// NOT_CONTROLLER of a broker that has not joined yet, say nothing about them.
var afterRights = map[int16]bool{
	0:                                  true,
	kerr.TopicAlreadyExists.Code:       true,
	kerr.InvalidTopicException.Code:    true,
	kerr.InvalidPartitions.Code:        true,
	kerr.InvalidReplicationFactor.Code: true,
	kerr.InvalidReplicaAssignment.Code: true,
	kerr.InvalidConfig.Code:            true,
	kerr.InvalidRequest.Code:           true,
	kerr.ThrottlingQuotaExceeded.Code:  true,
}

func (r *request) brokerAuthorizes() bool {
	may := r.c.srv.cfg.BrokerAuthorizes
	return may == nil || may()
}

// deniedMessage is for people.
func deniedMessage(code int16) string {
	if code == kerr.TopicAuthorizationFailed.Code {
		return kerr.TopicAuthorizationFailed.Description
	}
	return unjudged.Message
}

// deniedOr is the error of a topic that the client may not use, or else what is
// wrong with the request itself, or else that the broker does not say.
func deniedOr(denied, wrong int16) int16 {
	if denied == kerr.TopicAuthorizationFailed.Code || wrong == 0 {
		return denied
	}
	return wrong
}

// learnAccess asks the broker about topics.
func (r *request) learnAccess(ctx context.Context, topics []string, until time.Time) {
	if r.c.access == nil || len(r.c.access)+len(topics) > maxAccess {
		r.c.access = make(map[string]access)
	}
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(8)
	req.Topics = []kmsg.MetadataRequestTopic{}
	req.IncludeTopicAuthorizedOperations = true
	for _, name := range topics {
		delete(r.c.access, name)
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, t)
	}
	ctx, cancel := context.WithTimeout(ctx, min(r.c.srv.cfg.Limits.UpstreamTimeout, accessWait))
	defer cancel()
	resp, err := query[*kmsg.MetadataResponse](ctx, r, req)
	if err != nil {
		r.noteUpstream(err)
		return
	}
	for _, t := range resp.Topics {
		if t.Topic != nil {
			r.c.access[*t.Topic] = access{t.AuthorizedOperations, t.ErrorCode, until}
		}
	}
}
