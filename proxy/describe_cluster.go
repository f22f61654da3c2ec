package proxy

import (
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DescribeCluster 0 to 1.
//
// Made from the View. Controllers are not endpoints of their own: asking for
// them is answered MISMATCHED_ENDPOINT_TYPE, as a Kafka broker does.

const (
	endpointBrokers     = 1
	endpointControllers = 2
)

func handleDescribeCluster(r *request) error {
	req, err := parse[*kmsg.DescribeClusterRequest](r)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	resp := kmsg.NewPtrDescribeClusterResponse()
	resp.ControllerID, resp.ClusterAuthorizedOperations, resp.EndpointType = -1, noOperations, endpointBrokers
	if r.h.Version >= 1 && req.EndpointType != endpointBrokers {
		resp.ErrorCode = kerr.UnsupportedEndpointType.Code
		if req.EndpointType == endpointControllers {
			resp.ErrorCode = kerr.MismatchedEndpointType.Code
		}
		resp.ErrorMessage = kmsg.StringPtr("only the brokers' endpoints can be described")
		r.reply(resp)
		return nil
	}
	nodes := liveNodes(v, r.c.listener)
	for _, n := range v.Nodes {
		ep, ok := nodes[n.ID]
		if !ok {
			continue
		}
		b := kmsg.NewDescribeClusterResponseBroker()
		b.NodeID, b.Host, b.Port = n.ID, ep.Host, ep.Port
		if n.Rack != "" {
			b.Rack = kmsg.StringPtr(n.Rack)
		}
		resp.Brokers = append(resp.Brokers, b)
	}
	resp.ClusterID = v.ClusterID
	if _, ok := nodes[v.Controller]; ok {
		resp.ControllerID = v.Controller
	}
	if req.IncludeClusterAuthorizedOperations {
		if resp.ClusterAuthorizedOperations, err = r.clusterAccess(r.c.ctx); err != nil {
			return r.c.srv.unanswered(r, err)
		}
	}
	r.reply(resp)
	return nil
}
