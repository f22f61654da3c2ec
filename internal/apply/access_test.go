package apply

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/internal/watch"
)

// accessBroker is a broker that has ACLs and quotas only.
type accessBroker struct {
	mu       sync.Mutex
	up       bool
	changed  chan struct{}
	authless bool
	refuses  string // the resource of ACLs that it takes for wrong
	failures int    // changes that go wrong from here on
	acls     map[broker.ACL]bool
	quotas   map[broker.Quota]float64
	log      []string // what it was told to do, in order
	asked    int
	did      watch.Index // counts log
}

func newAccessBroker() *accessBroker {
	return &accessBroker{up: true, changed: make(chan struct{}), acls: make(map[broker.ACL]bool), quotas: make(map[broker.Quota]float64)}
}

// edit changes the broker behind everybody's back.
func (b *accessBroker) edit(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *accessBroker) setUp(up bool) {
	b.edit(func() {
		b.up = up
		close(b.changed)
		b.changed = make(chan struct{})
	})
}

func (b *accessBroker) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

func (b *accessBroker) WaitUp(ctx context.Context) error {
	for {
		b.mu.Lock()
		up, changed := b.up, b.changed
		b.mu.Unlock()
		if up {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (b *accessBroker) ACLs(context.Context) ([]broker.ACL, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	if b.authless {
		return nil, fmt.Errorf("list: %w", broker.ErrNoAuthorizer)
	}
	return slices.Collect(maps.Keys(b.acls)), nil
}

func (b *accessBroker) change(what string, f func()) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures > 0 {
		b.failures--
		return errors.New("connection lost")
	}
	b.log = append(b.log, what)
	f()
	b.did.Set(uint64(len(b.log)))
	return nil
}

func (b *accessBroker) CreateACLs(_ context.Context, acls []broker.ACL, refused func(broker.ACL, error)) error {
	return b.change(fmt.Sprint("create", names(acls)), func() {
		for _, acl := range acls {
			if acl.Name == b.refuses {
				refused(acl, &broker.CodeError{Code: 42})
				continue
			}
			b.acls[acl] = true
		}
	})
}

func (b *accessBroker) DeleteACLs(_ context.Context, acls []broker.ACL, _ func(broker.ACL, error)) error {
	return b.change(fmt.Sprint("delete", names(acls)), func() {
		for _, acl := range acls {
			delete(b.acls, acl)
		}
	})
}

func (b *accessBroker) Quotas(context.Context) (map[broker.Quota]float64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.quotas), nil
}

func (b *accessBroker) AlterQuotas(_ context.Context, changes []broker.QuotaChange, _ func(broker.Quota, error)) error {
	return b.change(fmt.Sprint("quotas ", len(changes)), func() {
		for _, c := range changes {
			if c.Gone {
				delete(b.quotas, c.Quota)
			} else {
				b.quotas[c.Quota] = c.Value
			}
		}
	})
}

func names(acls []broker.ACL) (out []string) {
	for _, acl := range acls {
		out = append(out, acl.Name)
	}
	return out
}

func (b *accessBroker) topics() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(slices.Values(names(slices.Collect(maps.Keys(b.acls)))))
}

// accessCatalog is group 0 of a node.
type accessCatalog struct {
	t       *testing.T
	mu      sync.Mutex
	g       *fsm.Group
	version watch.Index
}

func (c *accessCatalog) Read(f func(*fsm.Group)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c.g)
}

func (c *accessCatalog) CatalogChanged() *watch.Index { return &c.version }

// commit returns the revision after a command.
func (c *accessCatalog) commit(kind fsm.Kind, body any) uint64 {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.g.Apply(c.g.Index+1, fsm.EncodeEntry(0, []fsm.Command{fsm.Control(kind, body)}))
	if err != nil || r[0].Verdict != fsm.Done {
		c.t.Fatalf("%+v, %v", r, err)
	}
	c.version.Set(c.g.Catalog.Version)
	return r[0].Revision
}

func readACL(topics ...string) (acls []fsm.ACL) {
	for _, name := range topics {
		acls = append(acls, fsm.ACL{Resource: 2, Name: name, Pattern: 3, Principal: "User:u", Host: "*", Operation: 3, Permission: 3})
	}
	return acls
}

