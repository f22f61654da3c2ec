package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// JoinGroup 0 to 9, passed to the coordinator's broker. It is answered when the
// group has gathered, so it may wait for the rebalance timeout.

func handleJoinGroup(r *request) error {
	req, err := parse[*kmsg.JoinGroupRequest](r)
	if err != nil {
		return err
	}
	wait := req.SessionTimeoutMillis
	if r.h.Version >= 1 {
		wait = max(wait, req.RebalanceTimeoutMillis)
	}
	return r.passToCoordinator(req.Group, rebalanceWait(wait), func(code int16) kmsg.Response {
		resp := kmsg.NewPtrJoinGroupResponse()
		resp.ErrorCode, resp.Generation, resp.MemberID = code, -1, req.MemberID
		if r.h.Version < 7 {
			resp.Protocol = kmsg.StringPtr("")
		}
		return resp
	})
}
