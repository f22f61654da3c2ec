package proxy

import (
	"context"
	"strconv"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// DescribeConfigs 1 to 4, passed to the local broker. The broker has a node id
// of its own, so a resource that names this node is renamed on the way there
// and back; one that names another node is the broker's to refuse.

func handleDescribeConfigs(r *request) error {
	req, err := parse[*kmsg.DescribeConfigsRequest](r)
	if err != nil {
		return err
	}
	self := strconv.Itoa(int(r.c.srv.cluster.View().Self))
	named := false
	for _, res := range req.Resources {
		named = named || isBrokerResource(res.ResourceType) && res.ResourceName == self
	}
	if !named {
		return handlePassThrough(r)
	}
	theirs, err := r.brokerNodeID()
	if err != nil {
		return r.c.srv.unanswered(r, err)
	}
	for i := range req.Resources {
		if res := &req.Resources[i]; isBrokerResource(res.ResourceType) && res.ResourceName == self {
			res.ResourceName = theirs
		}
	}
	ask(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(resp *kmsg.DescribeConfigsResponse, held *lease, err error) {
		if err != nil {
			r.abandon(r.c.srv.unanswered(r, err))
			return
		}
		for i := range resp.Resources {
			if res := &resp.Resources[i]; isBrokerResource(res.ResourceType) && res.ResourceName == theirs {
				res.ResourceName = self
			}
		}
		r.replyHolding(resp, held)
	})
	return nil
}

func isBrokerResource(t kmsg.ConfigResourceType) bool {
	return t == kmsg.ConfigResourceTypeBroker || t == kmsg.ConfigResourceTypeBrokerLogger
}

// brokerNodeID is the node id that the local broker has for itself, learnt from
// its Metadata once.
func (r *request) brokerNodeID() (string, error) {
	if id := r.c.srv.brokerID.Load(); id != nil {
		return *id, nil
	}
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(1)
	req.Topics = []kmsg.MetadataRequestTopic{} // none; null would be all
	ctx, cancel := context.WithTimeout(r.c.ctx, r.c.srv.cfg.Limits.UpstreamTimeout)
	defer cancel()
	resp, err := query[*kmsg.MetadataResponse](ctx, r, req)
	if err != nil {
		return "", err
	}
	if len(resp.Brokers) != 1 {
		// Not the single-node broker we are made for: leave names alone.
		return strconv.Itoa(int(r.c.srv.cluster.View().Self)), nil
	}
	id := strconv.Itoa(int(resp.Brokers[0].NodeID))
	r.c.srv.brokerID.Store(&id)
	return id, nil
}
