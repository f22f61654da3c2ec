package proxy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// What is replicated is done with the node's own rights, and what is answered from
// replicated state is not the broker's, so the broker is asked first what the
// client may do: by a Metadata request on the client's own connection, where the
// broker's authorizer judges the client's principal (KIP-430). The answer is kept
// for accessFor, per connection: a right that is taken away ends within that time.

// accessFor is how long the broker's word on a topic is good.
const accessFor = 5 * time.Second

// maxAccess bounds the topics that a connection remembers.
const maxAccess = 1024

// Operations as bits of Kafka's authorized operations: one by its ACL code.
const (
	opRead            = 1 << 3
	opWrite           = 1 << 4
	opDelete          = 1 << 6
	opAlter           = 1 << 7
	opDescribe        = 1 << 8
	opDescribeConfigs = 1 << 10
)

// access is what a client may do with a topic, or with the cluster.
type access struct {
	ops   int32
	code  int16 // what else the broker answered
	until time.Time
}

// denied says whether the client may not do op, and whether that is known. Of a
// topic that is not there, or not yet, Kafka tells the rights all the same.
func (a access) denied(op int32) (denied, known bool) {
	switch a.code {
	case kerr.TopicAuthorizationFailed.Code:
		return true, true
	case 0:
		return a.ops&op == 0, true
	case kerr.UnknownTopicOrPartition.Code, kerr.LeaderNotAvailable.Code:
		return a.ops&op == 0, a.ops != noOperations
	}
	return false, false
}

// mayTopics returns, for each topic that the client may not do op with, the
// error it is to be told: TOPIC_AUTHORIZATION_FAILED, or unsure where the
// broker does not say. It is called from the connection's reader.
func (r *request) mayTopics(ctx context.Context, op int32, topics []string, unsure int16) map[string]int16 {
	if !r.judged || len(topics) == 0 {
		return nil
	}
	if err := r.learnTopics(ctx, topics); err != nil {
		r.noteUpstream(err)
	}
	return r.hidden(op, topics, unsure)
}

// hidden is mayTopics for topics about which the broker has been asked.
func (r *request) hidden(op int32, topics []string, unsure int16) map[string]int16 {
	if !r.judged {
		return nil
	}
	denied := make(map[string]int16)
	for _, name := range topics {
		a, ok := r.c.access[name]
		no, known := a.denied(op)
		switch {
		case !ok || !known:
			denied[name] = unsure
			delete(r.c.access, name) // asked again next time
		case no:
			denied[name] = kerr.TopicAuthorizationFailed.Code
		}
	}
	return denied
}

// topicOperations is what the client may do with a topic, in Kafka's bits. The
// broker has been asked.
func (r *request) topicOperations(name string) int32 {
	if a, ok := r.c.access[name]; ok && r.judged {
		return a.ops
	}
	return topicOperations
}

// silence returns the error with which the broker did not say what the client may
// do, or nil if it is not known to tell clients apart: a node that has just been
// started before its broker still shows the way to the others.
func (r *request) silence(err error) error {
	judges := r.c.srv.cfg.BrokerJudges
	if err == nil || judges == nil || judges() {
		return err
	}
	r.noteUpstream(err)
	return nil
}

// clusterAccess is what the client may do with the cluster, in Kafka's bits. Who
// may not describe it is told 0.
func (r *request) clusterAccess(ctx context.Context) (int32, error) {
	if !r.judged {
		return clusterOperations, nil
	}
	if time.Now().Before(r.c.cluster.until) {
		return r.c.cluster.ops, nil
	}
	req := noTopics()
	req.IncludeClusterAuthorizedOperations = true
	until := time.Now().Add(accessFor)
	resp, err := askRights[*kmsg.MetadataResponse](ctx, r, req)
	if err != nil {
		return clusterOperations, r.silence(err)
	}
	r.c.cluster = access{ops: resp.AuthorizedOperations, until: until}
	return resp.AuthorizedOperations, nil
}

