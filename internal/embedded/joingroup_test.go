package embedded

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A member whose protocols kfake would miscount is refused, and the broker goes
// on.
func TestJoinGroupWithStrangeProtocols(t *testing.T) {
	addr := runBroker(t)
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for name, c := range map[string]struct {
		protocols []string
		code      int16
	}{
		"none":           {nil, kerr.InconsistentGroupProtocol.Code},
		"one twice":      {[]string{"range", "range"}, kerr.InconsistentGroupProtocol.Code},
		"two of no name": {[]string{"", ""}, kerr.InconsistentGroupProtocol.Code},
		"two":            {[]string{"range", "sticky"}, 0},
	} {
		req := kmsg.NewPtrJoinGroupRequest()
		req.Group, req.ProtocolType = "group "+name, "consumer"
		req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 10_000, 10_000
		for _, p := range c.protocols {
			rp := kmsg.NewJoinGroupRequestProtocol()
			rp.Name = p
			req.Protocols = append(req.Protocols, rp)
		}
		kresp, err := cl.Broker(0).Request(testContext(t), req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		resp := kresp.(*kmsg.JoinGroupResponse)
		if resp.ErrorCode == kerr.MemberIDRequired.Code {
			req.MemberID = resp.MemberID
			if kresp, err = cl.Broker(0).Request(testContext(t), req); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			resp = kresp.(*kmsg.JoinGroupResponse)
		}
		if resp.ErrorCode != c.code {
			t.Errorf("%s: code %d, want %d", name, resp.ErrorCode, c.code)
		}
	}
}
