package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Topics is what the brokers hold, as far as it could be found out.
type Topics struct {
	// Foreign are those that are not Lockstep's, by name.
	Foreign []Holding
	// Own are Lockstep's on the local broker.
	Own []string
	// Unsure are topics of the local broker of which only a running node knows
	// whose they are.
	Unsure []string
	// Silent are the brokers that could not be asked, and why.
	Silent map[string]string
	// Alone: no other broker was asked.
	Alone bool
}

// Holding is one topic from before Lockstep.
type Holding struct {
	Topic   string
	Records map[string]int64 // offsets that it spans, by who holds it
	// Conflict: those who hold it have different logs. Aside: the cluster has
	// another topic of that name.
	Conflict, Aside bool
}

// TopicChecks look at the topics that the brokers hold. self is how the list
// calls the local broker.
func TopicChecks(b Broker, self string, list func(ctx context.Context) (*Topics, error), maxMessage int64) []Check {
	return []Check{{"topics", func(ctx context.Context) []Finding {
		t, err := list(ctx)
		if err != nil {
			return unknown("start the broker, then ask again", "the brokers' topics cannot be listed: %v", err)
		}
		out := append(t.holdings(), t.conflicts()...)
		for _, who := range slices.Sorted(maps.Keys(t.Silent)) {
			out = append(out, unknown("start what is missing, then ask again", "the broker of %s cannot be asked what it holds: %s", who, t.Silent[who])...)
		}
		if t.Alone && len(out) > 0 {
			out = append(out, unknown("name them with --brokers, or ask again once the nodes run",
				"whether other brokers hold topics of the same names is not known before the nodes run")...)
		}
		if len(t.Unsure) > 0 {
			out = append(out, unknown("start the node, then ask again", "the broker holds %d topics; only a running node knows which of them are lockstep's", len(t.Unsure))...)
		}
		if out == nil {
			out = ok("no broker that was asked holds a topic from before lockstep")
		}
		return append(out, topicSettings(ctx, b, t, self, maxMessage)...)
	}}}
}

// holdings says what each broker has, one finding for each.
func (t *Topics) holdings() (out []Finding) {
	names, records := make(map[string][]string), make(map[string]int64)
	for _, h := range t.Foreign {
		for who, n := range h.Records {
			if !h.Aside {
				names[who] = append(names[who], h.Topic)
				records[who] += n
			}
		}
	}
	for _, who := range slices.Sorted(maps.Keys(names)) {
		out = append(out, Finding{Severity: Warning, What: fmt.Sprintf("the broker of %s holds %s from before lockstep, %d records: %s",
			who, topics(len(names[who])), records[who], some(names[who])),
			Why:  "clients of the proxies do not see them, and no topic of such a name can be created, until they are adopted",
			Next: "stop what writes to the broker directly, start all nodes, then `lockstep adopt` lists them and brings them in (docs/adoption.md)"})
	}
	return out
}

func (t *Topics) conflicts() (out []Finding) {
	for _, h := range t.Foreign {
		who := slices.Sorted(maps.Keys(h.Records))
		switch {
		case h.Aside:
			out = append(out, Finding{Severity: Warning, What: fmt.Sprintf("the broker of %s keeps another topic %s than the cluster's", strings.Join(who, " and "), h.Topic),
				Why: "that node has no copy of the cluster's", Next: fmt.Sprintf("take out of it what you need, then `lockstep rebuild %s --force --admin THAT-NODE` gives it up", h.Topic)})
		case h.Conflict:
			out = append(out, Finding{Severity: Warning, What: fmt.Sprintf("topic %s is in conflict: the brokers of %s hold different logs under that name", h.Topic, strings.Join(who, " and ")),
				Why: "nothing is merged: one of them becomes the cluster's", Next: fmt.Sprintf("when all nodes run, `lockstep adopt %s --from NODE` says whose; the others' are kept aside, untouched", h.Topic)})
		}
	}
	return out
}

// topicRules are the settings by which a broker refuses what was committed, or
// writes something else.
func topicRules(maxMessage int64) []setting {
	again := "restart this node, which gives the topic its settings again, and change settings through the proxies only"
	refuses := Finding{Severity: Error, Why: "the broker refuses batches that are committed, and then has no copy of the partition", Next: again}
	rewrites := Finding{Severity: Error, Why: "the broker writes something else than what was committed, and its copy is quarantined", Next: again}
	forever := below(1 << 62)
	return []setting{
		{"compression.type", isNot("producer"), rewrites},
		{"message.timestamp.type", isNot("CreateTime"), rewrites},
		{"max.message.bytes", below(maxMessage), refuses},
		{"segment.bytes", below(maxMessage), refuses},
		{"min.insync.replicas", above(1), refuses},
		{"message.timestamp.before.max.ms", forever, refuses},
		{"message.timestamp.after.max.ms", forever, refuses},
		{"message.timestamp.difference.max.ms", forever, refuses},
	}
}

const offsetsTopic = "__consumer_offsets"

// topicSettings looks at the settings of Lockstep's topics, at times in those
// that might be adopted, and at the topic of committed offsets.
func topicSettings(ctx context.Context, b Broker, t *Topics, self string, maxMessage int64) (out []Finding) {
	rules := topicRules(maxMessage)
	var names, ask []string
	for _, r := range rules {
		names = append(names, r.name)
	}
	own, foreign := t.Own, []string(nil)
	for _, h := range t.Foreign {
		if _, here := h.Records[self]; here {
			foreign = append(foreign, h.Topic)
		}
	}
	ask = append(slices.Concat(own, foreign), offsetsTopic)
	have, err := b.TopicSettings(ctx, ask, names)
	if err != nil {
		return unknown("look at them with kafka-configs --describe --entity-type topics", "the broker does not tell its topics' settings: %v", err)
	}
	bad := func(among []string, name string, wrong func(string) bool) (topics []string, value string) {
		for _, topic := range among {
			if v, told := have[topic][name]; told && wrong(v) {
				topics, value = append(topics, topic), v
			}
		}
		return topics, value
	}
	for _, r := range rules {
		if found, value := bad(own, r.name, r.bad); len(found) > 0 {
			f := r.Finding
			f.What = fmt.Sprintf("%s is %s in %s of lockstep's on the broker: %s", r.name, value, topics(len(found)), some(found))
			out = append(out, f)
		}
	}
	if found, value := bad(foreign, "message.timestamp.type", isNot("CreateTime")); len(found) > 0 {
		out = append(out, Finding{Severity: Warning, What: fmt.Sprintf("message.timestamp.type is %s in %s from before lockstep: %s", value, topics(len(found)), some(found)),
			Why:  "records with the broker's own times cannot be adopted: other brokers would refuse them",
			Next: "set message.timestamp.type=CreateTime on them and wait until retention has deleted what is there, or have a client copy them to new topics"})
	}
	if found, value := bad([]string{offsetsTopic}, "min.insync.replicas", above(1)); len(found) > 0 {
		out = append(out, Finding{Severity: Error, What: fmt.Sprintf("min.insync.replicas of %s is %s", offsetsTopic, value),
			Why: "a broker alone refuses what consumer groups commit", Next: "set min.insync.replicas=1 on that topic at the broker (kafka-configs --alter --entity-type topics)"})
	}
	return out
}

func topics(n int) string {
	if n == 1 {
		return "1 topic"
	}
	return fmt.Sprintf("%d topics", n)
}

// some are the first of many names.
func some(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
