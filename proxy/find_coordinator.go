package proxy

import (
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// FindCoordinator 0 to 5.
//
// Groups are coordinated by the node that the View names. Whether the client may
// ask is the broker's to say: it is sent the request itself; where it stays silent
// the coordinator is not available, and the client is sent away.
// Deviation from Kafka: transactional ids are refused with
// TRANSACTIONAL_ID_AUTHORIZATION_FAILED, which producers report and do not retry.

const (
	coordinatorGroup       = 0
	coordinatorTransaction = 1
)

func handleFindCoordinator(r *request) error {
	req, err := parse[*kmsg.FindCoordinatorRequest](r)
	if err != nil {
		return err
	}
	denied, silent := r.mayFindGroups(req)
	v := r.c.srv.cluster.View()
	nodes := liveNodes(v, r.c.listener)
	resp := kmsg.NewPtrFindCoordinatorResponse()
	if r.h.Version < 4 {
		c := findCoordinator(v, nodes, req.CoordinatorType, req.CoordinatorKey, denied)
		resp.ErrorCode, resp.ErrorMessage = c.ErrorCode, c.ErrorMessage
		resp.NodeID, resp.Host, resp.Port = c.NodeID, c.Host, c.Port
	} else {
		for _, key := range req.CoordinatorKeys {
			resp.Coordinators = append(resp.Coordinators, findCoordinator(v, nodes, req.CoordinatorType, key, denied))
		}
	}
	r.reply(resp)
	if silent != nil {
		return r.sendAway(silent)
	}
	return nil
}

// mayFindGroups returns why the client may not know the coordinators of groups,
// for each that it may not.
func (r *request) mayFindGroups(req *kmsg.FindCoordinatorRequest) (map[string]*KafkaError, error) {
	keys := req.CoordinatorKeys
	if r.h.Version < 4 {
		keys = []string{req.CoordinatorKey}
	}
	if !r.judged || req.CoordinatorType != coordinatorGroup || len(keys) == 0 {
		return nil, nil
	}
	denied := make(map[string]*KafkaError, len(keys))
	for _, key := range keys {
		denied[key] = problem(kerr.CoordinatorNotAvailable, "this node's broker does not say whether this is allowed; try another node")
	}
	ask := *req
	ask.SetVersion(min(r.h.Version, 4)) // which every broker has, and which can name several
	resp, err := askRights[*kmsg.FindCoordinatorResponse](r.c.ctx, r, &ask)
	if err != nil {
		if err = r.silence(err); err == nil {
			denied = nil
		}
		return denied, err
	}
	if r.h.Version < 4 {
		c := kmsg.NewFindCoordinatorResponseCoordinator()
		c.Key, c.ErrorCode, c.ErrorMessage = req.CoordinatorKey, resp.ErrorCode, resp.ErrorMessage
		resp.Coordinators = []kmsg.FindCoordinatorResponseCoordinator{c}
	}
	for _, c := range resp.Coordinators {
		switch c.ErrorCode {
		case 0, kerr.CoordinatorNotAvailable.Code, kerr.CoordinatorLoadInProgress.Code, kerr.NotCoordinator.Code, kerr.InvalidGroupID.Code:
			delete(denied, c.Key) // it may; what it is told is for us to say
		case kerr.GroupAuthorizationFailed.Code:
			denied[c.Key] = answeredProblem(c.ErrorCode, c.ErrorMessage)
		}
	}
	return denied, nil
}

func findCoordinator(v *View, nodes map[int32]Endpoint, kind int8, key string, denied map[string]*KafkaError) kmsg.FindCoordinatorResponseCoordinator {
	c := kmsg.NewFindCoordinatorResponseCoordinator()
	c.Key, c.NodeID, c.Port = key, -1, -1
	if p := denied[key]; p != nil {
		c.ErrorCode, c.ErrorMessage = p.wire()
		return c
	}
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
