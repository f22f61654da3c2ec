package proxy

import (
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DeleteTopics 1 to 5 (6 carries topic ids).
//
// Topics leave the catalog; the answer comes when every group has closed its
// partitions. A topic named twice in one request is refused with
// INVALID_REQUEST, once, as Kafka does.

func handleDeleteTopics(r *request) error {
	req, err := parse[*kmsg.DeleteTopicsRequest](r)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	count := make(map[string]int, len(req.TopicNames))
	for _, name := range req.TopicNames {
		count[name]++
	}
	resp := kmsg.NewPtrDeleteTopicsResponse()
	resp.Topics = make([]kmsg.DeleteTopicsResponseTopic, len(req.TopicNames))
	ctx, cancel := r.adminContext(req.TimeoutMillis)
	defer cancel()
	hidden := r.mayTopics(ctx, opDescribe, req.TopicNames, kerr.NotController.Code)
	denied := r.hidden(opDelete, req.TopicNames, kerr.NotController.Code)
	r.eachTopic(len(req.TopicNames), func(i int) {
		name := req.TopicNames[i]
		rt := kmsg.NewDeleteTopicsResponseTopic()
		rt.Topic = kmsg.StringPtr(name)
		var msg string
		switch {
		case count[name] > 1:
			rt.ErrorCode, msg = kerr.InvalidRequest.Code, "the request names this topic more than once"
		case hidden[name] != 0:
			rt.ErrorCode, msg = hidden[name], deniedMessage(hidden[name])
		case v.Topics[name] == nil: // who may see that needs no more (ControllerApis.deleteTopics)
			rt.ErrorCode, msg = missingTopicAdminCode(v)
		case denied[name] != 0:
			rt.ErrorCode, msg = denied[name], deniedMessage(denied[name])
		default:
			rt.ErrorCode, msg = errorCode(r.c.srv.cluster.DeleteTopic(ctx, name))
		}
		if msg != "" {
			rt.ErrorMessage = kmsg.StringPtr(msg)
		}
		resp.Topics[i] = rt
	})
	resp.Topics = onceEach(resp.Topics, func(t *kmsg.DeleteTopicsResponseTopic) string { return *t.Topic })
	r.reply(resp)
	return nil
}

// missingTopicAdminCode is what an administrator is told of a topic that the
// View does not show. NOT_CONTROLLER makes admin clients look again.
func missingTopicAdminCode(v *View) (int16, string) {
	if !v.CatalogReady {
		return kerr.NotController.Code, "this node has not heard from the catalog's leader yet"
	}
	return kerr.UnknownTopicOrPartition.Code, "there is no such topic"
}
