package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Versions of the requests about ACLs and quotas. CreateAcls v1 is the first
// with pattern types (KIP-290).
const (
	minACLsVersion   = 1
	maxACLsVersion   = 3
	maxQuotasVersion = 1
)

// accessAtOnce is how many ACLs or quotas one request changes.
const accessAtOnce = 500

// ErrNoAuthorizer is returned when the broker has no authorizer, and so no ACLs.
var ErrNoAuthorizer = errors.New("the broker has no authorizer")

// ACL is one access control entry, in Kafka's codes.
type ACL struct {
	Resource   int8
	Name       string
	Pattern    int8
	Principal  string
	Host       string
	Operation  int8
	Permission int8
}

// Quota names one value: a key of an entity, which is a user, a client id or
// both.
type Quota struct {
	UserIs   int8 // 0: not part of the entity, 1: the default, 2: User
	User     string
	ClientIs int8 // as UserIs
	Client   string
	Key      string
}

// Names of entity types (ClientQuotaEntity).
const (
	entityUser     = "user"
	entityClientID = "client-id"
)

// QuotaChange sets one quota, or removes it.
type QuotaChange struct {
	Quota Quota
	Gone  bool
	Value float64
}

// ACLs returns every ACL of the broker, or ErrNoAuthorizer.
func (a *Admin) ACLs(ctx context.Context) ([]ACL, error) {
	resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.DescribeACLs, minACLsVersion, maxACLsVersion)
		req := kmsg.NewPtrDescribeACLsRequest()
		req.Version, req.ResourceType, req.ResourcePatternType = version, kmsg.ACLResourceTypeAny, kmsg.ACLResourcePatternTypeAny
		req.Operation, req.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
		return req, err
	})
	if err != nil {
		return nil, fmt.Errorf("list the broker's ACLs: %w", err)
	}
	list := resp.(*kmsg.DescribeACLsResponse)
	if err := aclError(list.ErrorCode, list.ErrorMessage); err != nil {
		return nil, fmt.Errorf("list the broker's ACLs: %w", err)
	}
	var acls []ACL
	for _, r := range list.Resources {
		for _, e := range r.ACLs {
			acls = append(acls, ACL{int8(r.ResourceType), r.ResourceName, int8(r.ResourcePatternType), e.Principal, e.Host, int8(e.Operation), int8(e.PermissionType)})
		}
	}
	return acls, nil
}

func aclError(code int16, message *string) error {
	if code == kerr.SecurityDisabled.Code {
		return ErrNoAuthorizer
	}
	return codeError(code, message)
}

// CreateACLs adds ACLs; one that is there already is success. What the broker
// refuses is given to refused, and does not hold up the others.
func (a *Admin) CreateACLs(ctx context.Context, acls []ACL, refused func(ACL, error)) error {
	for part := range slices.Chunk(acls, accessAtOnce) {
		resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
			version, err := v.pick(kmsg.CreateACLs, minACLsVersion, maxACLsVersion)
			req := kmsg.NewPtrCreateACLsRequest()
			req.Version = version
			for _, acl := range part {
				c := kmsg.NewCreateACLsRequestCreation()
				c.ResourceType, c.ResourceName, c.ResourcePatternType = kmsg.ACLResourceType(acl.Resource), acl.Name, kmsg.ACLResourcePatternType(acl.Pattern)
				c.Principal, c.Host = acl.Principal, acl.Host
				c.Operation, c.PermissionType = kmsg.ACLOperation(acl.Operation), kmsg.ACLPermissionType(acl.Permission)
				req.Creations = append(req.Creations, c)
			}
			return req, err
		})
		if err != nil {
			return fmt.Errorf("create %d ACLs: %w", len(part), err)
		}
		results := resp.(*kmsg.CreateACLsResponse).Results
		if len(results) != len(part) {
			return fmt.Errorf("create %d ACLs: %w: %d results", len(part), ErrMalformed, len(results))
		}
		for i, r := range results {
			if err := settle(part[i], aclError(r.ErrorCode, r.ErrorMessage), refused); err != nil {
				return fmt.Errorf("create ACLs: %w", err)
			}
		}
	}
	return nil
}

