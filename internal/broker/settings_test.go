package broker

import (
	"maps"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Of the quotas that fit the client's own connection the broker takes the most
// precise one, and so does the client.
func TestOwnQuotas(t *testing.T) {
	_, addr := newBroker(t)
	a, ctx := newAdmin(t, addr), testContext(t)
	const key, other = "producer_byte_rate", "request_percentage"
	set := func(q Quota, v float64) {
		t.Helper()
		if err := a.AlterQuotas(ctx, []QuotaChange{{Quota: q, Value: v}}, noRefusal[Quota](t)); err != nil {
			t.Fatal(err)
		}
	}
	is := func(user string, want map[string]float64) {
		t.Helper()
		if got, err := a.OwnQuotas(ctx, user); err != nil || !maps.Equal(got, want) {
			t.Errorf("quotas of %q are %v, want %v (%v)", user, got, want, err)
		}
	}
	set(Quota{UserIs: 2, User: "somebody", Key: key}, 1)
	set(Quota{ClientIs: 2, Client: "some-client", Key: key}, 2)
	is("lockstep", nil)
	set(Quota{ClientIs: 1, Key: key}, 3)
	is("lockstep", map[string]float64{key: 3})
	set(Quota{UserIs: 1, Key: key}, 4)
	set(Quota{UserIs: 2, User: Anonymous, Key: key}, 5)
	set(Quota{UserIs: 1, ClientIs: 2, Client: DefaultClientID, Key: other}, 50)
	is("lockstep", map[string]float64{key: 4, other: 50})
	is("", map[string]float64{key: 5, other: 50})
	set(Quota{UserIs: 2, User: "lockstep", Key: key}, 6)
	is("lockstep", map[string]float64{key: 6, other: 50})
}

// Settings of many topics come in few requests; one that is gone is left out.
func TestTopicSettings(t *testing.T) {
	_, addr := newBroker(t)
	a, ctx := newAdmin(t, addr), testContext(t)
	names := []string{testTopic, "never-there"}
	for _, name := range []string{"a", "b"} {
		if _, err := a.CreateTopic(ctx, name, 1, map[string]string{"retention.ms": "77"}); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	got, err := a.TopicSettings(ctx, names, []string{"retention.ms", "compression.type", "min.insync.replicas"})
	if err != nil || len(got) != 3 {
		t.Fatalf("settings of %v are %v, %v", names, got, err)
	}
	for _, name := range []string{"a", "b"} {
		if !maps.Equal(got[name], map[string]string{"retention.ms": "77", "compression.type": "producer", "min.insync.replicas": "1"}) {
			t.Errorf("topic %s has %v", name, got[name])
		}
	}
}

// A topic that was made for several brokers is made fit for one that is alone.
func TestOneInSyncReplica(t *testing.T) {
	_, addr := newBroker(t)
	a, ctx := newAdmin(t, addr), testContext(t)
	if err := a.AlterConfig(ctx, kmsg.ConfigResourceTypeTopic, testTopic, map[string]*string{"min.insync.replicas": kmsg.StringPtr("2")}); err != nil {
		t.Fatal(err)
	}
	if changed, err := a.EnsureTopicConfig(ctx, testTopic, nil); err != nil || !changed {
		t.Fatalf("changed %t, %v", changed, err)
	}
	own, err := a.OwnTopicConfig(ctx, testTopic)
	if err != nil || own["min.insync.replicas"] != "1" {
		t.Errorf("the topic has %v, %v", own, err)
	}
}
