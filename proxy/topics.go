package proxy

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"

	"lockstep/kafkawire"
)

// The authorized-operations bits that Kafka gives when it has no authorizer:
// every operation of the resource type (AclEntry.supportedOperations), one bit
// by its ACL code.
const (
	topicOperations   = 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<11 // read, write, create, delete, alter, describe, describe and alter configs
	clusterOperations = 1<<5 | 1<<7 | 1<<8 | 1<<9 | 1<<10 | 1<<11 | 1<<12       // create, alter, describe, cluster action, describe and alter configs, idempotent write
	noOperations      = math.MinInt32                                           // not asked for
	maxTopicName      = 249                                                     // Topic.MAX_NAME_LENGTH
	topicNameChars    = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
)

// topicNameProblem says what is wrong with a topic's name by Kafka's rules
// (org.apache.kafka.common.internals.Topic), and "" for a legal one.
func topicNameProblem(name string) string {
	switch {
	case name == "":
		return "the topic name is empty"
	case name == "." || name == "..":
		return "the topic name cannot be \".\" or \"..\""
	case len(name) > maxTopicName:
		return "the topic name is longer than 249 characters"
	case !onlyTopicChars(name):
		return "the topic name has a character other than ASCII letters, digits, '.', '_' and '-'"
	}
	return ""
}

func onlyTopicChars(name string) bool {
	for i := 0; i < len(name); i++ {
		if strings.IndexByte(topicNameChars, name[i]) < 0 {
			return false
		}
	}
	return true
}

// isInternalTopic names the topics that every broker keeps for itself. They
// are never replicated, so they are not topics to clients of the cluster.
func isInternalTopic(name string) bool {
	return name == "__consumer_offsets" || name == "__transaction_state" || name == "__share_group_state" || name == "__cluster_metadata"
}

// errorCode is what a client may be told of an error of the rest of the node.
// What is not a *KafkaError is ours (shutdown, deadline): its outcome is
// unknown, and 7 says just that.
func errorCode(err error) (int16, string) {
	if err == nil {
		return 0, ""
	}
	var ke *KafkaError
	if errors.As(err, &ke) {
		return ke.Code, ke.Message
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return kerr.RequestTimedOut.Code, "the request timed out; its outcome is unknown"
	}
	return kerr.RequestTimedOut.Code, "the node could not finish the request; its outcome is unknown"
}

// partitionCode says whether this node may serve a partition: 0, or what to
// tell the client.
func partitionCode(v *View, topic string, partition int32) (*Topic, int16) {
	t := v.Topics[topic]
	switch {
	case t == nil && !v.CatalogReady:
		// Not known is not unknown yet; 6 sends the client back to Metadata.
		return nil, kerr.NotLeaderForPartition.Code
	case t == nil, partition < 0, int(partition) >= len(t.Partitions):
		return nil, kerr.UnknownTopicOrPartition.Code
	case !v.Leads(t, partition):
		return t, kerr.NotLeaderForPartition.Code
	}
	return t, 0
}

// stillLeads says whether v shows the same topic (a topic deleted and created
// again is another) with its partition led by this node.
func stillLeads(v *View, t *Topic, partition int32) bool {
	now := v.Topics[t.Name]
	return now != nil && now.ID == t.ID && v.Leads(now, partition)
}

// brokerCode turns an error of the local broker about a partition that this
// node leads into one that clients understand: the broker knows nothing of our
// leaders, so "unknown", "not leader" and fenced epochs only mean that it is
// not ready, and the client shall look again.
func brokerCode(code int16) int16 {
	switch code {
	case kerr.UnknownTopicOrPartition.Code, kerr.LeaderNotAvailable.Code, kerr.NotLeaderForPartition.Code,
		kerr.ReplicaNotAvailable.Code, kerr.FencedLeaderEpoch.Code, kerr.UnknownLeaderEpoch.Code, kerr.UnknownTopicID.Code:
		return kerr.NotLeaderForPartition.Code
	}
	return code
}

// compacted says whether a topic's brokers take records out of its logs.
func compacted(t *Topic) bool { return strings.Contains(t.Config["cleanup.policy"], "compact") }

// produceLimits are a topic's limits on a batch.
func (s *Server) produceLimits(t *Topic, version int16, nowMs int64) kafkawire.Limits {
	return kafkawire.Limits{
		MaxBatchBytes:        int(configInt(t, "max.message.bytes", int64(s.cfg.Topics.MaxMessageBytes))),
		Compacted:            compacted(t),
		NowMs:                nowMs,
		TimestampBeforeMaxMs: configInt(t, "message.timestamp.before.max.ms", math.MaxInt64),
		TimestampAfterMaxMs:  configInt(t, "message.timestamp.after.max.ms", defaultTimestampAfterMaxMs),
		ProduceVersion:       version,
		RepairMaxTimestamp:   true,
	}
}

// defaultTimestampAfterMaxMs is Kafka 4's: one hour (KIP-1030).
const defaultTimestampAfterMaxMs = 3_600_000

// configInt returns a numeric setting of a topic. The catalog holds what
// CreateTopics has checked, so an unreadable value is as good as none.
func configInt(t *Topic, key string, fallback int64) int64 {
	if v, ok := t.Config[key]; ok {
		if n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64); err == nil {
			return n
		}
	}
	return fallback
}

// liveNodes returns the nodes to show to clients of a listener: alive, or
// this one, which is alive since it answers.
func liveNodes(v *View, listener string) map[int32]Endpoint {
	nodes := make(map[int32]Endpoint, len(v.Nodes))
	for _, n := range v.Nodes {
		if ep, ok := n.Listeners[listener]; ok && (n.Alive || n.ID == v.Self) {
			nodes[n.ID] = ep
		}
	}
	return nodes
}
