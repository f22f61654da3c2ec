package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// LeaveGroup 0 to 5, passed to the coordinator's broker.

func handleLeaveGroup(r *request) error {
	req, err := parse[*kmsg.LeaveGroupRequest](r)
	if err != nil {
		return err
	}
	return r.passToCoordinator(req.Group, 0, func(code int16) kmsg.Response {
		resp := kmsg.NewPtrLeaveGroupResponse()
		resp.ErrorCode = code
		return resp
	})
}
