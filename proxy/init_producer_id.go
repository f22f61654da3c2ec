package proxy

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// InitProducerId 0 to 4 (5 is the second transaction protocol).
//
// Ids come from the catalog, because brokers left alone hand out the same ones.
// The epoch is always 0: an idempotent producer that must start anew gets
// another id. Deviation from Kafka: transactional ids are refused.

const producerIDTimeout = 10 * time.Second

func handleInitProducerID(r *request) error {
	req, err := parse[*kmsg.InitProducerIDRequest](r)
	if err != nil {
		return err
	}
	resp := kmsg.NewPtrInitProducerIDResponse()
	resp.ProducerID, resp.ProducerEpoch = -1, -1
	switch {
	case req.TransactionalID != nil && *req.TransactionalID == "", (req.ProducerID == -1) != (req.ProducerEpoch == -1):
		// Half an identity, or an empty name, is no request
		// (KafkaApis.handleInitProducerIdRequest, TransactionCoordinator).
		resp.ErrorCode = kerr.InvalidRequest.Code
		r.reply(resp)
		return nil
	case req.TransactionalID != nil:
		resp.ErrorCode = kerr.TransactionalIDAuthorizationFailed.Code
		r.reply(resp)
		return nil
	}
	if (req.ProducerID == -1) != (req.ProducerEpoch == -1) {
		// Half an identity (KafkaApis.handleInitProducerIdRequest). A whole one
		// is nothing but a wish for a new one, as long as nothing is known by
		// the transactional id.
		resp.ErrorCode = kerr.InvalidRequest.Code
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
