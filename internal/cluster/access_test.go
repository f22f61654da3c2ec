package cluster

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"lockstep/fsm"
	"lockstep/internal/watch"
	"lockstep/proxy"
)

func someACLs(from string, n int) (acls []proxy.ACL) {
	for i := range n {
		acls = append(acls, proxy.ACL{Resource: 2, Name: fmt.Sprint(from, i), Pattern: 3, Principal: "User:u", Host: "*", Operation: 3, Permission: 3})
	}
	return acls
}

// What is changed through one node is the same on all; a deletion finds what
// was acknowledged by any node before.
func TestAccessFromEveryNode(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	var wg sync.WaitGroup
	for _, m := range r.members {
		wg.Go(func() {
			if err := m.cluster.CreateACLs(r.ctx(), someACLs(fmt.Sprint("n", m.id, "-"), 2*accessAtOnce+1)); err != nil {
				t.Errorf("node %d: %v", m.id, err)
			}
		})
	}
	wg.Wait()
	theirs := someACLs("brokers", 1)
	for _, m := range r.members {
		just := someACLs(fmt.Sprint("just", m.id, "-"), 1)
		if err := m.cluster.CreateACLs(r.ctx(), just); err != nil {
			t.Fatal(err)
		}
		through := r.members[m.id%3+1]
		deleted, err := through.cluster.DeleteACLs(r.ctx(), func(acl proxy.ACL) bool { return acl == just[0] }, theirs)
		if err != nil || len(deleted) != 2 || deleted[0] != theirs[0] || deleted[1] != just[0] {
			t.Fatalf("deleted %+v, %v", deleted, err)
		}
	}
	quota := proxy.Quota{UserIs: 2, User: "u", Key: "consumer_byte_rate"}
	if err := r.members[2].cluster.AlterQuotas(r.ctx(), []proxy.QuotaChange{{Quota: quota, Value: 3}}); err != nil {
		t.Fatal(err)
	}
	for _, m := range r.members {
		r.holds(m, fsm.CatalogGroup, "all ACLs", func(g *fsm.Group) bool {
			a := g.Catalog.Access
			return len(a.ACLs) == 3*(2*accessAtOnce+1)+4 && a.ACLs[fsm.ACL(theirs[0])].Gone && a.Quotas[fsm.Quota(quota)].Value == 3
		})
	}
}

// A change is answered when the local broker has it, and only then.
func TestAccessIsWaitedFor(t *testing.T) {
	t.Parallel()
	var applied [4]watch.Index
	r := running(t, func(cfg *Config) { cfg.AccessApplied = &applied[cfg.Self] })
	m := r.members[r.leaderOf(fsm.CatalogGroup).id%3+1] // it asks the leader
	done := make(chan error, 1)
	go func() { done <- m.cluster.CreateACLs(r.ctx(), someACLs("a", 2)) }()
	r.holds(m, fsm.CatalogGroup, "the ACLs", func(g *fsm.Group) bool { return g.Catalog.Access.Revision == 2 })
	applied[m.id].Set(1)
	select {
	case err := <-done:
		t.Fatalf("answered before the broker has it: %v", err)
	default:
	}
	applied[m.id].Set(2)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	go func() { done <- m.cluster.CreateACLs(r.ctx(), someACLs("b", 1)) }()
	r.holds(m, fsm.CatalogGroup, "one more", func(g *fsm.Group) bool { return g.Catalog.Access.Revision == 3 })
	m.cluster.cancel()
	if err := <-done; !errors.Is(err, errClosing) {
		t.Errorf("while the node stops: %v", err)
	}
}
