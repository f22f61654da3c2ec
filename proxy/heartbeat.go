package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// Heartbeat 0 to 4, passed to the coordinator's broker.

func handleHeartbeat(r *request) error {
	req, err := parse[*kmsg.HeartbeatRequest](r)
	if err != nil {
		return err
	}
	return r.passToCoordinator(req.Group, 0, func(code int16) kmsg.Response {
		resp := kmsg.NewPtrHeartbeatResponse()
		resp.ErrorCode = code
		return resp
	})
}
