package proxy

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A consumer group is coordinated by one node: its broker knows the members and
// the generation, and judges what may be done, on the client's own connection.
// What is committed is in the catalog, and every answer about it is made from
// there; what the brokers keep of it is never shown. Every other node answers
// NOT_COORDINATOR in the shape of the API, and the client looks again.

// coordinatorCode is 0 if this node coordinates the group, else what to say. A
// node that hears nothing of the catalog may have been replaced.
func coordinatorCode(v *View, group string) int16 {
	switch id := v.Coordinator(group); {
	case id == -1, !v.CatalogReady:
		return kerr.CoordinatorNotAvailable.Code
	case id != v.Self:
		return kerr.NotCoordinator.Code
	case v.CoordinatorEpoch(group) == 0:
		return kerr.CoordinatorLoadInProgress.Code
	}
	return 0
}

// memberCode is coordinatorCode for who is in the group. Kafka tells them
// nothing of loading, and clients do not expect it.
func memberCode(v *View, group string) int16 {
	code := coordinatorCode(v, group)
	if code == kerr.CoordinatorLoadInProgress.Code {
		return kerr.CoordinatorNotAvailable.Code
	}
	return code
}

// coordinatorFailed is what to say when our broker did not answer: another
// node if the group has moved meanwhile, else that the coordinator is away.
func (r *request) coordinatorFailed(group string, cause error) int16 {
	r.noteUpstream(cause)
	if code := memberCode(r.c.srv.cluster.View(), group); code != 0 {
		return code
	}
	return kerr.CoordinatorNotAvailable.Code
}

// passToCoordinator forwards a request about one group as it is, or answers
// with refuse. A wait for other members ends when the group moves, and when it
// has moved away and back: the broker then forgets its members.
func (r *request) passToCoordinator(group string, wait time.Duration, refuse func(code int16) kmsg.Response) error {
	v := r.c.srv.cluster.View()
	code := coordinatorCode(v, group)
	if r.h.Key != int16(kmsg.JoinGroup) {
		code = memberCode(v, group)
	}
	if code != 0 {
		r.reply(refuse(code))
		return nil
	}
	epoch := v.CoordinatorEpoch(group)
	moved := func(v *View) bool { return v.CoordinatorEpoch(group) != epoch }
	r.forward(wait+r.c.srv.cfg.Limits.UpstreamTimeout, moved, func(resp []byte, held *lease, err error) {
		if err != nil {
			r.reply(refuse(r.coordinatorFailed(group, err)))
			return
		}
		r.relay(resp, held)
	})
	return nil
}

// apart runs fn beside the connection's goroutines, with a context that ends
// with the connection and at a deadline. Only for work that is due after an
// answer of the broker: its callback must not wait.
func (r *request) apart(fn func(ctx context.Context)) {
	r.c.work.Go(func() {
		r.c.guard(r.api.Name, func() {
			ctx, cancel := context.WithTimeout(r.c.ctx, groupsPatience)
			defer cancel()
			fn(ctx)
		})
	})
}

// groupsPatience bounds the wait for the catalog.
const groupsPatience = 10 * time.Second

// catalogCode is what clients are told when the catalog did not answer, or
// refused: codes of groups are passed on, everything else is a coordinator that
// is not available.
func catalogCode(err error) int16 {
	switch code, _ := errorCode(err); code {
	case 0, kerr.NotCoordinator.Code, kerr.GroupIDNotFound.Code:
		return code
	}
	return kerr.CoordinatorNotAvailable.Code
}

// maxRebalanceWait bounds what a client may ask us to wait for its group.
const maxRebalanceWait = 30 * time.Minute

func rebalanceWait(millis int32) time.Duration {
	return min(time.Duration(max(millis, 0))*time.Millisecond, maxRebalanceWait)
}
