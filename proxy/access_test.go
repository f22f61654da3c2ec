package proxy

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// fakeAccess keeps what clients change of ACLs and quotas.
type fakeAccess struct {
	accessMu sync.Mutex
	acls     []ACL
	quotas   []QuotaChange
	refusal  error // in place of a change
}

func (a *fakeAccess) CreateACLs(_ context.Context, acls []ACL) error {
	a.accessMu.Lock()
	defer a.accessMu.Unlock()
	if a.refusal == nil {
		a.acls = append(a.acls, acls...)
	}
	return a.refusal
}

func (a *fakeAccess) DeleteACLs(_ context.Context, match func(ACL) bool, brokers []ACL) ([]ACL, error) {
	a.accessMu.Lock()
	defer a.accessMu.Unlock()
	deleted := slices.Clone(brokers)
	for _, acl := range a.acls {
		if match(acl) {
			deleted = append(deleted, acl)
		}
	}
	if a.refusal == nil {
		a.acls = slices.DeleteFunc(a.acls, match)
	}
	return deleted, a.refusal
}

func (a *fakeAccess) AlterQuotas(_ context.Context, changes []QuotaChange) error {
	a.accessMu.Lock()
	defer a.accessMu.Unlock()
	if a.refusal == nil {
		a.quotas = append(a.quotas, changes...)
	}
	return a.refusal
}

// has returns the ACLs' resources and the quotas.
func (a *fakeAccess) has() (acls []string, quotas []QuotaChange) {
	a.accessMu.Lock()
	defer a.accessMu.Unlock()
	for _, acl := range a.acls {
		acls = append(acls, acl.Name)
	}
	return acls, slices.Clone(a.quotas)
}

func (a *fakeAccess) refuse(err error) {
	a.accessMu.Lock()
	defer a.accessMu.Unlock()
	a.refusal = err
}

// aclOf lets a user read a topic.
func aclOf(topic string) kmsg.CreateACLsRequestCreation {
	c := kmsg.NewCreateACLsRequestCreation()
	c.ResourceType, c.ResourceName, c.ResourcePatternType = kmsg.ACLResourceTypeTopic, topic, kmsg.ACLResourcePatternTypeLiteral
	c.Principal, c.Host, c.Operation, c.PermissionType = "User:u", "*", kmsg.ACLOperationRead, kmsg.ACLPermissionTypeAllow
	return c
}

// createACLs returns the answered codes.
func createACLs(c *rawClient, version int16, creations ...kmsg.CreateACLsRequestCreation) (codes []int16) {
	req := kmsg.NewPtrCreateACLsRequest()
	req.Creations = creations
	for _, r := range do[*kmsg.CreateACLsResponse](c, version, req).Results {
		codes = append(codes, r.ErrorCode)
	}
	return codes
}

func anyACL() kmsg.DeleteACLsRequestFilter {
	f := kmsg.NewDeleteACLsRequestFilter()
	f.ResourceType, f.ResourcePatternType = kmsg.ACLResourceTypeAny, kmsg.ACLResourcePatternTypeAny
	f.Operation, f.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	return f
}

func deleteACLs(c *rawClient, version int16, filters ...kmsg.DeleteACLsRequestFilter) []kmsg.DeleteACLsResponseResult {
	req := kmsg.NewPtrDeleteACLsRequest()
	req.Filters = filters
	return do[*kmsg.DeleteACLsResponse](c, version, req).Results
}

// judgeACLs makes the fixture's broker answer a code to whoever would alter ACLs;
// it counts how often it is asked, and refuses to be altered itself.
func (f *fixture) judgeACLs(code *atomic.Int32) *atomic.Int32 {
	asked := new(atomic.Int32)
	f.broker.ControlKey(int16(kmsg.DeleteACLs), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		req := kreq.(*kmsg.DeleteACLsRequest)
		if len(req.Filters) != 1 || *req.Filters[0].ResourceName != nowhere || *req.Filters[0].Principal != nowhere {
			f.t.Errorf("the broker was told to delete %+v", req.Filters)
		}
		asked.Add(1)
		resp := req.ResponseKind().(*kmsg.DeleteACLsResponse)
		r := kmsg.NewDeleteACLsResponseResult()
		r.ErrorCode = int16(code.Load())
		resp.Results = append(resp.Results, r)
		return resp, nil, true
	})
	f.broker.ControlKey(int16(kmsg.CreateACLs), func(kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		f.t.Error("the broker was told to create ACLs")
		return nil, nil, false
	})
	return asked
}

