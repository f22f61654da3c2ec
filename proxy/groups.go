package proxy

import (
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A consumer group is coordinated by the broker of one node. That node's proxy
// passes the group's requests to its broker; every other node answers
// NOT_COORDINATOR in the shape of the API, and the client looks again.

// coordinatorCode is 0 if this node coordinates the group, else what to say.
func coordinatorCode(v *View, group string) int16 {
	switch v.Coordinator(group) {
	case -1:
		return kerr.CoordinatorNotAvailable.Code
	case v.Self:
		return 0
	}
	return kerr.NotCoordinator.Code
}

// coordinatorFailed is what to say when our broker did not answer: another
// node if the group has moved meanwhile, else that the coordinator is away.
func (r *request) coordinatorFailed(group string, cause error) int16 {
	r.noteUpstream(cause)
	if code := coordinatorCode(r.c.srv.cluster.View(), group); code != 0 {
		return code
	}
	return kerr.CoordinatorNotAvailable.Code
}

// passToCoordinator forwards a request about one group as it is, or answers
// with refuse. A wait for other members ends when the group moves.
func (r *request) passToCoordinator(group string, wait time.Duration, refuse func(code int16) kmsg.Response) error {
	if code := coordinatorCode(r.c.srv.cluster.View(), group); code != 0 {
		r.reply(refuse(code))
		return nil
	}
	moved := func(v *View) bool { return coordinatorCode(v, group) != 0 }
	r.forward(wait+r.c.srv.cfg.Limits.UpstreamTimeout, moved, func(resp []byte, held *lease, err error) {
		if err != nil {
			r.reply(refuse(r.coordinatorFailed(group, err)))
			return
		}
		r.relay(resp, held)
	})
	return nil
}

// maxRebalanceWait bounds what a client may ask us to wait for its group.
const maxRebalanceWait = 30 * time.Minute

func rebalanceWait(millis int32) time.Duration {
	return min(time.Duration(max(millis, 0))*time.Millisecond, maxRebalanceWait)
}