// letIn asks, before a connection's first request is answered, whether the broker
// answers this client at all, where its listener may be one on which clients must
// authenticate. It is the broker who says so: a client that it hangs up on is hung
// up on here, and so is one whose broker is down.
func (r *request) letIn() error {
	// ApiVersions is answered to anybody, but not in the middle of an exchange.
	free := authenticates(r.h.Key) && (r.h.Key != int16(kmsg.ApiVersions) || r.c.mechanism == "")
	if r.c.letIn || !r.c.srv.cfg.BrokerAuthenticates || free {
		return nil
	}
	srv := r.c.srv
	resp, err := askRights[*kmsg.MetadataResponse](r.c.ctx, r, noTopics())
	if err == nil && resp.ClusterID == nil && len(resp.Brokers) == 0 {
		// An empty answer is Kafka's ILLEGAL_SASL_STATE, for which Metadata has
		// no place: the client is half through an exchange.
		err = errNotLoggedIn
	}
	if err != nil {
		switch {
		case r.c.ctx.Err() != nil:
			return err
		case r.c.mechanism == "" && errors.Is(err, errUpstreamUnreachable) && srv.openListener.Load():
			return nil // it is down, and asked no one to authenticate while it was up
		}
		return &violation{"the broker does not answer this client", fmt.Errorf("%s: %w; "+
			"a client that has not authenticated must set security.protocol to SASL_PLAINTEXT or SASL_SSL and a mechanism, unless the broker at %s is down", r.api.Name, err, srv.cfg.Upstream)}
	}
	r.c.letIn = true
	if r.c.mechanism == "" {
		srv.openListener.Store(true)
	}
	return nil
}

// errNotLoggedIn is the cause when the broker refuses a client that has begun to
// authenticate.
var errNotLoggedIn = errors.New("authentication is not finished")

// noTopics is a Metadata request about nothing, which needs no right.
func noTopics() *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(8)
	req.Topics = []kmsg.MetadataRequestTopic{} // null would be all
	return req
}

// sendAway ends the connection after the answer that was just given, which clients
// retry: at another node, for many ask the node again that they are connected to,
// and this one's broker does not say what they may do.
func (r *request) sendAway(silent error) error {
	r.noteUpstream(silent)
	return fmt.Errorf("%w: %w", errSentAway, silent)
}

// errSentAway is the cause when a client is to look for another node.
var errSentAway = errors.New("the client shall ask another node")

// askRights is query for what the broker can say at once. Behind other requests that
// wait for the broker, a long poll among them, the answer takes its time, and with
// a poll that is ended because leadership moved, the connection to the broker is
// ended under the question, which is asked once more.
func askRights[T kmsg.Response](ctx context.Context, r *request, req kmsg.Request) (T, error) {
	wait := r.c.srv.cfg.Limits.UpstreamTimeout
	if !r.c.up.busy() {
		wait = min(wait, r.c.srv.cfg.Limits.RightsTimeout)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	resp, err := query[T](ctx, r, req)
	if errors.Is(err, errLeadershipLost) && ctx.Err() == nil {
		resp, err = query[T](ctx, r, req)
	}
	return resp, err
}

// mayCreate returns why the client may not create topics of those names, for
// each that it may not. The broker judges a request that only validates: it
// looks at the cluster's rights and at the topic's (and at create.topic.policy).
func (r *request) mayCreate(ctx context.Context, topics []string) map[string]*KafkaError {
	if !r.judged || len(topics) == 0 {
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
	ctx, cancel := context.WithTimeout(ctx, min(r.c.srv.cfg.Limits.UpstreamTimeout, r.c.srv.cfg.Limits.RightsTimeout))
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

// authorizationCodes say that the client may not.
var authorizationCodes = map[int16]bool{
	kerr.TopicAuthorizationFailed.Code:   true,
	kerr.GroupAuthorizationFailed.Code:   true,
	kerr.ClusterAuthorizationFailed.Code: true,
}

// brokerAuthorizes says whether the broker may have an authorizer.
func (s *Server) brokerAuthorizes() bool {
	may := s.cfg.BrokerAuthorizes
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

// learnTopics asks the broker about those topics of which it has not said lately
// what the client may do with them.
func (r *request) learnTopics(ctx context.Context, topics []string) error {
	if !r.judged {
		return nil
	}
	now := time.Now()
	missing := make(map[string]bool)
	for _, name := range topics {
		if a, ok := r.c.access[name]; !ok || now.After(a.until) {
			missing[name] = true
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if r.c.access == nil || len(r.c.access)+len(missing) > maxAccess {
		r.c.access = make(map[string]access)
		for _, name := range topics { // those that were known are gone with the others
			missing[name] = true
		}
	}
	req := noTopics()
	req.IncludeTopicAuthorizedOperations = true
	for name := range missing {
		delete(r.c.access, name)
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, t)
	}
	resp, err := askRights[*kmsg.MetadataResponse](ctx, r, req)
	if err != nil {
		return err
	}
	for _, t := range resp.Topics {
		if t.Topic != nil {
			r.c.access[*t.Topic] = access{t.AuthorizedOperations, t.ErrorCode, now.Add(accessFor)}
		}
	}
	return nil
}