// ACLs are created in the catalog, each by itself, and only for whom the broker
// lets.
func TestCreateACLs(t *testing.T) {
	f := newFixture(t, nil)
	code := new(atomic.Int32)
	f.judgeACLs(code)
	c := f.dial()
	invalid := kerr.InvalidRequest.Code
	for version := int16(1); version <= 3; version++ {
		name := fmt.Sprint("t", version)
		creations := []kmsg.CreateACLsRequestCreation{aclOf(name), aclOf("")}
		want := []int16{0, invalid}
		for _, spoil := range []func(*kmsg.CreateACLsRequestCreation){
			func(c *kmsg.CreateACLsRequestCreation) { c.ResourceType = kmsg.ACLResourceTypeAny },
			func(c *kmsg.CreateACLsRequestCreation) { c.ResourceType = 8 },
			func(c *kmsg.CreateACLsRequestCreation) { c.ResourceType = kmsg.ACLResourceTypeCluster },
			func(c *kmsg.CreateACLsRequestCreation) { c.ResourcePatternType = kmsg.ACLResourcePatternTypeMatch },
			func(c *kmsg.CreateACLsRequestCreation) { c.Operation = kmsg.ACLOperationAny },
			func(c *kmsg.CreateACLsRequestCreation) { c.Operation = 100 },
			func(c *kmsg.CreateACLsRequestCreation) { c.PermissionType = kmsg.ACLPermissionTypeAny },
			func(c *kmsg.CreateACLsRequestCreation) { c.Principal = "u" },
			func(c *kmsg.CreateACLsRequestCreation) { c.Principal = "User:\xff" },
			func(c *kmsg.CreateACLsRequestCreation) { c.Host = strings.Repeat("h", maxRuleBytes) },
		} {
			bad := aclOf("bad")
			spoil(&bad)
			creations, want = append(creations, bad), append(want, invalid)
		}
		cluster := aclOf("kafka-cluster")
		cluster.ResourceType = kmsg.ACLResourceTypeCluster
		creations, want = append(creations, cluster), append(want, 0)
		if got := createACLs(c, version, creations...); !slices.Equal(got, want) {
			t.Errorf("v%d: codes %v, want %v", version, got, want)
		}
		if acls, _ := f.cluster.has(); !slices.Equal(acls[len(acls)-2:], []string{name, "kafka-cluster"}) {
			t.Errorf("v%d: the catalog has %v", version, acls)
		}
	}
	before, _ := f.cluster.has()
	for _, denied := range []int16{kerr.ClusterAuthorizationFailed.Code, kerr.SecurityDisabled.Code} {
		code.Store(int32(denied))
		if got := createACLs(c, 3, aclOf("secret"), aclOf("")); !slices.Equal(got, []int16{denied, denied}) {
			t.Errorf("the broker says %d, the client is told %v", denied, got)
		}
		if got := deleteACLs(c, 3, anyACL()); len(got) != 1 || got[0].ErrorCode != denied || len(got[0].MatchingACLs) != 0 {
			t.Errorf("the broker says %d, the client is told %+v", denied, got)
		}
	}
	code.Store(0)
	f.cluster.refuse(&KafkaError{Code: kerr.PolicyViolation.Code, Message: "too many"})
	if got := createACLs(c, 3, aclOf("one more"), aclOf("")); !slices.Equal(got, []int16{kerr.PolicyViolation.Code, invalid}) {
		t.Errorf("refused by the catalog: %v", got)
	}
	f.cluster.refuse(nil)
	f.broker.Close()
	if got := createACLs(f.dial(), 3, aclOf("unjudged")); !slices.Equal(got, []int16{kerr.NotController.Code}) {
		t.Errorf("with the broker down: %v", got)
	}
	if after, _ := f.cluster.has(); !slices.Equal(before, after) {
		t.Errorf("the catalog has %v, had %v", after, before)
	}
}

