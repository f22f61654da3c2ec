package fsm

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"
)

// Who may do what, and how fast: the ACLs and the client quotas that were set
// through Lockstep. Every node makes its broker obey them; what the catalog
// does not know is left alone. So what was deleted must go on being known, as
// gone: a broker that was away, or came back from an old backup, still has it.

// MaxRules bounds how many ACLs and quotas the catalog holds, and MaxGone how
// many that it knows to be gone; of those the ones that went first are forgotten
// first. A broker that was away for so many deletions keeps what it missed.
const (
	MaxRules = 20_000
	MaxGone  = 10_000
)

const codePolicyViolation = 44

// ACL is one access control entry, in Kafka's codes (AclBinding).
type ACL struct {
	Resource   int8   `json:"resource"`
	Name       string `json:"name"`
	Pattern    int8   `json:"pattern"`
	Principal  string `json:"principal"`
	Host       string `json:"host"`
	Operation  int8   `json:"operation"`
	Permission int8   `json:"permission"`
}

// Quota names one value: a key such as consumer_byte_rate of an entity. The
// entity is a user, a client id or both (KIP-546).
type Quota struct {
	UserIs   NameIs `json:"user_is,omitempty"`
	User     string `json:"user,omitempty"`
	ClientIs NameIs `json:"client_is,omitempty"`
	Client   string `json:"client,omitempty"`
	Key      string `json:"key"`
}

// NameIs says what a name of a Quota's entity is.
type NameIs = int8

// The kinds of names: not part of the entity, the default of all that have no
// value of their own, or itself.
const (
	NameAbsent  NameIs = 0
	NameDefault NameIs = 1
	NameGiven   NameIs = 2
)

// Rule is what the catalog says of an ACL or a quota.
type Rule struct {
	Revision uint64  // Access.Revision at its last change
	Gone     bool    // it was deleted: no broker shall have it
	Value    float64 // of a quota that is not gone
}

// Access is all ACLs and quotas of the catalog. It is modified in place:
// readers copy what they need.
type Access struct {
	Revision uint64 // counts changes
	ACLs     map[ACL]Rule
	Quotas   map[Quota]Rule
	gone     int // rules that are
}

func newAccess() *Access {
	return &Access{ACLs: make(map[ACL]Rule), Quotas: make(map[Quota]Rule)}
}

// Clone returns a copy that the caller may keep.
func (a *Access) Clone() *Access {
	return &Access{Revision: a.Revision, ACLs: maps.Clone(a.ACLs), Quotas: maps.Clone(a.Quotas), gone: a.gone}
}

// The commands about access. Numbers are part of the log's format and never
// reused.
const (
	KindCreateACLs  Kind = 60
	KindDeleteACLs  Kind = 61
	KindAlterQuotas Kind = 62
)

// CreateACLs adds ACLs. Those that are there already stay.
type CreateACLs struct {
	ACLs []ACL `json:"acls"`
}

// DeleteACLs makes ACLs gone, also ones that only brokers know.
type DeleteACLs struct {
	ACLs []ACL `json:"acls"`
}

// AlterQuotas sets quotas and makes others gone, in this order.
type AlterQuotas struct {
	Changes []QuotaChange `json:"changes"`
}

// QuotaChange sets one quota, or makes it gone.
type QuotaChange struct {
	Quota Quota   `json:"quota"`
	Gone  bool    `json:"gone,omitempty"`
	Value float64 `json:"value"`
}

// accessArgs is catalogArgs for the commands of this file.
func accessArgs(k Kind) any {
	switch k {
	case KindCreateACLs:
		return new(CreateACLs)
	case KindDeleteACLs:
		return new(DeleteACLs)
	case KindAlterQuotas:
		return new(AlterQuotas)
	}
	return nil
}

