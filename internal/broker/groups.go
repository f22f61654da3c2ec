package broker

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Versions of FindCoordinator with a single key.
const maxFindCoordinatorVersion = 3

// groupProbe is asked for as if it were a consumer group. Nothing ever joins it.
const groupProbe = "lockstep-probe"

// PrepareGroups makes the broker able to coordinate consumer groups, and
// returns when it is. Kafka creates __consumer_offsets when it is first asked
// for a coordinator (KafkaApis.handleFindCoordinatorRequest), and clients ask
// the proxy instead. Call it whenever the broker comes up. ctx bounds it.
func (a *Admin) PrepareGroups(ctx context.Context) error {
	err := a.await(ctx, func() (bool, error) {
		resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
			version, err := v.pick(kmsg.FindCoordinator, 0, maxFindCoordinatorVersion)
			req := kmsg.NewPtrFindCoordinatorRequest()
			req.Version = version
			req.CoordinatorKey = groupProbe
			return req, err
		})
		if err != nil {
			return false, err
		}
		found := resp.(*kmsg.FindCoordinatorResponse)
		return found.ErrorCode == 0, codeError(found.ErrorCode, found.ErrorMessage)
	})
	if err != nil {
		return fmt.Errorf("make the broker ready for consumer groups: %w", err)
	}
	return nil
}
