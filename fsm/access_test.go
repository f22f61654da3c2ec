package fsm

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

// accessOf is the catalog's ACLs and quotas as a document: keys that are
// structs are none.
func accessOf(c *Catalog) []string {
	out := []string{fmt.Sprint("revision ", c.Access.Revision, " gone ", c.Access.gone)}
	for k, r := range c.Access.ACLs {
		out = append(out, fmt.Sprintf("%+v %+v", k, r))
	}
	for k, r := range c.Access.Quotas {
		out = append(out, fmt.Sprintf("%+v %+v", k, r))
	}
	slices.Sort(out[1:])
	return out
}

// anACL lets a user read a topic.
func anACL(topic string) ACL {
	return ACL{Resource: 2, Name: topic, Pattern: 3, Principal: "User:u", Host: "*", Operation: 3, Permission: 3}
}

func aQuota(user string) Quota {
	return Quota{UserIs: NameGiven, User: user, Key: "consumer_byte_rate"}
}

// alive returns the names of the ACLs that shall be, and of those that shall not.
func alive(a *Access) (here, gone []string) {
	for acl, r := range a.ACLs {
		if r.Gone {
			gone = append(gone, acl.Name)
		} else {
			here = append(here, acl.Name)
		}
	}
	slices.Sort(here)
	slices.Sort(gone)
	return here, gone
}

// What is created is there until it is deleted; what was deleted is known to be
// gone until it is created again; what changes nothing is no new revision.
func TestACLs(t *testing.T) {
	g := NewGroup(CatalogGroup)
	for _, step := range []struct {
		kind       Kind
		names      []string
		revision   uint64
		here, gone string
	}{
		{KindCreateACLs, []string{"a", "b", "a"}, 2, "[a b]", "[]"},
		{KindCreateACLs, []string{"b"}, 2, "[a b]", "[]"},
		{KindDeleteACLs, []string{"a", "brokers-only"}, 4, "[b]", "[a brokers-only]"},
		{KindDeleteACLs, []string{"a"}, 4, "[b]", "[a brokers-only]"},
		{KindCreateACLs, []string{"a"}, 5, "[a b]", "[brokers-only]"},
		{KindDeleteACLs, nil, 5, "[a b]", "[brokers-only]"},
	} {
		var acls []ACL
		for _, name := range step.names {
			acls = append(acls, anACL(name))
		}
		version, before := g.Catalog.Version, g.Catalog.Access.Revision
		var r Result
		if step.kind == KindCreateACLs {
			r = one(t, g, step.kind, CreateACLs{ACLs: acls})
		} else {
			r = one(t, g, step.kind, DeleteACLs{ACLs: acls})
		}
		here, gone := alive(g.Catalog.Access)
		if r.Verdict != Done || r.Revision != step.revision || fmt.Sprint(here) != step.here || fmt.Sprint(gone) != step.gone {
			t.Fatalf("%+v: %+v; %v, gone %v", step, r, here, gone)
		}
		want := version
		if step.revision != before {
			want = g.Index
		}
		if g.Catalog.Version != want {
			t.Fatalf("%+v: catalog version %d, want %d", step, g.Catalog.Version, want)
		}
		again(t, g)
	}
}

func TestQuotas(t *testing.T) {
	g := NewGroup(CatalogGroup)
	alter := func(changes ...QuotaChange) Result { return one(t, g, KindAlterQuotas, AlterQuotas{Changes: changes}) }
	if r := alter(QuotaChange{Quota: aQuota("u"), Value: 1}, QuotaChange{Quota: aQuota("u"), Value: 2.5}, QuotaChange{Quota: aQuota("w"), Gone: true}); r.Verdict != Done || r.Revision != 3 {
		t.Fatalf("%+v", r)
	}
	want := map[Quota]Rule{aQuota("u"): {Revision: 2, Value: 2.5}, aQuota("w"): {Revision: 3, Gone: true}}
	if got := g.Catalog.Access.Quotas; !maps.Equal(got, want) {
		t.Fatalf("%+v", got)
	}
	kept := g.Catalog.Access.Clone()
	if r := alter(QuotaChange{Quota: aQuota("u"), Value: 2.5}); r.Revision != 3 {
		t.Errorf("the same again: %+v", r)
	}
	alter(QuotaChange{Quota: aQuota("u"), Gone: true})
	if !maps.Equal(kept.Quotas, want) {
		t.Error("a copy was modified")
	}
	if r := g.Catalog.Access.Quotas[aQuota("u")]; r != (Rule{Revision: 4, Gone: true}) {
		t.Errorf("%+v", r)
	}
	again(t, g)
}

// numbered returns ACLs from number from up to before number to.
func numbered(from, to int) (acls []ACL) {
	for n := from; n < to; n++ {
		acls = append(acls, anACL(fmt.Sprint("t", n)))
	}
	return acls
}

// The catalog is bounded: no more than so many rules, and what went first is
// forgotten first.
func TestAccessIsBounded(t *testing.T) {
	g := NewGroup(CatalogGroup)
	one(t, g, KindCreateACLs, CreateACLs{ACLs: numbered(0, MaxRules)})
	for what, r := range map[string]Result{
		"an ACL":  one(t, g, KindCreateACLs, CreateACLs{ACLs: numbered(MaxRules, MaxRules+1)}),
		"a quota": one(t, g, KindAlterQuotas, AlterQuotas{Changes: []QuotaChange{{Quota: aQuota("u"), Value: 1}}}),
	} {
		if r.Verdict != Rejected || r.Code != codePolicyViolation || r.Revision != MaxRules {
			t.Errorf("%s too many: %+v", what, r)
		}
	}
	if r := one(t, g, KindCreateACLs, CreateACLs{ACLs: numbered(5, 9)}); r.Verdict != Done {
		t.Errorf("what is there already: %+v", r)
	}
	one(t, g, KindDeleteACLs, DeleteACLs{ACLs: numbered(0, MaxGone)})
	one(t, g, KindDeleteACLs, DeleteACLs{ACLs: numbered(MaxGone, MaxGone+3)})
	one(t, g, KindAlterQuotas, AlterQuotas{Changes: []QuotaChange{{Quota: aQuota("u"), Gone: true}}})
	_, gone := alive(g.Catalog.Access)
	for n := range 5 {
		if _, known := g.Catalog.Access.ACLs[anACL(fmt.Sprint("t", n))]; known != (n == 4) {
			t.Errorf("deletion %d is known: %t", n, known)
		}
	}
	if len(gone) != MaxGone-1 || !g.Catalog.Access.Quotas[aQuota("u")].Gone {
		t.Errorf("%d gone", len(gone))
	}
	again(t, g)
}

// Only the catalog's group takes them.
func TestAccessElsewhere(t *testing.T) {
	if r := one(t, NewGroup(1), KindCreateACLs, CreateACLs{ACLs: numbered(0, 1)}); r.Verdict != Rejected {
		t.Errorf("%+v", r)
	}
}
