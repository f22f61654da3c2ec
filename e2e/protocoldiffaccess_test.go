//go:build e2e

package e2e

import "github.com/twmb/franz-go/pkg/kmsg"

// ACLs and client quotas. The brokers of the comparison have no authorizer:
// what ACLs do where there is one is TestAccessReplicated's.

func describeACLsScript(r *recorder) {
	req := kmsg.NewPtrDescribeACLsRequest()
	req.ResourceType, req.ResourcePatternType = kmsg.ACLResourceTypeAny, kmsg.ACLResourcePatternTypeAny
	req.Operation, req.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	r.add("all", req)
}

func createACLsScript(r *recorder) {
	req := kmsg.NewPtrCreateACLsRequest()
	c := kmsg.NewCreateACLsRequestCreation()
	c.ResourceType, c.ResourceName, c.ResourcePatternType = kmsg.ACLResourceTypeTopic, "first", kmsg.ACLResourcePatternTypeLiteral
	c.Principal, c.Host, c.Operation, c.PermissionType = "User:alice", "*", kmsg.ACLOperationRead, kmsg.ACLPermissionTypeAllow
	req.Creations = append(req.Creations, c)
	r.add("one", req)
	r.add("none", kmsg.NewPtrCreateACLsRequest())
}

func deleteACLsScript(r *recorder) {
	req := kmsg.NewPtrDeleteACLsRequest()
	f := kmsg.NewDeleteACLsRequestFilter()
	f.ResourceType, f.ResourcePatternType = kmsg.ACLResourceTypeTopic, kmsg.ACLResourcePatternTypeAny
	f.Operation, f.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	req.Filters = append(req.Filters, f)
	r.add("of topics", req)
	r.add("none", kmsg.NewPtrDeleteACLsRequest())
}

func quotaOf(kind string, name *string, key string, value float64, remove bool) *kmsg.AlterClientQuotasRequest {
	req := kmsg.NewPtrAlterClientQuotasRequest()
	e := kmsg.NewAlterClientQuotasRequestEntry()
	part := kmsg.NewAlterClientQuotasRequestEntryEntity()
	part.Type, part.Name = kind, name
	e.Entity = append(e.Entity, part)
	op := kmsg.NewAlterClientQuotasRequestEntryOp()
	op.Key, op.Value, op.Remove = key, value, remove
	e.Ops = append(e.Ops, op)
	req.Entries = append(req.Entries, e)
	return req
}

func alterClientQuotasScript(r *recorder) {
	alice := kmsg.StringPtr("alice")
	validate := quotaOf("user", alice, "consumer_byte_rate", 1e6, false)
	validate.ValidateOnly = true
	r.add("to validate", validate)
	r.add("of a user", quotaOf("user", alice, "consumer_byte_rate", 1e6, false))
	r.add("of a client id", quotaOf("client-id", kmsg.StringPtr("app"), "producer_byte_rate", 1e6, false))
	r.add("of an unknown kind", quotaOf("moon", alice, "consumer_byte_rate", 1e6, false))
	r.add("of an unknown sort", quotaOf("user", alice, "moonshine", 1e6, false))
	r.add("below nothing", quotaOf("user", alice, "consumer_byte_rate", -1, false))
	r.add("of an address", quotaOf("ip", kmsg.StringPtr("127.0.0.7"), "connection_creation_rate", 10, false))
	r.add("taken away", quotaOf("user", alice, "consumer_byte_rate", 0, true))
	r.add("taken away again", quotaOf("user", alice, "consumer_byte_rate", 0, true))
	r.add("none", kmsg.NewPtrAlterClientQuotasRequest())
}

func describeClientQuotasScript(r *recorder) {
	of := func(kind string, match kmsg.QuotasMatchType, name *string) *kmsg.DescribeClientQuotasRequest {
		req := kmsg.NewPtrDescribeClientQuotasRequest()
		c := kmsg.NewDescribeClientQuotasRequestComponent()
		c.EntityType, c.MatchType, c.Match = kind, match, name
		req.Components = append(req.Components, c)
		req.Strict = true
		return req
	}
	r.add("of a client id", of("client-id", kmsg.QuotasMatchTypeExact, kmsg.StringPtr("app")))
	r.add("of nobody", of("client-id", kmsg.QuotasMatchTypeExact, kmsg.StringPtr("nobody")))
	r.add("of an unknown kind", of("moon", kmsg.QuotasMatchTypeAny, nil))
	r.add("all", kmsg.NewPtrDescribeClientQuotasRequest())
}