// A deletion finds what the catalog has and what the broker has besides.
func TestDeleteACLs(t *testing.T) {
	f := newFixture(t, nil)
	brokers := kmsg.NewPtrCreateACLsRequest()
	brokers.SetVersion(3)
	brokers.Creations = []kmsg.CreateACLsRequestCreation{aclOf("brokers"), aclOf("other")}
	if _, err := roundTrip[*kmsg.CreateACLsResponse](f.upstream, brokers); err != nil {
		t.Fatal(err)
	}
	f.judgeACLs(new(atomic.Int32))
	c := f.dial()
	for version := int16(1); version <= 3; version++ {
		if got := createACLs(c, version, aclOf("brokers-too"), aclOf("kept")); !slices.Equal(got, []int16{0, 0}) {
			t.Fatalf("v%d: %v", version, got)
		}
		one, two, bad := anyACL(), anyACL(), anyACL()
		names := []string{"brokers", "brokers-too"}
		one.ResourceName, two.ResourceName, bad.Operation = &names[0], &names[1], kmsg.ACLOperationUnknown
		results := deleteACLs(c, version, one, two, bad)
		if len(results) != 3 || results[2].ErrorCode != kerr.InvalidRequest.Code {
			t.Fatalf("v%d: %+v", version, results)
		}
		for i, name := range names {
			r := results[i]
			if r.ErrorCode != 0 || len(r.MatchingACLs) != 1 {
				t.Fatalf("v%d: %s: %+v", version, name, r)
			}
			m, want := r.MatchingACLs[0], aclOf(name)
			if m.ErrorCode != 0 || m.ResourceName != name || m.ResourceType != want.ResourceType || m.ResourcePatternType != want.ResourcePatternType ||
				m.Principal != want.Principal || m.Host != want.Host || m.Operation != want.Operation || m.PermissionType != want.PermissionType {
				t.Errorf("v%d: deleted %+v", version, m)
			}
		}
		if acls, _ := f.cluster.has(); slices.Contains(acls, "brokers-too") || !slices.Contains(acls, "kept") {
			t.Errorf("v%d: the catalog has %v", version, acls)
		}
	}
	f.cluster.refuse(&KafkaError{Code: kerr.NotController.Code})
	if got := deleteACLs(c, 3, anyACL()); got[0].ErrorCode != kerr.NotController.Code || len(got[0].MatchingACLs) != 0 {
		t.Errorf("refused by the catalog: %+v", got)
	}
	// Described by the broker.
	req := kmsg.NewPtrDescribeACLsRequest()
	req.ResourceType, req.ResourcePatternType = kmsg.ACLResourceTypeAny, kmsg.ACLResourcePatternTypeAny
	req.Operation, req.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	if got := do[*kmsg.DescribeACLsResponse](c, 3, req); len(got.Resources) != 2 {
		t.Errorf("described: %+v", got)
	}
}

