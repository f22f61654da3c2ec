package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/internal/watch"
)

// accessAgain is how often a broker is compared with the catalog's ACLs and
// quotas although nothing has changed: somebody may have altered it directly,
// or what a predecessor had sent may have been carried out late.
const accessAgain = time.Minute

// AccessBroker is the local broker's ACLs and quotas. Methods may be called from
// any goroutine. Changes that the broker refuses for good are given to refused;
// everything else that prevents one is an error.
type AccessBroker interface {
	// WaitUp returns when the broker is reachable.
	WaitUp(ctx context.Context) error
	// ACLs returns broker.ErrNoAuthorizer where there can be none.
	ACLs(ctx context.Context) ([]broker.ACL, error)
	CreateACLs(ctx context.Context, acls []broker.ACL, refused func(broker.ACL, error)) error
	DeleteACLs(ctx context.Context, acls []broker.ACL, refused func(broker.ACL, error)) error
	Quotas(ctx context.Context) (map[broker.Quota]float64, error)
	AlterQuotas(ctx context.Context, changes []broker.QuotaChange, refused func(broker.Quota, error)) error
}

// AccessCatalog is the group that holds the catalog.
type AccessCatalog interface {
	// Read calls f with the state machine, which f must neither keep nor change.
	Read(f func(*fsm.Group))
	// CatalogChanged grows when the catalog changes.
	CatalogChanged() *watch.Index
}

// AccessConfig of an Access.
type AccessConfig struct {
	Catalog AccessCatalog
	Broker  AccessBroker
	// BrokerChanged returns a channel that is closed when the broker next
	// comes or goes.
	BrokerChanged func() <-chan struct{}
	// Current returns when the catalog is as new as anything acknowledged
	// before the call. It is called at the start: what this node has of the
	// log then may be older than what its broker has been told already, and
	// would give back rights that were taken away.
	Current func(ctx context.Context) error
	Logger  hclog.Logger
}

// Access makes the local broker have the catalog's ACLs and quotas, and not
// have those that the catalog knows to be gone. It compares what is with what
// shall be, so that it may be interrupted anywhere and do anything twice. What
// the catalog does not know is left alone.
type Access struct {
	cfg     AccessConfig
	log     hclog.Logger
	applied watch.Index
	cancel  context.CancelFunc // nil before Open
	wg      sync.WaitGroup

	said map[string]bool // warnings given; owned by run
}

// NewAccess returns an Access that does nothing until Open.
func NewAccess(cfg AccessConfig) *Access {
	return &Access{cfg: cfg, log: cfg.Logger.Named("access"), said: make(map[string]bool)}
}

// Open starts to follow the catalog. It is called once.
func (a *Access) Open() {
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	a.wg.Go(func() { a.run(ctx) })
}

// Close returns when nothing is sent to the broker any more. Idempotent.
func (a *Access) Close() error {
	if a.cancel != nil {
		a.cancel()
	}
	a.wg.Wait()
	return nil
}

// Applied is the revision (fsm.Access) that the broker has.
func (a *Access) Applied() *watch.Index { return &a.applied }

func (a *Access) run(ctx context.Context) {
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		err := a.cfg.Current(ctx)
		if err == nil {
			break
		}
		a.log.Debug("the broker's ACLs and quotas stay as they are: the catalog may be old", "error", err)
		if !pause(ctx, backoff) {
			return
		}
	}
	timer := time.NewTimer(accessAgain)
	defer timer.Stop()
	backoff := minBackoff
	due := true
	for ctx.Err() == nil {
		brokerChanged := a.cfg.BrokerChanged()
		_, changed := a.cfg.Catalog.CatalogChanged().Changed()
		if due || a.revision() > a.applied.Get() {
			wait := accessAgain
			if err := a.enforce(ctx); err != nil {
				a.log.Debug("cannot bring the broker's ACLs and quotas in line yet", "error", err)
				wait, backoff = backoff, min(2*backoff, maxBackoff)
			} else {
				backoff = minBackoff
			}
			timer.Reset(wait)
		}
		due = false
		select {
		case <-changed:
		case <-brokerChanged:
			due = true
		case <-timer.C:
			due = true
		case <-ctx.Done():
		}
	}
}

func (a *Access) revision() (r uint64) {
	a.cfg.Catalog.Read(func(g *fsm.Group) { r = g.Catalog.Access.Revision })
	return r
}

// enforce compares once and makes the differences good.
func (a *Access) enforce(ctx context.Context) error {
	if err := a.cfg.Broker.WaitUp(ctx); err != nil {
		return err
	}
	var want *fsm.Access
	a.cfg.Catalog.Read(func(g *fsm.Group) { want = g.Catalog.Access.Clone() })
	// Quotas do not wait for ACLs that cannot be had.
	err := errors.Join(a.enforceACLs(ctx, want), a.enforceQuotas(ctx, want))
	if err == nil {
		a.applied.Set(want.Revision)
	}
	return err
}

