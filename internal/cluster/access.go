package cluster

import (
	"context"
	"slices"

	"lockstep/fsm"
	"lockstep/proxy"
)

// accessAtOnce is how many ACLs or quotas one entry changes: it must stay far
// below the largest.
const accessAtOnce = 100

// CatalogCurrent returns when this node's catalog is as new as any that an
// acknowledgement before the call was made from. Any goroutine.
func (c *Cluster) CatalogCurrent(ctx context.Context) error { return c.catalogUpToDate(ctx) }

// CreateACLs implements proxy.AccessRules.
func (c *Cluster) CreateACLs(ctx context.Context, acls []proxy.ACL) error {
	return changeAccess(ctx, c, acls, func(part []proxy.ACL) (fsm.Kind, any) {
		return fsm.KindCreateACLs, fsm.CreateACLs{ACLs: catalogACLs(part)}
	})
}

// DeleteACLs implements proxy.AccessRules. The catalog is read when it has every
// ACL that was acknowledged before.
func (c *Cluster) DeleteACLs(ctx context.Context, match func(proxy.ACL) bool, brokers []proxy.ACL) ([]proxy.ACL, error) {
	if err := c.catalogUpToDate(ctx); err != nil {
		return nil, &proxy.KafkaError{Code: codeNotController, Message: err.Error()}
	}
	acls := slices.Clone(brokers)
	known := make(map[proxy.ACL]bool, len(acls))
	for _, acl := range acls {
		known[acl] = true
	}
	c.node.Catalog().Read(func(g *fsm.Group) {
		for rule, r := range g.Catalog.Access.ACLs {
			if acl := proxy.ACL(rule); !r.Gone && !known[acl] && match(acl) {
				acls = append(acls, acl)
			}
		}
	})
	err := changeAccess(ctx, c, acls, func(part []proxy.ACL) (fsm.Kind, any) {
		return fsm.KindDeleteACLs, fsm.DeleteACLs{ACLs: catalogACLs(part)}
	})
	if err != nil {
		return nil, err
	}
	return acls, nil
}

func catalogACLs(acls []proxy.ACL) []fsm.ACL {
	out := make([]fsm.ACL, 0, len(acls))
	for _, acl := range acls {
		out = append(out, fsm.ACL(acl))
	}
	return out
}

// AlterQuotas implements proxy.AccessRules.
func (c *Cluster) AlterQuotas(ctx context.Context, changes []proxy.QuotaChange) error {
	return changeAccess(ctx, c, changes, func(part []proxy.QuotaChange) (fsm.Kind, any) {
		a := fsm.AlterQuotas{}
		for _, one := range part {
			a.Changes = append(a.Changes, fsm.QuotaChange{Quota: fsm.Quota(one.Quota), Gone: one.Gone, Value: one.Value})
		}
		return fsm.KindAlterQuotas, a
	})
}

// changeAccess proposes changes, some at a time, and waits until this node's
// broker has them.
func changeAccess[T any](ctx context.Context, c *Cluster, changes []T, command func([]T) (fsm.Kind, any)) error {
	var revision uint64
	for part := range slices.Chunk(changes, accessAtOnce) {
		kind, body := command(part)
		r, err := c.submit(ctx, fsm.CatalogGroup, kind, body)
		if err != nil {
			return err
		}
		revision = r.Revision
	}
	if c.cfg.AccessApplied == nil {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.ctx, func() { cancel(errClosing) })()
	if _, err := c.cfg.AccessApplied.Wait(ctx, revision); err != nil {
		if c.ctx.Err() != nil {
			return errClosing
		}
		return &proxy.KafkaError{Code: codeTimedOut, Message: "the change was accepted, but this node's broker does not have it in time"}
	}
	return nil
}
