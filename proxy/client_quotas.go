package proxy

import (
	"context"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// AlterClientQuotas 0 to 1. (DescribeClientQuotas is passed to the broker.)
//
// The local broker is asked on the client's own connection to validate the
// request, so that authorization and errors are Kafka's own; what it has nothing
// against is changed in the catalog and enforced on every broker. Deviations
// from Kafka: quotas of addresses are refused, because all clients of a node
// reach its broker from the node's own; producer_byte_rate is kept and shown,
// but not enforced, because it is the node that writes to the broker.

func handleAlterClientQuotas(r *request) error {
	req, err := parse[*kmsg.AlterClientQuotasRequest](r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.c.ctx, alterWait)
	defer cancel()
	judged := r.judgeQuotas(ctx, req)
	problems := make([]*KafkaError, len(req.Entries))
	var changes []QuotaChange
	for i := range req.Entries {
		e := &req.Entries[i]
		entity, p := quotaEntity(e)
		if theirs, ok := judged[entityKey(e.Entity)]; !ok {
			p = unjudged
		} else if theirs != nil {
			p = theirs
		}
		if p == nil {
			p = quotaProblem(entity, e.Ops)
		}
		if problems[i] = p; p != nil {
			continue
		}
		for _, op := range e.Ops {
			c := QuotaChange{Quota: entity, Gone: op.Remove, Value: op.Value}
			if c.Quota.Key = op.Key; c.Gone {
				c.Value = 0
			}
			changes = append(changes, c)
		}
	}
	if len(changes) > 0 && !req.ValidateOnly {
		err = r.c.srv.cluster.AlterQuotas(ctx, changes)
	}
	resp := kmsg.NewPtrAlterClientQuotasResponse()
	for i := range req.Entries {
		p := problems[i]
		if p == nil && err != nil {
			code, msg := errorCode(err)
			p = &KafkaError{code, msg}
		}
		out := kmsg.NewAlterClientQuotasResponseEntry()
		out.ErrorCode, out.ErrorMessage = p.wire()
		for _, part := range req.Entries[i].Entity {
			same := kmsg.NewAlterClientQuotasResponseEntryEntity()
			same.Type, same.Name = part.Type, part.Name
			out.Entity = append(out.Entity, same)
		}
		resp.Entries = append(resp.Entries, out)
	}
	r.reply(resp)
	return nil
}

// judgeQuotas returns by entity what the broker has against the changes, nil
// where it has nothing. It knows nothing of an entity that it did not answer.
func (r *request) judgeQuotas(ctx context.Context, req *kmsg.AlterClientQuotasRequest) map[string]*KafkaError {
	up := kmsg.NewPtrAlterClientQuotasRequest()
	up.SetVersion(r.h.Version)
	up.Entries, up.ValidateOnly = req.Entries, true
	resp, err := query[*kmsg.AlterClientQuotasResponse](ctx, r, up)
	if err != nil {
		r.noteUpstream(err)
		return nil
	}
	judged := make(map[string]*KafkaError)
	for i := range resp.Entries {
		e := &resp.Entries[i]
		parts := make([]kmsg.AlterClientQuotasRequestEntryEntity, 0, len(e.Entity))
		for _, p := range e.Entity {
			part := kmsg.NewAlterClientQuotasRequestEntryEntity()
			part.Type, part.Name = p.Type, p.Name
			parts = append(parts, part)
		}
		judged[entityKey(parts)] = answeredProblem(e.ErrorCode, e.ErrorMessage)
	}
	return judged
}

// entityKey is the same for the same entity, in whatever order its parts stand.
func entityKey(parts []kmsg.AlterClientQuotasRequestEntryEntity) string {
	texts := make([]string, 0, len(parts))
	for _, p := range parts {
		if p.Name == nil {
			texts = append(texts, strconv.Quote(p.Type))
		} else {
			texts = append(texts, strconv.Quote(p.Type)+strconv.Quote(*p.Name))
		}
	}
	slices.Sort(texts)
	return strings.Join(texts, ",")
}

// quotaEntity is the entity of an entry, or what is wrong with it.
func quotaEntity(e *kmsg.AlterClientQuotasRequestEntry) (q Quota, p *KafkaError) {
	for _, part := range e.Entity {
		is, name := &q.UserIs, &q.User
		switch part.Type {
		case "user":
		case "client-id":
			is, name = &q.ClientIs, &q.Client
		case "ip":
			return q, problem(kerr.InvalidRequest, "Clients reach the broker from this node's own address: addresses have no quotas here")
		default:
			return q, problem(kerr.InvalidRequest, "Unhandled client quota entity type: %s", part.Type)
		}
		if *is != 0 {
			return q, problem(kerr.InvalidRequest, "The entity has two parts of type %s", part.Type)
		}
		if *is = 1; part.Name != nil {
			*is, *name = 2, *part.Name
		}
	}
	if len(e.Entity) == 0 {
		return q, problem(kerr.InvalidRequest, "Invalid empty client quota entity")
	}
	return q, nil
}

func quotaProblem(entity Quota, ops []kmsg.AlterClientQuotasRequestEntryOp) *KafkaError {
	for _, op := range ops {
		if !op.Remove && (math.IsNaN(op.Value) || math.IsInf(op.Value, 0)) {
			return problem(kerr.InvalidRequest, "The quota %s is not a finite number", op.Key)
		}
		if p := namesProblem(entity.User, entity.Client, op.Key); p != nil {
			return p
		}
	}
	return nil
}