// enforceACLs creates before it deletes, each in the order of the log: who is
// given one right for another is never without.
func (a *Access) enforceACLs(ctx context.Context, want *fsm.Access) error {
	if len(want.ACLs) == 0 {
		return nil
	}
	acls, err := a.cfg.Broker.ACLs(ctx)
	if errors.Is(err, broker.ErrNoAuthorizer) || errors.Is(err, broker.ErrUnsupported) {
		a.warnOnce("this node's broker takes no ACLs, other brokers' do", "error", err,
			"next", "give every broker the same authorizer (authorizer.class.name)")
		return nil
	}
	if err != nil {
		return err
	}
	has := make(map[broker.ACL]bool, len(acls))
	for _, acl := range acls {
		has[acl] = true
	}
	var create, remove []broker.ACL
	for _, acl := range byRevision(want.ACLs) {
		switch theirs, gone := broker.ACL(acl), want.ACLs[acl].Gone; {
		case gone && has[theirs]:
			remove = append(remove, theirs)
		case !gone && !has[theirs]:
			create = append(create, theirs)
		}
	}
	refused := func(acl broker.ACL, err error) {
		a.warnOnce("this node's broker refuses an ACL that the others have", "resource", acl.Name, "principal", acl.Principal, "error", err,
			"next", "compare the brokers' releases")
	}
	if len(create) > 0 {
		if err := a.cfg.Broker.CreateACLs(ctx, create, refused); err != nil {
			return err
		}
	}
	if len(remove) > 0 {
		if err := a.cfg.Broker.DeleteACLs(ctx, remove, refused); err != nil {
			return err
		}
	}
	if len(create)+len(remove) > 0 {
		a.log.Info("changed the broker's ACLs", "created", len(create), "deleted", len(remove), "revision", want.Revision)
	}
	return nil
}

// enforceQuotas sees to it first that no quota of everybody slows down what
// this node itself sends: what is committed could not be applied.
func (a *Access) enforceQuotas(ctx context.Context, want *fsm.Access) error {
	if len(want.Quotas) == 0 {
		return nil
	}
	has, err := a.cfg.Broker.Quotas(ctx)
	if errors.Is(err, broker.ErrUnsupported) {
		a.warnOnce("this node's broker takes no quotas, other brokers' do", "error", err, "next", "compare the brokers' releases")
		return nil
	}
	if err != nil {
		return err
	}
	var own, clients []broker.QuotaChange
	for _, q := range unlimited {
		if v, ok := has[q]; !ok || v != noLimit {
			own = append(own, broker.QuotaChange{Quota: q, Value: noLimit})
		}
	}
	for _, q := range byRevision(want.Quotas) {
		theirs, rule := broker.Quota(q), want.Quotas[q]
		if slices.Contains(unlimited, theirs) {
			continue
		}
		if v, ok := has[theirs]; ok == rule.Gone || ok && v != rule.Value {
			clients = append(clients, broker.QuotaChange{Quota: theirs, Gone: rule.Gone, Value: rule.Value})
		}
	}
	refused := func(q broker.Quota, err error) {
		a.warnOnce("this node's broker refuses a quota that the others have", "user", q.User, "client-id", q.Client, "error", err,
			"next", "compare the brokers' releases")
	}
	for _, changes := range [][]broker.QuotaChange{own, clients} {
		if len(changes) == 0 {
			continue
		}
		if err := a.cfg.Broker.AlterQuotas(ctx, changes, refused); err != nil {
			return err
		}
	}
	if len(clients) > 0 {
		a.log.Info("changed the broker's quotas", "changed", len(clients), "revision", want.Revision)
	}
	return nil
}

// noLimit is more than any broker moves.
const noLimit = 1e15

// unlimited is what this node's own connections are given as soon as there is
// any quota: of all quotas that could be theirs, one of a user and a client id
// goes first (ClientQuotaManager).
var unlimited = func() (own []broker.Quota) {
	for _, key := range []string{"producer_byte_rate", "consumer_byte_rate", "request_percentage", "controller_mutation_rate"} {
		own = append(own, broker.Quota{UserIs: fsm.NameGiven, User: "ANONYMOUS", ClientIs: fsm.NameGiven, Client: broker.DefaultClientID, Key: key})
	}
	return own
}()

// byRevision returns rules in the order in which they were made.
func byRevision[K comparable](rules map[K]fsm.Rule) []K {
	keys := make([]K, 0, len(rules))
	for k := range rules {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(x, y K) int { return cmp.Compare(rules[x].Revision, rules[y].Revision) })
	return keys
}

// warnOnce says something once as long as the process lives.
func (a *Access) warnOnce(msg string, args ...any) {
	key := fmt.Sprint(append([]any{msg}, args...)...)
	if len(a.said) > 1000 || a.said[key] {
		return
	}
	a.said[key] = true
	a.log.Warn(msg, args...)
}
