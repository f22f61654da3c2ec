package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// SyncGroup 0 to 5, passed to the coordinator's broker. It waits for the
// group's leader, at most for a rebalance timeout that is not in the request.

func handleSyncGroup(r *request) error {
	req, err := parse[*kmsg.SyncGroupRequest](r)
	if err != nil {
		return err
	}
	return r.passToCoordinator(req.Group, maxRebalanceWait, func(code int16) kmsg.Response {
		resp := kmsg.NewPtrSyncGroupResponse()
		resp.ErrorCode = code
		return resp
	})
}
