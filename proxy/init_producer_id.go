package proxy

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// InitProducerId 0 to 4 (5 is the second transaction protocol).
//
// Ids come from the catalog, because brokers left alone hand out the same ones.
// The epoch is always 0: an idempotent producer that must start anew gets
// another id. Whether the client may have one is the broker's to say: it is sent
// such a request; where it stays silent the answer is
// COORDINATOR_LOAD_IN_PROGRESS, and the client is sent away. Deviation from Kafka:
// transactional ids are refused.

const producerIDTimeout = 10 * time.Second

func handleInitProducerID(r *request) error {
	req, err := parse[*kmsg.InitProducerIDRequest](r)
	if err != nil {
		return err
	}
	resp := kmsg.NewPtrInitProducerIDResponse()
	resp.ProducerID, resp.ProducerEpoch = -1, -1
	refused, silent := r.mayInitProducerID(req)
	switch {
	case silent != nil:
		resp.ErrorCode = kerr.CoordinatorLoadInProgress.Code
		r.reply(resp)
		return r.sendAway(silent)
	case refused != 0:
		resp.ErrorCode = refused
	case req.TransactionalID != nil && *req.TransactionalID != "":
		resp.ErrorCode = kerr.TransactionalIDAuthorizationFailed.Code
	case req.TransactionalID != nil, (req.ProducerID == -1) != (req.ProducerEpoch == -1):
		// An empty name, or half an identity, is no request
		// (KafkaApis.handleInitProducerIdRequest, TransactionCoordinator). A
		// whole identity is nothing but a wish for a new one, as long as nothing
		// is known by the transactional id.
		resp.ErrorCode = kerr.InvalidRequest.Code
	}
	if resp.ErrorCode != 0 {
		r.reply(resp)
		return nil
	}
	ctx, cancel := context.WithTimeout(r.c.ctx, producerIDTimeout)
	defer cancel()
	id, err := r.c.srv.cluster.ProducerID(ctx)
	if err != nil {
		// 14 is what Kafka says while it has no block of ids: retried.
		resp.ErrorCode = kerr.CoordinatorLoadInProgress.Code
		r.c.srv.notices.warn("", "producer id", "no producer id could be had; idempotent producers wait", "error", err)
		r.reply(resp)
		return nil
	}
	resp.ProducerID, resp.ProducerEpoch = id, 0
	r.reply(resp)
	return nil
}

// mayInitProducerID returns the error with which the broker refuses the request, 0
// if it does not. It needs IDEMPOTENT_WRITE on the cluster or WRITE on any topic,
// which no other request tells; the id that the broker gives is its own, and
// nobody's. It is not asked about transactional ids, for they are refused, but for
// the empty one, which names no transaction.
func (r *request) mayInitProducerID(req *kmsg.InitProducerIDRequest) (int16, error) {
	if !r.judged || req.TransactionalID != nil && *req.TransactionalID != "" {
		return 0, nil
	}
	ask := kmsg.NewPtrInitProducerIDRequest()
	ask.SetVersion(1) // which every broker has
	ask.TransactionalID, ask.TransactionTimeoutMillis = req.TransactionalID, req.TransactionTimeoutMillis
	resp, err := askRights[*kmsg.InitProducerIDResponse](r.c.ctx, r, ask)
	if err != nil {
		return 0, r.silence(err)
	}
	switch code := resp.ErrorCode; {
	case authorizationCodes[code], code == kerr.TransactionalIDAuthorizationFailed.Code, code == kerr.InvalidRequest.Code:
		return code, nil
	case code == 0, kerr.IsRetriable(kerr.ErrorForCode(code)):
		return 0, nil // it may; that the broker has no ids of its own is nothing to the client
	default: // an authorizer that fails is UNKNOWN_SERVER_ERROR
		return 0, r.silence(fmt.Errorf("%w: %w to a request for a producer id", errUpstreamGarbage, kerr.ErrorForCode(code)))
	}
}
