package broker

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func manyACLs(n int) (acls []ACL) {
	for i := range n {
		acls = append(acls, ACL{2, fmt.Sprint("t", i), 3, "User:u", "*", 3, 3})
	}
	return acls
}

// noRefusal is for changes that a broker takes.
func noRefusal[T any](t *testing.T) func(T, error) {
	return func(what T, err error) { t.Errorf("%+v is refused: %v", what, err) }
}

// ACLs come and go one by one, in more than one request, and twice does no harm.
func TestACLs(t *testing.T) {
	_, addr := newBroker(t)
	a, ctx := newAdmin(t, addr), testContext(t)
	acls := append(manyACLs(2*accessAtOnce+1), ACL{4, "kafka-cluster", 3, "User:CN=x", "10.0.0.1", 7, 2}, ACL{2, "t", 4, "User:u", "*", 3, 3})
	for range 2 {
		if err := a.CreateACLs(ctx, acls, noRefusal[ACL](t)); err != nil {
			t.Fatal(err)
		}
	}
	has := func(want []ACL) {
		t.Helper()
		got, err := a.ACLs(ctx)
		if err != nil {
			t.Fatal(err)
		}
		set := make(map[ACL]bool)
		for _, acl := range got {
			set[acl] = true
		}
		if len(set) != len(want) || slices.ContainsFunc(want, func(acl ACL) bool { return !set[acl] }) {
			t.Fatalf("%d ACLs, want %d", len(set), len(want))
		}
	}
	has(acls)
	for range 2 {
		if err := a.DeleteACLs(ctx, acls[1:len(acls)-1], noRefusal[ACL](t)); err != nil {
			t.Fatal(err)
		}
	}
	has([]ACL{acls[0], acls[len(acls)-1]})
}

// What the broker says of one ACL is about that one; that it has no authorizer,
// or that it is not ready, is about all.
func TestACLErrors(t *testing.T) {
	c, addr := newBroker(t)
	a, ctx := newAdmin(t, addr), testContext(t)
	code := kerr.InvalidRequest.Code
	c.ControlKey(int16(kmsg.CreateACLs), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		resp := kreq.ResponseKind().(*kmsg.CreateACLsResponse)
		for i := range kreq.(*kmsg.CreateACLsRequest).Creations {
			r := kmsg.NewCreateACLsResponseResult()
			if i == 1 {
				r.ErrorCode = code
			}
			resp.Results = append(resp.Results, r)
		}
		return resp, nil, true
	})
	var refused []string
	if err := a.CreateACLs(ctx, manyACLs(3), func(acl ACL, _ error) { refused = append(refused, acl.Name) }); err != nil || !slices.Equal(refused, []string{"t1"}) {
		t.Errorf("refused %v, %v", refused, err)
	}
	code = kerr.SecurityDisabled.Code
	if err := a.CreateACLs(ctx, manyACLs(3), noRefusal[ACL](t)); !errors.Is(err, ErrNoAuthorizer) {
		t.Errorf("no authorizer: %v", err)
	}
	code = kerr.NotController.Code
	if err := a.CreateACLs(ctx, manyACLs(3), noRefusal[ACL](t)); err == nil {
		t.Error("a broker that is not ready was taken for one that refuses")
	}
	c.ControlKey(int16(kmsg.DescribeACLs), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		resp := kreq.ResponseKind().(*kmsg.DescribeACLsResponse)
		resp.ErrorCode = kerr.SecurityDisabled.Code
		return resp, nil, true
	})
	if _, err := a.ACLs(ctx); !errors.Is(err, ErrNoAuthorizer) {
		t.Errorf("no authorizer: %v", err)
	}
}

// Quotas of every kind of entity come and go.
func TestQuotas(t *testing.T) {
	c, addr := newBroker(t)
	a, ctx := newAdmin(t, addr), testContext(t)
	all := map[Quota]float64{
		{UserIs: 2, User: "u", Key: "consumer_byte_rate"}:                           1024,
		{UserIs: 2, User: "u", Key: "request_percentage"}:                           12.5,
		{UserIs: 1, Key: "consumer_byte_rate"}:                                      1,
		{ClientIs: 1, Key: "consumer_byte_rate"}:                                    2,
		{UserIs: 2, User: "u", ClientIs: 2, Client: "c", Key: "producer_byte_rate"}: 3,
		{UserIs: 1, ClientIs: 2, Client: "c", Key: "producer_byte_rate"}:            4,
	}
	var changes []QuotaChange
	for q, v := range all {
		changes = append(changes, QuotaChange{Quota: q, Value: v})
	}
	if err := a.AlterQuotas(ctx, changes, noRefusal[Quota](t)); err != nil {
		t.Fatal(err)
	}
	if got, err := a.Quotas(ctx); err != nil || !maps.Equal(got, all) {
		t.Fatalf("%v, %v; want %v", got, err, all)
	}
	gone := Quota{UserIs: 2, User: "u", Key: "request_percentage"}
	delete(all, gone)
	if err := a.AlterQuotas(ctx, []QuotaChange{{Quota: gone, Gone: true}}, noRefusal[Quota](t)); err != nil {
		t.Fatal(err)
	}
	if got, err := a.Quotas(ctx); err != nil || !maps.Equal(got, all) {
		t.Fatalf("%v, %v; want %v", got, err, all)
	}
	c.ControlKey(int16(kmsg.AlterClientQuotas), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		resp := kreq.ResponseKind().(*kmsg.AlterClientQuotasResponse)
		e := kmsg.NewAlterClientQuotasResponseEntry()
		e.ErrorCode = kerr.InvalidRequest.Code
		part := kmsg.NewAlterClientQuotasResponseEntryEntity()
		part.Type = entityUser
		e.Entity = append(e.Entity, part)
		resp.Entries = append(resp.Entries, e)
		return resp, nil, true
	})
	var refused []Quota
	err := a.AlterQuotas(ctx, changes[:1], func(q Quota, _ error) { refused = append(refused, q) })
	if err != nil || !slices.Equal(refused, []Quota{{UserIs: 1}}) {
		t.Errorf("refused %+v, %v", refused, err)
	}
}
