package embedded

import (
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// kfake counts the protocols of a group's members, and panics when it finds none
// that all of them have: so it does after a member that names none, or one
// twice. Kafka refuses the first and does not mind the second; here both are
// refused.

// uncountable says whether kfake would miscount the member's protocols.
func uncountable(req *kmsg.JoinGroupRequest) bool {
	names := make([]string, 0, len(req.Protocols))
	for _, p := range req.Protocols {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return len(names) == 0 || len(slices.Compact(names)) != len(req.Protocols)
}

// inconsistent answers INCONSISTENT_GROUP_PROTOCOL.
func inconsistent(req *kmsg.JoinGroupRequest) *kmsg.JoinGroupResponse {
	resp := req.ResponseKind().(*kmsg.JoinGroupResponse)
	resp.ErrorCode, resp.Generation, resp.MemberID = kerr.InconsistentGroupProtocol.Code, -1, req.MemberID
	return resp
}
