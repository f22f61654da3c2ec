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

// maxAccess bounds the topics that a connection remembers.
const maxAccess = 1024

// Operations as bits of Kafka's authorized operations: one by its ACL code.
const (
	opWrite  = 1 << 4
	opDelete = 1 << 6
	opAlter  = 1 << 7
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
	if may := r.c.srv.cfg.BrokerAuthorizes; may != nil && !may() {
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
			denied[name] = unsure
			delete(r.c.access, name) // asked again next time
		case a.code != 0 || a.ops&op == 0:
			denied[name] = kerr.TopicAuthorizationFailed.Code
		}
	}
	return denied
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
	ctx, cancel := context.WithTimeout(ctx, r.c.srv.cfg.Limits.UpstreamTimeout)
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
