package proxy

import (
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// FindCoordinator 0 to 5.
//
// Groups are coordinated by the node that the View names. Deviation from Kafka:
// transactional ids are refused with TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
// which producers report and do not retry.

const (
	coordinatorGroup       = 0
	coordinatorTransaction = 1
)

func handleFindCoordinator(r *request) error {
	req, err := parse[*kmsg.FindCoordinatorRequest](r)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	nodes := liveNodes(v, r.c.listener)
	resp := kmsg.NewPtrFindCoordinatorResponse()
	if r.h.Version < 4 {
		c := findCoordinator(v, nodes, req.CoordinatorType, req.CoordinatorKey)
		resp.ErrorCode, resp.ErrorMessage = c.ErrorCode, c.ErrorMessage
		resp.NodeID, resp.Host, resp.Port = c.NodeID, c.Host, c.Port
		r.reply(resp)
		return nil
	}
	for _, key := range req.CoordinatorKeys {
		resp.Coordinators = append(resp.Coordinators, findCoordinator(v, nodes, req.CoordinatorType, key))
	}
	r.reply(resp)
	return nil
}

func findCoordinator(v *View, nodes map[int32]Endpoint, kind int8, key string) kmsg.FindCoordinatorResponseCoordinator {
	c := kmsg.NewFindCoordinatorResponseCoordinator()
	c.Key, c.NodeID, c.Port = key, -1, -1
	fail := func(err *kerr.Error, msg string) kmsg.FindCoordinatorResponseCoordinator {
		c.ErrorCode, c.ErrorMessage = err.Code, kmsg.StringPtr(msg)
		return c
	}
	switch kind {
	case coordinatorGroup:
	case coordinatorTransaction:
		return fail(kerr.TransactionalIDAuthorizationFailed, "transactions are not supported by this cluster")
	default:
		return fail(kerr.InvalidRequest, "unknown coordinator type")
	}
	id := v.Coordinator(key)
	ep, ok := nodes[id]
	if !ok || !v.CatalogReady { // what we know may be yesterday's
		return fail(kerr.CoordinatorNotAvailable, "no live node coordinates this group yet")
	}
	c.NodeID, c.Host, c.Port = id, ep.Host, ep.Port
	return c
}