// applyAccess applies the commands of this file; false for any other. Their
// result has the revision from which on they hold.
func (c *Catalog) applyAccess(index uint64, args any) (Result, bool) {
	a := c.Access
	before := a.Revision
	var r Result
	switch cmd := args.(type) {
	case *CreateACLs:
		r = a.create(cmd.ACLs)
	case *DeleteACLs:
		for _, acl := range cmd.ACLs {
			put(a, a.ACLs, acl, Rule{Gone: true})
		}
	case *AlterQuotas:
		r = a.alterQuotas(cmd.Changes)
	default:
		return Result{}, false
	}
	a.forget()
	if a.Revision != before {
		c.Version = index
	}
	r.Revision = a.Revision
	return r, true
}

// put makes a rule what it shall be, if it is not.
func put[K comparable](a *Access, rules map[K]Rule, k K, r Rule) {
	old, known := rules[k]
	if known && old.Gone == r.Gone && old.Value == r.Value {
		return
	}
	if known && old.Gone {
		a.gone--
	}
	if r.Gone {
		a.gone++
	}
	a.Revision++
	r.Revision = a.Revision
	rules[k] = r
}

// tooMany refuses a command that would make the catalog too large. Who would
// add nothing is let through.
func (a *Access) tooMany(added int) (Result, bool) {
	if added == 0 || len(a.ACLs)+len(a.Quotas)-a.gone+added <= MaxRules {
		return Result{}, false
	}
	return rejected(codePolicyViolation, "the catalog holds at most %d ACLs and quotas", MaxRules), true
}

func (a *Access) create(acls []ACL) Result {
	added := make(map[ACL]bool)
	for _, acl := range acls {
		if r, known := a.ACLs[acl]; !known || r.Gone {
			added[acl] = true
		}
	}
	if r, refused := a.tooMany(len(added)); refused {
		return r
	}
	for _, acl := range acls {
		put(a, a.ACLs, acl, Rule{})
	}
	return Result{}
}

func (a *Access) alterQuotas(changes []QuotaChange) Result {
	added := make(map[Quota]bool)
	for _, c := range changes {
		if c.Gone {
			continue
		}
		if math.IsNaN(c.Value) || math.IsInf(c.Value, 0) {
			return rejected(codeInvalidRequest, "a quota is a finite number")
		}
		if r, known := a.Quotas[c.Quota]; !known || r.Gone {
			added[c.Quota] = true
		}
	}
	if r, refused := a.tooMany(len(added)); refused {
		return r
	}
	for _, c := range changes {
		if c.Gone {
			put(a, a.Quotas, c.Quota, Rule{Gone: true})
		} else {
			put(a, a.Quotas, c.Quota, Rule{Value: c.Value})
		}
	}
	return Result{}
}

// forget drops the rules that went first, beyond MaxGone.
func (a *Access) forget() {
	excess := a.gone - MaxGone
	if excess <= 0 {
		return
	}
	var revisions []uint64
	for _, r := range a.ACLs {
		if r.Gone {
			revisions = append(revisions, r.Revision)
		}
	}
	for _, r := range a.Quotas {
		if r.Gone {
			revisions = append(revisions, r.Revision)
		}
	}
	slices.Sort(revisions)
	last := revisions[excess-1]
	maps.DeleteFunc(a.ACLs, func(_ ACL, r Rule) bool { return r.Gone && r.Revision <= last })
	maps.DeleteFunc(a.Quotas, func(_ Quota, r Rule) bool { return r.Gone && r.Revision <= last })
	a.gone -= excess
}

func compareACL(a, b ACL) int {
	return cmp.Or(cmp.Compare(a.Resource, b.Resource), strings.Compare(a.Name, b.Name), cmp.Compare(a.Pattern, b.Pattern),
		strings.Compare(a.Principal, b.Principal), strings.Compare(a.Host, b.Host),
		cmp.Compare(a.Operation, b.Operation), cmp.Compare(a.Permission, b.Permission))
}

func compareQuota(a, b Quota) int {
	return cmp.Or(cmp.Compare(a.UserIs, b.UserIs), strings.Compare(a.User, b.User),
		cmp.Compare(a.ClientIs, b.ClientIs), strings.Compare(a.Client, b.Client), strings.Compare(a.Key, b.Key))
}
