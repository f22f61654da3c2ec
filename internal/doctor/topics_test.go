package doctor

import (
	"context"
	"errors"
	"testing"
)

func findTopics(t *testing.T, p planted, list *Topics, err error) []Finding {
	t.Helper()
	return Examine(t.Context(), TopicChecks(p, "node 1", func(context.Context) (*Topics, error) { return list, err }, 8<<20))
}

// What brokers hold from before is told by broker, and what is in conflict by
// name.
func TestTopics(t *testing.T) {
	t.Parallel()
	has(t, findTopics(t, planted{}, &Topics{Alone: true}, nil), OK, "no broker that was asked")
	has(t, findTopics(t, planted{}, nil, errors.New("refused")), Unknown, "refused")
	many := &Topics{Silent: map[string]string{"node 3": "refused"}, Foreign: []Holding{
		{Topic: "a", Records: map[string]int64{"node 1": 5}},
		{Topic: "b", Records: map[string]int64{"node 1": 7, "node 2": 7}},
		{Topic: "c", Records: map[string]int64{"node 1": 1, "node 2": 9}, Conflict: true},
		{Topic: "d", Records: map[string]int64{"node 2": 9}, Aside: true},
	}}
	found := findTopics(t, planted{}, many, nil)
	has(t, found, Warning, "the broker of node 1 holds 3 topics from before lockstep, 13 records: a, b, c")
	has(t, found, Warning, "the broker of node 2 holds 2 topics from before lockstep, 16 records: b, c")
	has(t, found, Warning, "topic c is in conflict: the brokers of node 1 and node 2")
	has(t, found, Warning, "the broker of node 2 keeps another topic d")
	has(t, found, Unknown, "node 3 cannot be asked")
	many.Alone = true
	has(t, findTopics(t, planted{}, many, nil), Unknown, "whether other brokers hold")
	has(t, findTopics(t, planted{}, &Topics{Unsure: []string{"x"}}, nil), Unknown, "only a running node knows")
	has(t, findTopics(t, planted{}, &Topics{Foreign: holding("a", "b", "c", "d", "e", "f", "g")}, nil), Warning, "a, b, c, d, e and 2 more")
}

func holding(names ...string) (out []Holding) {
	for _, name := range names {
		out = append(out, Holding{Topic: name, Records: map[string]int64{"node 1": 1}})
	}
	return out
}

// Settings by which a broker rewrites or refuses what is committed are errors in
// Lockstep's topics. Adoption puts them right in others, but for the broker's own
// times.
func TestTopicSettings(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{"compression.type": "gzip", "message.timestamp.type": "LogAppendTime", "max.message.bytes": "1048588",
		"segment.bytes": "1048576", "min.insync.replicas": "2", "message.timestamp.before.max.ms": "3600000", "message.timestamp.after.max.ms": "3600000"} {
		p := planted{topics: map[string]map[string]string{"t": {name: value}, "u": {name: value}, "elsewhere": {name: value}}}
		has(t, findTopics(t, p, &Topics{Own: []string{"t", "u"}}, nil), Error, name+" is "+value+" in 2 topics of lockstep's on the broker: t, u")
		before := &Topics{Foreign: append(holding("t"), Holding{Topic: "elsewhere", Records: map[string]int64{"node 2": 1}})}
		found := findTopics(t, p, before, nil)
		if name == "message.timestamp.type" {
			has(t, found, Warning, "message.timestamp.type is LogAppendTime in 1 topic from before lockstep: t")
		}
		if Bad(found) {
			t.Errorf("%s of a topic that is not lockstep's yet: %+v", name, found)
		}
	}
	well := planted{topics: map[string]map[string]string{"t": {"compression.type": "producer", "message.timestamp.type": "CreateTime", "max.message.bytes": "2147483647",
		"segment.bytes": "1073741824", "min.insync.replicas": "1", "message.timestamp.before.max.ms": "9223372036854775807", "message.timestamp.after.max.ms": "9223372036854775807"}}}
	for _, f := range findTopics(t, well, &Topics{Own: []string{"t"}}, nil) {
		if f.Severity != OK {
			t.Errorf("nothing is wrong: %+v", f)
		}
	}
	offsets := planted{topics: map[string]map[string]string{offsetsTopic: {"min.insync.replicas": "2"}}}
	has(t, findTopics(t, offsets, &Topics{}, nil), Error, "min.insync.replicas of __consumer_offsets is 2")
}
