package proxy

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
)

// topicSettings are Kafka 4's topic settings (LogConfig) and what a value must
// be. Two of them have a value that is refused although Kafka knows it, because
// the cluster could not keep the promise: LogAppendTime would be stamped by each
// broker's own clock, and remote storage is each broker's own.
var topicSettings = map[string]func(string) string{
	"cleanup.policy":                          listOf("compact", "delete"),
	"compression.gzip.level":                  number(-1, 9),
	"compression.lz4.level":                   number(1, 17),
	"compression.type":                        oneOf("uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"),
	"compression.zstd.level":                  number(-131072, 22),
	"delete.retention.ms":                     number(0, math.MaxInt64),
	"file.delete.delay.ms":                    number(0, math.MaxInt64),
	"flush.messages":                          number(1, math.MaxInt64),
	"flush.ms":                                number(0, math.MaxInt64),
	"follower.replication.throttled.replicas": anything,
	"index.interval.bytes":                    number(0, math.MaxInt32),
	"leader.replication.throttled.replicas":   anything,
	"local.retention.bytes":                   number(-2, math.MaxInt64),
	"local.retention.ms":                      number(-2, math.MaxInt64),
	"max.compaction.lag.ms":                   number(1, math.MaxInt64),
	"max.message.bytes":                       number(0, math.MaxInt32),
	"message.timestamp.after.max.ms":          number(0, math.MaxInt64),
	"message.timestamp.before.max.ms":         number(0, math.MaxInt64),
	"message.timestamp.type":                  only("CreateTime", "timestamps are the producers': each broker would stamp its own"),
	"min.cleanable.dirty.ratio":               fraction,
	"min.compaction.lag.ms":                   number(0, math.MaxInt64),
	"min.insync.replicas":                     number(1, math.MaxInt32),
	"preallocate":                             oneOf("true", "false"),
	"remote.log.copy.disable":                 oneOf("true", "false"),
	"remote.log.delete.on.disable":            oneOf("true", "false"),
	"remote.storage.enable":                   only("false", "tiered storage would be each broker's own"),
	"retention.bytes":                         number(math.MinInt64, math.MaxInt64),
	"retention.ms":                            number(-1, math.MaxInt64),
	"segment.bytes":                           number(14, math.MaxInt32),
	"segment.index.bytes":                     number(4, math.MaxInt32),
	"segment.jitter.ms":                       number(0, math.MaxInt64),
	"segment.ms":                              number(1, math.MaxInt64),
	"unclean.leader.election.enable":          oneOf("true", "false"),
}

// listSettings are those to which IncrementalAlterConfigs may append.
var listSettings = map[string]bool{
	"cleanup.policy": true,
	"follower.replication.throttled.replicas": true,
	"leader.replication.throttled.replicas":   true,
}

// settingsConflict says which of a topic's settings contradict each other
// (LogConfig.validateValues).
func settingsConflict(config map[string]string) *KafkaError {
	t := &Topic{Config: config}
	least, most := configInt(t, "min.compaction.lag.ms", 0), configInt(t, "max.compaction.lag.ms", math.MaxInt64)
	if least > most {
		return problem(kerr.InvalidConfig, "conflict topic config setting min.compaction.lag.ms (%d) > max.compaction.lag.ms (%d)", least, most)
	}
	return nil
}

// settingProblem says what is wrong with a topic's setting, "" if nothing.
func settingProblem(name, value string) string {
	check, ok := topicSettings[name]
	if !ok {
		return fmt.Sprintf("unknown topic setting %q", name)
	}
	if msg := check(strings.TrimSpace(value)); msg != "" {
		return fmt.Sprintf("topic setting %q: %s", name, msg)
	}
	return ""
}

func anything(string) string { return "" }

func number(least, most int64) func(string) string {
	return func(v string) string {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < least || n > most {
			return fmt.Sprintf("must be a number between %d and %d", least, most)
		}
		return ""
	}
}

func fraction(v string) string {
	if f, err := strconv.ParseFloat(v, 64); err != nil || !(f >= 0 && f <= 1) {
		return "must be a number between 0 and 1"
	}
	return ""
}

func oneOf(values ...string) func(string) string {
	return func(v string) string {
		if !slices.Contains(values, v) {
			return "must be one of " + strings.Join(values, ", ")
		}
		return ""
	}
}

func only(value, why string) func(string) string {
	return func(v string) string {
		if v != value {
			return "only " + value + " is possible: " + why
		}
		return ""
	}
}

func listOf(values ...string) func(string) string {
	each := oneOf(values...)
	return func(v string) string {
		for _, item := range strings.Split(v, ",") {
			if msg := each(strings.TrimSpace(item)); msg != "" {
				return msg
			}
		}
		return ""
	}
}

// topicsHere returns when the broker has those of the topics that the cluster
// has, so that it does not say of one that was just made that there is none.
func (r *request) topicsHere(names []string) {
	ctx, cancel := context.WithTimeout(r.c.ctx, r.c.srv.cfg.Limits.RightsTimeout)
	defer cancel()
	v := r.c.srv.cluster.View()
	for _, name := range names {
		if t := v.Topics[name]; t != nil {
			r.c.srv.cluster.TopicHere(ctx, t)
		}
	}
}