// Filters match as Kafka's do.
func TestACLFilters(t *testing.T) {
	literal := ACL{Resource: 2, Name: "orders", Pattern: 3, Principal: "User:u", Host: "h", Operation: 3, Permission: 3}
	all, prefixed := literal, literal
	all.Name = "*"
	prefixed.Name, prefixed.Pattern = "ord", 4
	text := func(s string) *string { return &s }
	for what, tc := range map[string]struct {
		edit                   func(*kmsg.DeleteACLsRequestFilter)
		literal, all, prefixed bool
	}{
		"any":                {func(*kmsg.DeleteACLsRequestFilter) {}, true, true, true},
		"any, named":         {func(f *kmsg.DeleteACLsRequestFilter) { f.ResourceName = text("orders") }, true, false, false},
		"any, named short":   {func(f *kmsg.DeleteACLsRequestFilter) { f.ResourceName = text("ord") }, false, false, true},
		"literal":            {func(f *kmsg.DeleteACLsRequestFilter) { f.ResourcePatternType = 3 }, true, true, false},
		"prefixed":           {func(f *kmsg.DeleteACLsRequestFilter) { f.ResourcePatternType = 4 }, false, false, true},
		"prefixed, longer":   {func(f *kmsg.DeleteACLsRequestFilter) { f.ResourcePatternType, f.ResourceName = 4, text("orders") }, false, false, false},
		"match":              {func(f *kmsg.DeleteACLsRequestFilter) { f.ResourcePatternType, f.ResourceName = 2, text("orders") }, true, true, true},
		"match another":      {func(f *kmsg.DeleteACLsRequestFilter) { f.ResourcePatternType, f.ResourceName = 2, text("or") }, false, true, false},
		"match without name": {func(f *kmsg.DeleteACLsRequestFilter) { f.ResourcePatternType = 2 }, true, true, true},
		"groups":             {func(f *kmsg.DeleteACLsRequestFilter) { f.ResourceType = 3 }, false, false, false},
		"topics":             {func(f *kmsg.DeleteACLsRequestFilter) { f.ResourceType = 2 }, true, true, true},
		"another's":          {func(f *kmsg.DeleteACLsRequestFilter) { f.Principal = text("User:v") }, false, false, false},
		"from elsewhere":     {func(f *kmsg.DeleteACLsRequestFilter) { f.Host = text("*") }, false, false, false},
		"to write":           {func(f *kmsg.DeleteACLsRequestFilter) { f.Operation = 4 }, false, false, false},
		"denied":             {func(f *kmsg.DeleteACLsRequestFilter) { f.PermissionType = 2 }, false, false, false},
		"just this": {func(f *kmsg.DeleteACLsRequestFilter) {
			f.ResourceType, f.ResourceName, f.ResourcePatternType, f.Principal, f.Host, f.Operation, f.PermissionType = 2, text("orders"), 3, text("User:u"), text("h"), 3, 3
		}, true, false, false},
	} {
		f := anyACL()
		tc.edit(&f)
		if a, b, c := matches(&f, &literal), matches(&f, &all), matches(&f, &prefixed); a != tc.literal || b != tc.all || c != tc.prefixed {
			t.Errorf("%s: literal %t, all %t, prefixed %t", what, a, b, c)
		}
	}
}

// quotaOf sets keys of an entity; parts are type, name and so on, "" for the default.
func quotaOf(value float64, key string, parts ...string) kmsg.AlterClientQuotasRequestEntry {
	e := kmsg.NewAlterClientQuotasRequestEntry()
	for i := 0; i < len(parts); i += 2 {
		part := kmsg.NewAlterClientQuotasRequestEntryEntity()
		if part.Type = parts[i]; parts[i+1] != "" {
			part.Name = &parts[i+1]
		}
		e.Entity = append(e.Entity, part)
	}
	op := kmsg.NewAlterClientQuotasRequestEntryOp()
	op.Key, op.Value = key, value
	e.Ops = append(e.Ops, op)
	return e
}

func alterQuotas(c *rawClient, version int16, validateOnly bool, entries ...kmsg.AlterClientQuotasRequestEntry) (codes []int16) {
	req := kmsg.NewPtrAlterClientQuotasRequest()
	req.Entries, req.ValidateOnly = entries, validateOnly
	resp := do[*kmsg.AlterClientQuotasResponse](c, version, req)
	for i, e := range resp.Entries {
		if len(e.Entity) != len(entries[i].Entity) {
			codes = append(codes, -99)
			continue
		}
		codes = append(codes, e.ErrorCode)
	}
	return codes
}

