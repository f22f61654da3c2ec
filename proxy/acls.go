package proxy

import (
	"context"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// CreateAcls 1 to 3, DeleteAcls 1 to 3. (DescribeAcls is passed to the broker.)
//
// ACLs are kept in the catalog and enforced on every broker. Whether the client
// may change them is judged by the local broker on the client's own connection.
// What it has that the catalog does not know, set there directly, is deleted
// with the rest if it matches; what only another broker has is not seen.

// handleCreateACLs follows AclApis.handleCreateAcls and
// AclControlManager.validateNewAcl.
func handleCreateACLs(r *request) error {
	req, err := parse[*kmsg.CreateACLsRequest](r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.c.ctx, alterWait)
	defer cancel()
	denied := r.mayAlterACLs(ctx)
	problems := make([]*KafkaError, len(req.Creations))
	var acls []ACL
	for i := range req.Creations {
		c := &req.Creations[i]
		acl := ACL{int8(c.ResourceType), c.ResourceName, int8(c.ResourcePatternType), c.Principal, c.Host, int8(c.Operation), int8(c.PermissionType)}
		if problems[i] = denied; denied == nil {
			problems[i] = aclProblem(&acl)
		}
		if problems[i] == nil {
			acls = append(acls, acl)
		}
	}
	if len(acls) > 0 {
		err = r.c.srv.cluster.CreateACLs(ctx, acls)
	}
	resp := kmsg.NewPtrCreateACLsResponse()
	for _, p := range problems {
		if p == nil && err != nil {
			code, msg := errorCode(err)
			p = &KafkaError{code, msg}
		}
		result := kmsg.NewCreateACLsResponseResult()
		result.ErrorCode, result.ErrorMessage = p.wire()
		resp.Results = append(resp.Results, result)
	}
	r.reply(resp)
	return nil
}

func handleDeleteACLs(r *request) error {
	req, err := parse[*kmsg.DeleteACLsRequest](r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.c.ctx, alterWait)
	defer cancel()
	denied := r.mayAlterACLs(ctx)
	resp := kmsg.NewPtrDeleteACLsResponse()
	brokers := make([][]ACL, len(req.Filters))
	for i := range req.Filters {
		result := kmsg.NewDeleteACLsResponseResult()
		p := denied
		if p == nil {
			p = filterProblem(&req.Filters[i])
		}
		if p == nil {
			brokers[i], p = r.describeACLs(ctx, &req.Filters[i])
		}
		result.ErrorCode, result.ErrorMessage = p.wire()
		resp.Results = append(resp.Results, result)
	}
	for i := range resp.Results {
		result := &resp.Results[i]
		if result.ErrorCode != 0 {
			continue
		}
		deleted, err := r.c.srv.cluster.DeleteACLs(ctx, func(acl ACL) bool { return matches(&req.Filters[i], &acl) }, brokers[i])
		if err != nil {
			code, msg := errorCode(err)
			result.ErrorCode, result.ErrorMessage = (&KafkaError{code, msg}).wire()
			continue
		}
		for _, acl := range deleted {
			m := kmsg.NewDeleteACLsResponseResultMatchingACL()
			m.ResourceType, m.ResourceName, m.ResourcePatternType = kmsg.ACLResourceType(acl.Resource), acl.Name, kmsg.ACLResourcePatternType(acl.Pattern)
			m.Principal, m.Host = acl.Principal, acl.Host
			m.Operation, m.PermissionType = kmsg.ACLOperation(acl.Operation), kmsg.ACLPermissionType(acl.Permission)
			result.MatchingACLs = append(result.MatchingACLs, m)
		}
	}
	r.reply(resp)
	return nil
}

// nowhere is a name that no topic can have.
const nowhere = "\x00lockstep"

// mayAlterACLs says why the client may not alter ACLs, or nil. There is no
// request that only validates, so the broker is asked, on the client's own
// connection, to delete an ACL that nobody has: it looks at the client's right
// to ALTER the cluster first, and says whether it has ACLs at all.
func (r *request) mayAlterACLs(ctx context.Context) *KafkaError {
	req := kmsg.NewPtrDeleteACLsRequest()
	req.SetVersion(r.h.Version)
	f := kmsg.NewDeleteACLsRequestFilter()
	name := nowhere
	f.ResourceType, f.ResourceName, f.ResourcePatternType = kmsg.ACLResourceTypeTopic, &name, kmsg.ACLResourcePatternTypeLiteral
	f.Principal, f.Host = &name, &name
	f.Operation, f.PermissionType = kmsg.ACLOperationRead, kmsg.ACLPermissionTypeDeny
	req.Filters = append(req.Filters, f)
	resp, err := query[*kmsg.DeleteACLsResponse](ctx, r, req)
	if err != nil || len(resp.Results) != 1 {
		r.noteUpstream(err)
		return unjudged
	}
	return answeredProblem(resp.Results[0].ErrorCode, resp.Results[0].ErrorMessage)
}

// describeACLs asks the broker, on the client's own connection, which of its
// ACLs match.
func (r *request) describeACLs(ctx context.Context, f *kmsg.DeleteACLsRequestFilter) ([]ACL, *KafkaError) {
	req := kmsg.NewPtrDescribeACLsRequest()
	req.SetVersion(r.h.Version)
	req.ResourceType, req.ResourceName, req.ResourcePatternType = f.ResourceType, f.ResourceName, f.ResourcePatternType
	req.Principal, req.Host, req.Operation, req.PermissionType = f.Principal, f.Host, f.Operation, f.PermissionType
	resp, err := query[*kmsg.DescribeACLsResponse](ctx, r, req)
	if err != nil {
		r.noteUpstream(err)
		return nil, unjudged
	}
	var acls []ACL
	for _, res := range resp.Resources {
		for _, e := range res.ACLs {
			acl := ACL{int8(res.ResourceType), res.ResourceName, int8(res.ResourcePatternType), e.Principal, e.Host, int8(e.Operation), int8(e.PermissionType)}
			if matches(f, &acl) {
				acls = append(acls, acl)
			}
		}
	}
	return acls, answeredProblem(resp.ErrorCode, resp.ErrorMessage)
}

// The last codes of each kind that every broker knows. A broker that does not
// know one takes the whole request for damaged.
const (
	lastACLResource  = kmsg.ACLResourceTypeUser
	lastACLOperation = kmsg.ACLOperationDescribeTokens
)

// aclProblem says what is wrong with an ACL to create, or nil.
func aclProblem(acl *ACL) *KafkaError {
	switch resource, pattern := kmsg.ACLResourceType(acl.Resource), kmsg.ACLResourcePatternType(acl.Pattern); {
	case resource <= kmsg.ACLResourceTypeAny || resource > lastACLResource:
		return problem(kerr.InvalidRequest, "Invalid resourceType %d", acl.Resource)
	case pattern != kmsg.ACLResourcePatternTypeLiteral && pattern != kmsg.ACLResourcePatternTypePrefixed:
		return problem(kerr.InvalidRequest, "Invalid patternType %d", acl.Pattern)
	case acl.Operation <= int8(kmsg.ACLOperationAny) || acl.Operation > int8(lastACLOperation):
		return problem(kerr.InvalidRequest, "Invalid operation %d", acl.Operation)
	case acl.Permission != int8(kmsg.ACLPermissionTypeDeny) && acl.Permission != int8(kmsg.ACLPermissionTypeAllow):
		return problem(kerr.InvalidRequest, "Invalid permissionType %d", acl.Permission)
	case acl.Name == "":
		return problem(kerr.InvalidRequest, "Resource name should not be empty")
	case resource == kmsg.ACLResourceTypeCluster && acl.Name != clusterResource:
		return problem(kerr.InvalidRequest, "The only valid name for the CLUSTER resource is %s", clusterResource)
	case !strings.Contains(acl.Principal, ":"):
		return problem(kerr.InvalidRequest, "Could not parse principal from `%s` (no colon is present separating the principal type from the principal name)", acl.Principal)
	}
	return namesProblem(acl.Name, acl.Principal, acl.Host)
}

// clusterResource is the only name of a cluster in ACLs (Resource.CLUSTER_NAME).
const clusterResource = "kafka-cluster"

func filterProblem(f *kmsg.DeleteACLsRequestFilter) *KafkaError {
	if f.ResourceType <= kmsg.ACLResourceTypeUnknown || f.ResourceType > lastACLResource ||
		f.ResourcePatternType <= kmsg.ACLResourcePatternTypeUnknown || f.ResourcePatternType > kmsg.ACLResourcePatternTypePrefixed ||
		f.Operation <= kmsg.ACLOperationUnknown || f.Operation > lastACLOperation ||
		f.PermissionType <= kmsg.ACLPermissionTypeUnknown || f.PermissionType > kmsg.ACLPermissionTypeAllow {
		return problem(kerr.InvalidRequest, "The filter has a kind, an operation or a permission that is not known here")
	}
	return nil
}

// matches says whether an ACL is one of a filter's (AclBindingFilter.matches).
func matches(f *kmsg.DeleteACLsRequestFilter, acl *ACL) bool {
	return (f.ResourceType == kmsg.ACLResourceTypeAny || int8(f.ResourceType) == acl.Resource) &&
		(f.Operation == kmsg.ACLOperationAny || int8(f.Operation) == acl.Operation) &&
		(f.PermissionType == kmsg.ACLPermissionTypeAny || int8(f.PermissionType) == acl.Permission) &&
		(f.Principal == nil || *f.Principal == acl.Principal) &&
		(f.Host == nil || *f.Host == acl.Host) &&
		matchesResource(f, acl)
}

// matchesResource follows ResourcePatternFilter.matches: MATCH stands for every
// pattern that concerns a resource of the name.
func matchesResource(f *kmsg.DeleteACLsRequestFilter, acl *ACL) bool {
	pattern := kmsg.ACLResourcePatternType(acl.Pattern)
	any, match := f.ResourcePatternType == kmsg.ACLResourcePatternTypeAny, f.ResourcePatternType == kmsg.ACLResourcePatternTypeMatch
	switch {
	case !any && !match && f.ResourcePatternType != pattern:
		return false
	case f.ResourceName == nil:
		return true
	case !match:
		return *f.ResourceName == acl.Name
	case pattern == kmsg.ACLResourcePatternTypePrefixed:
		return strings.HasPrefix(*f.ResourceName, acl.Name)
	}
	return *f.ResourceName == acl.Name || acl.Name == "*"
}
