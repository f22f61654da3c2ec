package fsm

// Settings of a topic. They are changed in the catalog, as a whole and only
// from the revision that the proposer saw, so that two changes at the same time
// cannot undo each other. From there the catalog's leader brings them to the
// topic's groups as a level: each group has an entry that says from where on in
// its log they hold.

// The commands about settings. Numbers are part of the log's format and never
// reused.
const (
	KindConfig           Kind = 7  // a topic's settings change in this group
	KindAlterTopicConfig Kind = 48 // a topic's settings change in the catalog
	KindTopicConfigured  Kind = 49 // every group of a topic has its settings
)

// CodeStaleRevision is the code of an AlterTopicConfig that was made from
// settings that are not the topic's any more. No client ever sees it.
const CodeStaleRevision = -1001

// Config brings a topic's settings to a group. It is a level, like Open.
type Config struct {
	Level    uint64            `json:"level"` // catalog index the proposer read
	Topic    uint64            `json:"topic"`
	Name     string            `json:"name"`
	Revision uint64            `json:"revision"`
	Config   map[string]string `json:"config,omitempty"`
}

// AlterTopicConfig replaces all settings of a topic.
type AlterTopicConfig struct {
	Topic    uint64            `json:"topic"`
	Revision uint64            `json:"revision"` // that the proposer saw
	Config   map[string]string `json:"config,omitempty"`
}

// TopicConfigured says that every group of a topic has its settings as of a
// revision.
type TopicConfigured struct {
	Topic    uint64 `json:"topic"`
	Revision uint64 `json:"revision"`
}

// config gives the topic's Open the new settings. Its result carries that Open
// if they are news to this group.
func (g *Group) config(a *Config) Result {
	if a.Level < g.Level {
		return rejected(CodeStaleLevel, "older than the catalog this group has seen")
	}
	g.Level = a.Level
	old := g.Topics[a.Topic]
	if old == nil || old.Revision >= a.Revision {
		return Result{}
	}
	o := *old
	o.Config, o.Revision = a.Config, a.Revision
	g.Topics[a.Topic] = &o
	return Result{Open: &o}
}

func (c *Catalog) alterTopicConfig(a *AlterTopicConfig) (Result, bool) {
	t := c.Topics[a.Topic]
	switch {
	case t == nil || t.State == TopicDeleting:
		return rejected(codeUnknownTopic, "no such topic"), false
	case t.Revision != a.Revision:
		return rejected(CodeStaleRevision, "the topic's settings are at revision %d, not %d", t.Revision, a.Revision), false
	}
	c.edit(t, func(t *CatalogTopic) {
		t.Config = a.Config
		t.Revision++
	})
	return Result{Topic: t.ID}, true
}

func (c *Catalog) topicConfigured(a *TopicConfigured) (Result, bool) {
	t := c.Topics[a.Topic]
	if t == nil || a.Revision <= t.Configured || a.Revision > t.Revision {
		return Result{}, false
	}
	c.edit(t, func(t *CatalogTopic) { t.Configured = a.Revision })
	return Result{}, true
}