// Quotas that the broker has nothing against are changed in the catalog, each
// entity by itself.
func TestAlterClientQuotas(t *testing.T) {
	f := newFixture(t, nil)
	denied := new(atomic.Bool)
	f.broker.ControlKey(int16(kmsg.AlterClientQuotas), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		req := kreq.(*kmsg.AlterClientQuotasRequest)
		if !req.ValidateOnly {
			t.Error("the broker was told to alter quotas")
		}
		resp := req.ResponseKind().(*kmsg.AlterClientQuotasResponse)
		for _, entry := range slices.Backward(req.Entries) { // in an order of its own
			e := kmsg.NewAlterClientQuotasResponseEntry()
			for _, p := range slices.Backward(entry.Entity) {
				part := kmsg.NewAlterClientQuotasResponseEntryEntity()
				part.Type, part.Name = p.Type, p.Name
				e.Entity = append(e.Entity, part)
			}
			if e.ErrorCode = 0; denied.Load() {
				e.ErrorCode = kerr.ClusterAuthorizationFailed.Code
			} else if entry.Ops[0].Key == "unheard_of" {
				e.ErrorCode = kerr.InvalidRequest.Code
			}
			resp.Entries = append(resp.Entries, e)
		}
		return resp, nil, true
	})
	c := f.dial()
	invalid := kerr.InvalidRequest.Code
	remove := quotaOf(0, "request_percentage", "client-id", "c")
	remove.Ops[0].Remove = true
	entries := []kmsg.AlterClientQuotasRequestEntry{
		quotaOf(1024, "consumer_byte_rate", "user", "u", "client-id", "c"), quotaOf(5, "consumer_byte_rate", "user", ""), remove,
		quotaOf(5, "unheard_of", "user", "v"), quotaOf(5, "connection_creation_rate", "ip", "127.0.0.1"), quotaOf(5, "consumer_byte_rate", "planet", "x"),
		quotaOf(math.NaN(), "consumer_byte_rate", "user", "w"), quotaOf(math.Inf(1), "consumer_byte_rate", "user", "w2"),
		quotaOf(1, "consumer_byte_rate"), quotaOf(1, "consumer_byte_rate", "user", "a", "user", "b"), quotaOf(1, "consumer_byte_rate", "user", "\xff"),
	}
	codes := []int16{0, 0, 0, invalid, invalid, invalid, invalid, invalid, invalid, invalid, invalid}
	want := []QuotaChange{
		{Quota: Quota{UserIs: 2, User: "u", ClientIs: 2, Client: "c", Key: "consumer_byte_rate"}, Value: 1024},
		{Quota: Quota{UserIs: 1, Key: "consumer_byte_rate"}, Value: 5},
		{Quota: Quota{ClientIs: 2, Client: "c", Key: "request_percentage"}, Gone: true},
	}
	for version := int16(0); version <= 1; version++ {
		_, before := f.cluster.has()
		if got := alterQuotas(c, version, true, entries...); !slices.Equal(got, codes) {
			t.Errorf("v%d, only validated: %v, want %v", version, got, codes)
		}
		if _, quotas := f.cluster.has(); len(quotas) != len(before) {
			t.Errorf("v%d: a request that only validates changed %+v", version, quotas)
		}
		if got := alterQuotas(c, version, false, entries...); !slices.Equal(got, codes) {
			t.Errorf("v%d: %v, want %v", version, got, codes)
		}
		if _, quotas := f.cluster.has(); !slices.Equal(quotas[len(before):], want) {
			t.Errorf("v%d: %+v, want %+v", version, quotas, want)
		}
	}
	_, before := f.cluster.has()
	denied.Store(true)
	if got := alterQuotas(c, 1, false, entries[:2]...); !slices.Equal(got, []int16{kerr.ClusterAuthorizationFailed.Code, kerr.ClusterAuthorizationFailed.Code}) {
		t.Errorf("not authorized: %v", got)
	}
	denied.Store(false)
	f.cluster.refuse(&KafkaError{Code: kerr.RequestTimedOut.Code})
	if got := alterQuotas(c, 1, false, entries[2], entries[3]); !slices.Equal(got, []int16{kerr.RequestTimedOut.Code, invalid}) {
		t.Errorf("refused by the catalog: %v", got)
	}
	f.cluster.refuse(nil)
	f.broker.Close()
	if got := alterQuotas(f.dial(), 1, false, entries[0]); !slices.Equal(got, []int16{kerr.NotController.Code}) {
		t.Errorf("with the broker down: %v", got)
	}
	if _, after := f.cluster.has(); !slices.Equal(before, after) {
		t.Errorf("the catalog has %+v, had %+v", after, before)
	}
}
