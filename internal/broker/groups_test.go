package broker

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// A broker that was never asked for a coordinator says "not available" until
// it has made its offsets topic.
func TestPrepareGroupsAsksUntilThereIsACoordinator(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.MaxVersions(kversion.V4_0_0()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	asked := 0
	c.ControlKey(int16(kmsg.FindCoordinator), func(r kmsg.Request) (kmsg.Response, error, bool) {
		if asked++; asked > 3 {
			return nil, nil, false
		}
		c.KeepControl()
		resp := r.ResponseKind().(*kmsg.FindCoordinatorResponse)
		resp.ErrorCode = kerr.CoordinatorNotAvailable.Code
		return resp, nil, true
	})
	a := NewAdmin(Config{BootstrapServer: c.ListenAddrs()[0]})
	defer func() { _ = a.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := a.PrepareGroups(ctx); err != nil {
		t.Fatal(err)
	}
	if asked < 4 {
		t.Errorf("asked %d times, want until there was an answer", asked)
	}
}

// Members that a broker remembers are removed, and nobody else.
func TestEvictMembers(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.MaxVersions(kversion.V4_0_0()), kfake.SeedTopics(1, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	addr := c.ListenAddrs()[0]
	a := NewAdmin(Config{BootstrapServer: addr})
	defer func() { _ = a.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if groups, err := a.OccupiedGroups(ctx); err != nil || len(groups) != 0 {
		t.Fatalf("a broker without groups: %v, %v", groups, err)
	}
	member := joinGroup(t, ctx, a, "g")
	joinGroup(t, ctx, a, "other")
	groups, err := a.OccupiedGroups(ctx)
	if slices.Sort(groups); err != nil || !slices.Equal(groups, []string{"g", "other"}) {
		t.Fatalf("%v, %v", groups, err)
	}
	for _, want := range []int{1, 0} {
		if n, err := a.EvictMembers(ctx, []string{"unknown", "g"}); err != nil || n != want {
			t.Fatalf("%d members, want %d: %v", n, want, err)
		}
	}
	if groups, err := a.OccupiedGroups(ctx); err != nil || !slices.Equal(groups, []string{"other"}) {
		t.Errorf("after the eviction: %v, %v", groups, err)
	}
	resp, err := a.caller.call(ctx, true, func(versions) (kmsg.Request, error) {
		req := kmsg.NewPtrHeartbeatRequest()
		req.Version, req.Group, req.MemberID, req.Generation = 3, "g", member.MemberID, member.Generation
		return req, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if code := resp.(*kmsg.HeartbeatResponse).ErrorCode; code != kerr.UnknownMemberID.Code {
		t.Errorf("the member's heartbeat: code %d", code)
	}
}

// A broker that has not read its groups yet has them all the same.
func TestEvictionWaitsForTheBroker(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.MaxVersions(kversion.V4_0_0()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.ControlKey(int16(kmsg.DescribeGroups), func(r kmsg.Request) (kmsg.Response, error, bool) {
		resp := r.ResponseKind().(*kmsg.DescribeGroupsResponse)
		g := kmsg.NewDescribeGroupsResponseGroup()
		g.Group, g.ErrorCode = "g", kerr.CoordinatorLoadInProgress.Code
		resp.Groups = append(resp.Groups, g)
		return resp, nil, true
	})
	a := NewAdmin(Config{BootstrapServer: c.ListenAddrs()[0]})
	defer func() { _ = a.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := a.EvictMembers(ctx, []string{"g"}); err == nil {
		t.Error("nobody was evicted, and that was taken for an empty group")
	}
	if n, err := a.EvictMembers(ctx, []string{"g"}); err != nil || n != 0 {
		t.Errorf("%d members, %v", n, err)
	}
}

// joinGroup makes a member that waits for its assignment.
func joinGroup(t *testing.T, ctx context.Context, a *Admin, group string) *kmsg.JoinGroupResponse {
	t.Helper()
	resp, err := a.caller.call(ctx, true, func(versions) (kmsg.Request, error) {
		req := kmsg.NewPtrJoinGroupRequest()
		req.Version, req.Group, req.ProtocolType = 3, group, "consumer"
		req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 30_000, 30_000
		p := kmsg.NewJoinGroupRequestProtocol()
		p.Name = "range"
		req.Protocols = append(req.Protocols, p)
		return req, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	joined := resp.(*kmsg.JoinGroupResponse)
	if err := kerr.ErrorForCode(joined.ErrorCode); err != nil {
		t.Fatal(err)
	}
	return joined
}