// DeleteACLs removes exactly these ACLs; one that is not there is success. What
// the broker refuses is given to refused.
func (a *Admin) DeleteACLs(ctx context.Context, acls []ACL, refused func(ACL, error)) error {
	for part := range slices.Chunk(acls, accessAtOnce) {
		resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
			version, err := v.pick(kmsg.DeleteACLs, minACLsVersion, maxACLsVersion)
			req := kmsg.NewPtrDeleteACLsRequest()
			req.Version = version
			for _, acl := range part {
				f := kmsg.NewDeleteACLsRequestFilter()
				f.ResourceType, f.ResourceName, f.ResourcePatternType = kmsg.ACLResourceType(acl.Resource), &acl.Name, kmsg.ACLResourcePatternType(acl.Pattern)
				f.Principal, f.Host = &acl.Principal, &acl.Host
				f.Operation, f.PermissionType = kmsg.ACLOperation(acl.Operation), kmsg.ACLPermissionType(acl.Permission)
				req.Filters = append(req.Filters, f)
			}
			return req, err
		})
		if err != nil {
			return fmt.Errorf("delete %d ACLs: %w", len(part), err)
		}
		results := resp.(*kmsg.DeleteACLsResponse).Results
		if len(results) != len(part) {
			return fmt.Errorf("delete %d ACLs: %w: %d results", len(part), ErrMalformed, len(results))
		}
		for i, r := range results {
			err := aclError(r.ErrorCode, r.ErrorMessage)
			for _, m := range r.MatchingACLs {
				if err == nil {
					err = aclError(m.ErrorCode, m.ErrorMessage)
				}
			}
			if err := settle(part[i], err, refused); err != nil {
				return fmt.Errorf("delete ACLs: %w", err)
			}
		}
	}
	return nil
}

// settle gives an error that the same request would get again to refused, and
// returns any other.
func settle[T any](what T, err error, refused func(T, error)) error {
	var code *CodeError
	if err == nil || !errors.As(err, &code) || code.Retriable() {
		return err
	}
	refused(what, err)
	return nil
}

// Quotas returns every quota of users and client ids that the broker has.
func (a *Admin) Quotas(ctx context.Context) (map[Quota]float64, error) {
	resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.DescribeClientQuotas, 0, maxQuotasVersion)
		req := kmsg.NewPtrDescribeClientQuotasRequest()
		req.Version = version // no component: all
		return req, err
	})
	if err != nil {
		return nil, fmt.Errorf("list the broker's quotas: %w", err)
	}
	list := resp.(*kmsg.DescribeClientQuotasResponse)
	if err := codeError(list.ErrorCode, list.ErrorMessage); err != nil {
		return nil, fmt.Errorf("list the broker's quotas: %w", err)
	}
	quotas := make(map[Quota]float64)
	for _, e := range list.Entries {
		var q Quota
		for _, part := range e.Entity {
			q.add(part.Type, part.Name)
		}
		if q.UserIs == 0 && q.ClientIs == 0 {
			continue // of an address
		}
		for _, v := range e.Values {
			q.Key = v.Key
			quotas[q] = v.Value
		}
	}
	return quotas, nil
}

// AlterQuotas makes changes, each entity's together. What the broker refuses is
// given to refused.
func (a *Admin) AlterQuotas(ctx context.Context, changes []QuotaChange, refused func(Quota, error)) error {
	for part := range slices.Chunk(changes, accessAtOnce) {
		var entities []Quota
		var entries []kmsg.AlterClientQuotasRequestEntry
		for _, c := range part {
			entity := c.Quota
			entity.Key = ""
			i := slices.Index(entities, entity)
			if i < 0 {
				i = len(entities)
				entities, entries = append(entities, entity), append(entries, entryOf(entity))
			}
			op := kmsg.NewAlterClientQuotasRequestEntryOp()
			op.Key, op.Value, op.Remove = c.Quota.Key, c.Value, c.Gone
			entries[i].Ops = append(entries[i].Ops, op)
		}
		resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
			version, err := v.pick(kmsg.AlterClientQuotas, 0, maxQuotasVersion)
			req := kmsg.NewPtrAlterClientQuotasRequest()
			req.Version, req.Entries = version, entries
			return req, err
		})
		if err != nil {
			return fmt.Errorf("alter quotas of %d entities: %w", len(entries), err)
		}
		for _, e := range resp.(*kmsg.AlterClientQuotasResponse).Entries {
			entity := Quota{}
			for _, p := range e.Entity {
				entity.add(p.Type, p.Name)
			}
			if err := settle(entity, codeError(e.ErrorCode, e.ErrorMessage), refused); err != nil {
				return fmt.Errorf("alter quotas: %w", err)
			}
		}
	}
	return nil
}

// add names one part of the entity; nil is the default.
func (q *Quota) add(kind string, name *string) {
	is, given := int8(1), ""
	if name != nil {
		is, given = 2, *name
	}
	switch kind {
	case entityUser:
		q.UserIs, q.User = is, given
	case entityClientID:
		q.ClientIs, q.Client = is, given
	}
}

func entryOf(q Quota) kmsg.AlterClientQuotasRequestEntry {
	e := kmsg.NewAlterClientQuotasRequestEntry()
	add := func(kind string, is int8, name string) {
		if is == 0 {
			return
		}
		part := kmsg.NewAlterClientQuotasRequestEntryEntity()
		if part.Type = kind; is == 2 {
			part.Name = &name
		}
		e.Entity = append(e.Entity, part)
	}
	add(entityUser, q.UserIs, q.User)
	add(entityClientID, q.ClientIs, q.Client)
	return e
}
