package broker

import (
	"sort"
	"strconv"
)

// setting is one topic configuration with the values to try, best first.
type setting struct {
	name   string
	values []string
}

// forever is the widest limit in milliseconds.
const forever = "9223372036854775807"

// minSegmentBytes keeps segment.bytes above the largest batch that may ever be
// committed (16 MiB): a batch larger than a segment is refused with
// RECORD_LIST_TOO_LARGE.
const minSegmentBytes = 32 << 20

// permissive are the settings that keep a broker from refusing or rewriting
// what was committed, now or when it is replayed later. They are never taken
// from a client.
var permissive = []setting{
	{"compression.type", []string{"producer"}},
	{"max.message.bytes", []string{"2147483647", "1073741824", "104857600", "33554432"}},
	{"message.timestamp.type", []string{"CreateTime"}},
	// Kafka 4.0 lowered the default of after.max.ms to one hour (KIP-1030).
	{"message.timestamp.before.max.ms", []string{forever}},
	{"message.timestamp.after.max.ms", []string{forever}},
	// A topic that is adopted may ask for more; the broker has no other.
	{"min.insync.replicas", []string{"1"}},
	// Random jitter would make segment boundaries differ between brokers.
	{"segment.jitter.ms", []string{"0"}},
}

// passedOn are the client's settings a broker may have as they are: they
// decide when data leaves, how it is laid out or when it is flushed, never
// whether a batch is taken or what its bytes are.
//
// cleanup.policy is among them although a compacted topic refuses records
// without a key: such batches are refused before they are proposed. A topic
// that became compacted later may hold older ones; whoever refills its log on
// a blank broker does so before setting the policy (ConfigureTopic).
var passedOn = map[string]bool{
	"cleanup.policy":            true,
	"delete.retention.ms":       true,
	"file.delete.delay.ms":      true,
	"flush.messages":            true,
	"flush.ms":                  true,
	"index.interval.bytes":      true,
	"max.compaction.lag.ms":     true,
	"min.cleanable.dirty.ratio": true,
	"min.compaction.lag.ms":     true,
	"retention.bytes":           true,
	"retention.ms":              true,
	"segment.bytes":             true,
	"segment.index.bytes":       true,
	"segment.ms":                true,
}

// PassedOn says whether a client's topic setting of that name is given to the
// broker. All others live in the catalog only.
func PassedOn(name string) bool { return passedOn[name] }

// topicSettings returns what a topic is created with, in a fixed order.
func topicSettings(client map[string]string) []setting {
	settings := append([]setting(nil), permissive...)
	names := make([]string, 0, len(client))
	for name := range client {
		if passedOn[name] {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		settings = append(settings, setting{name, []string{passedValue(name, client[name])}})
	}
	return settings
}

func passedValue(name, value string) string {
	if name != "segment.bytes" {
		return value
	}
	if n, err := strconv.ParseInt(value, 10, 64); err == nil && n < minSegmentBytes {
		return strconv.Itoa(minSegmentBytes)
	}
	return value
}
