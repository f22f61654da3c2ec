package fsm

import (
	"errors"
	"maps"
	"testing"
)

// one applies a single command and returns its result.
func one(t *testing.T, g *Group, kind Kind, body any) Result {
	t.Helper()
	results, err := g.Apply(g.Index+1, EncodeEntry(1, []Command{Control(kind, body)}))
	if err != nil {
		t.Fatal(err)
	}
	return results[0]
}

// Two changes made of the same settings cannot undo each other, and a group is
// never taken back to older settings.
func TestTopicConfig(t *testing.T) {
	catalog := NewGroup(CatalogGroup)
	id := one(t, catalog, KindCreateTopic, CreateTopic{Name: "a", Partitions: 1, Groups: 1, Config: map[string]string{"x": "0"}}).Topic
	alter := func(revision uint64, value string) Result {
		return one(t, catalog, KindAlterTopicConfig, AlterTopicConfig{Topic: id, Revision: revision, Config: map[string]string{"x": value}})
	}
	if r := alter(0, "1"); r.Verdict != Done {
		t.Fatalf("first change: %+v", r)
	}
	if r := alter(0, "2"); r.Verdict != Rejected || r.Code != CodeStaleRevision {
		t.Fatalf("a change of settings that are no more: %+v", r)
	}
	if r := one(t, catalog, KindAlterTopicConfig, AlterTopicConfig{Topic: id + 1}); r.Code != codeUnknownTopic {
		t.Fatalf("no such topic: %+v", r)
	}
	for _, step := range []struct{ say, want uint64 }{{2, 0}, {1, 1}, {0, 1}} {
		one(t, catalog, KindTopicConfigured, TopicConfigured{Topic: id, Revision: step.say})
		if got := catalog.Catalog.Topics[id]; got.Configured != step.want || got.Revision != 1 || got.Config["x"] != "1" {
			t.Fatalf("after configured %d: %+v", step.say, got)
		}
	}
	one(t, catalog, KindDeleteTopic, DeleteTopic{Topic: id})
	if r := alter(1, "3"); r.Code != codeUnknownTopic {
		t.Fatalf("a topic that is being deleted: %+v", r)
	}

	g := NewGroup(1)
	config := func(level, revision uint64, value string) Result {
		return one(t, g, KindConfig, Config{Level: level, Topic: 7, Name: "a", Revision: revision, Config: map[string]string{"x": value}})
	}
	if r := config(1, 1, "1"); r.Verdict != Done || r.Open != nil || len(g.Topics) != 0 {
		t.Fatalf("settings of a topic that is not here: %+v", r)
	}
	one(t, g, KindOpen, Open{Level: 2, Topic: 7, Name: "a", Total: 3, Partitions: []int32{0, 2}, Config: map[string]string{"x": "0"}})
	for _, step := range []struct {
		level, revision uint64
		value           string
		code            int16
		news            bool
		want            string
	}{
		{3, 2, "2", 0, true, "2"},
		{3, 2, "2", 0, false, "2"},
		{3, 1, "1", 0, false, "2"},
		{1, 3, "3", CodeStaleLevel, false, "2"},
		{4, 3, "3", 0, true, "3"},
	} {
		before := g.Topics[7]
		old := maps.Clone(before.Config)
		r := config(step.level, step.revision, step.value)
		if r.Code != step.code || (r.Open != nil) != step.news {
			t.Fatalf("%+v: %+v", step, r)
		}
		if o := g.Topics[7]; o.Config["x"] != step.want || o.Total != 3 || len(o.Partitions) != 2 || o.Name != "a" {
			t.Fatalf("%+v: the group has %+v", step, o)
		}
		if !maps.Equal(before.Config, old) {
			t.Fatal("a published Open was modified")
		}
	}
	for _, g := range []*Group{g, catalog} {
		again, err := DecodeGroup(g.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if string(again.Encode()) != string(g.Encode()) {
			t.Errorf("group %d is not what was encoded", g.ID)
		}
	}
	if only := g.Only(TP{Topic: 7, Partition: 2}); only.Topics[7].Revision != 3 {
		t.Errorf("a copy of one partition has revision %d", only.Topics[7].Revision)
	}
	if _, err := g.Apply(g.Index+1, EncodeEntry(0, []Command{{Kind: KindConfig, Body: []byte(`{"level":9,"other":1}`)}})); !errors.Is(err, ErrCorruptEntry) {
		t.Errorf("an unknown field: %v", err)
	}
}
