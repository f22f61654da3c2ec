package fsm

import (
	"encoding/binary"
	"maps"
	"math"
	"slices"
)

// The section of a state that holds ACLs and quotas, after what is committed:
//
//	number     revision
//	count      ACLs, in order: resource, pattern, operation, permission (a byte
//	           each), name, principal, host, rule
//	count      quotas, in order: kind of the user, user, kind of the client id,
//	           client id, key, rule
//
// A rule is its revision and a byte, 1 if it is gone; of a quota that is not,
// the 8 bytes of its value follow, little-endian.

// Smallest sizes, so that a hostile count takes no memory.
const (
	minACLSize   = 4 + 3 + 2
	minQuotaSize = 2 + 3 + 2
)

func (a *Access) appendTo(b []byte) []byte {
	b = binary.AppendUvarint(b, a.Revision)
	b = binary.AppendUvarint(b, uint64(len(a.ACLs)))
	for _, acl := range slices.SortedFunc(maps.Keys(a.ACLs), compareACL) {
		b = append(b, byte(acl.Resource), byte(acl.Pattern), byte(acl.Operation), byte(acl.Permission))
		b = appendString(appendString(appendString(b, acl.Name), acl.Principal), acl.Host)
		b = appendRule(b, a.ACLs[acl])
	}
	b = binary.AppendUvarint(b, uint64(len(a.Quotas)))
	for _, q := range slices.SortedFunc(maps.Keys(a.Quotas), compareQuota) {
		b = appendString(append(b, byte(q.UserIs)), q.User)
		b = appendString(append(b, byte(q.ClientIs)), q.Client)
		r := a.Quotas[q]
		b = appendRule(appendString(b, q.Key), r)
		if !r.Gone {
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(r.Value))
		}
	}
	return b
}

func appendRule(b []byte, r Rule) []byte {
	return append(binary.AppendUvarint(b, r.Revision), flag(r.Gone))
}

// access reads what appendTo wrote.
func (r *stateReader) access() *Access {
	a := newAccess()
	a.Revision = r.number("revision of the ACLs", math.MaxUint64)
	seen := make(map[uint64]bool)
	r.acls(a, seen)
	r.quotas(a, seen)
	if a.gone > MaxGone || len(a.ACLs)+len(a.Quotas)-a.gone > MaxRules {
		r.fail("%d ACLs and quotas, %d of them gone", len(a.ACLs)+len(a.Quotas), a.gone)
	}
	return a
}

func (r *stateReader) acls(a *Access, seen map[uint64]bool) {
	var last ACL
	for i := range r.count("ACLs", minACLSize) {
		codes := r.bytes("ACL", 4)
		if codes == nil {
			return
		}
		acl := ACL{Resource: int8(codes[0]), Pattern: int8(codes[1]), Operation: int8(codes[2]), Permission: int8(codes[3])}
		acl.Name, acl.Principal, acl.Host = r.string("resource of an ACL"), r.string("principal"), r.string("host")
		rule := r.rule(a, seen)
		if i > 0 && compareACL(last, acl) >= 0 {
			r.fail("the ACL on %q stands after that on %q", acl.Name, last.Name)
		}
		if r.err != nil {
			return
		}
		a.ACLs[acl], last = rule, acl
	}
}

func (r *stateReader) quotas(a *Access, seen map[uint64]bool) {
	var last Quota
	for i := range r.count("quotas", minQuotaSize) {
		var q Quota
		q.UserIs, q.User = r.name("user")
		q.ClientIs, q.Client = r.name("client id")
		q.Key = r.string("quota")
		rule := r.rule(a, seen)
		if !rule.Gone {
			rule.Value = math.Float64frombits(r.uint64("value of a quota"))
		}
		switch {
		case i > 0 && compareQuota(last, q) >= 0:
			r.fail("a quota of %q stands after one of %q", q.User, last.User)
		case math.IsNaN(rule.Value) || math.IsInf(rule.Value, 0):
			r.fail("a quota is %f", rule.Value)
		}
		if r.err != nil {
			return
		}
		a.Quotas[q], last = rule, q
	}
}

func (r *stateReader) name(what string) (NameIs, string) {
	kind := NameAbsent
	if b := r.bytes("kind of a "+what, 1); b != nil {
		kind = NameIs(b[0])
	}
	return kind, r.string(what)
}

func (r *stateReader) rule(a *Access, seen map[uint64]bool) Rule {
	rule := Rule{Revision: r.number("revision of a rule", a.Revision), Gone: r.flag("end of a rule")}
	if seen[rule.Revision] || rule.Revision == 0 {
		r.fail("two rules of revision %d, or none has it", rule.Revision)
	}
	seen[rule.Revision] = true
	if rule.Gone {
		a.gone++
	}
	return rule
}