type accessWorld struct {
	t       *testing.T
	broker  *accessBroker
	catalog *accessCatalog
	access  *Access
	current chan struct{} // a token for each time that it is told to be; nil: always
}

func newAccessWorld(t *testing.T) *accessWorld {
	w := &accessWorld{t: t, broker: newAccessBroker(), catalog: &accessCatalog{t: t, g: fsm.NewGroup(fsm.CatalogGroup)}}
	w.start()
	t.Cleanup(func() { _ = w.access.Close() })
	return w
}

func (w *accessWorld) start() {
	w.access = NewAccess(AccessConfig{Catalog: w.catalog, Broker: w.broker, BrokerChanged: w.broker.Changed, Current: w.isCurrent,
		Logger: hclog.New(&hclog.LoggerOptions{Output: &testLog{w.t}, Level: hclog.Debug})})
	w.access.Open()
}

func (w *accessWorld) isCurrent(ctx context.Context) error {
	if w.current == nil {
		return nil
	}
	select {
	case _, yes := <-w.current:
		if !yes {
			return nil
		}
		return errors.New("no leader")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// has waits for a revision, then looks at the broker's ACLs.
func (w *accessWorld) has(what string, revision uint64, topics ...string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	if _, err := w.access.Applied().Wait(ctx, revision); err != nil {
		w.t.Fatalf("%s: revision %d: %v", what, revision, err)
	}
	if got := w.broker.topics(); !slices.Equal(got, topics) {
		w.t.Fatalf("%s: the broker has %v, want %v", what, got, topics)
	}
}

// A broker gets what the catalog has, loses what is gone, and keeps what the
// catalog does not know: at once, after it was away, after it was restored from
// an older state, and by a node that starts anew or is given a snapshot.
func TestACLsReachTheBroker(t *testing.T) {
	w := newAccessWorld(t)
	w.broker.acls[broker.ACL(readACL("operators")[0])] = true
	w.has("nothing", 0, "operators")
	create := func(topics ...string) uint64 {
		return w.catalog.commit(fsm.KindCreateACLs, fsm.CreateACLs{ACLs: readACL(topics...)})
	}
	remove := func(topics ...string) uint64 {
		return w.catalog.commit(fsm.KindDeleteACLs, fsm.DeleteACLs{ACLs: readACL(topics...)})
	}
	w.has("created", create("b", "a"), "a", "b", "operators")

	w.broker.setUp(false)
	remove("a")
	rev := create("c")
	if w.access.Applied().Get() >= rev {
		t.Error("a broker that is down was said to have it")
	}
	w.broker.edit(func() { w.broker.failures = 2 })
	w.broker.setUp(true)
	w.has("after it was away", rev, "b", "c", "operators")
	if w.broker.failures != 0 {
		t.Error("what went wrong was not tried")
	}

	// An older state: all that it has missed since, once more.
	w.broker.setUp(false)
	w.broker.edit(func() { w.broker.acls = map[broker.ACL]bool{broker.ACL(readACL("a")[0]): true} })
	w.broker.setUp(true)
	w.eventually("after an older state", "b", "c")

	if err := w.access.Close(); err != nil {
		t.Fatal(err)
	}
	rev = remove("b")
	w.catalog.mu.Lock()
	again, err := fsm.DecodeGroup(w.catalog.g.Encode())
	w.catalog.g = again
	w.catalog.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	told := len(w.broker.log)
	w.start()
	w.has("a node from a snapshot", rev, "c")
	if got := w.broker.log[told:]; !slices.Equal(got, []string{"delete[b]"}) {
		t.Errorf("only what differs is sent: %v", got)
	}
}

// eventually waits, without a change of the catalog, for the broker's ACLs.
func (w *accessWorld) eventually(what string, topics ...string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	for {
		done, changed := w.broker.did.Changed()
		if slices.Equal(w.broker.topics(), topics) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			w.t.Fatalf("%s: after %d changes the broker has %v, want %v", what, done, w.broker.topics(), topics)
		}
	}
}

// One that a broker refuses, and a broker without an authorizer, hold up nothing.
func TestRefusedACLs(t *testing.T) {
	w := newAccessWorld(t)
	w.broker.edit(func() { w.broker.refuses = "bad" })
	w.has("all but one", w.catalog.commit(fsm.KindCreateACLs, fsm.CreateACLs{ACLs: readACL("bad", "good")}), "good")
	w.broker.edit(func() { w.broker.authless, w.broker.acls = true, nil })
	w.catalog.commit(fsm.KindDeleteACLs, fsm.DeleteACLs{ACLs: readACL("good")})
	rev := w.catalog.commit(fsm.KindAlterQuotas, fsm.AlterQuotas{Changes: []fsm.QuotaChange{{Quota: fsm.Quota{UserIs: fsm.NameGiven, User: "u", Key: "consumer_byte_rate"}, Value: 5}}})
	w.has("no authorizer", rev)
	if len(w.broker.quotas) != 1+len(unlimited) {
		t.Errorf("quotas %v", w.broker.quotas)
	}
}

// Quotas are set after this node has made itself an exception of them.
func TestQuotasReachTheBroker(t *testing.T) {
	w := newAccessWorld(t)
	everybody := fsm.Quota{UserIs: fsm.NameDefault, Key: "producer_byte_rate"}
	client := fsm.Quota{ClientIs: fsm.NameGiven, Client: "c", Key: "request_percentage"}
	operators := broker.Quota{UserIs: fsm.NameGiven, User: "theirs", Key: "consumer_byte_rate"}
	w.broker.quotas[operators] = 7
	alter := func(changes ...fsm.QuotaChange) uint64 {
		return w.catalog.commit(fsm.KindAlterQuotas, fsm.AlterQuotas{Changes: changes})
	}
	check := func(revision uint64, want map[broker.Quota]float64) {
		t.Helper()
		w.has("quotas", revision)
		want[operators] = 7
		for _, q := range unlimited {
			want[q] = noLimit
		}
		if !maps.Equal(w.broker.quotas, want) {
			t.Errorf("the broker has %v, want %v", w.broker.quotas, want)
		}
	}
	check(alter(fsm.QuotaChange{Quota: everybody, Value: 1024}, fsm.QuotaChange{Quota: client, Value: 2.5}),
		map[broker.Quota]float64{broker.Quota(everybody): 1024, broker.Quota(client): 2.5})
	if w.broker.asked != 0 {
		t.Errorf("the broker was asked %d times for ACLs, of which the catalog has none", w.broker.asked)
	}
	if len(w.broker.log) != 2 || w.broker.log[0] != fmt.Sprint("quotas ", len(unlimited)) {
		t.Errorf("the exception comes first: %v", w.broker.log)
	}
	own := fsm.Quota(unlimited[0])
	check(alter(fsm.QuotaChange{Quota: everybody, Gone: true}, fsm.QuotaChange{Quota: client, Value: 3}, fsm.QuotaChange{Quota: own, Value: 1}),
		map[broker.Quota]float64{broker.Quota(client): 3})
	if got := w.broker.log[2:]; !slices.Equal(got, []string{"quotas 2"}) {
		t.Errorf("only what differs is sent: %v", got)
	}
}

// A node that starts has an older state of the log than its broker was told
// already: it gives back no right before it knows what is acknowledged.
func TestOldCatalogIsNotEnforced(t *testing.T) {
	w := newAccessWorld(t)
	rev := w.catalog.commit(fsm.KindCreateACLs, fsm.CreateACLs{ACLs: readACL("a")})
	w.has("created", rev, "a")
	old := w.catalog.g.Encode()
	rev = w.catalog.commit(fsm.KindDeleteACLs, fsm.DeleteACLs{ACLs: readACL("a")})
	w.has("deleted", rev)
	if err := w.access.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.catalog.g, err = fsm.DecodeGroup(old); err != nil {
		t.Fatal(err)
	}
	told := len(w.broker.log)
	w.current = make(chan struct{})
	w.start()
	for range 2 { // it asks, and once more
		select {
		case w.current <- struct{}{}:
		case <-time.After(10 * time.Second):
			t.Fatal("it does not ask whether the catalog is old")
		}
	}
	if got := w.catalog.commit(fsm.KindDeleteACLs, fsm.DeleteACLs{ACLs: readACL("a")}); got != rev {
		t.Fatalf("revision %d, want %d", got, rev)
	}
	close(w.current)
	w.has("after the log", rev)
	if got := w.broker.log[told:]; len(got) != 0 {
		t.Errorf("an old catalog was enforced: %v", got)
	}
}
