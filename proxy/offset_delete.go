package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// OffsetDelete 0, passed to the coordinator's broker.

func handleOffsetDelete(r *request) error {
	req, err := parse[*kmsg.OffsetDeleteRequest](r)
	if err != nil {
		return err
	}
	return r.passToCoordinator(req.Group, 0, func(code int16) kmsg.Response {
		resp := kmsg.NewPtrOffsetDeleteResponse()
		resp.ErrorCode = code
		return resp
	})
}
